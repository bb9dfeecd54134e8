"""Comparison of runs: scores on their common held-out blocks, with intervals of the paired differences."""

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
    interval,
    overall_statistics,
    paired_difference,
    resample_weights,
)
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.metrics import iou
from cobertes.atomic_io import StrPath
from cobertes.errors import SettingsError

SCORES = {"miou": "mIoU", "overall_accuracy": "overall accuracy", "balanced_accuracy": "balanced accuracy"}
"""Compared scores, with their titles."""


@dataclass(frozen=True)
class RunsComparison:
    """Comparison of runs on their common blocks.

    names       run names; the first is the reference of the differences
    keys        class keys;  ``averaged`` (K,) classes in the means
    units       resampled in the bootstrap;  ``blocks`` common to all;  ``left_out`` by run: not held out by all
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
        """Convert to JSON."""
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


def compare_runs(files: Mapping[str, StrPath], *, resamples: int = 2000, seed: int = 0) -> RunsComparison:
    """Compare the models of runs on the blocks that all of them held out.

    files   name -> blocks.json of the run, at least two
    Raises InputFileError; SettingsError for different classes or without a common block.
    """
    if len(files) < 2:
        raise SettingsError("one run can't be compared: name two or more, each another folder")
    loaded = {name: load_blocks(Path(path)) for name, path in files.items()}
    keys = next(iter(loaded.values()))[0]
    found = {name: _in_order(name, methods["model"], own, keys) for name, (own, methods) in loaded.items()}
    shared = set.intersection(*({block.key for block in one.blocks} for one in found.values()))
    common = [block.key for block in next(iter(found.values())).blocks if block.key in shared]
    if not common:
        raise SettingsError(
            f"{', '.join(files)} share no held-out block. Runs compare where [split] (seed, block, guard) and "
            f"[tiles] size draw the same blocks."
        )
    on_common = {name: _select(one, common) for name, one in found.items()}
    return _compare(
        on_common, keys, {name: len(found[name].blocks) - len(common) for name in found}, resamples, seed
    )


def run_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Short unique names of runs: the folder name, with as many parent folders as needed."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise SettingsError("a run is named twice: name two or more, each another folder")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return {"/".join(path.parts[-parts:]): folder for path, folder in zip(paths, folders, strict=True)}


def read_flat_settings(path: Path) -> dict[str, Any]:
    """Read a run's settings as dotted keys; empty without a readable file."""
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
    """Settings in which the runs differ: key -> value in each run, None if absent."""
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    table = {key: [one.get(key) for one in settings.values()] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _in_order(name: str, matrices: BlockMatrices, own: Sequence[str], keys: Sequence[str]) -> BlockMatrices:
    """Reorder the classes of the matrices as in ``keys``. Raises SettingsError for different classes."""
    if set(own) != set(keys):
        odd = sorted(set(own) ^ set(keys))
        raise SettingsError(f"{name} has other classes: {', '.join(odd)}. Runs compare where their legends agree.")
    order = [list(own).index(key) for key in keys]
    return BlockMatrices(matrices.blocks, matrices.counts[:, order][:, :, order])


def _select(matrices: BlockMatrices, keys: Sequence[Any]) -> BlockMatrices:
    position = {block.key: number for number, block in enumerate(matrices.blocks)}
    return matrices.take(position[key] for key in keys)


def _compare(
    found: Mapping[str, BlockMatrices], keys: list[str], left_out: dict[str, int], resamples: int, seed: int
) -> RunsComparison:
    first = next(iter(found.values()))
    supports = [one.counts.sum(axis=2) for one in found.values()]
    relabelled = int(np.any([(s != supports[0]).any(axis=1) for s in supports], axis=0).sum())
    # units are those of the first run; units without an evaluated pixel in any run are ignored
    sums = {name: BlockMatrices(first.blocks, one.counts).unit_sums() for name, one in found.items()}
    evaluated = np.any([one.any(axis=(1, 2)) for one in sums.values()], axis=0)
    aligned = {name: one[evaluated] for name, one in sums.items()}
    averaged = ConfusionMatrix(sum(one.counts.sum(axis=0) for one in found.values()) // len(found)).averaged
    statistics = {name: one for name, one in overall_statistics(averaged).items() if name in SCORES}
    compared: dict[str, tuple[Statistic, int | None]] = {name: (one, None) for name, one in statistics.items()}
    compared |= {f"iou of {key}": (_iou_of(k), k) for k, key in enumerate(keys)}
    differences = {
        name: {
            score: paired_difference(
                aligned[next(iter(found))], units, statistic, of_class=k, resamples=resamples, seed=seed
            )
            for score, (statistic, k) in compared.items()
        }
        for name, units in list(aligned.items())[1:]
    }
    return RunsComparison(
        names=list(found), keys=keys, averaged=averaged, units=len(next(iter(aligned.values()))),
        blocks=len(first.blocks), left_out=left_out, relabelled=relabelled,
        matrices={name: one.total for name, one in found.items()},
        scores={name: _with_intervals(units, statistics, resamples, seed) for name, units in aligned.items()},
        differences=differences,
    )  # fmt: skip


def _iou_of(k: int) -> Statistic:
    return lambda counts: iou(counts)[:, k]


def _with_intervals(
    units: NDArray[np.int64], statistics: Mapping[str, Statistic], resamples: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    weights = resample_weights(len(units), resamples, seed)
    found = {}
    for name, statistic in statistics.items():
        value = float(statistic(units.sum(axis=0)[None])[0])
        low, high = interval(value, bootstrap(units, weights, statistic), len(units))
        found[name] = value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
    return found


def describe_comparison(comparison: RunsComparison) -> str:
    """Format the comparison as lines for a terminal."""
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
            keys = [key for key in c.keys if found[f"iou of {key}"].verdict == verdict]
            if keys:
                lines.append(f"  IoU {verdict} in    {', '.join(keys)}")
    lines += comparison_notes(c)
    return "\n".join(lines)


def _words(one: Difference) -> str:
    return f"{one.difference:+.3f} ({_ends(one.low, one.high, '+.3f')})  {one.verdict}"


def _ends(low: float, high: float, form: str) -> str:
    return f"{low:{form}} to {high:{form}}" if np.isfinite([low, high]).all() else "no interval"


def comparison_notes(comparison: RunsComparison) -> list[str]:
    """Notes on the reading of the figures."""
    c = comparison
    notes = []
    for name, count in c.left_out.items():
        if count:
            notes.append(f"{count} blocks that {name} held out are not held out by all: left aside.")
    if c.relabelled:
        notes.append(f"In {c.relabelled} blocks the runs were judged by different labels or pixels.")
    if c.units < 10:
        notes.append(f"Only {c.units} independent units of ground: intervals are wide, and rough.")
    # each run but the first is compared by every score and by every class in these blocks
    present = int((c.matrices[c.names[0]].support > 0).sum())
    differences = (len(c.names) - 1) * (len(SCORES) + present)
    notes.append(
        f"{differences} differences are told, each interval for itself: of 20 that are none, one will look real."
    )
    return notes
