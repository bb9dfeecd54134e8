"""Intervals of scores by block bootstrap: whole blocks are drawn again, never pixels.

Neighbouring pixels are right or wrong together, so a million pixels of twenty blocks are closer to twenty
observations than to a million. Of n units (blocks, or groups of areas), n are drawn with replacement, their
confusion matrices are added, and the score is computed anew; this again and again (Efron & Tibshirani 1993;
blocks of ground: Lahiri 2003).

The interval is the score plus and minus t times the standard deviation over the draws, with t of n - 1 degrees of
freedom and the deviation times sqrt(n / (n - 1)): 2.2 deviations for 20 units, 3.7 for 4. Percentiles of the draws
are too narrow where units are few, also widened ones (Hesterberg 2015): no draw lies beyond the worst unit.
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
DRAWS = 2000
CHUNK_BYTES = 64 * 2**20

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Counts (draws, K, K) -> scores (draws, ...)."""

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"


def draw_weights(units: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """(draws, units): how often each unit is in each draw of as many units."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)


def resampled(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> Iterator[Floats]:
    """Sums (m, K, K) of the units' matrices (units, K, K) for some draws at a time, in bounded memory."""
    units, k, _ = counts.shape
    flat = counts.reshape(units, k * k).astype(np.float64)  # exact: a country has fewer than 2**53 pixels
    step = max(1, CHUNK_BYTES // (8 * k * k))
    for start in range(0, len(weights), step):
        yield (weights[start : start + step] @ flat).reshape(-1, k, k)


def bootstrap(counts: NDArray[np.int64], weights: NDArray[np.int64], statistic: Statistic) -> Floats:
    """(draws, ...) the statistic of every draw of units ``counts`` (units, K, K)."""
    return np.concatenate([statistic(sums) for sums in resampled(counts, weights)])


def factor(units: NDArray[Any] | int) -> Floats:
    """Deviations on each side of a score that rests on some units; NaN for fewer than two."""
    n = np.where(np.asarray(units) > 1, units, np.nan).astype(float)
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1)))


def interval(value: Any, draws: Floats, units: NDArray[Any] | int) -> tuple[Floats, Floats]:
    """Low and high ends (...) around scores ``value`` (...), from draws (draws, ...).

    units   (...) that each score rests on: one block says nothing about others, so NaN for fewer than two
    Draws without a score (a class that was not drawn) are left aside.
    """
    known = np.isfinite(draws)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, draws, 0.0)
    mean = filled.sum(axis=0) / count
    deviation = np.sqrt(np.where(known, (filled - mean) ** 2, 0.0).sum(axis=0) / count)
    reach = factor(units) * deviation
    return np.asarray(value - reach), np.asarray(value + reach)


def head_statistics(averaged: NDArray[np.bool_]) -> dict[str, Statistic]:
    """The scores of all classes together, means over the ``averaged`` classes (K,)."""
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
    units: NDArray[np.int64], keys: list[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Intervals of every score, for assessment.json.

    units   (n, K, K) from `BlockMatrices.by_unit`
    returns ``level``, ``units``, ``[low, high]`` per score of all classes, and ``classes`` with the same per class
            key; ``units`` of a class are those with reference pixels of it
    """
    weights = draw_weights(len(units), draws, seed)
    averaged = ConfusionMatrix(units.sum(axis=0)).averaged
    heads, of_classes = head_statistics(averaged), list(CLASS_STATISTICS.values())

    def together(counts: Floats) -> Floats:
        whole = np.stack([statistic(counts) for statistic in heads.values()], axis=-1)
        return np.concatenate([whole, *(statistic(counts) for statistic in of_classes)], axis=-1)

    present = (units.sum(axis=2) > 0).sum(axis=0)
    rests_on = np.concatenate([np.full(len(heads), len(units)), np.tile(present, len(of_classes))])
    value = together(units.sum(axis=0)[None].astype(float))[0]
    ends = np.stack(interval(value, bootstrap(units, weights, together), rests_on))
    lowest = np.zeros(len(value))
    lowest[list(heads).index("kappa")] = -1.0
    ends = np.clip(ends, lowest, 1.0)  # NaN stays
    by_class = ends[:, len(heads) :].reshape(2, len(of_classes), len(keys))
    return {
        "level": LEVEL,
        "units": len(units),
        **{name: ends[:, i].tolist() for i, name in enumerate(heads)},
        "classes": {
            key: {"units": int(present[k])}
            | {name: by_class[:, i, k].tolist() for i, name in enumerate(CLASS_STATISTICS)}
            for k, key in enumerate(keys)
        },
    }


@dataclass(frozen=True)
class Difference:
    """Of a score, second less first: its value, interval, and what that means for the second."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves 0 out, else ``cannot tell``."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else CANNOT_TELL

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"difference": self.difference, "interval": [self.low, self.high], "verdict": self.verdict}


def paired_difference(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    statistic: Statistic,
    *,
    of_class: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """By how much the second is better on the same units (n, K, K), with both drawn alike.

    of_class   the class that ``statistic`` is a score of: the difference rests on the units with reference pixels
               of it alone, and has no interval where they are fewer than two

    What makes a block easy or hard for both cancels out, so differences are told that are far smaller than the
    intervals of the scores themselves. Units without a judged pixel on either side are none.
    """
    judged = first.any(axis=(1, 2)) | second.any(axis=(1, 2))
    first, second = first[judged], second[judged]
    rests_on = len(first)
    if of_class is not None:
        rests_on = min(int((one[:, of_class].sum(axis=1) > 0).sum()) for one in (first, second))
    if not len(first):
        return Difference(np.nan, np.nan, np.nan)
    weights = draw_weights(len(first), draws, seed)
    difference = bootstrap(second, weights, statistic) - bootstrap(first, weights, statistic)
    value = float(statistic(second.sum(axis=0)[None])[0] - statistic(first.sum(axis=0)[None])[0])
    low, high = interval(value, difference, rests_on)
    return Difference(value, float(low), float(high))
