"""Area of interest in a scene: inside polygons, or the valid pixels of a raster."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.band_selection import BandSource
from cobertes.geo.grid import bounds_window, crop, footprint, full_window
from cobertes.geo.io import open_raster
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window

RASTERS = (".tif", ".tiff", ".vrt", ".img", ".jp2")


@dataclass(frozen=True)
class AreaOfInterest:
    """Bounding ``region``; ``inside`` returns the mask of a window, (height, width) bool."""

    region: Window
    inside: Callable[[Window], NDArray[np.bool_]]


def open_clip(path: Path, grid: GeoBox) -> AreaOfInterest:
    """Open polygons of any vector file, in any CRS; or a raster of any grid: all but nodata (or 0).

    A pixel is inside a polygon if its centre is.
    Raises InputFileError, GridMismatchError.
    """
    return _raster(path, grid) if path.suffix.lower() in RASTERS else _polygons(path, grid)


def _polygons(path: Path, grid: GeoBox) -> AreaOfInterest:
    import geopandas as gpd  # its import takes half a second, spent only if there is a clip

    from cobertes.geo.vector import read_vector

    if not path.exists():
        raise InputFileError(f"no file at {path}. A clip is a vector file of polygons, or a raster.")
    found = read_vector(path)
    if not isinstance(found, gpd.GeoDataFrame):
        raise InputFileError(f"{path} holds no polygons. Use a GeoPackage, GeoJSON or shapefile.")
    if (found.crs is None) != (grid.crs is None):
        lacking = path if found.crs is None else "the scene"
        raise GridMismatchError(f"{path} can't be placed on the scene: {lacking} has no CRS.")
    if grid.crs is not None:
        found = found.to_crs(str(grid.crs))
    geometries = found.geometry.dropna().make_valid()
    shapes = np.array([shape for shape in geometries.explode(index_parts=False) if shape.geom_type == "Polygon"])
    if not len(shapes):
        raise InputFileError(f"{path} holds no polygons. Use a GeoPackage, GeoJSON or shapefile.")
    tree = shapely.STRtree(shapes)
    region = bounds_window(grid, tuple(shapely.total_bounds(shapes).tolist()))

    def inside(window: Window) -> NDArray[np.bool_]:
        part = crop(grid, window)
        near = shapes[tree.query(footprint(part))]
        if not len(near):
            return np.zeros(window.shape, bool)
        mask: NDArray[np.bool_] = geometry_mask(near, window.shape, part.affine, invert=True)
        return mask

    return AreaOfInterest(region, inside)


def _raster(path: Path, grid: GeoBox) -> AreaOfInterest:
    with open_raster(path) as dataset:
        if (dataset.crs is None) != (grid.crs is None):
            lacking = path if dataset.crs is None else "the scene"
            raise GridMismatchError(f"{path} can't be placed on the scene: {lacking} has no CRS.")
        absolute = path.resolve() if path.exists() else path  # workers may run in another folder
        scene = Scene((BandSource("clip", str(absolute), 1),), grid, dataset.dtypes[0], dataset.nodata, "nearest")
    return AreaOfInterest(full_window(grid), lambda window: scene.read_chw(window)[1])
