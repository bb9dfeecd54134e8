"""Variation of training samples: drawn as numbers, applied in the one pass that normalises them.

    sensor      gain and offset per band (multispectral colour jitter), brightness and contrast per season, noise
    what fails  bands, a season, or a square of a season is not seen
    geometry    mirrored and turned, all 8 ways

Gains and offsets are of normalised values, in standard deviations of a band over the training ground. A variation
is a pure function of the generator it is drawn with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.scene import Observation
from cobertes.numba_cache import compiled
from cobertes.settings import Augmentation, AugmentationSettings


@dataclass(frozen=True)
class SeasonVariation:
    """Variation of one season: ``gain``, ``offset`` (bands,); ``seen`` or not; a ``cutout`` (row, col, side)."""

    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    noise: float
    seen: bool
    cutout: tuple[int, int, int] | None


@dataclass(frozen=True)
class Variation:
    """Of a sample: the ``turn`` (0 to 7, as in `inputs.turned`), and what happens to each season."""

    turn: int
    seasons: tuple[SeasonVariation, ...]

    @property
    def hides(self) -> bool:
        """Whether something that was observed is not shown."""
        return any(not season.seen or season.cutout is not None for season in self.seasons)


def draw_variation(
    rng: np.random.Generator, settings: AugmentationSettings, seasons: int, bands: int, size: int
) -> Variation:
    """Draw what happens to a sample of ``seasons`` seasons with ``bands`` bands and a side of ``size`` pixels."""
    turn = int(rng.integers(4)) if settings.turns else 0
    if settings.flips and rng.random() < 0.5:
        turn += 4
    dropout = settings.season_dropout.probability
    lost = int(rng.integers(seasons)) if seasons > 1 and dropout > 0 and rng.random() < dropout else None
    cut = int(rng.integers(seasons)) if _happens(rng, settings.cut_out) else None
    return Variation(
        turn, tuple(_draw_season(rng, settings, bands, size, n == lost, n == cut) for n in range(seasons))
    )


def _draw_season(
    rng: np.random.Generator, settings: AugmentationSettings, bands: int, size: int, lost: bool, cut: bool
) -> SeasonVariation:
    gain, offset = np.ones(bands), np.zeros(bands)
    if _happens(rng, settings.jitter):
        gain = rng.normal(1, settings.jitter.strength, bands)
        offset = rng.normal(0, settings.jitter.strength, bands)
    if _happens(rng, settings.contrast):
        change = rng.normal(1, settings.contrast.strength)
        gain, offset = gain * change, offset * change
    if _happens(rng, settings.brightness):
        offset = offset + rng.normal(0, settings.brightness.strength)
    if _happens(rng, settings.band_dropout):
        kept = rng.random(bands) >= settings.band_dropout.strength
        gain, offset = gain * kept, offset * kept
    noise = settings.noise.strength if _happens(rng, settings.noise) else 0.0
    cutout = None
    if cut:
        side = max(1, round(settings.cut_out.strength * size))
        row, col = (int(v) for v in rng.integers(0, size - side + 1, 2))
        cutout = (row, col, side)
    return SeasonVariation(gain.astype(np.float32), offset.astype(np.float32), noise, not lost, cutout)


def _happens(rng: np.random.Generator, chance: Augmentation) -> bool:
    return chance.strength > 0 and chance.probability > 0 and rng.random() < chance.probability


def zoomed(
    observed: Mapping[str, Observation], labels: NDArray[np.uint8], size: int
) -> tuple[dict[str, Observation], NDArray[np.uint8]]:
    """A window brought to ``size`` pixels a side: values bilinear among observed pixels, the rest by nearest."""
    found: dict[str, Observation] = {}
    for season, (pixels, valid) in observed.items():
        out = np.empty((size, size, pixels.shape[2]), np.float32)
        _resample(pixels, valid, out)
        found[season] = out, nearest(valid, size)
    return found, nearest(labels, size)


def nearest(values: NDArray[Any], size: int) -> NDArray[Any]:
    """A window (n, n, ...) brought to ``size`` pixels a side without mixing any."""
    n = len(values)
    places = np.clip((np.arange(size) + 0.5) * n / size, 0, n - 1).astype(np.int64)
    return np.asarray(values[np.ix_(places, places)])


@compiled
def _resample(pixels: NDArray[Any], valid: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
    """Bilinear interpolation of (n, n, bands) to (size, size, bands); only valid neighbours weigh in."""
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
                    part = (1 - abs(y - r)) * (1 - abs(x - c))
                    if valid[r, c] and part > 0:
                        weight += part
                        for b in range(bands):
                            total[b] += part * pixels[r, c, b]
            for b in range(bands):
                out[i, j, b] = total[b] / weight if weight > 0 else 0.0
