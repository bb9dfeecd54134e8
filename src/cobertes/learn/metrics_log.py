"""Log of a training, a record per epoch, and the decisions that depend on it: best epoch, last epoch, stopping."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cobertes.atomic_io import write_text
from cobertes.settings import TrainSettings

Epoch = dict[str, float]
"""A record of metrics.jsonl; NaN if a value was not measured."""


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """First epoch of the highest mIoU; the last epoch if none has one."""
    scored = [record for record in history if not math.isnan(record["miou"])]
    return max(scored, key=lambda record: record["miou"]) if scored else history[-1]


def time_is_up(history: Sequence[Epoch], settings: TrainSettings, elapsed: float) -> bool:
    """Test if another epoch like the last ones would end after ``train.minutes``."""
    if settings.minutes is None or not history:
        return False
    return elapsed + _longest(history, settings) > settings.minutes * 60


def next_is_last(history: Sequence[Epoch], settings: TrainSettings, elapsed: float) -> bool:
    """Test if the next epoch is the last one within ``train.epochs`` and ``train.minutes``."""
    if len(history) + 1 >= settings.epochs:
        return True
    return bool(history) and time_is_up(history, settings, elapsed + _longest(history, settings))


def _longest(history: Sequence[Epoch], settings: TrainSettings) -> float:
    """Seconds of the longest of the last epochs, a validated one among them."""
    ends = [0.0, *(record["elapsed"] for record in history)]
    return max(b - a for a, b in pairwise(ends[-settings.validate_every - 1 :]))


def should_stop_early(history: Sequence[Epoch], settings: TrainSettings) -> bool:
    """Early stopping: test if ``train.stop-after`` epochs have passed from the best to the last validated one."""
    scored = [record["epoch"] for record in history if not math.isnan(record["miou"])]
    if settings.stop_after is None or not scored:
        return False
    return scored[-1] - best_epoch(history)["epoch"] >= settings.stop_after


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """Write metrics.jsonl; null for values that are not finite."""
    lines = [json.dumps({name: finite(value) for name, value in record.items()}) + "\n" for record in history]
    write_text(path, "".join(lines))


def finite(value: float) -> float | None:
    """Value for JSON, which has no NaN: None if it is not finite."""
    return value if math.isfinite(value) else None


def read_history(path: Path) -> list[Epoch]:
    """Read the records of metrics.jsonl, NaN for null; none without the file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [
        {name: math.nan if value is None else value for name, value in json.loads(line).items()} for line in lines
    ]
