"""Grids: one immutable `GeoBox` (of odc-geo) says where the pixels of a raster are.

A file without CRS gets a grid without CRS: pixel coordinates, or whatever its transform says. Such grids
can be cropped and compared, never projected.
"""

import logging
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.windows import Window

log = logging.getLogger(__name__)

# Files without coordinates are supported, and cobertes itself says once where it meets some.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

ALIGNMENT = 0.01
"""Share of a pixel by which grids may differ and still count as the same."""

SQUARE_METRES_PER_HECTARE = 10_000.0

TRUE_AREAS = 0.01
"""Share by which areas of a projection may differ from those on the ground and still be told."""


def open_raster(path: Path | str) -> rasterio.DatasetReader:
    """Open a raster for reading. Raises InputFileError, with what GDAL says, where it can't be."""
    if "://" not in str(path) and not str(path).startswith("/vsi") and not Path(path).exists():
        raise InputFileError(f"no file at {path}. Check the path; paths in a project are relative to its file.")
    try:
        return rasterio.open(path)
    except RasterioError as error:
        raise InputFileError(f"can't read {path} as a raster: {error}") from error


def grid_of(dataset: rasterio.DatasetReader) -> GeoBox:
    """The grid of an open raster."""
    return GeoBox((dataset.height, dataset.width), dataset.transform, dataset.crs)


def crop(grid: GeoBox, window: Window) -> GeoBox:
    """The grid of a window; it may reach out of the grid."""
    return GeoBox(window.shape, grid.affine * Affine.translation(window.col, window.row), grid.crs)


def whole(grid: GeoBox) -> Window:
    """The window that is the whole grid."""
    return Window(0, 0, grid.height, grid.width)


def resolution(grid: GeoBox) -> float:
    """Side of a pixel in units of the CRS (geometric mean of both sides)."""
    return float(abs(grid.affine.determinant) ** 0.5)


def pixel_hectares(grid: GeoBox) -> float | None:
    """Area of a pixel in hectares; None where the CRS is not projected, or not true to areas.

    Web Mercator stretches areas 1.8 times at 42 degrees, more in the north. UTM stays within 0.2 % in its zone.
    """
    if grid.crs is None or not grid.crs.projected:
        return None
    metres = rasterio.crs.CRS.from_user_input(str(grid.crs)).linear_units_factor[1]
    pixel = float(abs(grid.affine.determinant) * metres**2)
    true = has_true_areas(pixel * grid.width * grid.height, [footprint(grid, "EPSG:4326")], crs_name(grid))
    return pixel / SQUARE_METRES_PER_HECTARE if true else None


def has_true_areas(square_metres: float, outlines: Iterable[BaseGeometry], crs: str) -> bool:
    """Whether outlines in degrees have the area that ``crs`` gives them, to a hundredth; warns once where not."""
    earth = Geod(ellps="WGS84")
    ground = sum(abs(earth.geometry_area_perimeter(outline)[0]) for outline in outlines)
    true = not abs(square_metres - ground) > TRUE_AREAS * ground  # what can't be told is taken for true
    if not true:
        _warn_of_areas(crs)
    return true


@cache
def _warn_of_areas(crs: str) -> None:
    """Once for each CRS."""
    log.warning(
        "no areas in hectares: those of %s are not the ones on the ground there. Bring the scenes into an "
        "equal-area CRS or their UTM zone (gdalwarp -t_srs) to have them.",
        crs,
    )  # fmt: skip


def same_crs(a: GeoBox, b: GeoBox) -> bool:
    """Whether two grids share their CRS, or have none both."""
    return bool(a.crs == b.crs)


def same_grid(a: GeoBox, b: GeoBox) -> bool:
    """Whether two grids have the same pixels, to a hundredth of one."""
    if a.shape != b.shape or not same_crs(a, b):
        return False
    # where the corners of b lie on a's pixels
    to_a = ~a.affine * b.affine
    corners = [(0, 0), (b.width, 0), (0, b.height), (b.width, b.height)]
    return all(np.allclose(to_a * corner, corner, rtol=0, atol=ALIGNMENT) for corner in corners)


def describe(grid: GeoBox) -> str:
    """``30000 x 30000 px of 10 m, origin (240000, 4780000), EPSG:32631``; width before height."""
    origin = grid.affine * (0, 0)
    place = f"origin ({origin[0]:.10g}, {origin[1]:.10g}), {crs_name(grid)}"
    return f"{grid.width} x {grid.height} px of {resolution(grid):.6g}{_unit(grid)}, {place}"


def _unit(grid: GeoBox) -> str:
    """`` m``, `` US-ft`` and so on; nothing for pixels."""
    if grid.crs is None:
        return ""
    if grid.crs.geographic:
        return " deg"
    name = rasterio.crs.CRS.from_user_input(str(grid.crs)).linear_units
    return {"metre": " m", "meter": " m", "US survey foot": " US-ft"}.get(name, f" {name}")


def crs_name(grid: GeoBox) -> str:
    """``EPSG:32631``, or ``no CRS``."""
    if grid.crs is None:
        return "no CRS"
    return f"EPSG:{grid.crs.epsg}" if grid.crs.epsg else str(grid.crs)


def require_same_grid(grids: Iterable[tuple[str, GeoBox]]) -> None:
    """Raise GridMismatchError unless all named grids are the same."""
    (first_name, first), *others = grids
    for name, grid in others:
        if not same_grid(first, grid):
            raise GridMismatchError(
                f"{name} is {describe(grid)}, but {first_name} is {describe(first)}. Scenes of one area must "
                f"share a grid: bring one onto the other (gdalwarp -t_srs, -te, -tr) or make them two areas."
            )


def source_files(path: str) -> list[str]:
    """A raster's file, and where it is a VRT the files it is made of, as far as GDAL lists them."""
    if not path.lower().endswith(".vrt"):
        return [path]
    with open_raster(path) as dataset:
        return [path, *(str(file) for file in dataset.files if str(file) != path)]


def footprint(grid: GeoBox, crs: object = None) -> Polygon:
    """Outline of a grid, in its own coordinates or (densified) in ``crs``."""
    if crs is None or grid.crs is None:
        corners = [(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)]
        return Polygon([grid.affine * corner for corner in corners])
    return grid.extent.to_crs(crs, resolution=max(grid.shape) * resolution(grid) / 20).geom


def bounds_window(grid: GeoBox, bounds: tuple[float, float, float, float]) -> Window:
    """Smallest window of whole pixels that covers ``(west, south, east, north)``, clipped to the grid.

    Raises GridMismatchError where the bounds miss the grid.
    """
    west, south, east, north = bounds
    corners = [~grid.affine * corner for corner in box(west, south, east, north).exterior.coords]
    cols, rows = [c for c, _ in corners], [r for _, r in corners]
    slack = ALIGNMENT
    left, top = int(np.floor(min(cols) + slack)), int(np.floor(min(rows) + slack))
    right, bottom = int(np.ceil(max(cols) - slack)), int(np.ceil(max(rows) - slack))
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # however small the bounds, they have a pixel
    window = Window(top, left, bottom - top, right - left).clip(tuple(grid.shape))
    if 0 in window.shape:
        raise GridMismatchError(
            f"bounds {bounds} do not touch the scene ({describe(grid)}). They are W,S,E,N in the scene's CRS."
        )
    return window


def warn_without_crs(names: Iterable[str]) -> None:
    """Say once, for all areas together, that some have no CRS."""
    missing = list(names)
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        log.warning("no CRS in %s: using pixel coordinates, areas count as unrelated places", shown)
