"""Several runs side by side: scores on the blocks that all held out, and whether the differences are real."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.accuracy.block_confusion import BlockMatrices, load_blocks
from cobertes.accuracy.bootstrap import (
    Difference,
    Statistic,
    bootstrap,
    draw_weights,
    head_statistics,
    interval,
    paired_difference,
)
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.metrics import iou
from cobertes.errors import SettingsError

SCORES = {"miou": "mIoU", "overall_accuracy": "overall accuracy", "balanced_accuracy": "balanced accuracy"}
"""Scores that are compared, with their names."""


@dataclass(frozen=True)
class RunsComparison:
    """Runs on their common blocks.

    names       of the runs; the first is what others are compared with
    keys        of the classes;  ``averaged`` (K,) those in the means
    units       drawn again in the bootstrap;  ``blocks`` common to all;  ``left_out`` by run: held out by it alone
    relabelled  common blocks whose reference counts differ between runs
    matrices    by run, on the common blocks
    scores      by run and score: value, low, high
    differences by run but the first, score and class key (``iou of KEY``)
    """

    names: list[str]
    keys: list[str]
    averaged: NDArray[np.bool_]
    units: int
    blocks: int
    left_out: dict[str, int]
    relabelled: int
    matrices: dict[str, ConfusionMatrix]
    scores: dict[str, dict[str, tuple[float, float, float]]]
    differences: dict[str, dict[str, Difference]]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "runs": self.names,
            "blocks": self.blocks,
            "units": self.units,
            "left_out": self.left_out,
            "relabelled_blocks": self.relabelled,
            "scores": {
                name: {score: {"value": v, "interval": [low, high]} for score, (v, low, high) in found.items()}
                for name, found in self.scores.items()
            },
            "classes": {
                name: dict(zip(self.keys, matrix.iou.tolist(), strict=True))
                for name, matrix in self.matrices.items()
            },
            "differences": {
                name: {score: one.to_dict() for score, one in found.items()}
                for name, found in self.differences.items()
            },
        }


def compare_runs(files: Mapping[str, Path], *, draws: int = 2000, seed: int = 0) -> RunsComparison:
    """Compare the models of runs on the blocks that all of them held out.

    files   name -> blocks.json of the run, at least two
    Raises InputFileError, and SettingsError where classes differ or no block is common to all.
    """
    if len(files) < 2:
        raise SettingsError("one run can't be compared: name two or more, each another folder")
    loaded = {name: load_blocks(path) for name, path in files.items()}
    keys = next(iter(loaded.values()))[0]
    found = {name: _in_order(name, methods["model"], own, keys) for name, (own, methods) in loaded.items()}
    of_all = set.intersection(*({block.place for block in one.blocks} for one in found.values()))
    common = [block.place for block in next(iter(found.values())).blocks if block.place in of_all]
    if not common:
        raise SettingsError(
            f"{', '.join(files)} share no held-out block. Runs compare where [split] (seed, block, guard) and "
            f"[tiles] size draw the same blocks."
        )
    on_common = {name: _on(one, common) for name, one in found.items()}
    return _compare(on_common, keys, {name: len(found[name].blocks) - len(common) for name in found}, draws, seed)


def run_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Short names for runs: the folders' own, with as many of those above as tells them apart."""
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise SettingsError("a run is named twice: name two or more, each another folder")
    parts = 1
    while len({path.parts[-parts:] for path in whole}) < len(whole):
        parts += 1
    return {"/".join(path.parts[-parts:]): folder for path, folder in zip(whole, folders, strict=True)}


def read_settings(path: Path) -> dict[str, Any]:
    """A run's settings as one level of dotted keys; empty where there is no file."""
    try:
        return dict(_flat(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def _flat(settings: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def different_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each run, of the keys in which the runs differ; None where a run lacks it."""
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    table = {key: [one.get(key) for one in settings.values()] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _in_order(name: str, matrices: BlockMatrices, own: Sequence[str], keys: Sequence[str]) -> BlockMatrices:
    """The matrices with the classes in the order of ``keys``."""
    if set(own) != set(keys):
        odd = sorted(set(own) ^ set(keys))
        raise SettingsError(f"{name} has other classes: {', '.join(odd)}. Runs compare where their legends agree.")
    order = [list(own).index(key) for key in keys]
    return BlockMatrices(matrices.blocks, matrices.counts[:, order][:, :, order])


def _on(matrices: BlockMatrices, places: Sequence[Any]) -> BlockMatrices:
    position = {block.place: number for number, block in enumerate(matrices.blocks)}
    return matrices.where(position[place] for place in places)


def _compare(
    found: Mapping[str, BlockMatrices], keys: list[str], left_out: dict[str, int], draws: int, seed: int
) -> RunsComparison:
    first = next(iter(found.values()))
    supports = [one.counts.sum(axis=2) for one in found.values()]
    relabelled = int(np.any([(s != supports[0]).any(axis=1) for s in supports], axis=0).sum())
    # the first run says which blocks are drawn together; units where no run has a judged pixel are none
    sums = {name: BlockMatrices(first.blocks, one.counts).unit_sums() for name, one in found.items()}
    judged = np.any([one.any(axis=(1, 2)) for one in sums.values()], axis=0)
    aligned = {name: one[judged] for name, one in sums.items()}
    averaged = ConfusionMatrix(sum(one.counts.sum(axis=0) for one in found.values()) // len(found)).averaged
    statistics = {name: one for name, one in head_statistics(averaged).items() if name in SCORES}
    asked: dict[str, tuple[Statistic, int | None]] = {name: (one, None) for name, one in statistics.items()}
    asked |= {f"iou of {key}": (_iou_of(k), k) for k, key in enumerate(keys)}
    differences = {
        name: {
            score: paired_difference(
                aligned[next(iter(found))], units, statistic, of_class=k, draws=draws, seed=seed
            )
            for score, (statistic, k) in asked.items()
        }
        for name, units in list(aligned.items())[1:]
    }
    return RunsComparison(
        names=list(found), keys=keys, averaged=averaged, units=len(next(iter(aligned.values()))),
        blocks=len(first.blocks), left_out=left_out, relabelled=relabelled,
        matrices={name: one.total for name, one in found.items()},
        scores={name: _with_intervals(units, statistics, draws, seed) for name, units in aligned.items()},
        differences=differences,
    )  # fmt: skip


def _iou_of(k: int) -> Statistic:
    return lambda counts: iou(counts)[:, k]


def _with_intervals(
    units: NDArray[np.int64], statistics: Mapping[str, Statistic], draws: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    weights = draw_weights(len(units), draws, seed)
    found = {}
    for name, statistic in statistics.items():
        value = float(statistic(units.sum(axis=0)[None])[0])
        low, high = interval(value, bootstrap(units, weights, statistic), len(units))
        found[name] = value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
    return found


def describe_comparison(comparison: RunsComparison) -> str:
    """The comparison as lines for a terminal."""
    c = comparison
    width = max(12, *map(len, c.names))
    lines = [f"{c.blocks} common held-out blocks, {c.matrices[c.names[0]].pixels:,} labelled pixels"]
    lines.append(f"{'':<{width}}" + "".join(f"{name:>30}" for name in SCORES.values()))
    for name in c.names:
        cells = (f"{v:.3f} ({_ends(low, high, '.3f')})" for v, low, high in c.scores[name].values())
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>30}" for cell in cells))
    for name, found in c.differences.items():
        lines.append(f"{name} less {c.names[0]}:")
        for score, title in SCORES.items():
            lines.append(f"  {title:<18} {_words(found[score])}")
        for verdict in ("better", "worse"):
            told = [key for key in c.keys if found[f"iou of {key}"].verdict == verdict]
            if told:
                lines.append(f"  IoU {verdict} in    {', '.join(told)}")
    lines += comparison_notes(c)
    return "\n".join(lines)


def _words(one: Difference) -> str:
    return f"{one.difference:+.3f} ({_ends(one.low, one.high, '+.3f')})  {one.verdict}"


def _ends(low: float, high: float, form: str) -> str:
    return f"{low:{form}} to {high:{form}}" if np.isfinite([low, high]).all() else "no interval"


def comparison_notes(comparison: RunsComparison) -> list[str]:
    """What a reader has to know beside the figures."""
    c = comparison
    notes = []
    for name, count in c.left_out.items():
        if count:
            notes.append(f"{count} blocks that {name} held out are not held out by all: left aside.")
    if c.relabelled:
        notes.append(f"In {c.relabelled} blocks the runs were judged by different labels or pixels.")
    if c.units < 10:
        notes.append(f"Only {c.units} independent units of ground: intervals are wide, and rough.")
    # each run but the first is compared by every score and by every class that these blocks hold
    held = int((c.matrices[c.names[0]].support > 0).sum())
    told = (len(c.names) - 1) * (len(SCORES) + held)
    notes.append(
        f"{told} differences are told, each interval for itself: of 20 that are none, one will look real."
    )
    return notes
