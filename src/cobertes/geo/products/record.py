"""Product record: the bands, cloud masks and nodata of a product as downloaded, as files that GDAL can open."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.products.band_vocabulary import BandLabel
from cobertes.geo.radiometry import RadiometricConvention

CLEAR, CLOUD, SNOW, UNKNOWN = 0, 1, 2, 3
"""Cover codes of a decoded quality layer; cloud shadow counts as cloud, fill as unknown."""


@dataclass(frozen=True)
class ProductBand:
    """A spectral band: ``path`` for GDAL and ``index`` (from 1), ``wavelength`` and ``width`` in nm.

    ``resolution`` is the side of a pixel in metres, None if neither metadata nor names say.
    """

    name: str
    path: str
    index: int = 1
    common_name: str | None = None
    wavelength: float | None = None
    width: float | None = None
    convention: RadiometricConvention | None = None
    resolution: float | None = None
    sensor: str | None = None

    @property
    def label(self) -> BandLabel:
        """The band as `band_vocabulary.match_bands` takes it."""
        return BandLabel(self.name, self.wavelength, self.sensor)


@dataclass(frozen=True)
class QualityLayer:
    """A layer of clouds, shadows and snow, as codes (``bits`` False) or as bits of a mask (True).

    cloud, shadow, snow, nodata   codes, or numbers of bits from 0, that mean so
    fill                          stored values that stand for no observation, whatever the bits
    """

    name: str
    path: str
    cloud: tuple[int, ...]
    shadow: tuple[int, ...] = ()
    snow: tuple[int, ...] = ()
    nodata: tuple[int, ...] = ()
    bits: bool = False
    fill: tuple[int, ...] = ()
    index: int = 1

    def decode(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Cover codes, of the same shape: CLEAR, CLOUD (shadow included), SNOW or UNKNOWN.

        Unknown overrules cloud, which overrules snow.
        """
        out = np.full(values.shape, CLEAR, np.uint8)
        for meant, code in ((self.snow, SNOW), (self.shadow, CLOUD), (self.cloud, CLOUD), (self.nodata, UNKNOWN)):
            out[self._has(values, meant)] = code
        if self.fill:
            out[np.isin(values, self.fill)] = UNKNOWN
        return out

    def _has(self, values: NDArray[Any], meant: tuple[int, ...]) -> NDArray[np.bool_]:
        if not self.bits:
            return np.isin(values, meant)
        flags = sum(1 << bit for bit in meant)
        return np.asarray((values.astype(np.int64) & flags) != 0)


def combine_covers(covers: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One cover of several layers: unknown where all are, else cloud before snow before clear."""
    stacked = np.stack(covers)
    known = stacked != UNKNOWN
    out = np.where((stacked == SNOW).any(axis=0), SNOW, CLEAR).astype(np.uint8)
    out[(stacked == CLOUD).any(axis=0)] = CLOUD
    out[~known.any(axis=0)] = UNKNOWN
    return out


@dataclass(frozen=True)
class Product:
    """A product as downloaded: ``kind`` in words, ``path`` as given, ``bands`` in the sensor's order.

    date       of observation, None if nothing says (a monthly synthesis has its month's first day)
    baseline   processing baseline or version, "" if nothing says
    quality    layers of clouds and snow
    nodata     stored value of empty pixels, None if nothing says
    facts      further properties for people
    """

    kind: str
    path: str
    bands: tuple[ProductBand, ...]
    date: datetime.date | None = None
    baseline: str = ""
    quality: tuple[QualityLayer, ...] = ()
    nodata: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """``Sentinel-2 L2A, baseline 04.00, 2022-04-13``."""
        baseline = f"baseline {self.baseline}" if self.baseline else ""
        return ", ".join(part for part in (self.kind, baseline, str(self.date or "")) if part)


def scl_layer(path: str) -> QualityLayer:
    """Sentinel-2's scene classification (ESA, Level-2A product definition): 3 is cloud shadow, 11 snow.

    Unclassified (7) and dark (2) ground is clear; saturated pixels (1) count as unknown.
    """
    return QualityLayer("SCL", path, cloud=(8, 9, 10), shadow=(3,), snow=(11,), nodata=(0, 1))


def qa_pixel_layer(path: str) -> QualityLayer:
    """Landsat Collection 2 QA_PIXEL (USGS LSDS-1619, table 6-2): dilated cloud, cirrus, cloud, shadow, snow."""
    return QualityLayer("QA_PIXEL", path, cloud=(1, 2, 3), shadow=(4,), snow=(5,), nodata=(0,), bits=True)


def fmask_layer(path: str) -> QualityLayer:
    """HLS Fmask (HLS user guide v2, table 9): cloud, adjacent to cloud, shadow, snow; 255 is fill."""
    return QualityLayer("Fmask", path, cloud=(1, 2), shadow=(3,), snow=(4,), bits=True, fill=(255,))


def clm_layer(path: str) -> QualityLayer:
    """MAJA's cloud mask (CNES, MAJA L2A format): bit 1 all clouds but the thinnest, 7 cirrus, 5 and 6 shadows."""
    return QualityLayer("CLM", path, cloud=(1, 7), shadow=(5, 6), bits=True)


def mg2_layer(path: str) -> QualityLayer:
    """MAJA's geophysical mask: bit 1 clouds, 2 snow, 3 shadows of clouds."""
    return QualityLayer("MG2", path, cloud=(1,), shadow=(3,), snow=(2,), bits=True)


def flg_layer(path: str) -> QualityLayer:
    """Status flag of Theia's monthly syntheses (WASP L3A): 0 no data, 1 cloud, 2 snow, 3 water, 4 land."""
    return QualityLayer("FLG", path, cloud=(1,), snow=(2,), nodata=(0,))
