"""Accuracy metrics of confusion matrices: of one, or of a stack (bootstrap resamples).

All take ``counts`` (..., K, K), rows = reference, columns = predicted, and compute over the last two axes. A score
with a zero denominator is NaN: an absent class has no score, neither 0 nor 1, and is left out of means.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[Any]
Floats = NDArray[np.float64]


def ratio(numerator: Any, denominator: Any) -> Floats:
    """``numerator / denominator``, float64; NaN for a denominator of 0."""
    above, below = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def true_positives(counts: Counts) -> Counts:
    """True positives (..., K): pixels of each class that are predicted as it."""
    return np.diagonal(counts, axis1=-2, axis2=-1)


def support(counts: Counts) -> Counts:
    """Support (..., K): reference pixels of each class."""
    return counts.sum(axis=-1)


def predicted_pixels(counts: Counts) -> Counts:
    """Pixels (..., K) predicted as each class."""
    return counts.sum(axis=-2)


def overall_accuracy(counts: Counts) -> Floats:
    """Overall accuracy (...): share of pixels predicted correctly (Congalton 1991)."""
    return ratio(true_positives(counts).sum(axis=-1), counts.sum(axis=(-2, -1)))


def producers_accuracy(counts: Counts) -> Floats:
    """Producer's accuracy (..., K), or recall; NaN for a class not in the reference (Congalton 1991)."""
    return ratio(true_positives(counts), support(counts))


def users_accuracy(counts: Counts) -> Floats:
    """User's accuracy (..., K), or precision; NaN for a class never predicted (Congalton 1991)."""
    return ratio(true_positives(counts), predicted_pixels(counts))


def iou(counts: Counts) -> Floats:
    """Intersection over union (..., K) (Jaccard 1912); NaN for a class not in the reference."""
    union = support(counts) + predicted_pixels(counts) - true_positives(counts)
    return _of_present(counts, ratio(true_positives(counts), union))


def dice(counts: Counts) -> Floats:
    """Dice coefficient (..., K), or F1 (Dice 1945); NaN for a class not in the reference."""
    return _of_present(counts, ratio(2 * true_positives(counts), support(counts) + predicted_pixels(counts)))


def frequency_weighted_iou(counts: Counts) -> Floats:
    """Frequency-weighted IoU (...): mean IoU weighted by reference pixels (Long et al. 2015, CVPR)."""
    return ratio(np.nansum(iou(counts) * support(counts), axis=-1), counts.sum(axis=(-2, -1)))


def kappa(counts: Counts) -> Floats:
    """Cohen's kappa (...) (Cohen 1960): agreement beyond chance; NaN if chance agreement is 1.

    Reported because users ask for it; it adds nothing to overall and class accuracies (Foody 2020, Remote Sensing
    of Environment 239, 111630).
    """
    total = counts.sum(axis=(-2, -1), dtype=float)
    chance = (support(counts).astype(float) * predicted_pixels(counts)).sum(axis=-1)
    return ratio(true_positives(counts).sum(axis=-1) * total - chance, total**2 - chance)


def mean_over(values: Floats, classes: NDArray[np.bool_]) -> Floats:
    """Mean (...) of class scores (..., K) over ``classes`` (K,), ignoring NaN; NaN if no class has a score."""
    known = np.isfinite(values) & classes
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def _of_present(counts: Counts, values: Floats) -> Floats:
    return np.where(support(counts) > 0, values, np.nan)
