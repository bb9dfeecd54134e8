"""Scores as functions of counts: of one confusion matrix, or of many side by side (resampled blocks).

All take ``counts`` (..., K, K), rows = reference, columns = predicted, and compute over the last two axes. A score
without anything to compute from is NaN: an absent class has no score, neither 0 nor 1, and is left out of means.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[Any]
Floats = NDArray[np.float64]


def ratio(part: Any, whole: Any) -> Floats:
    """``part / whole``, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def hits(counts: Counts) -> Counts:
    """(..., K) pixels of each class that are mapped as it."""
    return np.diagonal(counts, axis1=-2, axis2=-1)


def support(counts: Counts) -> Counts:
    """(..., K) reference pixels of each class."""
    return counts.sum(axis=-1)


def mapped(counts: Counts) -> Counts:
    """(..., K) pixels that are mapped as each class."""
    return counts.sum(axis=-2)


def overall_accuracy(counts: Counts) -> Floats:
    """(...) share of pixels whose class is right."""
    return ratio(hits(counts).sum(axis=-1), counts.sum(axis=(-2, -1)))


def producers_accuracy(counts: Counts) -> Floats:
    """(..., K) recall; NaN where the class is not in the reference."""
    return ratio(hits(counts), support(counts))


def users_accuracy(counts: Counts) -> Floats:
    """(..., K) precision; NaN where the class is never predicted."""
    return ratio(hits(counts), mapped(counts))


def iou(counts: Counts) -> Floats:
    """(..., K) intersection over union (Jaccard); NaN where the class is not in the reference."""
    return _of_present(counts, ratio(hits(counts), support(counts) + mapped(counts) - hits(counts)))


def dice(counts: Counts) -> Floats:
    """(..., K) Dice coefficient, which is F1; NaN where the class is not in the reference."""
    return _of_present(counts, ratio(2 * hits(counts), support(counts) + mapped(counts)))


def frequency_weighted_iou(counts: Counts) -> Floats:
    """(...) IoU of the classes, weighted by their reference pixels (Long et al. 2015)."""
    return ratio(np.nansum(iou(counts) * support(counts), axis=-1), counts.sum(axis=(-2, -1)))


def kappa(counts: Counts) -> Floats:
    """(...) Cohen's kappa (1960): agreement beyond chance; NaN where chance alone agrees everywhere.

    Shown because it is asked for; it says nothing that overall and class accuracies do not (Foody 2020).
    """
    total = counts.sum(axis=(-2, -1), dtype=float)
    chance = (support(counts).astype(float) * mapped(counts)).sum(axis=-1)
    return ratio(hits(counts).sum(axis=-1) * total - chance, total**2 - chance)


def mean_over(values: Floats, classes: NDArray[np.bool_]) -> Floats:
    """(...) mean of class scores (..., K) over the chosen ``classes`` (K,) that have one; NaN where none has."""
    known = np.isfinite(values) & classes
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def _of_present(counts: Counts, values: Floats) -> Floats:
    return np.where(support(counts) > 0, values, np.nan)
