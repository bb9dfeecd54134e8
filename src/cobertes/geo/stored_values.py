"""Meaning of the values that a raster file stores, by whoever says it first.

    command line, project  >  product metadata  >  scale and offset tags of the file  >  the values  >  default

Only floating-point bands with the names of colours that nothing describes are looked at: a few windows tell
reflectances from 0 to 1 from reflectances x 10,000. Others (elevation, indices) are taken as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from cobertes.geo.band_selection import BandSource
from cobertes.geo.io import open_raster
from cobertes.geo.products.band_vocabulary import BandLabel, meanings
from cobertes.geo.radiometry import (
    RadiometricConvention,
    convention_of_tags,
    convention_of_values,
    default_convention,
    first_told,
)
from cobertes.geo.raster_facts import RasterFacts

SAMPLE_SIDE, SAMPLE_WINDOWS = 64, 4
"""Pixels of each of the 4 x 4 windows that are sampled of a floating-point band."""


def told_conventions(
    bands: Sequence[BandSource], facts: Mapping[str, RasterFacts]
) -> tuple[RadiometricConvention, ...]:
    """The convention of each band, by the order of precedence above."""
    told = [_told(band, facts[band.path]) for band in bands]
    coloured = [meaning is not None for meaning in meanings([BandLabel(b.name, b.wavelength) for b in bands])]
    types = [np.dtype(facts[band.path].dtypes[band.index - 1]) for band in bands]
    floating = [np.issubdtype(dtype, np.floating) for dtype in types]
    unknown = [one is None and a and b for one, a, b in zip(told, coloured, floating, strict=True)]
    seen = _of_values([band for band, look in zip(bands, unknown, strict=True) if look], facts)
    assumed = [
        seen if look else RadiometricConvention() if real else default_convention(dtype)
        for look, real, dtype in zip(unknown, floating, types, strict=True)
    ]
    return tuple(one or default for one, default in zip(told, assumed, strict=True))


def _told(band: BandSource, facts: RasterFacts) -> RadiometricConvention | None:
    at = band.index - 1
    return first_told([band.convention, convention_of_tags(facts.scales[at], facts.offsets[at], facts.units[at])])


def _of_values(bands: Sequence[BandSource], facts: Mapping[str, RasterFacts]) -> RadiometricConvention:
    """One convention for all floating-point bands of reflectance: they are stored alike."""
    samples = [_sample(band, facts[band.path].nodata) for band in bands]
    return convention_of_values(np.concatenate(samples)) if samples else RadiometricConvention()


def _sample(band: BandSource, nodata: float | None) -> NDArray[Any]:
    """Values from windows spread over a band, without its nodata value; what can't be read is left out."""
    parts: list[NDArray[Any]] = []
    with open_raster(band.path) as dataset:
        height, width = dataset.shape
        rows, cols = (np.linspace(0, max(n - SAMPLE_SIDE, 0), SAMPLE_WINDOWS, dtype=int) for n in (height, width))
        for row, col in {(int(row), int(col)) for row in rows for col in cols}:
            window = rasterio.windows.Window(col, row, min(SAMPLE_SIDE, width), min(SAMPLE_SIDE, height))
            try:
                values = dataset.read(band.index, window=window)
            except RasterioError:  # a truncated file is told where it is read
                continue
            parts.append(values[values != nodata] if nodata is not None else values.ravel())
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
