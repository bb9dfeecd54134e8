"""Unbiased estimators of areas and accuracies from a stratified random sample, with intervals.

Counted map pixels are a biased estimate of area, and scores against a reference map are no better than that map.
A probability sample of pixels, interpreted by a person, gives both (Olofsson et al. 2014, Remote Sensing of
Environment 148, 42-57). The estimators are those of Stehman (2014, International Journal of Remote Sensing 35,
4923-4939), which also apply to strata that are not the map's classes; if they are, they equal those of Olofsson
et al.

    mean of y      sum of W_h mean_h(y)                       W_h = N_h / N, share of the stratum
    its variance   sum of W_h^2 (1 - f_h) s_h^2(y) / n_h
    ratio y / x    its variance: that of the mean of (y - R x), divided by the mean of x squared

The worked example of Olofsson et al. is in the tests. The finite population correction 1 - f_h is applied if more
than 5 % of a stratum was sampled (Cochran 1977), else it is 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import SettingsError

Z = 1.959963984540054
"""Standard errors on each side of a 95 % interval."""

MOST_IGNORED = 0.05
"""Sampled share of a stratum up to which the finite population correction is ignored."""


@dataclass(frozen=True)
class Estimate:
    """Value with its standard error.

    points   effective number of points of a share of 0 or 1, whose standard error of 0 is meaningless; None for
             other values, and if every pixel was sampled
    """

    value: float
    error: float
    points: float | None = None

    @property
    def margin(self) -> float:
        """Half the 95 % interval."""
        return Z * self.error

    def interval(self, most: float = np.inf) -> tuple[float, float]:
        """95 % interval, clipped to 0 and ``most``; NaN for a value of NaN.

        1.96 standard errors on each side; Wilson's interval (1927) for a share of 0 or 1: two points that are both
        correct give 0.34 to 1.
        """
        if math.isnan(self.value):
            return math.nan, math.nan
        if self.points is not None:
            width = Z**2 / (self.points + Z**2)
            return (0.0, width) if self.value < 0.5 else (1 - width, 1.0)
        return max(0.0, self.value - self.margin), min(most, self.value + self.margin)


@dataclass(frozen=True)
class SampleEstimates:
    """Estimates of the areas and accuracies of a map.

    overall     overall accuracy
    areas       by class: share of all pixels whose reference is the class
    users, producers   accuracies by class; NaN for a class without points
    proportions (K, K) estimated shares of all pixels, rows = reference, columns = predicted
    counts      (K, K) points, rows = reference, columns = predicted
    """

    overall: Estimate
    areas: list[Estimate]
    users: list[Estimate]
    producers: list[Estimate]
    proportions: NDArray[np.float64]
    counts: NDArray[np.int64]


def estimate(
    pixels: NDArray[Any], stratum: NDArray[Any], mapped: NDArray[Any], reference: NDArray[Any], classes: int
) -> SampleEstimates:
    """Estimate areas and accuracies.

    pixels             (H,) pixels of each stratum
    stratum            (n,) stratum 0 .. H-1 of each point
    mapped, reference  (n,) class indices of each point
    Raises SettingsError for a stratum with fewer than two points that was not sampled completely.
    """
    pixels = np.asarray(pixels, float)
    points = np.bincount(stratum, minlength=len(pixels))
    if (too_few := too_few_points(pixels, points)).any():
        number = int(np.flatnonzero(too_few)[0])
        raise SettingsError(
            f"stratum {number} has {points[number]} interpreted points: a variance needs two. Interpret more."
        )
    design = _Design(pixels, points, np.asarray(stratum))
    correct = (mapped == reference).astype(float)
    areas, users, producers = [], [], []
    proportions, counts = np.zeros((classes, classes)), np.zeros((classes, classes), np.int64)
    for k in range(classes):
        is_k, mapped_k = (reference == k).astype(float), (mapped == k).astype(float)
        areas.append(design.mean(is_k))
        users.append(design.ratio(is_k * mapped_k, mapped_k))
        producers.append(design.ratio(is_k * mapped_k, is_k))
        for j in range(classes):
            both = (reference == k) & (mapped == j)
            proportions[k, j] = design.mean(both.astype(float)).value
            counts[k, j] = both.sum()
    return SampleEstimates(design.mean(correct), areas, users, producers, proportions, counts)


def too_few_points(pixels: NDArray[Any], points: NDArray[Any]) -> NDArray[np.bool_]:
    """Strata (H,) bool with too few points for a variance, and pixels that were not sampled."""
    return np.asarray((points < 2) & (points < pixels))


@dataclass(frozen=True)
class _Design:
    """Stratified sample: ``pixels`` and ``points`` (H,) of the strata, ``stratum`` (n,) of the points."""

    pixels: NDArray[np.float64]
    points: NDArray[np.int64]
    stratum: NDArray[np.int64]

    def mean(self, y: NDArray[np.float64]) -> Estimate:
        """Mean of ``y`` (n,) over all pixels."""
        used = self.pixels > 0
        weight = self.pixels[used] / self.pixels.sum()
        n = self.points[used]
        means = self._sums(y)[used] / n
        spread = (self._sums((y - (self._sums(y) / np.maximum(self.points, 1))[self.stratum]) ** 2)[used]) / (
            np.maximum(n - 1, 1)
        )
        sampled = n / self.pixels[used]
        correction = np.where(sampled > MOST_IGNORED, 1 - sampled, 1.0)
        value, error = float(weight @ means), float(np.sqrt(np.sum(weight**2 * correction * spread / n)))
        return Estimate(value, error, self._agreeing(y, np.ones_like(y)))

    def ratio(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> Estimate:
        """Ratio of the means of ``y`` and ``x`` (n,); NaN if ``x`` is 0 everywhere."""
        below = self.mean(x).value
        if below == 0:
            return Estimate(float("nan"), float("nan"))
        value = self.mean(y).value / below
        return Estimate(value, self.mean(y - value * x).error / below, self._agreeing(y, x))

    def _agreeing(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> float | None:
        """Effective number of points (Kish 1965) with ``x`` = 1, if ``y`` is 0 at all or 1 at all; else None."""
        there, share = x > 0, self.points / np.maximum(self.pixels, 1)
        same = (y[there] == 0).all() or (y[there] == 1).all()
        if not same or (share[self.stratum[there]] >= 1).all():
            return None
        weight = 1 / share[self.stratum[there]]
        return float(weight.sum() ** 2 / (weight**2).sum())

    def _sums(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(self.stratum, y, len(self.pixels)).astype(np.float64)


# --- sample size and allocation


def sample_size(pixels: NDArray[Any], expected: NDArray[Any], standard_error: float) -> int:
    """Sample size for a standard error of the overall accuracy, given ``expected`` (H,) user's accuracies.

    Cochran (1977, eq. 5.25), equation 13 of Olofsson et al. (2014): n = (sum W S)^2 / (SE^2 + sum W S^2 / N).
    """
    pixels, expected = np.asarray(pixels, float), np.asarray(expected, float)
    weight, deviation = pixels / pixels.sum(), np.sqrt(expected * (1 - expected))
    below = standard_error**2 + (weight * deviation**2).sum() / pixels.sum()
    return int(np.ceil((weight * deviation).sum() ** 2 / below))


def allocate(pixels: NDArray[Any], points: int, *, equal: bool = False, minimum: int = 0) -> NDArray[np.int64]:
    """Allocate points (H,) to the strata; they sum to ``points`` if the strata have as many pixels.

    equal     equal allocation, else proportional to the pixels
    minimum   points of each stratum; the others share the rest
    Raises SettingsError for too few points.
    """
    pixels = np.asarray(pixels, np.int64)
    least = np.minimum(np.maximum(minimum, 2), pixels)
    if least.sum() > points:
        raise SettingsError(
            f"{points} points are too few for {len(pixels)} strata of at least {max(minimum, 2)}: ask for "
            f"{least.sum()} or more, or for a smaller minimum"
        )
    share = (pixels > 0).astype(float) if equal else pixels.astype(float)
    fixed = pixels == 0
    settled = np.where(fixed, 0, least).astype(float)
    while True:  # each round settles strata at their minimum or at all their pixels
        left = points - settled[fixed].sum()
        wanted = np.where(fixed, settled, left * share / max(share[~fixed].sum(), 1e-12))
        bound = ~fixed & ((wanted < least) | (wanted > pixels))
        if not bound.any():
            break
        low = bound & (wanted < least)
        now = low if low.any() else bound
        settled[now] = np.where(low, least, pixels)[now]
        fixed |= now
        if fixed.all():
            wanted = settled
            break
    rounded = np.floor(wanted + 1e-9).astype(np.int64)
    while (rest := points - int(rounded.sum())) > 0 and (rounded < pixels).any():
        room = np.flatnonzero(rounded < pixels)
        order = room[np.argsort(-(wanted - rounded)[room], kind="stable")]
        rounded[order[:rest]] += 1
    return rounded
