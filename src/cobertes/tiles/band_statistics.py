"""Mean, standard deviation, percentiles and class counts of the training tiles, streaming, each pixel once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-9
"""Standard deviation, relative to the mean, that rounding alone can give a constant band."""

PERCENTILES = (1, 2, 25, 50, 75, 98, 99)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of n bands (n,); adding pools two samples (Chan et al. 1983)."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def __add__(self, other: "Moments") -> "Moments":
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta**2 * self.count * share
        return Moments(total, self.mean + delta * share, squares)

    @classmethod
    def total(cls, count: NDArray[np.int64], mean: NDArray[np.float64], squares: NDArray[np.float64]) -> "Moments":
        """Pool many samples along the first axis, in pairs: rounding grows with the log of their number."""
        while len(count) > 1:
            even = len(count) // 2 * 2
            pair = cls(count[:even:2], mean[:even:2], squares[:even:2]) + cls(
                count[1:even:2], mean[1:even:2], squares[1:even:2]
            )
            count, mean, squares = (
                np.concatenate([added, rest[even:]])
                for added, rest in ((pair.count, count), (pair.mean, mean), (pair.squares, squares))
            )
        return cls(count[0], mean[0], squares[0])

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation (n,); 1 for a constant band, so that it can be a divisor."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(std > ROUNDING * abs(self.mean), std, 1.0)


@dataclass(frozen=True)
class Statistics:
    """Band statistics and class counts of the training tiles, for normalisation and class weights.

    ``mean``, ``std`` (seasons, bands) and ``percentiles`` (seasons, bands, 7; `PERCENTILES` of a sample) in the
    scene's units; ``class_counts`` (K,) labelled pixels.
    """

    seasons: tuple[str, ...]
    bands: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    percentiles: NDArray[np.float64]
    pixels: int
    class_counts: NDArray[np.int64]

    def to_dict(self, keys: Sequence[str]) -> dict[str, Any]:
        """Convert to statistics.json; ``keys`` are the class keys (K,)."""
        return {
            "seasons": list(self.seasons),
            "bands": list(self.bands),
            "pixels": self.pixels,
            "mean": {s: self.mean[i].tolist() for i, s in enumerate(self.seasons)},
            "std": {s: self.std[i].tolist() for i, s in enumerate(self.seasons)},
            "percentiles": {
                s: {str(p): self.percentiles[i, :, j].tolist() for j, p in enumerate(PERCENTILES)}
                for i, s in enumerate(self.seasons)
            },
            "class_counts": dict(zip(keys, self.class_counts.tolist(), strict=True)),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Statistics":
        """Restore from the output of `to_dict`."""
        seasons = tuple(data["seasons"])
        percentiles = [[data["percentiles"][s][str(p)] for p in PERCENTILES] for s in seasons]
        return cls(
            seasons,
            tuple(data["bands"]),
            np.array([data["mean"][s] for s in seasons]),
            np.array([data["std"][s] for s in seasons]),
            np.moveaxis(np.array(percentiles), 1, 2),
            int(data["pixels"]),
            np.array(list(data["class_counts"].values()), np.int64),
        )
