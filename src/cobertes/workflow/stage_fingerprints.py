"""What each stage of a run was made from: fingerprints by which a second run does only what changed."""

import math
from pathlib import Path
from typing import Any

from cobertes.atomic_io import read_json, write_json
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.area import Area
from cobertes.geo.grid import describe, source_files
from cobertes.settings import WEIGHTS
from cobertes.tiles.index import load_index
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder

LEARNING_SECTIONS = (
    "legend",
    "bands",
    "scene-nodata",
    "labels",
    "tiles",
    "split",
    "model",
    "train",
    "augmentation",
)
"""Settings that decide what a model learns."""

NOT_LEARNT = {"labels": {"memory"}, "tiles": {"store", "store-gb"}, "train": {"device", "precision", "threads"}}
"""Keys of those sections that say how to compute, not what."""


def learning_settings(project: Project) -> dict[str, Any]:
    """The settings that decide what a model learns, as plain values."""
    settings = project.settings.model_dump(by_alias=True, mode="json")
    learning = {}
    for name in LEARNING_SECTIONS:
        section = settings[name]
        if isinstance(section, float) and not math.isfinite(section):
            section = str(section)  # JSON has no NaN, and NaN would differ from itself on the next run
        skipped = NOT_LEARNT.get(name, set())
        learning[name] = {k: v for k, v in section.items() if k not in skipped} if skipped else section
    return learning


OBSERVING = (
    "size", "overlap", "cloud-codes", "snow-codes", "reflectance-scale", "reflectance-offset", "unreadable",
)  # fmt: skip
"""Keys of ``[tiles]`` that decide what is measured; the others only what is made of it."""


def stamps(path: str | Path) -> list[Any]:
    """Of a raster and, where it is a VRT, of the files that it is made of."""
    return [stamp(file) for file in source_files(str(path))]


def scene_stamps(area: Area) -> list[Any]:
    """Of every file of an area's scenes."""
    return [stamps(path) for scene in area.scenes.values() for path in scene.files]


def observed_fingerprint(project: Project, files: RunFolder) -> str:
    """Of the scenes, masks and labels of the tiles, and of how they are measured."""
    settings = learning_settings(project)
    return fingerprint_of(
        [(area.name, list(area.scenes), describe(area.grid)) for area in project.areas],
        [scene_stamps(area) for area in project.areas],
        [{season: stamp(path) for season, path in area.masks.items()} for area in project.areas],
        [stamp(files.labels(area.name)) for area in project.areas],
        [land.key for land in project.legend.classes],
        settings["bands"],
        settings["scene-nodata"],
        {key: settings["tiles"][key] for key in OBSERVING},
    )


def training_fingerprint(project: Project, files: RunFolder) -> str:
    """Of the content of index, split and statistics: labels made again to the same end change nothing."""
    index = load_index(files.tiles)
    columns = ["area", "row", "col", "height", "width", "split", "keep", "reason"]
    rows = index[columns].to_dict("list") | {"counts": [list(map(int, c)) for c in index["counts"]]}
    learning = learning_settings(project)
    learnt = [learning[section] for section in ("bands", "model", "train", "augmentation")]
    learnt.append([(land.code, land.key) for land in project.legend.classes])
    if project.weights not in WEIGHTS:
        learnt.append([stamp(project.weights)])
    return fingerprint_of(rows, read_json(files.statistics), read_json(files.split), learnt)


def mapped_fingerprints(project: Project, model: Path, temperature: float | None) -> dict[str, str]:
    """Of every area's map: of the model and its temperature, the scenes, and how they are read and mapped."""
    settings = project.settings.model_dump(by_alias=True, mode="json")
    how = {key: value for key, value in settings["predict"].items() if key != "memory"}
    learning = learning_settings(project)
    common = stamp(model), temperature, learning["bands"], learning["scene-nodata"], how
    return {
        area.name: fingerprint_of(common, list(area.scenes), describe(area.grid), scene_stamps(area))
        for area in project.areas
    }


def read_notes(files: RunFolder) -> dict[str, Any]:
    """By stage, what it was made from; empty where no stage has run yet."""
    notes: dict[str, Any] = read_json(files.stages) if files.stages.exists() else {}
    return notes


def write_note(files: RunFolder, stage: str, **entry: Any) -> None:
    """Change what is noted of a stage; the rest of it stays."""
    notes = read_notes(files)
    write_json(files.stages, notes | {stage: notes.get(stage, {}) | entry})


def trained_fingerprint(model: Path) -> str:
    """What a model file says of the data and settings it was trained on."""
    from cobertes.learn.model_file import read_header

    return str(read_header(model).training.get("fingerprint", ""))
