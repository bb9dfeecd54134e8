"""Mean, standard deviation and class counts of the training ground, streaming and each pixel once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-9
"""Spread, as a share of the mean, that sums of floating-point numbers make out of a constant band."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations per band; two can be added (Chan et al. 1983)."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Moments":
        """Of ``values`` (bands, n)."""
        if values.shape[1] == 0:
            return cls(0, np.zeros(len(values)), np.zeros(len(values)))
        exact = values.astype(np.float64)
        mean = exact.mean(axis=1)
        return cls(values.shape[1], mean, ((exact - mean[:, None]) ** 2).sum(axis=1))

    def __add__(self, other: "Moments") -> "Moments":
        total = self.count + other.count
        if total == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / total
        squares = self.squares + other.squares + delta**2 * self.count * other.count / total
        return Moments(total, mean, squares)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation per band; 1 where a band is constant, so that it can be divided by."""
        std = np.sqrt(self.squares / max(self.count, 1))
        return np.where(std > ROUNDING * abs(self.mean), std, 1.0)


@dataclass(frozen=True)
class Statistics:
    """What normalisation and class weights need, from the training tiles alone.

    ``mean``, ``std`` (seasons, bands) in the scene's units; ``class_counts`` (K,) labelled pixels.
    """

    seasons: tuple[str, ...]
    bands: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    pixels: int
    class_counts: NDArray[np.int64]

    def to_dict(self, keys: Sequence[str]) -> dict[str, Any]:
        """For statistics.json; ``keys`` name the classes."""
        return {
            "seasons": list(self.seasons),
            "bands": list(self.bands),
            "pixels": self.pixels,
            "mean": {s: self.mean[i].tolist() for i, s in enumerate(self.seasons)},
            "std": {s: self.std[i].tolist() for i, s in enumerate(self.seasons)},
            "class_counts": dict(zip(keys, self.class_counts.tolist(), strict=True)),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Statistics":
        """From what `to_dict` gives."""
        seasons = tuple(data["seasons"])
        return cls(
            seasons,
            tuple(data["bands"]),
            np.array([data["mean"][s] for s in seasons]),
            np.array([data["std"][s] for s in seasons]),
            int(data["pixels"]),
            np.array(list(data["class_counts"].values()), np.int64),
        )
