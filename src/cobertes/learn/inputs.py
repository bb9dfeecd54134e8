"""From scenes to the network's channels: one definition for training, validation and prediction.

Channels are seasons side by side, each with its bands (``stack``): april:B04, april:B03 … august:B12.
Values become ``(value - mean) / std`` of the training ground; what was not observed becomes 0, the mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import BandMismatchError, SettingsError, did_you_mean
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.tiles.ground import Observed, seen_in_any
from cobertes.tiles.statistics import Statistics

CLIP = 10.0
"""Normalised values are cut off this many standard deviations from the mean: glints and artefacts."""


@dataclass(frozen=True)
class Inputs:
    """How the channels of a model come about. ``mean``, ``std`` (seasons, bands) in the scene's units."""

    seasons: tuple[str, ...]
    bands: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: Statistics) -> "Inputs":
        """From the statistics of the training ground."""
        return cls(statistics.seasons, statistics.bands, statistics.mean, statistics.std)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.seasons) * len(self.bands)

    def encode(self, observed: Mapping[str, Observed]) -> NDArray[np.float32]:
        """Channels (channels, height, width) float32 of what was observed in each season."""
        height, width = observed[self.seasons[0]][1].shape
        x = np.empty((len(self.seasons), len(self.bands), height, width), np.float32)
        for part, season, mean, std in zip(x, self.seasons, self.mean, self.std, strict=True):
            values, valid = observed[season]
            for channel, band, m, s in zip(part, values, mean.astype(np.float32), std, strict=True):
                # band by band, because a band stays in the processor's cache; empty pixels may overflow
                with np.errstate(over="ignore", invalid="ignore"):
                    np.subtract(band, m, out=channel, casting="same_kind")
                    np.multiply(channel, np.float32(1 / s), out=channel)
                np.clip(channel, -CLIP, CLIP, out=channel)
            if not valid.all():
                part[:, ~valid] = 0
        return x.reshape(self.channels, height, width)

    def read(self, scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Channels of a window, and where at least one season was observed (height, width) bool."""
        observed = {season: scenes[season].read(window) for season in self.seasons}
        return self.encode(observed), seen_in_any(observed)

    def check(self, scenes: Mapping[str, Scene]) -> None:
        """Raise BandMismatchError or SettingsError where scenes do not have these seasons and bands."""
        for season in self.seasons:
            if season not in scenes:
                raise SettingsError(
                    f"the model needs a scene of season '{season}', found {', '.join(scenes)}."
                    f"{did_you_mean(season, scenes)}"
                )
        extra = [season for season in scenes if season not in self.seasons]
        if extra:
            raise SettingsError(
                f"the model does not know season '{extra[0]}'.{did_you_mean(extra[0], self.seasons)}"
            )
        for scene in scenes.values():
            if scene.band_names != self.bands:
                raise BandMismatchError(
                    f"{scene.files[0]} gives bands {', '.join(scene.band_names)}, the model was trained on "
                    f"{', '.join(self.bands)}. Give it those bands in that order."
                )

    def to_dict(self) -> dict[str, Any]:
        """For the model's header."""
        return {
            "seasons": list(self.seasons),
            "bands": list(self.bands),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Inputs":
        """From what `to_dict` gives. Raises ValueError where the parts do not fit each other."""
        mean, std = np.array(data["mean"], float), np.array(data["std"], float)
        seasons, bands = tuple(data["seasons"]), tuple(data["bands"])
        if not mean.shape == std.shape == (len(seasons), len(bands)):
            raise ValueError(f"statistics of {mean.shape} for {len(seasons)} seasons and {len(bands)} bands")
        return cls(seasons, bands, mean, std)
