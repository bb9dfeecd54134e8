"""Grids: one immutable `GeoBox` of odc-geo describes where the pixels of a raster lie.

Cropping, shifting and outlines are GeoBox's own arithmetic. What stands here beside it is for grids without CRS,
which odc-geo can crop but not project: a file without CRS gets one, in pixel coordinates or those of its
transform, and hectares, outlines in degrees and descriptions must allow for it.
"""

import logging
from collections.abc import Iterable
from functools import cache

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from pyproj import Geod
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from cobertes.errors import GridMismatchError
from cobertes.geo.windows import Window

log = logging.getLogger(__name__)

ALIGNMENT = 0.01
"""Largest offset in pixels between grids that count as the same."""

SQUARE_METRES_PER_HECTARE = 10_000.0

TRUE_AREAS = 0.01
"""Largest relative difference between areas in a projection and on the ellipsoid that still counts as true."""


def grid_of(dataset: rasterio.DatasetReader) -> GeoBox:
    """The grid of an open raster."""
    return GeoBox((dataset.height, dataset.width), dataset.transform, dataset.crs)


def crop(grid: GeoBox, window: Window) -> GeoBox:
    """Grid of a window, which may reach out of ``grid``."""
    return grid.translate_pix(window.col, window.row).crop(window.shape)


def full_window(grid: GeoBox) -> Window:
    """Window of the complete grid."""
    return Window(0, 0, grid.height, grid.width)


def resolution(grid: GeoBox) -> float:
    """Pixel size in units of the CRS: geometric mean of both sides."""
    return float(abs(grid.affine.determinant) ** 0.5)


def pixel_hectares(grid: GeoBox) -> float | None:
    """Area of a pixel in hectares; None if the CRS is not projected, or distorts areas.

    Web Mercator stretches areas 1.8 times at 42 degrees, more in the north. UTM stays within 0.2 % in its zone.
    """
    if grid.crs is None or not grid.crs.projected:
        return None
    metres = rasterio.crs.CRS.from_user_input(str(grid.crs)).linear_units_factor[1]
    pixel = float(abs(grid.affine.determinant) * metres**2)
    is_true = has_true_areas(pixel * grid.width * grid.height, [footprint(grid, "EPSG:4326")], crs_name(grid))
    return pixel / SQUARE_METRES_PER_HECTARE if is_true else None


def has_true_areas(square_metres: float, outlines: Iterable[BaseGeometry], crs: str) -> bool:
    """Compare an area in ``crs`` with that of outlines in degrees on the ellipsoid; warn if they differ by 1 %."""
    earth = Geod(ellps="WGS84")
    true_area = sum(abs(earth.geometry_area_perimeter(outline)[0]) for outline in outlines)
    is_true = not abs(square_metres - true_area) > TRUE_AREAS * true_area  # NaN counts as true
    if not is_true:
        _warn_of_areas(crs)
    return is_true


@cache
def _warn_of_areas(crs: str) -> None:
    """Warn once per CRS."""
    log.warning(
        "no areas in hectares: those of %s are not the ones on the ground there. Bring the scenes into an "
        "equal-area CRS or their UTM zone (gdalwarp -t_srs) to have them.",
        crs,
    )  # fmt: skip


def same_crs(a: GeoBox, b: GeoBox) -> bool:
    """Compare the CRS of two grids; None equals None."""
    return bool(a.crs == b.crs)


def same_grid(a: GeoBox, b: GeoBox) -> bool:
    """Compare the pixels of two grids, to a hundredth of one."""
    if a.shape != b.shape or not same_crs(a, b):
        return False
    to_a = ~a.affine * b.affine
    corners = [(0, 0), (b.width, 0), (0, b.height), (b.width, b.height)]
    return all(np.allclose(to_a * corner, corner, rtol=0, atol=ALIGNMENT) for corner in corners)


def describe(grid: GeoBox) -> str:
    """``30000 x 30000 px of 10 m, origin (240000, 4780000), EPSG:32631``; width before height."""
    origin = grid.affine * (0, 0)
    position = f"origin ({origin[0]:.10g}, {origin[1]:.10g}), {crs_name(grid)}"
    return f"{grid.width} x {grid.height} px of {resolution(grid):.6g}{_unit(grid)}, {position}"


def _unit(grid: GeoBox) -> str:
    """Unit of length with a leading space: `` m``, `` US-ft``; empty without CRS."""
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


def footprint(grid: GeoBox, crs: object = None) -> Polygon:
    """Outline of a grid, in its own coordinates or (densified) in ``crs``; its own too if it has no CRS."""
    if crs is None or grid.crs is None:
        return grid.extent.geom
    return grid.extent.to_crs(crs, resolution=max(grid.shape) * resolution(grid) / 20).geom


def bounds_window(grid: GeoBox, bounds: tuple[float, float, float, float]) -> Window:
    """Smallest window of whole pixels that covers ``(west, south, east, north)``, clipped to the grid.

    Raises GridMismatchError if the bounds miss the grid.
    """
    west, south, east, north = bounds
    corners = [~grid.affine * corner for corner in box(west, south, east, north).exterior.coords]
    cols, rows = [c for c, _ in corners], [r for _, r in corners]
    slack = ALIGNMENT
    left, top = int(np.floor(min(cols) + slack)), int(np.floor(min(rows) + slack))
    right, bottom = int(np.ceil(max(cols) - slack)), int(np.ceil(max(rows) - slack))
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # bounds inside one pixel are that pixel
    window = Window(top, left, bottom - top, right - left).clip(tuple(grid.shape))
    if 0 in window.shape:
        raise GridMismatchError(
            f"bounds {bounds} do not touch the scene ({describe(grid)}). They are W,S,E,N in the scene's CRS."
        )
    return window


def warn_without_crs(names: Iterable[str]) -> None:
    """Log one warning for all areas that have no CRS."""
    missing = list(names)
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        log.warning("no CRS in %s: using pixel coordinates, areas count as unrelated places", shown)
