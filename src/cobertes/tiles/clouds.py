"""Cloud and snow masks: from the codes of a mask raster, or estimated by spectral tests.

Snow: NDSI > 0.4 and red > 0.2, the first pass of Let-it-snow (Gascoin et al. 2019, Earth System Science Data 11,
493-514). Cloud: the spectral tests for potential clouds of Fmask (Zhu & Woodcock 2012, Remote Sensing of
Environment 118, 83-94, equations 1 to 4) without its thermal ones: swir2 > 0.03, NDSI < 0.8, NDVI < 0.8;
whiteness < 0.7; blue - 0.5 red > 0.08; nir / swir1 > 0.75. These alone also match bright soil and roofs, so a
cloud must have a red reflectance over 0.25 as well, the brightness that Sen2Cor takes for certain (Louis et al.
2016, Living Planet Symposium, SP-740). NDSI = (green - swir1) / (green + swir1), NDVI = (nir - red) / (nir + red).

It is a rule of thumb for filtering tiles; a mask (such as Sentinel-2's SCL) is better, if available.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.bands import colour_positions
from cobertes.geo.products.record import CLEAR, CLOUD, SNOW, UNKNOWN
from cobertes.geo.radiometry import RadiometricConvention, rounded
from cobertes.numba_cache import compiled
from cobertes.settings import TileSettings

__all__ = ["CLEAR", "CLOUD", "SNOW", "UNKNOWN", "SpectralTests", "classify_codes", "impossible_scale"]

NEEDED = ("blue", "green", "red", "nir", "swir1")


def classify_codes(codes: NDArray[np.uint8], settings: TileSettings) -> NDArray[np.uint8]:
    """Classify the codes of a mask (such as SCL) as CLEAR, CLOUD or SNOW, (height, width) uint8."""
    table = np.zeros(256, np.uint8)
    table[settings.cloud_codes] = CLOUD
    table[settings.snow_codes] = SNOW
    return table[codes]


@dataclass(frozen=True)
class SpectralTests:
    """Spectral tests for a scene.

    positions  (6,) of blue, green, red, nir, swir1 and swir2 (-1: absent)
    scale, offset  (6,) of each: reflectance is (value + offset) / scale
    assumed    True if these are the settings' own, because nothing else says what the values mean
    """

    positions: NDArray[np.int64]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    assumed: bool = False

    @classmethod
    def for_bands(
        cls, bands: Sequence[str], settings: TileSettings, conventions: Sequence[RadiometricConvention] = ()
    ) -> "SpectralTests | None":
        """Create the tests for band names; None if a required band is not among them, or holds no reflectance.

        conventions  of the values of each band; the settings hold where nobody says them
        """
        position = colour_positions(bands)
        if not set(NEEDED) <= position.keys():
            return None
        order = [position[colour] for colour in NEEDED] + [position.get("swir2", -1)]
        told = [conventions[i] if conventions and i >= 0 else RadiometricConvention() for i in order]
        if any(one.origin != "default" and one.unit != "reflectance" for one in told):
            return None
        assumed = [one.origin == "default" for one in told]
        factors = [
            (settings.reflectance_scale, settings.reflectance_offset)
            if default
            else (rounded(1 / one.scale), rounded(one.offset / one.scale))
            for one, default in zip(told, assumed, strict=True)
        ]
        scale, offset = np.array(factors, np.float64).T
        return cls(
            np.array(order, np.int64), np.ascontiguousarray(scale), np.ascontiguousarray(offset), any(assumed)
        )

    def reflectances(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Reflectances (n, 5 or 6) of values (n, bands), of the bands that the tests look at."""
        there = self.positions >= 0
        return np.asarray((values[:, self.positions[there]] + self.offset[there]) / self.scale[there])

    def classify(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Classify ``pixels`` (height, width, bands) as CLEAR, CLOUD or SNOW, (height, width) uint8."""
        out = np.empty(pixels.shape[:2], np.uint8)
        _test(pixels, self.positions, self.scale, self.offset, out)
        return out


@compiled
def _test(
    pixels: NDArray[Any],
    positions: NDArray[np.int64],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    for row in range(pixels.shape[0]):
        for col in range(pixels.shape[1]):
            out[row, col] = 0
            red = (pixels[row, col, positions[2]] + offset[2]) / scale[2]
            if not red > 0.2:  # fails both tests, as most pixels do
                continue
            blue = (pixels[row, col, positions[0]] + offset[0]) / scale[0]
            green = (pixels[row, col, positions[1]] + offset[1]) / scale[1]
            nir = (pixels[row, col, positions[3]] + offset[3]) / scale[3]
            swir1 = (pixels[row, col, positions[4]] + offset[4]) / scale[4]
            swir2 = 1.0
            if positions[5] >= 0:
                swir2 = (pixels[row, col, positions[5]] + offset[5]) / scale[5]
            ndsi = (green - swir1) / max(green + swir1, 1e-6)
            if ndsi > 0.4:
                out[row, col] = 2
                continue
            ndvi = (nir - red) / max(nir + red, 1e-6)
            mean = (blue + green + red) / 3
            whiteness = (abs(blue - mean) + abs(green - mean) + abs(red - mean)) / max(mean, 1e-6)
            bright = red > 0.25 and swir2 > 0.03 and ndsi < 0.8 and ndvi < 0.8
            if bright and whiteness < 0.7 and blue - 0.5 * red > 0.08 and nir > 0.75 * swir1:
                out[row, col] = 1


DARKEST, BRIGHTEST = 0.4, 1.6
"""Reflectances: scenes have pixels darker than the first in some band, and few brighter than the second."""


def impossible_scale(reflectances: NDArray[np.float64]) -> str | None:
    """The range of reflectances (n, bands) in words if no ground can have it, None if some can.

    All ground has something dark: water, vegetation in red, shadows; snow is dark in the shortwave. Nothing but
    glints and clouds is brighter than a white panel.
    """
    known = reflectances[np.isfinite(reflectances).all(axis=1)]
    if len(known) < 16:
        return None
    darkest, brightest = float(np.quantile(known.min(axis=1), 0.05)), float(np.quantile(known.max(axis=1), 0.98))
    low = float(np.quantile(known.max(axis=1), 0.9))
    if darkest > DARKEST or brightest > 2 * BRIGHTEST or low < 0.001:
        return f"{darkest:.3g} to {brightest:.3g}"
    return None
