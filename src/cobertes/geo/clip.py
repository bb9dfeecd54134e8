"""Area of interest in a scene: inside polygons, or the valid pixels of a raster."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.band_selection import BandSource
from cobertes.geo.grid import bounds_window, crop, footprint, full_window, resolution
from cobertes.geo.io import open_raster
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window

log = logging.getLogger(__name__)

SMALL_PIXELS = 4
"""Area in pixels below which a polygon may miss all centres."""

RASTERS = (".tif", ".tiff", ".vrt", ".img", ".jp2")


@dataclass(frozen=True)
class AreaOfInterest:
    """Bounding ``region``; ``inside`` returns the mask of a window, (height, width) bool."""

    region: Window
    inside: Callable[[Window], NDArray[np.bool_]]


def open_clip(path: Path, grid: GeoBox) -> AreaOfInterest:
    """Open polygons of any vector file, in any CRS; or a raster of any grid: all but nodata (or 0).

    path   a file, or one of its layers, ``FILE|layername=LAYER``
    A pixel is inside a polygon if its centre is. Polygons without a pixel are counted in a warning.
    Raises InputFileError, GridMismatchError.
    """
    return _raster(path, grid) if path.suffix.lower() in RASTERS else _polygons(path, grid)


def _polygons(path: Path, grid: GeoBox) -> AreaOfInterest:
    from cobertes.geo.vector import read_polygon_layer, vector_file  # geopandas takes half a second to import

    if not vector_file(path).exists():
        raise InputFileError(f"no file at {path}. A clip is a vector file of polygons, or a raster.")
    found = read_polygon_layer(path)
    if (found.crs is None) != (grid.crs is None):
        lacking = path if found.crs is None else "the scene"
        raise GridMismatchError(f"{path} can't be placed on the scene: {lacking} has no CRS.")
    if grid.crs is not None:
        found = found.to_crs(str(grid.crs))
    parts = found.geometry.make_valid().explode(index_parts=False)
    shapes = np.array([part for part in parts if part.geom_type == "Polygon" and not part.is_empty])
    if not len(shapes):
        raise InputFileError(f"{path} holds no polygons. Use a GeoPackage, GeoJSON or shapefile.")
    region = bounds_window(grid, tuple(shapely.total_bounds(shapes).tolist()))
    _require_pixels(path, shapes, grid)
    tree = shapely.STRtree(shapes)

    def inside(window: Window) -> NDArray[np.bool_]:
        part = crop(grid, window)
        near = shapes[tree.query(footprint(part))]
        return _mask(near, part) if len(near) else np.zeros(window.shape, bool)

    return AreaOfInterest(region, inside)


def _mask(shapes: NDArray[Any], grid: GeoBox) -> NDArray[np.bool_]:
    """(height, width) bool: pixels whose centre lies in one of the polygons."""
    mask: NDArray[np.bool_] = geometry_mask(shapes, tuple(grid.shape), grid.affine, invert=True)
    return mask


def _require_pixels(path: Path, shapes: NDArray[Any], grid: GeoBox) -> None:
    """Warn of polygons so small that no pixel has its centre in them; raise InputFileError if none has one."""
    pixel = abs(grid.affine.determinant)
    small = shapes[shapely.area(shapes) < SMALL_PIXELS * pixel]
    empty = sum(not _has_pixel(shape, grid) for shape in small)
    if not empty:
        return
    if empty == len(shapes):
        raise InputFileError(
            f"{path}: no pixel of the scene has its centre in a polygon. They are smaller than a pixel "
            f"({resolution(grid):g} wide): draw them larger."
        )
    log.warning("%s: %d of %d polygons are too small to have a pixel", path, empty, len(shapes))


def _has_pixel(shape: Any, grid: GeoBox) -> bool:
    try:
        window = bounds_window(grid, shape.bounds)
    except GridMismatchError:  # outside the scene
        return False
    return bool(_mask(np.array([shape]), crop(grid, window)).any())


def _raster(path: Path, grid: GeoBox) -> AreaOfInterest:
    with open_raster(path) as dataset:
        if (dataset.crs is None) != (grid.crs is None):
            lacking = path if dataset.crs is None else "the scene"
            raise GridMismatchError(f"{path} can't be placed on the scene: {lacking} has no CRS.")
        absolute = path.resolve() if path.exists() else path  # workers may run in another folder
        scene = Scene((BandSource("clip", str(absolute), 1),), grid, dataset.dtypes[0], dataset.nodata, "nearest")
    return AreaOfInterest(full_window(grid), lambda window: scene.read_chw(window)[1])
