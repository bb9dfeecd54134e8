"""Encoding of scenes as the network's channels: one definition for training, validation and prediction.

    stack     seasons side by side, each with its bands: april:B04, april:B03 ... august:B12
    shared    the same channels, but one encoder takes each season by itself
    separate  the bands of one season, which is a sample; predictions of several seasons are averaged

With the latter two a season may be missing. Values become ``(value - mean) / std`` over the training tiles;
pixels without observation become 0, the mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import BandMismatchError, SettingsError, did_you_mean
from cobertes.geo.observation import Observation
from cobertes.geo.products.band_vocabulary import BandLabel
from cobertes.geo.radiometry import RadiometricConvention
from cobertes.geo.scene import Scene, valid_in_any
from cobertes.geo.windows import Window
from cobertes.numba_cache import compiled
from cobertes.tiles.band_statistics import Statistics

CLIP = 10.0
"""Normalised values are clipped this many standard deviations from the mean: glints and artefacts."""

IDENTITY = 0
"""Turn that changes nothing; see `turned`."""

SeasonMode = Literal["stack", "separate", "shared"]


@compiled
def _encode(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    line: NDArray[np.float32],
    turn: int,
    first: int,
    out: NDArray[np.float32],
) -> None:
    """Normalise, augment and rotate a season's pixels in one pass.

    pixels  (n, m, bands) C-contiguous; ``valid`` (n, m)
    line    (4, width * bands): slope, intercept, minimum and maximum of every band, repeated for each pixel of a
            row: one loop without branches over a row's values is vectorised
    turn    0 to 7, as in `turned`
    out     (H, W, channels), written from channel ``first`` on; 0 where not valid
    """
    height, width, channels = out.shape
    bands = pixels.shape[2]
    flat, flat_valid = pixels.reshape(pixels.size), valid.reshape(valid.size)
    turned_row, normalised = np.empty(width * bands, pixels.dtype), np.empty(width * bands, np.float32)
    for i in range(height):
        begin, step = _source_row(i, height, width, turn)
        row = out[i].reshape(width * channels) if channels == bands else normalised
        if step == 1:  # contiguous: without a copy of the row
            _normalise(flat[begin * bands : (begin + width) * bands], line, row)
        else:
            for j in range(width):
                source = (begin + j * step) * bands
                for b in range(bands):
                    turned_row[j * bands + b] = flat[source + b]
            _normalise(turned_row, line, row)
        for j in range(width):
            if not flat_valid[begin + j * step]:
                row[j * bands : (j + 1) * bands] = 0
        if channels != bands:
            for j in range(width):
                for b in range(bands):
                    out[i, j, first + b] = row[j * bands + b]


@compiled
def _normalise(values: NDArray[Any], line: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Normalise and clip a row's ``values`` (width * bands,) into ``out``."""
    slope, intercept, minimum, maximum = line[0], line[1], line[2], line[3]
    for k in range(len(out)):
        value = np.float32(values[k]) * slope[k] + intercept[k]
        value = minimum[k] if value < minimum[k] else value
        out[k] = maximum[k] if value > maximum[k] else value


@compiled
def _source_row(i: int, height: int, width: int, turn: int) -> tuple[int, int]:
    """Start and step, in pixels of the flat window before the turn, of row ``i`` of (height, width) after it."""
    quarter, mirrored = turn % 4, turn >= 4
    across = width if quarter % 2 == 0 else height  # pixels of a row before the turn
    if quarter == 0:
        row, col, down, right = i, 0, 0, 1
    elif quarter == 1:
        row, col, down, right = 0, height - 1 - i, 1, 0
    elif quarter == 2:
        row, col, down, right = height - 1 - i, width - 1, 0, -1
    else:
        row, col, down, right = width - 1, i, -1, 0
    if mirrored:
        col, right = across - 1 - col, -right
    return row * across + col, down * across + right


def turned(values: NDArray[Any], turn: int) -> NDArray[Any]:
    """View (H, W, ...) of (n, m, ...): mirrored left-right if ``turn`` >= 4, rotated left ``turn % 4`` times."""
    return np.rot90(values[:, ::-1] if turn >= 4 else values, turn % 4)


@dataclass(frozen=True)
class Inputs:
    """Channels of a model: its seasons, bands and ``mean``, ``std`` (seasons, bands) in the scene's units."""

    seasons: tuple[str, ...]
    bands: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    mode: SeasonMode = "stack"
    conventions: tuple[RadiometricConvention, ...] | None = None
    """Meaning of the values of each band; None in models that do not say."""
    wavelengths: tuple[float | None, ...] | None = None
    """Centre of each band in nm, as far as it is known."""

    @classmethod
    def of(cls, statistics: Statistics, mode: SeasonMode = "stack", scene: Scene | None = None) -> "Inputs":
        """Build it from the statistics of the training tiles, and a training scene that describes its bands."""
        inputs = cls(statistics.seasons, statistics.bands, statistics.mean, statistics.std, mode)
        if scene is None:
            return inputs
        wavelengths = tuple(label.wavelength for label in scene.labels)
        return replace(inputs, conventions=scene.target_conventions, wavelengths=wavelengths)

    @property
    def labels(self) -> tuple[BandLabel, ...]:
        """Bands as a scene is asked for them: names with wavelengths."""
        known = self.wavelengths or [None] * len(self.bands)
        return tuple(BandLabel(name, wavelength) for name, wavelength in zip(self.bands, known, strict=True))

    @property
    def channels(self) -> int:
        """Number of channels of the network."""
        return len(self.bands) * (1 if self.mode == "separate" else len(self.seasons))

    def encode(self, observed: Mapping[str, Observation]) -> NDArray[np.float32]:
        """Channels (seasons * bands, height, width) float32 of all seasons, channels last in memory.

        A missing season counts as not observed.
        """
        height, width = next(iter(observed.values()))[1].shape
        x = np.empty((height, width, len(self.seasons) * len(self.bands)), np.float32)
        for number, season in enumerate(self.seasons):
            first = number * len(self.bands)
            if season in observed:
                self.write_season(x, number, first, observed[season])
            else:
                x[..., first : first + len(self.bands)] = 0
        return x.transpose(2, 0, 1)

    def write_season(
        self,
        x: NDArray[np.float32],
        season: int,
        first: int,
        observed: Observation | tuple[NDArray[Any], NDArray[np.bool_]],
        *,
        turn: int = IDENTITY,
        gain: NDArray[np.float32] | None = None,
        offset: NDArray[np.float32] | None = None,
    ) -> None:
        """Write a season's normalised values into ``x`` (H, W, channels) from channel ``first`` on.

        observed      values (n, m, bands) and valid mask (n, m) bool; n x m is H x W before the turn. Values of
                      another convention than the model's are converted
        gain, offset  (bands,) float32, of the normalised values
        """
        pixels, valid = observed
        bands = len(self.bands)
        gain = np.ones(bands, np.float32) if gain is None else gain
        offset = np.zeros(bands, np.float32) if offset is None else offset
        slope = gain / self.std[season]
        ends = np.sort([offset - CLIP * gain, offset + CLIP * gain], axis=0)
        intercept = offset - self.mean[season] * slope
        conversion = observed.conversion if isinstance(observed, Observation) else None
        if conversion is not None:  # values of another convention: in the same pass, to the model's
            intercept += slope * np.array(conversion.bias)
            slope = slope * np.array(conversion.gain)
        line = np.stack([slope, intercept, *ends]).astype(np.float32)
        _encode(np.ascontiguousarray(pixels), valid, np.tile(line, x.shape[1]), turn, first, x)

    def read(self, scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Channels of a window, and the mask (height, width) bool of pixels observed in at least one season."""
        observed = {season: scenes[season].read_hwc(window) for season in self.seasons if season in scenes}
        return self.encode(observed), valid_in_any(observed)

    def check(self, scenes: Mapping[str, Scene], *, drops_seasons: bool = False) -> None:
        """Raise BandMismatchError or SettingsError if scenes do not have these seasons and bands.

        drops_seasons  allow a missing season in a model of stacked seasons: it was trained with season dropout
        """
        missing = [season for season in self.seasons if season not in scenes]
        needs_all = self.mode == "stack" and not drops_seasons
        if missing and (needs_all or len(missing) == len(self.seasons)):
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
        """Dictionary for the model's header."""
        return {
            "seasons": list(self.seasons),
            "bands": list(self.bands),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "mode": self.mode,
        } | self._meaning()

    def _meaning(self) -> dict[str, Any]:
        """Bands and statistics in physical values; empty if the conventions are unknown."""
        if self.conventions is None:
            return {}
        scale, offset = (np.array([getattr(one, key) for one in self.conventions]) for key in ("scale", "offset"))
        return {
            "conventions": [one.to_dict() for one in self.conventions],
            "wavelengths": None if self.wavelengths is None else list(self.wavelengths),
            "physical": {"mean": (self.mean * scale + offset).tolist(), "std": (self.std * abs(scale)).tolist()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Inputs":
        """Read `to_dict`'s dictionary. Raises ValueError if its parts do not fit each other."""
        mean, std = np.array(data["mean"], float), np.array(data["std"], float)
        seasons, bands = tuple(data["seasons"]), tuple(data["bands"])
        if not mean.shape == std.shape == (len(seasons), len(bands)):
            raise ValueError(f"statistics of {mean.shape} for {len(seasons)} seasons and {len(bands)} bands")
        told, known = data.get("conventions"), data.get("wavelengths")
        conventions = None if told is None else tuple(RadiometricConvention.from_dict(one) for one in told)
        wavelengths = None if known is None else tuple(known)
        for what in (conventions, wavelengths):
            if what is not None and len(what) != len(bands):
                raise ValueError(f"{len(what)} conventions or wavelengths for {len(bands)} bands")
        return cls(seasons, bands, mean, std, data["mode"], conventions, wavelengths)
