"""Mosaic: granules in one CRS read as one scene; where several have a pixel, the first in the list wins.

+-----+            grid of the mosaic: around all granules, pixels of the first
|  A  |--+
|     |B |         placed: (row, col) of each granule's first pixel
+-----+  |
   +-----+
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.errors import GridMismatchError
from cobertes.geo.grid import ALIGNMENT, crs_name, describe, resolution

Placed = tuple[int, int]
"""Row and column of a granule's first pixel in its mosaic."""


def mosaic_grid(grids: Sequence[GeoBox], names: Sequence[str]) -> GeoBox:
    """The grid around all granules. Raises GridMismatchError unless they share CRS and lattice of pixels."""
    first = grids[0]
    for grid, name in zip(grids, names, strict=True):
        if grid.crs != first.crs:
            raise GridMismatchError(
                f"{name} is in {crs_name(grid)}, but {names[0]} is in {crs_name(first)}: granules of a mosaic "
                f"need one CRS. Bring its bands over first, gdalwarp -t_srs {crs_name(first)} -tr "
                f"{resolution(first):g} {resolution(first):g} -tap BAND OUT, or map each zone by itself."
            )
        offset = ~first.affine * grid.affine
        place = np.array([offset.c, offset.f])
        same_pixels = np.allclose([offset.a, offset.b, offset.d, offset.e], [1, 0, 0, 1], atol=1e-6)
        if not same_pixels or np.abs(place - np.round(place)).max() > ALIGNMENT:
            raise GridMismatchError(
                f"{name} is {describe(grid)}, but {names[0]} is {describe(first)}: granules of a mosaic need the "
                f"same lattice of pixels. Bring one onto the other's (gdalwarp -tr, -tap)."
            )
    places = place_parts(grids, first)
    top, left = min(row for row, _ in places), min(col for _, col in places)
    bottom = max(row + grid.height for (row, _), grid in zip(places, grids, strict=True))
    right = max(col + grid.width for (_, col), grid in zip(places, grids, strict=True))
    return GeoBox((bottom - top, right - left), first.affine * Affine.translation(left, top), first.crs)


def place_parts(grids: Sequence[GeoBox], grid: GeoBox) -> list[Placed]:
    """Row and column of each granule's first pixel on a grid of the same lattice."""
    offsets = [~grid.affine * part.affine for part in grids]
    return [(round(offset.f), round(offset.c)) for offset in offsets]


def fill_gaps(values: NDArray[Any], valid: NDArray[np.bool_], more: NDArray[Any], seen: NDArray[np.bool_]) -> None:
    """Write into ``values`` (bands, height, width), where not yet ``valid``, what another granule has ``seen``."""
    new = seen & ~valid
    values[:, new] = more[:, new]
    valid |= seen
