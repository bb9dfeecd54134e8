"""What several test files write and read: small rasters on known grids, and where the real data lies."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

DATA = Path(os.environ.get("COBERTES_DATA", Path(__file__).parents[3] / "shared" / "data"))
UTM = "EPSG:32631"
ORIGIN = (240_000.0, 4_780_000.0)


def needs(folder: str):
    """Skip a test where a folder of real data is absent."""
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(),
        reason=f"needs {DATA / folder}: set COBERTES_DATA to the folder of the real data",
    )


def grid_at(height, width, pixel=10.0, crs=UTM, origin=ORIGIN):
    """A north-up grid."""
    return GeoBox((height, width), Affine(pixel, 0, origin[0], 0, -pixel, origin[1]), crs)


def write_raster(path, values, grid=None, *, nodata=None, names=(), **profile):
    """Write (bands, height, width) or (height, width) as a GeoTIFF; without a grid it has no coordinates."""
    values = np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    place = {} if grid is None else {"crs": grid.crs, "transform": grid.affine}
    shape = dict(zip(("count", "height", "width"), values.shape, strict=True))
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, nodata=nodata, **shape, **place, **profile
    ) as f:
        f.write(values)
        for i, name in enumerate(names, start=1):
            f.set_band_description(i, name)
    return path


def read_raster(path):
    """(height, width) of a raster of one band, (bands, height, width) of others."""
    with rasterio.open(path) as file:
        return file.read(1) if file.count == 1 else file.read()


def coordinates(shape, dtype=np.int32):
    """(2, height, width): every pixel holds its own row and column, from 1, so that no pixel is empty."""
    return np.stack(np.mgrid[1 : shape[0] + 1, 1 : shape[1] + 1]).astype(dtype)


def stitch(out, origin, planned, values):
    """Write the interior of a planned window's ``values`` (..., size, size) into ``out``, which holds ``origin``."""
    rows, cols = planned.interior.slices_in(planned.window)
    out[(..., *planned.interior.slices_in(origin))] = values[..., rows, cols]
