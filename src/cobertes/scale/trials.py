"""A trial of a search: a training of its own on labels, tiles and store that all trials share.

    SEARCH/shared/           a run up to its tiles, with the tile store
           trials/001/       trial.json (values), metrics.jsonl, checkpoints/, model.safetensors, failed.txt

All that is known of a trial lies in its folder, so that a search that was interrupted, or loses a node, goes on:
a trial begins again where its last checkpoint is.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cobertes.atomic_io import read_json, write_json, write_text
from cobertes.errors import InputFileError
from cobertes.learn.checkpoints import BEST
from cobertes.learn.metrics_log import Epoch, best_epoch, read_history
from cobertes.learn.model_file import MODEL_FILE, read_header
from cobertes.learn.train import train_model
from cobertes.scale.search_space import drawn_values, with_values
from cobertes.settings import Settings
from cobertes.workflow.context import StageContext
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder, open_run
from cobertes.workflow.training import open_store, set_up_training

FAILED = "failed.txt"

SCORE, EPOCH = "best_miou", "epoch"
"""What Ray hears of a trial after each validation."""


def shared_folder(search: Path) -> Path:
    """The run that made what all trials learn from."""
    return search / "shared"


def trial_folder(search: Path, number: int) -> Path:
    """Where a trial keeps its files."""
    return search / "trials" / f"{number:03d}"


def trial_threads(settings: Settings) -> int:
    """Of PyTorch, in every trial."""
    return max(1, int(settings.tune.cpus))


def trial_epochs(settings: Settings) -> int:
    """Of a trial, at most."""
    return settings.tune.epochs or settings.train.epochs


def trial_settings(settings: Settings, drawn: Mapping[str, Any]) -> Settings:
    """Those of a trial. Raises SettingsError where they are not valid."""
    fixed: dict[str, Any] = {
        "train.epochs": trial_epochs(settings),
        "train.minutes": None,
        "train.threads": trial_threads(settings),
    }
    if (
        not settings.tune.gpus and settings.train.device == "auto"
    ):  # Ray hides no GPU: all would take the first one
        fixed["train.device"] = "cpu"
    return with_values(settings, {**drawn, **fixed})


def run_trial(config: Mapping[str, Any], search: str) -> None:
    """What runs in a process of its own; ``config`` is what Ray Tune has drawn, ``search`` the search's folder.

    An error is kept in failed.txt, and the trial ends: Ray would try again, as it does for the sake of lost nodes.
    """
    from ray import tune

    project, files = open_run(shared_folder(Path(search)))
    out = _own_folder(Path(search) / "trials", tune.get_context().get_trial_id())
    best = -math.inf

    def report(record: Epoch) -> None:
        nonlocal best
        if not math.isnan(record["miou"]):
            best = max(best, record["miou"])
            tune.report({SCORE: best, EPOCH: int(record["epoch"])})

    try:
        drawn = drawn_values(project.settings.tune.search, config)
        write_json(out / "trial.json", read_json(out / "trial.json") | {"drawn": drawn})
        for record in read_history(out / "metrics.jsonl"):  # it was interrupted
            report(record)
        train_trial(project, files, drawn, out, report)
    except Exception as error:
        note_failure(out, f"{type(error).__name__}: {' '.join(str(error).split())}")


def note_failure(trial: Path, why: str) -> None:
    """Say why a trial failed, in its folder."""
    write_text(trial / FAILED, f"{why}\n")


def train_trial(
    project: Project, files: RunFolder, drawn: Mapping[str, Any], out: Path, report: Any = lambda record: None
) -> None:
    """Train with some values of settings on what a run has made, in a folder of its own."""
    shared = StageContext(project, files)
    store = open_store(set_up_training(shared), shared)
    mine = replace(project, settings=trial_settings(project.settings, drawn))
    # windows of another size may reach beyond what is stored: those are read from the scenes
    train_model(set_up_training(StageContext(mine, files)).with_store(store), out, on_epoch=report)


def _own_folder(trials: Path, trial: str) -> Path:
    """That of a trial that began before, or the next number's."""
    for known in sorted(trials.glob("*/trial.json")):
        if read_json(known)["id"] == trial:
            return known.parent
    trials.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = trial_folder(trials.parent, number)
        try:
            folder.mkdir()
        except FileExistsError:  # of another trial
            number += 1
            continue
        write_json(folder / "trial.json", {"id": trial, "drawn": {}})
        return folder


@dataclass(frozen=True)
class Trial:
    """What became of a trial.

    id         Ray's
    number     in the order of their beginning
    drawn      values by dotted key
    history    the records of metrics.jsonl
    precision  it was computed in; None before its first validation
    failed     why, in words; None where it did not
    ended      whether it had all its epochs, or those that ``train.stop-after`` left it
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
        """In which it was reached."""
        return None if math.isnan(self.score) else int(best_epoch(self.history)["epoch"])

    @property
    def seconds(self) -> float:
        """Of training."""
        return self.history[-1]["elapsed"] if self.history else 0.0

    @property
    def outcome(self) -> str:
        """In a word or two."""
        if self.failed is not None:
            return "failed"
        return "ended" if self.ended else "stopped"


def read_trials(search: Path, settings: Settings) -> list[Trial]:
    """All trials that have begun, in that order."""
    found = []
    for path in sorted((search / "trials").glob("*/trial.json"), key=lambda path: int(path.parent.name)):
        folder, noted = path.parent, json.loads(path.read_text(encoding="utf-8"))
        failed = folder / FAILED
        try:
            precision = read_header(folder / "checkpoints" / BEST).training.get("precision")
        except InputFileError:
            precision = None
        history = read_history(folder / "metrics.jsonl")
        why = failed.read_text(encoding="utf-8").strip() if failed.exists() else None
        ended = len(history) >= trial_epochs(settings) or (folder / MODEL_FILE).exists()
        found.append(Trial(noted["id"], int(folder.name), noted["drawn"], history, precision, why, ended))
    return found


def best_trial(trials: list[Trial]) -> Trial | None:
    """The one of the highest score, the earlier one at ties; None where none has any."""
    scored = [trial for trial in trials if not math.isnan(trial.score)]
    return max(scored, key=lambda trial: trial.score, default=None)


def in_words(trial: Trial) -> str:
    """A line for people."""
    values = ", ".join(f"{key} {value}" for key, value in trial.drawn.items())
    if trial.failed is not None:
        return f"{trial.number:03d} failed: {trial.failed} ({values})"
    return (
        f"{trial.number:03d} {trial.outcome} after {len(trial.history)} epochs, mIoU {trial.score:.3f} ({values})"
    )
