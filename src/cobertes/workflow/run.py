"""Run: the stages strung together over one folder. The only place that does so.

Stale results are replaced, a trained model never is. A stage is up to date if the fingerprint of its settings and
inputs is the one in stages.json and its outputs exist; predict checks every area by itself.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, count
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cobertes.atomic_io import write_text
from cobertes.errors import ModelFileError, SettingsError, did_you_mean
from cobertes.fingerprints import changed_keys
from cobertes.html_repr import html_table
from cobertes.progress import SILENT, Progress
from cobertes.toml_io import toml_text
from cobertes.workflow.context import StageContext
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import HEAD, RunFolder
from cobertes.workflow.stage_fingerprints import learning_settings, trained_fingerprint
from cobertes.workflow.stages import EVALUATE, LABELS, STAGES, TILES, TRAIN, Stage

if TYPE_CHECKING:
    from cobertes.workflow.context import OpenExecutor


@dataclass(frozen=True)
class Step:
    """A stage of a planned run: ``runs`` if it would run, and ``why`` in a few words."""

    stage: str
    runs: bool
    why: str


class Run:
    """A project in its run folder.

    ``on_message`` receives (stage, text) when a stage has finished, ``on_epoch`` the metrics of each epoch.
    ``executor`` opens what computes the maps, by default this process.
    """

    def __init__(
        self,
        project: Project,
        folder: str | PathLike[str],
        *,
        progress: Progress = SILENT,
        on_message: Callable[[str, str], None] = lambda stage, text: None,
        on_epoch: Callable[[dict[str, float]], None] = lambda record: None,
        executor: "OpenExecutor | None" = None,
    ) -> None:
        self.project, self.folder = project, RunFolder(Path(folder))
        self.progress, self.on_message, self.on_epoch, self.executor = progress, on_message, on_epoch, executor
        # torchrun starts several processes that train together: rank zero reports and writes
        self.processes, rank = (int(os.environ.get(name, d)) for name, d in (("WORLD_SIZE", "1"), ("RANK", "0")))
        self.is_rank_zero = rank == 0
        if not self.is_rank_zero:
            self.progress, self.on_message = SILENT, lambda stage, text: None
        self.learning = learning_settings(project)

    def context(self) -> StageContext:
        """Context of one stage, on the files as they are now."""
        return StageContext(self.project, self.folder, self.progress, self.on_epoch, self.executor)

    def _repr_html_(self) -> str:
        """Table of the stages: up to date, or why they would run."""
        rows = [(step.stage, "would run" if step.runs else "done", step.why) for step in self.plan()]
        return html_table(("stage", "", ""), rows, f"{self.project.settings.name}, {self.folder.path}")

    # --- which stages run

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of this project, in order."""
        return tuple(stage for stage in STAGES if not (self.project.predict_only and stage.needs_labels))

    def plan(self, only: str | None = None, start: str | None = None) -> list[Step]:
        """Stages that `run` would execute now. A stage after one that runs is checked again in its turn."""
        steps: list[Step] = []
        for stage in self._selected(only, start):
            if start is not None:
                steps.append(Step(stage.name, True, f"from {start} on"))
            elif any(step.runs for step in steps):
                steps.append(Step(stage.name, True, f"after {steps[-1].stage}, where that changes something"))
            else:
                fresh, why = stage.state(self.context())
                if not fresh and stage is TRAIN and self.folder.model.exists():
                    why = f"{why}: it will stop, use --run NEW or --from train"
                steps.append(Step(stage.name, not fresh, why))
        return steps

    def run(self, only: str | None = None, start: str | None = None) -> list[str]:
        """Run the stages that are not up to date; returns the names of those that ran.

        only    this stage alone
        start   rerun this stage and every later one, even if up to date; an existing model is renamed
        Raises SettingsError if a trained model would be replaced, and whatever the stages raise.
        """
        selected = self._selected(only, start)
        if self.processes > 1 and selected[0] is not TRAIN:
            raise SettingsError(
                f"{self.processes} processes can train together, but not do the stages before. Run those by one "
                f"process: --only labels, --only tiles; then torchrun ... --only train (or --from train)."
            )
        if not self.is_rank_zero:  # the stages after training run on rank zero alone
            selected = selected[:1]
        retrain = start is not None and TRAIN in selected
        if not retrain and {LABELS, TILES, TRAIN, EVALUATE} & set(selected):
            self._require_same_learning()
        if selected[0] is TRAIN:
            self._require_fresh()
        self._require_own_folder()
        if self.is_rank_zero:
            write_text(self.folder.project, self._resolved())
        return [
            stage.name for stage in selected if self._run_stage(stage, anew=start is not None, retrain=retrain)
        ]

    def _run_stage(self, stage: Stage, *, anew: bool, retrain: bool) -> bool:
        """Run a stage unless it is up to date; returns whether it ran."""
        context = self.context()
        if not anew and stage.state(context)[0]:
            self.on_message(stage.name, "up to date")
            return False
        if anew and self.is_rank_zero:  # caches of an earlier run are not trusted either
            stage.clear(context)
        with self._old_model_kept(retrain) if stage is TRAIN and self.is_rank_zero else nullcontext():
            fingerprint = stage.inputs(context)  # before: what changes meanwhile is not in what is made
            if self.is_rank_zero and self.folder.read_record(stage.name):  # half done, it is no longer up to date
                self.folder.update_record(stage.name, fingerprint=None)
            summary = stage.make(context)
        if self.is_rank_zero:
            learnt = {"settings": self.learning} if stage is TRAIN else {}
            self.folder.update_record(stage.name, fingerprint=fingerprint, **learnt)
        self.on_message(stage.name, summary)
        return True

    def _selected(self, only: str | None, start: str | None) -> tuple[Stage, ...]:
        if only is not None and start is not None:
            raise SettingsError("--only and --from exclude each other")
        names = [stage.name for stage in self.stages]
        for asked in filter(None, (only, start)):
            if asked not in names:
                raise SettingsError(f"no stage '{asked}' in this project.{did_you_mean(asked, names)}")
        if only is not None:
            return (self.stages[names.index(only)],)
        return self.stages[names.index(start) :] if start else self.stages

    # --- the trained model is never replaced

    def _require_same_learning(self) -> None:
        trained = self.folder.read_record(TRAIN.name).get("settings")
        if trained is None or not self.folder.model.exists():
            return
        changed = changed_keys(trained, self.learning)
        if changed:
            why = f"with other settings ({', '.join(changed[:4])})"
            sections = {key.split(".")[0] for key in changed}
            first = next((stage for stage in STAGES if sections & stage.settings), TRAIN)
            raise SettingsError(self._never_replaced(why, first))

    def _require_fresh(self) -> None:
        """Raise SettingsError if labels or tiles no longer fit their settings and inputs."""
        for stage in (LABELS, TILES):
            context = self.context()
            fresh, why = stage.state(context)
            if not fresh and not stage.missing(context):
                raise SettingsError(
                    f"the {stage.name} stage is not up to date ({why}): training would learn from what it left. "
                    f"Use --from {stage.name}."
                )

    @contextmanager
    def _old_model_kept(self, retrain: bool) -> Iterator[None]:
        """Rename an existing model; back again if not even one epoch of a new one gets trained.

        Rank zero does so: the other processes wait for it where their training begins (`training.train`).
        """
        if not self.folder.model.exists():
            yield
            return
        if not retrain:
            raise SettingsError(self._never_replaced("on other tiles"))
        kept = self._kept_name()
        self.folder.model.rename(kept)
        for path in self.folder.checkpoints:
            path.unlink(missing_ok=True)
        self.on_message(TRAIN.name, f"the old model is kept as {kept.name}")
        try:
            yield
        finally:
            if not self.folder.model.exists() and not any(path.exists() for path in self.folder.checkpoints):
                kept.rename(self.folder.model)

    def _never_replaced(self, why: str, first: Stage = TRAIN) -> str:
        return (
            f"{self.folder.model} was trained {why}, and a trained model is never replaced. Use --run NEW, or "
            f"--from {first.name}, which keeps the old model as {self._kept_name().name}."
        )

    def _kept_name(self) -> Path:
        """Name for the old model that no file has yet."""
        try:
            stem = f"model.{trained_fingerprint(self.folder.model)}"
        except ModelFileError:
            stem = "model.damaged"
        names = chain([stem], (f"{stem}-{again}" for again in count(2)))
        paths = (self.folder.path / f"{name}.safetensors" for name in names)
        return next(path for path in paths if not path.exists())

    def _resolved(self) -> str:
        settings = toml_text(self.project.settings.model_dump(by_alias=True, mode="json"))
        project_file = self.project.path.absolute()
        return f"{HEAD} Paths are relative to the folder of\n# {project_file}\n{settings}"

    def _require_own_folder(self) -> None:
        """Raise SettingsError if the settings would be written onto a project file of the user's."""
        written = self.folder.project
        if written.exists() and not written.read_text(encoding="utf-8", errors="replace").startswith(HEAD):
            raise SettingsError(
                f"{written} was not written by a run and would be replaced. Name another folder: --run DIR"
            )
