"""Areas and accuracies from a stratified random sample that was interpreted: unbiased, with intervals.

Counted map pixels are a biased estimate of area, and scores against a reference map are no better than that map.
A probability sample of places, seen by a person, gives both (Olofsson et al. 2014, Remote Sensing of Environment
148, 42-57). The estimators are those of Stehman (2014, International Journal of Remote Sensing 35, 4923-4939),
which also hold where strata are not the map's classes; where they are, the results are those of Olofsson et al.

    mean of y      sum of W_h mean_h(y)                       W_h = N_h / N, the stratum's share of the pixels
    its variance   sum of W_h^2 (1 - f_h) s_h^2(y) / n_h
    ratio y / x    its variance: that of the mean of (y - R x), divided by the mean of x squared

A worked example (that of Olofsson et al.) is in the tests. The finite population correction 1 - f_h is applied
where more than 5 % of a stratum was sampled (Cochran 1977), else 1.
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
"""Share of a stratum that may be sampled before the finite population correction counts."""


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error.

    points   that a share rests on, in effect, where each of them says the same: their standard error of 0 says
             nothing then. None otherwise, and where every pixel was seen.
    """

    value: float
    error: float
    points: float | None = None

    @property
    def margin(self) -> float:
        """Half the 95 % interval."""
        return Z * self.error

    def interval(self, most: float = np.inf) -> tuple[float, float]:
        """The 95 % interval, cut to 0 and ``most``; NaN where the value is.

        1.96 standard errors on each side. Of a share of 0 or 1 that is Wilson's interval (1927): two points that
        are both right leave 0.34 to 1.
        """
        if math.isnan(self.value):
            return math.nan, math.nan
        if self.points is not None:
            reach = Z**2 / (self.points + Z**2)
            return (0.0, reach) if self.value < 0.5 else (1 - reach, 1.0)
        return max(0.0, self.value - self.margin), min(most, self.value + self.margin)


@dataclass(frozen=True)
class SampleEstimates:
    """What a sample says of a map.

    overall     accuracy
    areas       by class: share of all pixels whose reference is the class
    users, producers   accuracies by class; NaN where the sample holds nothing to tell
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
    Raises SettingsError where a stratum has fewer than two points, and more pixels than points.
    """
    pixels = np.asarray(pixels, float)
    points = np.bincount(stratum, minlength=len(pixels))
    if (too_few := too_few_points(pixels, points)).any():
        number = int(np.flatnonzero(too_few)[0])
        raise SettingsError(
            f"stratum {number} has {points[number]} interpreted points: a variance needs two. Interpret more."
        )
    design = _Design(pixels, points, np.asarray(stratum))
    right = (mapped == reference).astype(float)
    areas, users, producers = [], [], []
    proportions, counts = np.zeros((classes, classes)), np.zeros((classes, classes), np.int64)
    for k in range(classes):
        is_k, says_k = (reference == k).astype(float), (mapped == k).astype(float)
        areas.append(design.mean(is_k))
        users.append(design.ratio(is_k * says_k, says_k))
        producers.append(design.ratio(is_k * says_k, is_k))
        for j in range(classes):
            both = (reference == k) & (mapped == j)
            proportions[k, j] = design.mean(both.astype(float)).value
            counts[k, j] = both.sum()
    return SampleEstimates(design.mean(right), areas, users, producers, proportions, counts)


def too_few_points(pixels: NDArray[Any], points: NDArray[Any]) -> NDArray[np.bool_]:
    """(H,) whether the points of a stratum are too few for a variance, though it has pixels that were not seen."""
    return np.asarray((points < 2) & (points < pixels))


@dataclass(frozen=True)
class _Design:
    """A stratified sample: ``pixels`` and ``points`` (H,) of the strata, ``stratum`` (n,) of the points."""

    pixels: NDArray[np.float64]
    points: NDArray[np.int64]
    stratum: NDArray[np.int64]

    def mean(self, y: NDArray[np.float64]) -> Estimate:
        """The mean of ``y`` (n,) over all pixels."""
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
        """The mean of ``y`` divided by that of ``x``; NaN where ``x`` is nowhere."""
        below = self.mean(x).value
        if below == 0:
            return Estimate(float("nan"), float("nan"))
        value = self.mean(y).value / below
        return Estimate(value, self.mean(y - value * x).error / below, self._agreeing(y, x))

    def _agreeing(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> float | None:
        """Points where ``x`` is 1, in effect (Kish 1965), if ``y`` is 0 or 1 at all of them; else None."""
        there, share = x > 0, self.points / np.maximum(self.pixels, 1)
        same = (y[there] == 0).all() or (y[there] == 1).all()
        if not same or (share[self.stratum[there]] >= 1).all():
            return None
        weight = 1 / share[self.stratum[there]]
        return float(weight.sum() ** 2 / (weight**2).sum())

    def _sums(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(self.stratum, y, len(self.pixels)).astype(np.float64)


# --- how many points, and where


def sample_size(pixels: NDArray[Any], expected: NDArray[Any], standard_error: float) -> int:
    """Points for a standard error of the overall accuracy, if users' accuracies are as ``expected`` (H,).

    Cochran (1977, eq. 5.25), equation 13 of Olofsson et al. (2014): n = (sum W S)^2 / (SE^2 + sum W S^2 / N).
    """
    pixels, expected = np.asarray(pixels, float), np.asarray(expected, float)
    weight, deviation = pixels / pixels.sum(), np.sqrt(expected * (1 - expected))
    below = standard_error**2 + (weight * deviation**2).sum() / pixels.sum()
    return int(np.ceil((weight * deviation).sum() ** 2 / below))


def allocate(pixels: NDArray[Any], points: int, *, equal: bool = False, minimum: int = 0) -> NDArray[np.int64]:
    """Points (H,) of each stratum; they sum to ``points`` where the strata have as many pixels.

    equal     the same for all, else in proportion to the pixels
    minimum   of each stratum: those that would get fewer get these, the others share the rest
    Raises SettingsError where the points are too few.
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
    given = np.where(fixed, 0, least).astype(float)
    while True:  # each round settles strata at their minimum or at all their pixels
        left = points - given[fixed].sum()
        wanted = np.where(fixed, given, left * share / max(share[~fixed].sum(), 1e-12))
        bound = ~fixed & ((wanted < least) | (wanted > pixels))
        if not bound.any():
            break
        low = bound & (wanted < least)
        now = low if low.any() else bound
        given[now] = np.where(low, least, pixels)[now]
        fixed |= now
        if fixed.all():
            wanted = given
            break
    whole = np.floor(wanted + 1e-9).astype(np.int64)
    while (rest := points - int(whole.sum())) > 0 and (whole < pixels).any():
        room = np.flatnonzero(whole < pixels)
        order = room[np.argsort(-(wanted - whole)[room], kind="stable")]
        whole[order[:rest]] += 1
    return whole
