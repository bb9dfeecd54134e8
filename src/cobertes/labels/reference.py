"""The reference map as the label pass sees it: codes on a fine grid that nests in the scene's grid.

    scene grid        +-----------+-----------+     factor 3: every scene pixel holds 3 x 3 fine pixels
                      |   |   |   |   |   |   |
    fine grid         |---+---+---|---+---+---|     aligned: the fine pixels are the map's own
                      |   |   |   |   |   |   |     warped:  each takes the map pixel under its centre

A map whose pixels already nest is read as it is. Every other one goes through GDAL's warper with nearest
neighbour and an exact transformation, never with a mean: codes have no mean.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from math import floor, sqrt
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.grid import ALIGNMENT, describe, footprint, grid_of, open_raster, same_crs
from cobertes.geo.scene import PIXEL_CRS
from cobertes.geo.windows import Window

log = logging.getLogger(__name__)

CODES = 256

LARGEST_FACTOR = 64
"""Fine pixels along a scene pixel, at most, where the map is warped: 4096 samples tell its majority."""

EXACT = 1e-6
"""Error of the warper's coordinates in map pixels, at most: eight times as fast as a thousandth of that. (Zero
fails: rasterio 1.4 then sets no transformer.)"""

WARP_MARGIN = 16
"""Source pixels that the warper reads beyond what it estimates: a precaution against missing edges."""


@dataclass(frozen=True)
class Placement:
    """How a reference map lies on a scene's grid.

    ``factor`` fine pixels along a scene pixel; ``ratio`` scene pixel / map pixel; ``origin`` (row, col) of the
    scene's corner in the map's pixels where they nest, None where the map is warped; ``covered`` share of the
    scene that the map covers.
    """

    factor: int
    ratio: float
    origin: tuple[int, int] | None
    covered: float


def reference_nodata(path: Path) -> float | None:
    """The nodata value that a reference map's file declares, for `translation`."""
    with open_raster(path) as dataset:
        return None if dataset.nodata is None else float(dataset.nodata)


def place(reference: Path, dataset: rasterio.DatasetReader, grid: GeoBox) -> Placement:
    """Find how an open reference map lies on a scene's grid, without reading a pixel.

    Raises GridMismatchError where the two do not meet, or nothing says whether they do; InputFileError where
    the file can't hold class codes.
    """
    _require_codes(reference, dataset)
    theirs = grid_of(dataset)
    placement = _nested(theirs, grid)
    if placement is None and (theirs.crs is None) != (grid.crs is None):
        placement = _laid_on(reference, theirs, grid)
    if placement is None and theirs.crs is None and theirs.affine.is_identity and grid.affine.is_identity:
        raise GridMismatchError(
            f"{reference} is {theirs.width} x {theirs.height} px and the scene {grid.width} x {grid.height} px; "
            f"neither has coordinates, so the map's size must be the scene's or a whole multiple of it. "
            f"Give both a CRS and a transform (gdal_translate -a_srs, -a_ullr)."
        )
    if placement is None:
        placement = _warped(theirs, grid)
    if placement is None or not placement.covered:
        raise GridMismatchError(
            f"{reference} does not touch the scene: the map is {describe(theirs)}, the scene {describe(grid)}. "
            f"Choose a map of the same ground, or correct the CRS of the one that is wrong (gdal_edit.py -a_srs)."
        )
    if placement.covered < 1 - 1e-6:
        share = min(max(100 * placement.covered, 0.1), 99.9)
        log.info("%s covers %.1f %% of the scene; the rest is nodata", reference, share)
    return placement


def _require_codes(reference: Path, dataset: rasterio.DatasetReader) -> None:
    dtype = dataset.dtypes[0]
    if dataset.count != 1:
        raise InputFileError(
            f"{reference} has {dataset.count} bands, but a reference map has one band of class codes. "
            f"Extract it: gdal_translate -b 1 {reference.name} codes.tif"
        )
    if not np.issubdtype(np.dtype(dtype), np.integer):
        raise InputFileError(
            f"{reference} holds {dtype}, but class codes are whole numbers from 0 to 255. "
            f"Convert it: gdal_translate -ot Byte {reference.name} codes.tif"
        )


def _nested(theirs: GeoBox, grid: GeoBox) -> Placement | None:
    """Placement of a map whose pixels tile the scene's pixels exactly, to 1 % of a map pixel; else None."""
    if not same_crs(theirs, grid):
        return None
    if theirs.crs is None and theirs.affine.is_identity and grid.affine.is_identity:
        return _multiple(theirs, grid)
    to_map = ~theirs.affine * grid.affine
    factor = floor(to_map.a + 0.5)
    col, row = (floor(value + 0.5) for value in to_map * (0, 0))
    corners = [(0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height)]
    expected = Affine.translation(col, row) * Affine.scale(factor)
    if factor < 1 or not all(
        np.allclose(to_map * corner, expected * corner, rtol=0, atol=ALIGNMENT) for corner in corners
    ):
        return None
    inside = Window(row, col, grid.height * factor, grid.width * factor).clip(tuple(theirs.shape))
    covered = inside.height * inside.width / (grid.height * grid.width * factor**2)
    return Placement(factor, float(factor), (row, col), covered)


def _multiple(theirs: GeoBox, grid: GeoBox) -> Placement | None:
    """Placement of a map with whole times as many pixels as the scene along both sides; else None."""
    factor = theirs.width // grid.width
    if factor < 1 or (theirs.width, theirs.height) != (grid.width * factor, grid.height * factor):
        return None
    return Placement(factor, float(factor), (0, 0), 1.0)


def _laid_on(reference: Path, theirs: GeoBox, grid: GeoBox) -> Placement:
    placement = _multiple(theirs, grid)
    if placement is None:
        raise GridMismatchError(
            f"{reference} is {describe(theirs)}, but the scene is {describe(grid)}. Where one of them has no CRS, "
            f"the map's size must be the scene's or a whole multiple of it. Assign the CRS (gdal_edit.py -a_srs)."
        )
    log.warning(
        "only one of %s and its scene has a CRS: their pixels are laid on each other, corner to corner", reference
    )
    return placement


def _warped(theirs: GeoBox, grid: GeoBox) -> Placement | None:
    ours, map_outline = footprint(grid, theirs.crs), footprint(theirs)
    if not map_outline.is_valid or not ours.is_valid or not ours.intersects(map_outline):
        return None
    ratio = _ratio(theirs, grid)
    if ratio is None:
        return None
    covered = float(ours.intersection(map_outline).area / ours.area)
    return Placement(min(max(1, floor(ratio + 0.5)), LARGEST_FACTOR), ratio, None, covered)


def _ratio(theirs: GeoBox, grid: GeoBox) -> float | None:
    """Scene pixel / map pixel, as lengths, at the scene's centre; None where that can't be projected."""
    col, row = grid.width / 2, grid.height / 2
    points = [grid.affine * point for point in ((col, row), (col + 1, row), (col, row + 1))]
    if not same_crs(theirs, grid):
        xs, ys = transform_points(str(grid.crs), str(theirs.crs), *zip(*points, strict=True))
        points = list(zip(xs, ys, strict=True))
    (x0, y0), (x1, y1), (x2, y2) = (~theirs.affine * point for point in points)
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    return sqrt(area) if np.isfinite(area) and area > 0 else None


class ReferenceReader:
    """An open reference map, read as codes on the fine grid. For one thread: a GDAL handle must not be shared.

    filler  the source code that stands for ground without the map; it must mean nodata
    margin  scene pixels around the grid that windows may reach into
    """

    def __init__(
        self, reference: Path, grid: GeoBox, placement: Placement, *, filler: int, margin: int = 0
    ) -> None:
        self.path, self.placement, self.filler = reference, placement, filler
        self.files = ExitStack()
        source = self.files.enter_context(open_raster(reference))
        self.is_bytes = source.dtypes[0] == "uint8"
        declared = source.nodata
        self.empty = filler if declared is None or 0 <= declared < CODES else int(declared)
        self.dataset: Any = source
        # (row, col) of the scene's corner in the pixels of the dataset that is read
        self.origin = placement.origin or (margin * placement.factor, margin * placement.factor)
        if placement.origin is None:
            fine = Affine.translation(-margin, -margin) * Affine.scale(1 / placement.factor)
            self.dataset = self.files.enter_context(
                WarpedVRT(
                    source,
                    src_crs=source.crs or PIXEL_CRS,
                    crs=PIXEL_CRS if grid.crs is None else str(grid.crs),
                    transform=grid.affine * fine,
                    width=(grid.width + 2 * margin) * placement.factor,
                    height=(grid.height + 2 * margin) * placement.factor,
                    resampling=Resampling.nearest,
                    tolerance=EXACT,
                    src_nodata=self.empty,
                    nodata=self.empty,
                    source_extra=WARP_MARGIN,
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    def read(self, window: Window) -> tuple[NDArray[np.uint8], int]:
        """Codes under a window of the scene's grid, and how many of them lie outside of the map.

        returns  (height * factor, width * factor) uint8
        Raises InputFileError naming file and rows where a block can't be read or holds no class code.
        """
        fine = self._fine(window)
        inside = fine.clip(self.dataset.shape)
        if inside == fine:
            return self._codes(fine), 0
        codes = np.full(fine.shape, self.filler, np.uint8)
        if 0 not in inside.shape:
            codes[inside.within(fine)] = self._codes(inside)
        return codes, codes.size - inside.height * inside.width

    def outside(self, window: Window) -> int:
        """How many fine pixels of a window lie outside of the map, as `read` says."""
        fine = self._fine(window)
        inside = fine.clip(self.dataset.shape)
        return fine.height * fine.width - inside.height * inside.width

    def _fine(self, window: Window) -> Window:
        factor, (row, col) = self.placement.factor, self.origin
        return Window(
            row + window.row * factor, col + window.col * factor, window.height * factor, window.width * factor
        )

    def _codes(self, fine: Window) -> NDArray[np.uint8]:
        try:
            values = self.dataset.read(
                1, window=rasterio.windows.Window(fine.col, fine.row, fine.width, fine.height)
            )
        except RasterioError as error:
            raise InputFileError(
                f"can't read {self.path}, {self._rows(fine)}: {error.__cause__ or error}. The file may be "
                f"truncated: fetch it again."
            ) from error
        if self.is_bytes:
            return values
        values = np.where(values == self.empty, self.filler, values)
        if values.min() < 0 or values.max() >= CODES:
            strange = values[(values < 0) | (values >= CODES)][0]
            raise InputFileError(
                f"{self.path} holds {strange} in {self._rows(fine)}, but class codes are from 0 to 255. "
                f"If it means nodata, declare it: gdal_edit.py -a_nodata {strange} {self.path.name}"
            )
        return values.astype(np.uint8)

    def _rows(self, fine: Window) -> str:
        grid = "rows" if self.placement.origin else "label rows"
        first, stop = fine.row, fine.row_stop
        if not self.placement.origin:
            first, stop = first // self.placement.factor, stop // self.placement.factor
        return f"{grid} {first} to {stop}"
