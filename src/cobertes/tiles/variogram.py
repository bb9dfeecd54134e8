"""Range of spatial autocorrelation of the labels, the minimum size of a block of the split.

Two pixels at distance h have the same class with probability S(h). Half of 1 - S(h) is the sum of the indicator
variograms of all classes (Goovaerts 1997, Geostatistics for Natural Resources Evaluation, chapter 7); it rises to
a sill, and the range is the distance at which it is 95 % there:

    1 - S(h)   sill - - - - - - - - ______       gamma(h) = nugget + partial sill * (1 - exp(-3 h / range))
                          ___.-'                 is fitted by least squares, lags weighted by pairs / h^2 (the
                     .-''       |                default of gstat); lags up to half of the shorter side.
              nugget            |
                 +--------------+----> h
                              range

Blocks of at least this size make training and held-out pixels nearly independent (Roberts et al. 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.optimize import curve_fit

LAGS = 60
MIN_LAGS = 5
LEAST_PAIRS = 1000


@dataclass(frozen=True)
class Variogram:
    """Variogram 1 - S(h): ``value`` (n,) at ``lag`` (n,) pixels, from ``pairs`` (n,); ``range_`` in pixels."""

    lag: NDArray[np.float64]
    value: NDArray[np.float64]
    pairs: NDArray[np.float64]
    range_: float | None


class RangeEstimator:
    """Estimator of the range of autocorrelation over many areas, added one by one.

    shapes  (height, width) of all areas in pixels; lags go up to half of the shorter side of the largest
    side    side in pixels of the square cells of the coarsest area
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], side: int) -> None:
        longest = max(min(shape) for shape in shapes) / 2
        step = max(float(side), longest / LAGS)
        self._edges = np.arange(0.5, longest / step + 0.5) * step
        self._same, self._pairs, self._total = (np.zeros(len(self._edges)) for _ in range(3))

    def add(self, counts: NDArray[np.integer], side: int) -> None:
        """Add the pixels per class (K, rows, cols) in square cells of ``side`` pixels of an area."""
        if not counts.any() or not len(self._edges):
            return
        distance, together, products = _correlate(counts)
        group = np.searchsorted(self._edges, distance * side) - 1
        inside = (group >= 0) & (group < len(self._edges)) & (products > 0.5)
        for sums, values in (
            (self._same, together), (self._pairs, products), (self._total, products * distance * side),
        ):  # fmt: skip
            np.add(sums, np.bincount(group[inside], values[inside], len(self._edges)), out=sums)

    def result(self) -> Variogram:
        """Fit the variogram; ``range_`` is None for too few lags or if no model fits (as for one class)."""
        enough = self._pairs > LEAST_PAIRS
        pairs = self._pairs[enough]
        lag, value = self._total[enough] / pairs, 1 - self._same[enough] / pairs
        return Variogram(lag, value, pairs, _fit(lag, value, pairs))


def _correlate(
    counts: NDArray[np.integer],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Length, summed probability of equal classes and number of pairs (offsets,) of every offset between cells."""
    total = counts.sum(axis=0)
    known = total > 0
    shape = [scipy.fft.next_fast_len(2 * n - 1, real=True) for n in known.shape]

    def autocorrelation(values: NDArray[np.float64]) -> NDArray[np.float64]:
        spectrum = scipy.fft.rfft2(values, shape)
        return np.asarray(scipy.fft.irfft2(abs(spectrum) ** 2, shape))

    pairs = autocorrelation(known.astype(float))
    together = np.zeros_like(pairs)
    for one in counts:
        if one.any():
            together += autocorrelation(np.divide(one, total, out=np.zeros(total.shape), where=known))
    rows, cols = (scipy.fft.fftfreq(n, 1 / n) for n in shape)
    return np.hypot(rows[:, None], cols).ravel(), together.ravel(), pairs.ravel()


def _fit(lag: NDArray[np.float64], value: NDArray[np.float64], pairs: NDArray[np.float64]) -> float | None:
    if len(lag) < MIN_LAGS or np.ptp(value) < 1e-6:
        return None

    def model(h: NDArray[np.float64], nugget: float, sill: float, range_: float) -> NDArray[np.float64]:
        return nugget + sill * (1 - np.exp(-3 * h / range_))

    guess = (0.0, float(value.max()), float(lag[len(lag) // 3]))
    limits = ([0, 0, float(lag[0])], [1, 2, 4 * float(lag[-1])])
    try:
        found, _ = curve_fit(model, lag, value, guess, lag / np.sqrt(pairs), bounds=limits)
    except (RuntimeError, ValueError):  # no fit
        return None
    return float(found[2])
