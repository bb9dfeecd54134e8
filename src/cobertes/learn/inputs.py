"""From scenes to the network's channels: one definition for training, validation and prediction.

``stack``: seasons side by side, each with its bands: april:B04, april:B03 ... august:B12. ``shared``: the same,
but the network looks at each by itself. ``separate``: the bands of one season; a sample is one season of a place,
and where several are there their predictions are averaged. With the latter two a model can do without a season.
Values become ``(value - mean) / std`` of the training ground; what was not observed becomes 0, the mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import BandMismatchError, SettingsError, did_you_mean
from cobertes.geo.scene import Observed, Scene, seen_in_any
from cobertes.geo.windows import Window
from cobertes.jit import compiled
from cobertes.tiles.statistics import Statistics

CLIP = 10.0
"""Normalised values are cut off this many standard deviations from the mean: glints and artefacts."""

STRAIGHT = 0
"""The turn that leaves a window as it is; see `turned`."""

SeasonMode = Literal["stack", "separate", "shared"]


@compiled
def _encode(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    scale: NDArray[np.float32],
    gain: NDArray[np.float32],
    offset: NDArray[np.float32],
    turn: int,
    first: int,
    out: NDArray[np.float32],
) -> None:
    """Normalise, vary and turn a season's pixels in one pass.

    pixels  (n, m, bands); ``valid`` (n, m)
    scale   (2, bands): mean and 1 / std; ``gain``, ``offset`` (bands,) of the normalised values
    turn    0 to 7, as in `turned`
    out     (H, W, channels), written from channel ``first`` on; 0 where not valid
    """
    height, width, _ = out.shape
    bands = pixels.shape[2]
    mean, inverse = scale[0], scale[1]
    quarter = turn % 4
    for i in range(height):
        for j in range(width):
            if quarter == 0:
                row, col = i, j
            elif quarter == 1:
                row, col = j, height - 1 - i
            elif quarter == 2:
                row, col = height - 1 - i, width - 1 - j
            else:
                row, col = width - 1 - j, i
            if turn >= 4:
                col = pixels.shape[1] - 1 - col
            if valid[row, col]:
                for b in range(bands):
                    value = (np.float32(pixels[row, col, b]) - mean[b]) * inverse[b]
                    value = min(max(value, np.float32(-10.0)), np.float32(10.0))
                    out[i, j, first + b] = value * gain[b] + offset[b]
            else:
                for b in range(bands):
                    out[i, j, first + b] = 0


def turned(values: NDArray[Any], turn: int) -> NDArray[Any]:
    """(H, W, ...) of (n, m, ...): mirrored left to right if ``turn`` >= 4, then turned left ``turn % 4`` times."""
    return np.rot90(values[:, ::-1] if turn >= 4 else values, turn % 4)


@dataclass(frozen=True)
class Inputs:
    """How the channels of a model come about. ``mean``, ``std`` (seasons, bands) in the scene's units."""

    seasons: tuple[str, ...]
    bands: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    mode: SeasonMode = "stack"

    @classmethod
    def of(cls, statistics: Statistics, mode: SeasonMode = "stack") -> "Inputs":
        """From the statistics of the training ground."""
        return cls(statistics.seasons, statistics.bands, statistics.mean, statistics.std, mode)

    @property
    def channels(self) -> int:
        """Number of channels of the network."""
        return len(self.bands) * (1 if self.mode == "separate" else len(self.seasons))

    def encode(self, observed: Mapping[str, Observed]) -> NDArray[np.float32]:
        """Channels (seasons * bands, height, width) float32 of all seasons, channels last in memory.

        A season that is not among them was not observed.
        """
        height, width = next(iter(observed.values()))[1].shape
        x = np.empty((height, width, len(self.seasons) * len(self.bands)), np.float32)
        for number, season in enumerate(self.seasons):
            first = number * len(self.bands)
            if season in observed:
                self.fill(x, number, first, observed[season])
            else:
                x[..., first : first + len(self.bands)] = 0
        return x.transpose(2, 0, 1)

    def fill(
        self,
        x: NDArray[np.float32],
        season: int,
        first: int,
        observed: Observed,
        *,
        turn: int = STRAIGHT,
        gain: NDArray[np.float32] | None = None,
        offset: NDArray[np.float32] | None = None,
    ) -> None:
        """Write what a season showed into ``x`` (H, W, channels) from channel ``first`` on.

        observed      values (n, m, bands) and validity (n, m) bool; n x m is H x W before the turn
        gain, offset  (bands,) float32 of the normalised values
        """
        pixels, valid = observed
        bands = len(self.bands)
        scale = np.stack([self.mean[season], 1 / self.std[season]]).astype(np.float32)
        gain = np.ones(bands, np.float32) if gain is None else gain
        offset = np.zeros(bands, np.float32) if offset is None else offset
        _encode(pixels, valid, scale, gain, offset, turn, first, x)

    def read(self, scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Channels of a window, and where at least one season was observed (height, width) bool."""
        observed = {season: scenes[season].read_pixels(window) for season in self.seasons if season in scenes}
        return self.encode(observed), seen_in_any(observed)

    def check(self, scenes: Mapping[str, Scene]) -> None:
        """Raise BandMismatchError or SettingsError where scenes do not have these seasons and bands."""
        missing = [season for season in self.seasons if season not in scenes]
        if missing and (self.mode == "stack" or len(missing) == len(self.seasons)):
            raise SettingsError(
                f"the model needs a scene of season '{missing[0]}', found {', '.join(scenes)}."
                f"{did_you_mean(missing[0], scenes)}"
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
            "mode": self.mode,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Inputs":
        """From what `to_dict` gives. Raises ValueError where the parts do not fit each other."""
        mean, std = np.array(data["mean"], float), np.array(data["std"], float)
        seasons, bands = tuple(data["seasons"]), tuple(data["bands"])
        if not mean.shape == std.shape == (len(seasons), len(bands)):
            raise ValueError(f"statistics of {mean.shape} for {len(seasons)} seasons and {len(bands)} bands")
        return cls(seasons, bands, mean, std, data.get("mode", "stack"))
