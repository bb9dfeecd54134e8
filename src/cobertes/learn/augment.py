"""Augmentation of training samples: parameters are drawn here, and applied in the one pass that normalises.

    sensor      gain and offset per band (multispectral colour jitter), brightness and contrast per season, noise
    dropout     bands, a season, or a square of a season (cutout) are hidden
    geometry    mirrored and rotated, all 8 ways

Gains and offsets apply to normalised values, in standard deviations of a band over the training tiles. The
parameters are a pure function of the random generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.observation import Observation
from cobertes.numba_cache import compiled
from cobertes.settings import Augmentation, AugmentationSettings


@dataclass(frozen=True)
class SeasonAugmentation:
    """Augmentation of one season: ``gain``, ``offset`` (bands,); ``dropped``; a ``cutout`` (row, col, side)."""

    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    noise: float
    dropped: bool
    cutout: tuple[int, int, int] | None


@dataclass(frozen=True)
class SampleAugmentation:
    """Augmentation of a sample: its ``turn`` (0 to 7, as in `encoding.turned`), and that of each season."""

    turn: int
    seasons: tuple[SeasonAugmentation, ...]

    @property
    def hides(self) -> bool:
        """True if it hides pixels that were observed."""
        return any(season.dropped or season.cutout is not None for season in self.seasons)


def sample_augmentation(
    rng: np.random.Generator, settings: AugmentationSettings, seasons: int, bands: int, size: int
) -> SampleAugmentation:
    """Draw the augmentation of a sample: ``seasons`` seasons, ``bands`` bands, a side of ``size`` pixels."""
    turn = int(rng.integers(4)) if settings.turns else 0
    if settings.flips and rng.random() < 0.5:
        turn += 4
    dropout = settings.season_dropout.probability
    dropped = int(rng.integers(seasons)) if seasons > 1 and dropout > 0 and rng.random() < dropout else None
    cut = int(rng.integers(seasons)) if _is_applied(rng, settings.cut_out) else None
    return SampleAugmentation(
        turn, tuple(_draw_season(rng, settings, bands, size, n == dropped, n == cut) for n in range(seasons))
    )


def _draw_season(
    rng: np.random.Generator, settings: AugmentationSettings, bands: int, size: int, dropped: bool, cut: bool
) -> SeasonAugmentation:
    gain, offset = np.ones(bands), np.zeros(bands)
    if _is_applied(rng, settings.jitter):
        gain = rng.normal(1, settings.jitter.strength, bands)
        offset = rng.normal(0, settings.jitter.strength, bands)
    if _is_applied(rng, settings.contrast):
        factor = rng.normal(1, settings.contrast.strength)
        gain, offset = gain * factor, offset * factor
    if _is_applied(rng, settings.brightness):
        offset = offset + rng.normal(0, settings.brightness.strength)
    if _is_applied(rng, settings.band_dropout):
        visible = rng.random(bands) >= settings.band_dropout.strength
        gain, offset = gain * visible, offset * visible
    noise = settings.noise.strength if _is_applied(rng, settings.noise) else 0.0
    cutout = None
    if cut:
        side = max(1, round(settings.cut_out.strength * size))
        row, col = (int(v) for v in rng.integers(0, size - side + 1, 2))
        cutout = (row, col, side)
    return SeasonAugmentation(gain.astype(np.float32), offset.astype(np.float32), noise, dropped, cutout)


def _is_applied(rng: np.random.Generator, augmentation: Augmentation) -> bool:
    return augmentation.strength > 0 and augmentation.probability > 0 and rng.random() < augmentation.probability


def rescale(
    observed: Mapping[str, Observation], labels: NDArray[np.uint8], size: int
) -> tuple[dict[str, Observation], NDArray[np.uint8]]:
    """Rescale a window to ``size`` pixels a side: values bilinear among valid pixels, masks and labels nearest."""
    rescaled: dict[str, Observation] = {}
    for season, shown in observed.items():
        pixels, valid = shown
        out = np.empty((size, size, pixels.shape[2]), np.float32)
        _resample_bilinear(pixels, valid, out)
        rescaled[season] = Observation(out, resample_nearest(valid, size), shown.conversion)
    return rescaled, resample_nearest(labels, size)


def resample_nearest(values: NDArray[Any], size: int) -> NDArray[Any]:
    """Nearest-neighbour resampling of a window (n, n, ...) to (size, size, ...)."""
    n = len(values)
    sources = np.clip((np.arange(size) + 0.5) * n / size, 0, n - 1).astype(np.int64)
    return np.asarray(values[np.ix_(sources, sources)])


@compiled
def _resample_bilinear(pixels: NDArray[Any], valid: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
    """Bilinear interpolation of (n, n, bands) to (size, size, bands); over the valid neighbours."""
    n, size = pixels.shape[0], out.shape[0]
    bands = pixels.shape[2]
    total = np.empty(bands, np.float64)
    for i in range(size):
        y = min(max((i + 0.5) * n / size - 0.5, 0.0), n - 1.0)
        top = min(int(y), max(n - 2, 0))
        for j in range(size):
            x = min(max((j + 0.5) * n / size - 0.5, 0.0), n - 1.0)
            left = min(int(x), max(n - 2, 0))
            weight = 0.0
            total[:] = 0
            for r in range(top, min(top + 2, n)):
                for c in range(left, min(left + 2, n)):
                    share = (1 - abs(y - r)) * (1 - abs(x - c))
                    if valid[r, c] and share > 0:
                        weight += share
                        for b in range(bands):
                            total[b] += share * pixels[r, c, b]
            for b in range(bands):
                out[i, j, b] = total[b] / weight if weight > 0 else 0.0
