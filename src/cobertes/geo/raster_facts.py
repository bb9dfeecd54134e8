"""Facts of a raster file that decide how it is read: grid, type, nodata, scale and offset."""

from dataclasses import dataclass

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from cobertes.geo.grid import grid_of
from cobertes.geo.io import open_raster


@dataclass(frozen=True)
class RasterFacts:
    """Properties of a raster file; ``dtypes``, ``scales``, ``offsets`` and ``units`` by band."""

    grid: GeoBox
    nodata: float | None
    dtypes: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str | None, ...]

    @property
    def dtype(self) -> str:
        """The common type of its bands."""
        return str(np.result_type(*self.dtypes))

    @classmethod
    def of(cls, dataset: rasterio.DatasetReader) -> "RasterFacts":
        """From an open raster."""
        return cls(
            grid_of(dataset), dataset.nodata, dataset.dtypes, dataset.scales, dataset.offsets, dataset.units
        )  # fmt: skip


def inspect_raster(path: str) -> RasterFacts:
    """Open a raster and note its properties. Raises InputFileError."""
    with open_raster(path) as dataset:
        return RasterFacts.of(dataset)
