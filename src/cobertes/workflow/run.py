"""A run: the stages strung together over one folder. The only place that does so.

    labels -> tiles -> train -> evaluate -> predict -> report        (predict-only projects: predict -> report)

    runs/NAME/project.toml      the settings, defaults included
              labels/AREA.tif   tiles.parquet   statistics.json   split.json
              checkpoints/      metrics.jsonl   tensorboard/      model.safetensors
              assessment.json   confusion.csv   blocks.json       maps/AREA.tif   maps/AREA.confidence.tif
              calibration.json  report.html
              stages.json       what each stage was made from, so that a second run does only what changed

Stale results are replaced, a trained model never is. A stage is up to date where its fingerprint (of its
settings and of the files it reads) is the one in stages.json and its outputs are there; predict looks at
every area by itself.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from cobertes.atomic_io import write_text
from cobertes.errors import ModelFileError, SettingsError, did_you_mean
from cobertes.fingerprints import changed_keys, fingerprint_of, stamp
from cobertes.geo.grid import describe
from cobertes.geo.ledger import discard
from cobertes.progress import SILENT, Progress
from cobertes.report.report import toml_text
from cobertes.workflow import stages
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder
from cobertes.workflow.stage_fingerprints import (
    learning_settings,
    observed_fingerprint,
    read_notes,
    stamps,
    trained_fingerprint,
    training_fingerprint,
    write_note,
)
from cobertes.workflow.stages import HEAD

if TYPE_CHECKING:
    from cobertes.workflow.stages import OpenExecutor

STAGES = ("labels", "tiles", "train", "evaluate", "predict", "report")

MADE_BY = {"labels": {"legend", "bands", "scene-nodata", "labels"}, "tiles": {"tiles", "split"}}
"""The first stage that sections of the settings change, where it is not training."""

open_run = stages.open_run
require_run = stages.require_run


@dataclass(frozen=True)
class Step:
    """A stage of a planned run: whether it ``runs``, and ``why`` in a few words."""

    stage: str
    runs: bool
    why: str


class Run:
    """A project in its run folder.

    ``on_message`` gets (stage, text) when a stage has finished, ``on_epoch`` the record of each epoch.
    ``executor`` opens what computes the maps, by default this process.
    """

    def __init__(
        self,
        project: Project,
        folder: Path,
        *,
        progress: Progress = SILENT,
        on_message: Callable[[str, str], None] = lambda stage, text: None,
        on_epoch: Callable[[dict[str, float]], None] = lambda record: None,
        executor: "OpenExecutor | None" = None,
    ) -> None:
        self.project, self.files = project, RunFolder(folder)
        self.progress, self.on_message, self.on_epoch, self.executor = progress, on_message, on_epoch, executor
        # torchrun starts several processes that train together: the first one tells and writes
        self.processes, rank = (int(os.environ.get(name, d)) for name, d in (("WORLD_SIZE", "1"), ("RANK", "0")))
        self.is_rank_zero = rank == 0
        if not self.is_rank_zero:
            self.progress, self.on_message = SILENT, lambda stage, text: None
        self.learning = learning_settings(project)

    # --- which stages run

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this project, in order."""
        return ("predict", "report") if self.project.predict_only else STAGES

    def plan(self, only: str | None = None, start: str | None = None) -> list[Step]:
        """What `run` would do now. A stage after one that runs is looked at again when its turn comes."""
        steps: list[Step] = []
        for stage in self._selected(only, start):
            if start is not None:
                steps.append(Step(stage, True, f"from {start} on"))
            elif any(step.runs for step in steps):
                steps.append(Step(stage, True, f"after {steps[-1].stage}, where that changes something"))
            else:
                fresh, why = self._state(stage)
                if not fresh and stage == "train" and self.files.model.exists():
                    why = f"{why}: it will stop, use --run NEW or --from train"
                steps.append(Step(stage, not fresh, why))
        return steps

    def run(self, only: str | None = None, start: str | None = None) -> list[str]:
        """Run the stages that are not up to date; returns the names of those that ran.

        only    this stage alone
        start   this stage and all after it, up to date or not; a model there is keeps its file under another name
        Raises SettingsError where a trained model would be replaced, and whatever the stages raise.
        """
        selected = self._selected(only, start)
        if self.processes > 1 and selected[0] != "train":
            raise SettingsError(
                f"{self.processes} processes can train together, but not do the stages before. Run those by one "
                f"process: --only labels, --only tiles; then torchrun ... --only train (or --from train)."
            )
        if not self.is_rank_zero:  # what comes after training is the first process's alone
            selected = selected[:1]
        retrain = start is not None and "train" in selected
        if not retrain and {"labels", "tiles", "train", "evaluate"} & set(selected):
            self._require_same_learning()
        if selected[0] == "train":
            self._require_fresh(("labels", "tiles"))
        self._require_own_folder()
        if self.is_rank_zero:
            write_text(self.files.project, self._resolved())
        ran = []
        for stage in selected:
            if start is None and self._state(stage)[0]:
                self.on_message(stage, "up to date")
                continue
            if start is not None and self.is_rank_zero:  # what is kept from an earlier time is not trusted either
                self._forget(stage)
            with self._old_model_kept(retrain) if stage == "train" and self.is_rank_zero else nullcontext():
                fingerprint = self._fingerprint(stage)  # before: what changes meanwhile is not in what is made
                if self.is_rank_zero and stage in read_notes(
                    self.files
                ):  # half done, it is not up to date any more
                    write_note(self.files, stage, fingerprint=None)
                made = self._make(stage)
            if self.is_rank_zero:
                self._note(stage, fingerprint)
            self.on_message(stage, made)
            ran.append(stage)
        return ran

    def _forget(self, stage: str) -> None:
        """Delete what a stage keeps for its next time, and what an interrupted one was at."""
        if stage == "tiles":
            self.files.observations.unlink(missing_ok=True)
        if stage == "predict":
            write_note(self.files, stage, areas={})
        if stage == "train":
            shutil.rmtree(self.files.store, ignore_errors=True)
        if stage in ("labels", "predict"):
            discard({str(path): path for path in self._outputs(stage)})

    def _selected(self, only: str | None, start: str | None) -> tuple[str, ...]:
        if only is not None and start is not None:
            raise SettingsError("--only and --from exclude each other")
        for asked in filter(None, (only, start)):
            if asked not in self.stages:
                raise SettingsError(f"no stage '{asked}' in this project.{did_you_mean(asked, self.stages)}")
        if only is not None:
            return (only,)
        return self.stages[self.stages.index(start) :] if start else self.stages

    def _state(self, stage: str) -> tuple[bool, str]:
        missing = [path for path in self._outputs(stage) if not path.exists()]
        if missing:
            return False, f"{missing[0].relative_to(self.files.path)} is not there"
        now = self._fingerprint(stage)
        entry = read_notes(self.files).get(stage, {"fingerprint": ""})
        noted = entry.get("fingerprint")
        if noted == now or (stage == "train" and trained_fingerprint(self.files.model) == now):
            return True, "up to date"
        return False, "it did not end" if noted is None else "its settings or inputs changed"

    def _outputs(self, stage: str) -> list[Path]:
        files, areas = self.files, self.project.areas
        shares = [files.shares(area.name, self.project.settings.train) for area in areas]
        return {
            "labels": [path for area in areas for path in (files.labels(area.name), files.purity(area.name))]
            + [path for path in shares if path is not None],
            "tiles": [files.tiles, files.statistics, files.split],
            "train": [files.model],
            "evaluate": [files.assessment, files.confusion, files.blocks, files.calibration],
            "predict": [path(area.name) for area in areas for path in (files.map, files.confidence)],
            "report": [files.report],
        }[stage]

    def _fingerprint(self, stage: str) -> str:
        """Of what a stage is made from, as it is on disk now."""
        settings = self.project.settings.model_dump(by_alias=True, mode="json")
        learning, files, areas = self.learning, self.files, self.project.areas
        grids = [(area.name, list(area.scenes), describe(area.grid)) for area in areas]
        labels = [stamp(files.labels(area.name)) for area in areas]
        how = {key: value for key, value in settings["predict"].items() if key != "memory"}
        match stage:
            case "labels":
                legend = self.project.legend.to_dict()
                tables = [self.project.table(area).tolist() for area in areas]
                maps = [stamps(str(area.reference)) for area in areas]
                return fingerprint_of(
                    grids, maps, legend, tables, learning["labels"], learning["train"]["targets"]
                )
            case "tiles":
                groups = [area.group for area in areas]
                polygons = self.project.polygons
                # the columns of a shapefile are in another file of the same name
                drawn = sorted(polygons.parent.glob(f"{polygons.stem}.*")) if polygons else []
                return fingerprint_of(
                    observed_fingerprint(self.project, files),
                    groups,
                    [stamp(path) for path in drawn],
                    *(learning[k] for k in ("tiles", "split")),
                )
            case "train":
                return training_fingerprint(self.project, files) if files.tiles.exists() else ""
            case "evaluate":
                return fingerprint_of(stamp(files.model), stamp(files.tiles), labels, how)
            case "predict":
                return fingerprint_of(stages.mapped_from(self.project, files))
            case _:
                inputs = [files.assessment, files.metrics, *self._outputs("predict")]
                return fingerprint_of(settings, self.project.rgb, labels, [stamp(path) for path in inputs])

    def _make(self, stage: str) -> str:
        """Run one stage; returns its line for people."""
        todo = self.project, self.files, self.progress
        match stage:
            case "labels":
                return stages.label(*todo)
            case "tiles":
                return stages.tile(*todo)
            case "train":
                return stages.train(*todo, self.on_epoch)
            case "evaluate":
                return stages.evaluate(*todo)
            case "predict":
                return stages.predict(*todo, self.executor)
            case _:
                return stages.report(*todo)

    def _note(self, stage: str, fingerprint: str) -> None:
        settings = {"settings": self.learning} if stage == "train" else {}
        write_note(self.files, stage, fingerprint=fingerprint, **settings)

    # --- the trained model is never replaced

    def _require_same_learning(self) -> None:
        trained = read_notes(self.files).get("train", {}).get("settings")
        if trained is None or not self.files.model.exists():
            return
        changed = changed_keys(trained, self.learning)
        if changed:
            why = f"with other settings ({', '.join(changed[:4])})"
            sections = {key.split(".")[0] for key in changed}
            first = next((stage for stage, names in MADE_BY.items() if sections & names), "train")
            raise SettingsError(self._never_replaced(why, first))

    def _require_fresh(self, stages: Sequence[str]) -> None:
        """Raise SettingsError where one of the stages has left what its settings and inputs no longer say."""
        for stage in stages:
            fresh, why = self._state(stage)
            if not fresh and all(path.exists() for path in self._outputs(stage)):
                raise SettingsError(
                    f"the {stage} stage is not up to date ({why}): training would learn from what it left. Use "
                    f"--from {stage}."
                )

    @contextmanager
    def _old_model_kept(self, retrain: bool) -> Iterator[None]:
        """Move a model that is there aside; back again where not even one epoch of a new one gets trained.

        By the first of several processes: the others wait for it where their training begins (`stages.train`).
        """
        if not self.files.model.exists():
            yield
            return
        if not retrain:
            raise SettingsError(self._never_replaced("on other tiles"))
        kept = self._kept_name()
        self.files.model.rename(kept)
        for path in self.files.checkpoints:
            path.unlink(missing_ok=True)
        self.on_message("train", f"the old model is kept as {kept.name}")
        try:
            yield
        finally:
            if not self.files.model.exists() and not any(path.exists() for path in self.files.checkpoints):
                kept.rename(self.files.model)

    def _never_replaced(self, why: str, first: str = "train") -> str:
        return (
            f"{self.files.model} was trained {why}, and a trained model is never replaced. Use --run NEW, or "
            f"--from {first}, which keeps the old model as {self._kept_name().name}."
        )

    def _kept_name(self) -> Path:
        """A name for the old model that no file has yet."""
        try:
            stem = f"model.{trained_fingerprint(self.files.model)}"
        except ModelFileError:
            stem = "model.damaged"
        names = chain([stem], (f"{stem}-{again}" for again in count(2)))
        paths = (self.files.path / f"{name}.safetensors" for name in names)
        return next(path for path in paths if not path.exists())

    def _resolved(self) -> str:
        settings = toml_text(self.project.settings.model_dump(by_alias=True, mode="json"))
        place = self.project.path.absolute()
        return f"{HEAD} Paths are relative to the folder of\n# {place}\n{settings}"

    def _require_own_folder(self) -> None:
        """Raise SettingsError where the settings would be written onto a project file of the user's."""
        written = self.files.project
        if written.exists() and not written.read_text(encoding="utf-8", errors="replace").startswith(HEAD):
            raise SettingsError(
                f"{written} was not written by a run and would be replaced. Name another folder: --run DIR"
            )
