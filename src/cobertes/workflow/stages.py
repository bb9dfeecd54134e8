"""The stages of a run, one function each: what it reads and writes lies in the run's folder.

    run (skips what is up to date) --> stages --> labels, tiles, learn, apply

A stage never calls the next one. Each returns a line for people that says what came out.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from cobertes.accuracy.calibration import read_calibration
from cobertes.atomic_io import read_json, write_json
from cobertes.errors import InputFileError, SettingsError
from cobertes.fingerprints import stamp
from cobertes.geo.area import Area
from cobertes.labels.aggregate import make_labels
from cobertes.labels.vote_weights import VoteWeights
from cobertes.progress import SILENT, Progress, SharedBar
from cobertes.settings import with_defaults
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import build_index, load_index, save_index
from cobertes.tiles.split import Split
from cobertes.tiles.store import Store, make_store
from cobertes.workflow.project import Project, load_project
from cobertes.workflow.run_folder import RunFolder
from cobertes.workflow.scene_paths import resolve
from cobertes.workflow.stage_fingerprints import (
    mapped_fingerprints,
    observed_fingerprint,
    read_notes,
    trained_fingerprint,
    training_fingerprint,
    write_note,
)

if TYPE_CHECKING:
    from cobertes.accuracy.disagreement import AuditedArea
    from cobertes.learn.training_cost import TrainingCost
    from cobertes.learn.training_setup import TrainingPlan
    from cobertes.predict.prediction_job import Executor

    OpenExecutor = Callable[[Event], AbstractContextManager[Executor]]
    """Opens who computes maps; the event, once it is set, ends all that they compute."""

AREAS_AT_ONCE = 8
"""Maps that are made at the same time where others than this process compute them."""

WORST_SIDE = 256
"""Side of the squares of which the report shows the worst, in pixels, where tiles are not smaller."""

HEAD = "# The settings of this run, defaults included."
"""First line of a run's project.toml; the second says where its relative paths begin."""


def open_run(folder: Path) -> tuple[Project, RunFolder]:
    """The project of a run, as it was last run, and the run's files. Raises InputFileError, SettingsError."""
    files = require_run(folder)
    head, _, rest = files.project.read_text(encoding="utf-8").partition("\n")
    place = rest.partition("\n")[0].removeprefix("# ")
    if not head.startswith(HEAD):
        raise SettingsError(f"{files.project} was not written by a run. Name a run's folder, under runs/.")
    return load_project(files.project, Path(place)), files


def require_run(folder: Path) -> RunFolder:
    """The files of a run. Raises InputFileError where the folder is none."""
    files = RunFolder(folder)
    if not files.project.is_file():
        missing = f"it has no {files.project.name}" if folder.is_dir() else "there is no such folder"
        raise InputFileError(f"no run in {folder}: {missing}. Name the folder of a run, under runs/.")
    return files


def label(project: Project, files: RunFolder, progress: Progress = SILENT) -> str:
    """Bring every area's reference map onto its scene's grid."""
    settings = project.settings.labels
    hows, counts = set(), 0
    shared = project.settings.train.targets == "fractions"
    for area in project.areas:
        if not shared:  # those of other labels must not be taken for these
            files.fractions(area.name).unlink(missing_ok=True)
        made = make_labels(
            Path(str(area.reference)),
            area.grid,
            files.labels(area.name),
            legend=project.legend,
            table=project.table(area),
            method=settings.method,
            weighting=VoteWeights(settings.class_weights, settings.smoothing),
            min_valid=settings.min_valid,
            unknown=settings.unknown,
            memory=settings.memory,
            purity=files.purity(area.name),
            fractions=files.fractions(area.name) if shared else None,
            resume="if-same",
            overwrite=True,
            progress=progress,
        )
        hows.add(made.how)
        counts += sum(made.counts.values()) - made.counts[project.legend.nodata]
    return f"{_count(project.areas, 'area')}, {counts:,} labelled pixels; {'; '.join(sorted(hows)[:3])}"


def tile(project: Project, files: RunFolder, progress: Progress = SILENT) -> str:
    """Index the tiles, draw the split, measure the training ground."""
    settings = project.settings
    index = build_index(
        project.areas,
        {area.name: files.labels(area.name) for area in project.areas},
        project.legend,
        tiles=settings.tiles.model_copy(update={"drop_only": _learnt(project, settings.tiles.drop_only)}),
        split=settings.split,
        polygons=project.polygons,
        cache=files.observations,
        fingerprint=observed_fingerprint(project, files),
        progress=progress,
    )
    save_index(index.table, files.tiles)
    write_json(files.statistics, index.statistics.to_dict(project.legend.keys))
    write_json(files.split, index.split.to_dict())
    kept = index.table[index.table["keep"]]["split"].value_counts()
    left = index.table[~index.table["keep"]]["reason"].value_counts()
    text = ", ".join(f"{count} {split}" for split, count in kept.items())
    dropped = "".join(f"; {reason}: {count}" for reason, count in left.items())
    reach = "" if index.reach is None else f", labels alike over {index.reach:.0f} px"
    return f"{len(index.table)} tiles: {text}{dropped}. Blocks of {index.split.block} px{reach}"


def _learnt(project: Project, classes: Sequence[int | str]) -> list[str]:
    """Keys of those of the classes that labels hold: others are nodata there (``labels.as-nodata``)."""
    whole = project.source_legend or project.legend
    return [key for key in (whole.find(what).key for what in classes) if key in project.legend.keys]


def open_ground(project: Project, files: RunFolder) -> LabelledDataset:
    """The labelled ground of this run, as its labels and tiles stages left it."""
    areas = {area.name: area for area in project.areas}
    labels = {name: files.labels(name) for name in areas}
    split, unreadable = Split.from_dict(read_json(files.split)), project.settings.tiles.unreadable
    return LabelledDataset(areas, labels, project.legend, split, unreadable=unreadable)


def train(
    project: Project,
    files: RunFolder,
    progress: Progress = SILENT,
    on_epoch: Callable[[dict[str, float]], None] = lambda record: None,
) -> str:
    """Train the model, or go on from the last checkpoint; ``on_epoch`` gets each epoch's record."""
    from cobertes.learn.devices import part, rank_zero_first
    from cobertes.learn.train import train_model

    plan = plan_training(project, files)
    # the first process has also moved an old model and its checkpoints aside
    with rank_zero_first(project.settings.train.device):
        plan = plan.reading(store(plan, project, files, progress))
    header = train_model(plan, files.path, progress=progress, report=on_epoch)
    part()
    facts = header.training
    miou = facts["validation_miou"]
    score = "no held-out label to score it by" if miou is None else f"mIoU {miou:.3f}"
    return f"best of {facts['epochs']} epochs: {facts['best_epoch']}, {score}"


def plan_training(project: Project, files: RunFolder) -> "TrainingPlan":
    """What the train stage would train, on the tiles and labels of this run."""
    from cobertes.learn import training_setup

    settings = project.settings
    return training_setup.plan_training(
        load_index(files.tiles),
        replace(open_ground(project, files), shares=_shares(project, files)),
        Statistics.from_dict(read_json(files.statistics)),
        model=settings.model.model_copy(update={"weights": project.weights}),
        train=settings.train,
        augmentation=settings.augmentation,
        tile_size=settings.tiles.size,
        fingerprint=training_fingerprint(project, files),
    )


def store(plan: "TrainingPlan", project: Project, files: RunFolder, progress: Progress = SILENT) -> Store | None:
    """The tile store of the ground that a plan reads, made or taken up; None where it is not wanted."""
    tiles = project.settings.tiles
    if tiles.store == "never":
        return None
    return make_store(
        files.store,
        plan.ground.areas,
        plan.ground.labels,
        plan.feeding_windows(),
        shares=_shares(project, files),
        fingerprint=observed_fingerprint(project, files),
        every_scene=tiles.store == "always",
        budget=tiles.store_gb,
        unreadable=tiles.unreadable,
        progress=progress,
    )


def _shares(project: Project, files: RunFolder) -> dict[str, Path]:
    """By area, what is learnt from beside the labels."""
    found = {area.name: files.shares(area.name, project.settings.train) for area in project.areas}
    return {name: path for name, path in found.items() if path is not None}


def estimate(project: Project, files: RunFolder) -> "TrainingCost":
    """What training will take on this machine; tiles are counted in the index, or guessed where there is none."""
    from cobertes.learn.training_cost import estimate_training
    from cobertes.learn.training_setup import network_settings

    settings = project.settings
    train = with_defaults(settings.train, settings.model.encoder, settings.tiles.size)
    window = max(train.windows)
    held = settings.split.validation
    if files.tiles.exists():
        frame = load_index(files.tiles)
        pixels = (frame["height"] * frame["width"])[frame["keep"]].groupby(frame["split"]).sum()
        learnt_pixels, held_pixels = pixels.get("train", 0), pixels.get("validation", 0)
    else:
        total = sum(area.shape[0] * area.shape[1] for area in project.areas)
        learnt_pixels, held_pixels = (1 - held - settings.split.test) * total, held * total
    return estimate_training(
        network_settings(settings.model, project.bands, project.seasons, len(project.legend)),
        train,
        window=window,
        windows=train.samples or max(1, round(learnt_pixels / window**2)),
        held_out=max(1, int(held_pixels / window**2)),
        passes=len(project.seasons) if settings.model.seasons == "separate" else 1,
    )


def evaluate(project: Project, files: RunFolder, progress: Progress = SILENT) -> str:
    """Judge the model and its baselines on the held-out blocks."""
    from cobertes.accuracy.block_confusion import save_blocks
    from cobertes.engines.engine import open_engine
    from cobertes.evaluation.evaluate import assess

    settings, ground = project.settings.predict, open_ground(project, files)
    if settings.precision == "int8":
        make_int8(project, files, progress)
    engine = open_engine(
        files.model, device=settings.device, precision=settings.precision, engine=settings.engine,
        tta=settings.views,
    )  # fmt: skip
    names = [area.name for area in project.areas]
    assessment = assess(
        engine,
        ground,
        load_index(files.tiles),
        Statistics.from_dict(read_json(files.statistics)),
        purity=_existing(names, files.purity),
        tile_size=min(project.settings.tiles.size, WORST_SIDE),
        window=settings.window,
        overlap=settings.overlap,
        blend=settings.blend,
        batch_size=settings.batch_size,
        progress=progress,
    )
    assessment.model.save_csv(files.confusion, ground.legend)
    assessment.model.save_json(files.confusion.with_suffix(".json"), ground.legend)
    save_blocks(files.blocks, assessment.methods, ground.legend.keys)
    write_json(files.calibration, assessment.calibration)
    write_json(files.assessment, assessment.to_dict(ground))
    forest = assessment.baselines["random_forest"].total
    return (
        f"mIoU {assessment.model.miou:.3f} (forest {forest.miou:.3f}), overall accuracy "
        f"{assessment.model.overall_accuracy:.3f} (forest {forest.overall_accuracy:.3f}) on {assessment.split}"
    )


def audited_areas(project: Project, files: RunFolder) -> list["AuditedArea"]:
    """What `audit_maps` compares: of each area map, labels and confidence, and what confidences are worth.

    Raises InputFileError where an area has no map or no labels yet.
    """
    from cobertes.accuracy.disagreement import AuditedArea, is_calibrated

    known = read_json(files.calibration)["reliability"] if files.calibration.exists() else {}
    areas = []
    for area in project.areas:
        name = area.name
        for path in (files.map(name), files.confidence(name), files.labels(name)):
            if not path.exists():
                raise InputFileError(f"no file at {path}: run all stages first, `cobertes run PROJECT`")
        table = known.get("after" if is_calibrated(files.confidence(name)) else "before", [])
        areas.append(AuditedArea(name, files.map(name), files.labels(name), files.confidence(name), table))
    return areas


def model_file(project: Project, files: RunFolder) -> Path:
    """The model that the project names, or this run's own."""
    named = project.settings.predict.model
    if named is None:
        return files.model
    from cobertes.learn.model_file import model_path

    return model_path(resolve(named, project.folder))


def mapped_from(project: Project, files: RunFolder) -> dict[str, str]:
    """By area, the fingerprint of all that its map is made from, as it is on disk now."""
    model = model_file(project, files)
    calibration, views = model.parent / files.calibration.name, project.settings.predict.views
    temperature = read_calibration(calibration, trained_fingerprint(model), views)
    return mapped_fingerprints(project, model, temperature)


def make_int8(project: Project, files: RunFolder, progress: Progress = SILENT) -> None:
    """Make the int8 version of this run's model, where there is none of it as it is now.

    Raises ModelFileError where it loses too much, SettingsError without a training window or NNCF.
    """
    from cobertes.engines.quantize import quantize_model
    from cobertes.engines.runtimes import is_quantized

    if not is_quantized(files.model):
        quantize_model(files.model, open_ground(project, files), progress=progress)


def make_int8_of(model: Path, progress: Progress = SILENT) -> None:
    """The same for the model of any run. Raises SettingsError where a model file without int8 is no run's."""
    from cobertes.engines.runtimes import is_quantized
    from cobertes.learn.model_file import model_path

    path = model_path(model)
    if is_quantized(path):
        return
    files = RunFolder(path.parent)
    if not files.project.is_file() or path != files.model:
        raise SettingsError(
            f"{path} has no int8 version and is not the model of a run, on whose training tiles it would be "
            f"calibrated. Name a run's folder, or use precision bf16 or fp32."
        )
    make_int8(*open_run(files.path), progress)


def predict(
    project: Project, files: RunFolder, progress: Progress = SILENT, executor: "OpenExecutor | None" = None
) -> str:
    """Map every area, but for those whose map an interrupted run has made from the same already.

    computing  opens who computes, by default this process, area by area. Others get several areas at once, so that
               many small ones keep a cluster busy; where one fails, all stop and keep what is finished.
    """
    from cobertes.engines.engine import open_engine
    from cobertes.predict.predict import predict_map
    from cobertes.predict.prediction_job import run_locally

    settings, fingerprint = project.settings.predict, mapped_from(project, files)
    model = model_file(project, files)
    if settings.precision == "int8" and settings.model is None:
        make_int8(project, files, progress)
    elif settings.precision == "int8":
        make_int8_of(model, progress)
    engine = open_engine(
        model, device=settings.device, precision=settings.precision, engine=settings.engine, tta=settings.views
    )
    noted, noting, stop = read_notes(files).get("predict", {}).get("areas", {}), Lock(), Event()

    def entry(area: Area) -> list[Any]:
        outputs = files.map(area.name), files.confidence(area.name)
        return [[fingerprint[area.name], engine.how], *map(stamp, outputs)]

    todo = [area for area in project.areas if noted.get(area.name) != entry(area)]
    kept = _count(project.areas[len(todo) :], "map") + " from before"
    if not todo:
        return kept

    def make(area: Area, executor: "Executor", progress: Progress) -> int:
        """Pixels of the map."""
        made = predict_map(
            engine,
            area.scenes,
            files.map(area.name),
            confidence=files.confidence(area.name),
            window=settings.window,
            overlap=settings.overlap,
            blend=settings.blend,
            batch_size=settings.batch_size,
            memory=settings.memory,
            resume="if-same",
            overwrite=True,
            progress=progress,
            executor=executor,
        )
        with noting:  # maps may end at the same time
            noted[area.name] = entry(area)
            write_note(files, "predict", areas=noted)
        return sum(made.counts.values())

    with executor(stop) if executor else nullcontext(run_locally) as opened:
        begin = time.monotonic()
        if executor is None or len(todo) == 1:
            pixels = sum(make(area, opened, progress) for area in todo)
        else:
            mpx = sum(area.shape[0] * area.shape[1] for area in todo) / 1e6
            with progress.bar("maps", mpx, "Mpx") as advance, ThreadPoolExecutor(AREAS_AT_ONCE) as pool:
                try:
                    made = [pool.submit(make, area, opened, SharedBar(advance)) for area in todo]
                    pixels = sum(one.result() for one in as_completed(made))
                finally:
                    stop.set()
                    pool.shutdown(cancel_futures=True)
    speed = pixels / 1e6 / max(time.monotonic() - begin, 1e-9)
    text = f"{_count(todo, 'map')} of {pixels / 1e6:.2f} Mpx at {speed:.2f} Mpx/s, {engine.how}"
    return text if len(todo) == len(project.areas) else f"{text}; {kept}"


def report(project: Project, files: RunFolder, progress: Progress = SILENT) -> str:
    """Write the report on whatever is there."""
    from cobertes.learn.metrics_log import read_history
    from cobertes.learn.model_file import read_header
    from cobertes.report.report import write_report

    header = read_header(model_file(project, files))
    names = [area.name for area in project.areas]
    learnt = not project.predict_only
    write_report(
        files.report,
        title=project.settings.name,
        areas=project.areas,
        legend=header.legend,
        maps=_existing(names, files.map),
        confidence=_existing(names, files.confidence),
        labels=_existing(names, files.labels) if learnt else {},
        rgb=project.rgb,
        assessment=read_json(files.assessment) if learnt and files.assessment.exists() else None,
        calibration=read_json(files.calibration) if learnt and files.calibration.exists() else None,
        history=read_history(files.metrics) if learnt else [],
        model=header.facts(),
        settings=project.settings.model_dump(by_alias=True, mode="json"),
        split=read_json(files.split) if learnt and files.split.exists() else None,
    )
    return str(files.report)


def _existing(names: Sequence[str], path: Callable[[str], Path]) -> dict[str, Path]:
    return {name: path(name) for name in names if path(name).exists()}


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
