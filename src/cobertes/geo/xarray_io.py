"""DataArrays of pixels, for notebooks. xarray is imported where it is used: it is no dependency."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.errors import SettingsError

CRS_COORDINATE = "spatial_ref"
"""Coordinate that holds the CRS, as rioxarray and odc-geo name it."""


def to_data_array(values: NDArray[Any], valid: NDArray[np.bool_], bands: Sequence[str], grid: GeoBox) -> Any:
    """DataArray (band, y, x) float32 of pixels on a grid; NaN where ``valid`` (H, W) is False.

    values  (bands, H, W)
    The coordinates are those that odc-geo and rioxarray read. They are made here: ``odc.geo.xr`` of odc-geo 0.5.3
    can't be imported without dask.
    Raises SettingsError if xarray is not installed.
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise SettingsError("xarray is not installed. Install it: pip install xarray") from error
    height, width = grid.shape
    transform = grid.affine
    coords: dict[str, Any] = {"band": list(bands)}
    if transform.b == transform.d == 0:  # a rotated grid has no coordinate per row and column
        coords["y"] = transform.f + (np.arange(height) + 0.5) * transform.e
        coords["x"] = transform.c + (np.arange(width) + 0.5) * transform.a
    geotransform = " ".join(f"{value!r}" for value in transform.to_gdal())
    facts = {"GeoTransform": geotransform}
    if grid.crs is not None:
        facts |= {"spatial_ref": grid.crs.wkt, "crs_wkt": grid.crs.wkt}
    coords[CRS_COORDINATE] = xr.Variable((), 0, facts)
    pixels = np.where(valid, values, np.float32(np.nan)).astype(np.float32)
    return xr.DataArray(pixels, dims=("band", "y", "x"), coords=coords, attrs={"grid_mapping": CRS_COORDINATE})
