"""Confidence intervals of scores by block bootstrap, which resamples whole blocks, never pixels.

Errors of neighbouring pixels are correlated, so a million pixels of twenty blocks are closer to twenty
observations than to a million. From n units (blocks, or groups of areas), n are drawn with replacement, their
confusion matrices are added, and the score is computed again, 2000 times (Efron & Tibshirani 1993, An Introduction
to the Bootstrap; spatial blocks: Lahiri 2003, Resampling Methods for Dependent Data).

The interval is the score plus and minus t times the standard deviation over the resamples, with t of n - 1 degrees
of freedom and the deviation times sqrt(n / (n - 1)): 2.2 deviations for 20 units, 3.7 for 4. Percentile intervals
are too narrow for few units, also widened ones (Hesterberg 2015, The American Statistician 69, 371-386): no
resample lies beyond the worst unit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cobertes.accuracy import metrics
from cobertes.accuracy.confusion import ConfusionMatrix

LEVEL = 0.95
RESAMPLES = 2000
CHUNK_BYTES = 64 * 2**20

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Counts (resamples, K, K) -> scores (resamples, ...)."""

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"


def resample_weights(units: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Multiplicity (resamples, units) int64 of each unit in each resample of as many units."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)


def resampled_sums(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> Iterator[Floats]:
    """Iterate over sums (m, K, K) of the units' matrices (units, K, K), some resamples at a time (64 MB)."""
    units, k, _ = counts.shape
    flat = counts.reshape(units, k * k).astype(np.float64)  # exact: a country has fewer than 2**53 pixels
    step = max(1, CHUNK_BYTES // (8 * k * k))
    for start in range(0, len(weights), step):
        yield (weights[start : start + step] @ flat).reshape(-1, k, k)


def bootstrap(counts: NDArray[np.int64], weights: NDArray[np.int64], statistic: Statistic) -> Floats:
    """Compute a statistic of every resample, (resamples, ...), in bounded memory.

    counts     (units, K, K) int64 confusion matrices
    weights    (resamples, units) int64 from `resample_weights`
    """
    return np.concatenate([statistic(sums) for sums in resampled_sums(counts, weights)])


def half_width(units: NDArray[Any] | int) -> Floats:
    """Half-width of the interval in standard deviations, by number of units; NaN for fewer than two."""
    n = np.where(np.asarray(units) > 1, units, np.nan).astype(float)
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1)))


def interval(value: Any, resampled: Floats, units: NDArray[Any] | int) -> tuple[Floats, Floats]:
    """Low and high ends (...) of the 95 % interval of scores ``value`` (...).

    resampled  (resamples, ...) scores; those that are NaN (a class not in the resample) are ignored
    units      (...) that each score is based on; the ends are NaN for fewer than two
    """
    known = np.isfinite(resampled)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, resampled, 0.0)
    mean = filled.sum(axis=0) / count
    deviation = np.sqrt(np.where(known, (filled - mean) ** 2, 0.0).sum(axis=0) / count)
    margin = half_width(units) * deviation
    return np.asarray(value - margin), np.asarray(value + margin)


def overall_statistics(averaged: NDArray[np.bool_]) -> dict[str, Statistic]:
    """Statistics over all classes; means are over the ``averaged`` classes (K,)."""
    return {
        "miou": lambda c: metrics.mean_over(metrics.iou(c), averaged),
        "overall_accuracy": metrics.overall_accuracy,
        "mean_dice": lambda c: metrics.mean_over(metrics.dice(c), averaged),
        "balanced_accuracy": lambda c: metrics.mean_over(metrics.producers_accuracy(c), averaged),
        "kappa": metrics.kappa,
        "frequency_weighted_iou": metrics.frequency_weighted_iou,
    }


CLASS_STATISTICS: Mapping[str, Statistic] = {
    "iou": metrics.iou,
    "dice": metrics.dice,
    "producers_accuracy": metrics.producers_accuracy,
    "users_accuracy": metrics.users_accuracy,
}


def score_intervals(
    units: NDArray[np.int64], keys: list[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """95 % intervals of every score, for assessment.json.

    units   (n, K, K) from `BlockMatrices.by_unit`
    returns ``level``, ``units``, ``[low, high]`` per overall score, and ``classes`` with the same per class
            key; ``units`` of a class are those with reference pixels of it
    """
    weights = resample_weights(len(units), resamples, seed)
    averaged = ConfusionMatrix(units.sum(axis=0)).averaged
    overall, of_classes = overall_statistics(averaged), list(CLASS_STATISTICS.values())

    def every(counts: Floats) -> Floats:
        scores = np.stack([statistic(counts) for statistic in overall.values()], axis=-1)
        return np.concatenate([scores, *(statistic(counts) for statistic in of_classes)], axis=-1)

    present = (units.sum(axis=2) > 0).sum(axis=0)
    based_on = np.concatenate([np.full(len(overall), len(units)), np.tile(present, len(of_classes))])
    value = every(units.sum(axis=0)[None].astype(float))[0]
    ends = np.stack(interval(value, bootstrap(units, weights, every), based_on))
    lowest = np.zeros(len(value))
    lowest[list(overall).index("kappa")] = -1.0
    ends = np.clip(ends, lowest, 1.0)  # NaN stays
    by_class = ends[:, len(overall) :].reshape(2, len(of_classes), len(keys))
    return {
        "level": LEVEL,
        "units": len(units),
        **{name: ends[:, i].tolist() for i, name in enumerate(overall)},
        "classes": {
            key: {"units": int(present[k])}
            | {name: by_class[:, i, k].tolist() for i, name in enumerate(CLASS_STATISTICS)}
            for k, key in enumerate(keys)
        },
    }


@dataclass(frozen=True)
class Difference:
    """Difference of a score, second minus first, with its interval and the verdict on the second."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` if the interval excludes 0, else ``cannot tell``."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else CANNOT_TELL

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON."""
        return {"difference": self.difference, "interval": [self.low, self.high], "verdict": self.verdict}


def paired_difference(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    statistic: Statistic,
    *,
    of_class: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Paired difference of a score, second minus first, on the same units (n, K, K) and resamples.

    of_class   class of ``statistic``: the difference is based only on the units with reference pixels of it, and
               has no interval for fewer than two

    Pairing cancels the difficulty of a block, so it detects differences far smaller than the intervals of the
    scores themselves. Units without an evaluated pixel on either side are ignored.
    """
    evaluated = first.any(axis=(1, 2)) | second.any(axis=(1, 2))
    first, second = first[evaluated], second[evaluated]
    based_on = len(first)
    if of_class is not None:
        based_on = min(int((one[:, of_class].sum(axis=1) > 0).sum()) for one in (first, second))
    if not len(first):
        return Difference(np.nan, np.nan, np.nan)
    weights = resample_weights(len(first), resamples, seed)
    difference = bootstrap(second, weights, statistic) - bootstrap(first, weights, statistic)
    value = float(statistic(second.sum(axis=0)[None])[0] - statistic(first.sum(axis=0)[None])[0])
    low, high = interval(value, difference, based_on)
    return Difference(value, float(low), float(high))
