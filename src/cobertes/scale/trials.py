"""Trial of a search: one training on labels, tiles and tile store shared by all trials.

    SEARCH/shared/           a run up to its tiles, with the tile store
           trials/001/       trial.json (values), metrics.jsonl, checkpoints/, model.safetensors, failed.txt

The state of a trial lies in its folder, so that a search resumes after an interrupt or the loss of a node: a trial
continues from its last checkpoint.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cobertes.atomic_io import read_json, write_json, write_text
from cobertes.errors import InputFileError
from cobertes.learn.checkpoints import BEST
from cobertes.learn.metrics_log import Epoch, best_epoch, read_history
from cobertes.learn.model_file import MODEL_FILE, read_header
from cobertes.learn.train import train
from cobertes.scale.search_space import drawn_values, with_values
from cobertes.settings import Settings
from cobertes.workflow.context import StageContext
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder, open_run
from cobertes.workflow.training import open_store, set_up_training

FAILED = "failed.txt"

SCORE, EPOCH = "best_miou", "epoch"
"""Metrics reported to Ray after each validation."""


def shared_folder(search: Path) -> Path:
    """Folder of the run with the shared labels and tiles."""
    return search / "shared"


def trial_folder(search: Path, number: int) -> Path:
    """Folder of a trial."""
    return search / "trials" / f"{number:03d}"


def trial_threads(settings: Settings) -> int:
    """PyTorch threads of a trial."""
    return max(1, int(settings.tune.cpus))


def trial_epochs(settings: Settings) -> int:
    """Maximum epochs of a trial."""
    return settings.tune.epochs or settings.train.epochs


def trial_settings(settings: Settings, drawn: Mapping[str, Any]) -> Settings:
    """Settings of a trial. Raises SettingsError if they are invalid."""
    fixed: dict[str, Any] = {
        "train.epochs": trial_epochs(settings),
        "train.minutes": None,
        "train.threads": trial_threads(settings),
    }
    if not settings.tune.gpus and settings.train.device == "auto":
        # Ray hides no GPU from tasks that ask for none: all trials would take the first one
        fixed["train.device"] = "cpu"
    return with_values(settings, {**drawn, **fixed})


def run_trial(config: Mapping[str, Any], search: str) -> None:
    """Run a trial in a process of its own.

    config  values sampled by Ray Tune
    search  folder of the search
    An error is written to failed.txt and ends the trial: Ray would retry it, as it does after the loss of a node.
    """
    from ray import tune

    project, folder = open_run(shared_folder(Path(search)))
    out = _own_folder(Path(search) / "trials", tune.get_context().get_trial_id())
    best = -math.inf

    def on_epoch(record: Epoch) -> None:
        nonlocal best
        if not math.isnan(record["miou"]):
            best = max(best, record["miou"])
            tune.report({SCORE: best, EPOCH: int(record["epoch"])})

    try:
        drawn = drawn_values(project.settings.tune.search, config)
        write_json(out / "trial.json", read_json(out / "trial.json") | {"drawn": drawn})
        for record in read_history(out / "metrics.jsonl"):  # of an interrupted trial
            on_epoch(record)
        train_trial(project, folder, drawn, out, on_epoch)
    except Exception as error:
        note_failure(out, f"{type(error).__name__}: {' '.join(str(error).split())}")


def note_failure(trial: Path, why: str) -> None:
    """Write the reason why a trial failed into its folder."""
    write_text(trial / FAILED, f"{why}\n")


def train_trial(
    project: Project,
    folder: RunFolder,
    drawn: Mapping[str, Any],
    out: Path,
    on_epoch: Callable[[Epoch], None] = lambda record: None,
) -> None:
    """Train on the labels and tiles of a run, with some settings replaced, into the folder ``out``."""
    shared = StageContext(project, folder)
    store = open_store(set_up_training(shared), shared)
    own = replace(project, settings=trial_settings(project.settings, drawn))
    # windows of another size may extend beyond the stored tiles: those are read from the scenes
    train(set_up_training(StageContext(own, folder)).with_store(store), out, on_epoch=on_epoch)


def _own_folder(trials: Path, trial: str) -> Path:
    """Folder of a resumed trial, else a new one with the next number."""
    for known in sorted(trials.glob("*/trial.json")):
        if read_json(known)["id"] == trial:
            return known.parent
    trials.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = trial_folder(trials.parent, number)
        try:
            folder.mkdir()
        except FileExistsError:  # taken by another trial
            number += 1
            continue
        write_json(folder / "trial.json", {"id": trial, "drawn": {}})
        return folder


@dataclass(frozen=True)
class Trial:
    """State of a trial.

    id         of Ray
    number     in the order of starting
    drawn      sampled values by dotted key
    history    records of metrics.jsonl
    precision  of the training; None before the first validation
    failed     reason of a failure; None without one
    ended      True after all its epochs, or after early stopping by ``train.stop-after``
    """

    id: str
    number: int
    drawn: Mapping[str, Any]
    history: list[Epoch]
    precision: str | None
    failed: str | None
    ended: bool

    @property
    def score(self) -> float:
        """Highest validation mIoU of its epochs; NaN without one."""
        return best_epoch(self.history)["miou"] if self.history else math.nan

    @property
    def best_epoch(self) -> int | None:
        """Epoch of that score; None without one."""
        return None if math.isnan(self.score) else int(best_epoch(self.history)["epoch"])

    @property
    def seconds(self) -> float:
        """Training time."""
        return self.history[-1]["elapsed"] if self.history else 0.0

    @property
    def outcome(self) -> str:
        """Outcome: failed, ended or stopped."""
        if self.failed is not None:
            return "failed"
        return "ended" if self.ended else "stopped"


def read_trials(search: Path, settings: Settings) -> list[Trial]:
    """Read all started trials, in the order of starting."""
    trials = []
    for path in sorted((search / "trials").glob("*/trial.json"), key=lambda path: int(path.parent.name)):
        folder, record = path.parent, json.loads(path.read_text(encoding="utf-8"))
        failed = folder / FAILED
        try:
            precision = read_header(folder / "checkpoints" / BEST).training.get("precision")
        except InputFileError:
            precision = None
        history = read_history(folder / "metrics.jsonl")
        why = failed.read_text(encoding="utf-8").strip() if failed.exists() else None
        ended = len(history) >= trial_epochs(settings) or (folder / MODEL_FILE).exists()
        trials.append(Trial(record["id"], int(folder.name), record["drawn"], history, precision, why, ended))
    return trials


def best_trial(trials: list[Trial]) -> Trial | None:
    """Trial with the highest score, the earliest at ties; None if none has a score."""
    scored = [trial for trial in trials if not math.isnan(trial.score)]
    return max(scored, key=lambda trial: trial.score, default=None)


def summary(trial: Trial) -> str:
    """One-line summary."""
    values = ", ".join(f"{key} {value}" for key, value in trial.drawn.items())
    if trial.failed is not None:
        return f"{trial.number:03d} failed: {trial.failed} ({values})"
    return (
        f"{trial.number:03d} {trial.outcome} after {len(trial.history)} epochs, mIoU {trial.score:.3f} ({values})"
    )
