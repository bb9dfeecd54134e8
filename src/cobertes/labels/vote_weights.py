"""Weights of the votes in a weighted majority, by class and by distance from the pixel's centre.

    forest   15 % of the map   weight 1.0    62 votes x 1.0 = 62
    track   0.2 % of the map   weight 8.7    38 votes x 8.7 = 331  <- wins

All weights are rounded to integers first: sums of integers do not depend on their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import SettingsError, did_you_mean
from cobertes.labels.legend import Legend
from cobertes.labels.recode import RecodeTable

BY_FREQUENCY = {"equal": 0.0, "inverse-sqrt": 0.5, "inverse": 1.0}
"""Weights by name: 1 / frequency to this power."""

MAX_SMOOTHING = 1.0
"""Largest standard deviation of the Gaussian kernel in scene pixels."""

TOP_WEIGHT = 2**20
"""Integer of the largest class weight."""

TOP_KERNEL = 2**10
"""Integer at the pixel's centre along one axis: all products stay below 2**63."""


@dataclass(frozen=True)
class VoteWeights:
    """Weights of a weighted majority.

    classes    a name of `BY_FREQUENCY`, or weights by class (code, key or name), 1 for classes left out
    smoothing  standard deviation, in scene pixels, of the Gaussian weight of a vote by its distance from the
               pixel's centre, neighbouring pixels included. 0: the pixel's own votes, unweighted
    """

    classes: str | Mapping[Any, float] = "inverse-sqrt"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) and self.classes not in BY_FREQUENCY:
            raise SettingsError(f"no class weights '{self.classes}'.{did_you_mean(self.classes, BY_FREQUENCY)}")
        if not 0 <= self.smoothing <= MAX_SMOOTHING:
            raise SettingsError(
                f"smoothing must be from 0 to {MAX_SMOOTHING:g} scene pixels, not {self.smoothing:g}"
            )

    @property
    def by_frequency(self) -> bool:
        """True if the classes have to be counted first."""
        return isinstance(self.classes, str) and BY_FREQUENCY[self.classes] > 0

    def weights(self, legend: Legend, counts: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """(K,) float64: weight of each class index, 1 for the most frequent class.

        counts  (K,) pixels of each class in the reference map, for weights by frequency
        Raises LegendError for classes that do not exist, SettingsError for weights that are not positive.
        """
        if not isinstance(self.classes, str):
            given = {legend.index(what): float(weight) for what, weight in self.classes.items()}
            if any(not 0 < weight < float("inf") for weight in given.values()):
                raise SettingsError(f"class weights must be greater than 0, found {min(given.values()):g}")
            return np.array([given.get(k, 1.0) for k in range(len(legend))])
        if counts is None or not self.by_frequency:
            return np.ones(len(legend))
        # a class without a pixel gets no votes, so its weight does not matter
        frequent = np.maximum(counts, 1).astype(np.float64)
        weights: NDArray[np.float64] = (frequent.max() / frequent) ** BY_FREQUENCY[self.classes]
        return weights


def parse_weights(text: str) -> str | dict[int | str, float]:
    """``inverse-sqrt``, or ``water=8,transport=5`` as a table. Raises SettingsError."""
    if "=" not in text:
        return text
    try:
        pairs = (part.rsplit("=", 1) for part in text.split(","))
        return {what.strip(): float(weight) for what, weight in pairs}
    except ValueError as error:
        raise SettingsError(
            f"class weights are {', '.join(BY_FREQUENCY)} or CLASS=NUMBER,CLASS=NUMBER, found '{text}'"
        ) from error


def integer_weights(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """(K,) int64 in proportion to the weights, from 1 to `TOP_WEIGHT`."""
    return np.maximum(np.rint(weights / weights.max() * TOP_WEIGHT), 1).astype(np.int64)


def gaussian_kernel(smoothing: float, factor: int) -> NDArray[np.int64]:
    """((2 radius + 1) * factor,) int64: weight of fine pixels along one axis, to three standard deviations."""
    radius = ceil(3 * smoothing - 0.5)
    size = (2 * radius + 1) * factor
    far = [((i + 0.5) / factor - radius - 0.5) / smoothing for i in range(size)]
    return np.array([max(1, round(TOP_KERNEL * exp(-d * d / 2))) for d in far], np.int64)


def describe_weights(legend: Legend, weights: NDArray[np.float64]) -> str:
    """``forest=1,water=7.5``: as `parse_weights` reads it."""
    return ",".join(f"{key}={weight:.4g}" for key, weight in zip(legend.keys, weights, strict=True))


def class_counts(legend: Legend, table: RecodeTable, seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) int64: pixels of each class from (256,) pixels of each source code or slot."""
    counts = np.zeros(len(legend), np.int64)
    for k, code in enumerate(legend.codes):
        counts[k] = seen[table.table == code].sum()
    return counts
