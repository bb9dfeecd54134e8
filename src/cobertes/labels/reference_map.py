"""The reference map as the label pass sees it: codes on a fine grid that nests in the scene's grid.

    scene grid        +-----------+-----------+     factor 3: every scene pixel holds 3 x 3 fine pixels
                      |   |   |   |   |   |   |
    fine grid         |---+---+---|---+---+---|     aligned: the fine pixels are the map's own
                      |   |   |   |   |   |   |     warped:  each takes the map pixel under its centre

A map whose pixels already nest is read as it is. Of every other one the pixel under each fine pixel's centre is
taken (`lattice` says where it is), never a mean: codes have no mean.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from math import floor, sqrt
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.warp import transform as transform_points

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.grid import ALIGNMENT, describe, footprint, grid_of, same_crs
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.windows import Window
from cobertes.labels.approx_transform import Lattice, gather, smooth_cells

log = logging.getLogger(__name__)

CODES = 256

LARGEST_FACTOR = 64
"""Fine pixels along a scene pixel, at most, where the map is warped: 4096 samples tell its majority."""

MARGIN = 2
"""Map pixels that are read beyond the nodes of a window."""


@dataclass(frozen=True)
class Alignment:
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
    """The nodata value that a reference map's file declares, for `recode_table`."""
    with open_raster(path) as dataset:
        return None if dataset.nodata is None else float(dataset.nodata)


def align(reference: Path, dataset: rasterio.DatasetReader, grid: GeoBox) -> Alignment:
    """Find how an open reference map lies on a scene's grid, without reading a pixel.

    Raises GridMismatchError where the two do not meet, or nothing says whether they do; InputFileError where
    the file can't hold class codes.
    """
    _require_codes(reference, dataset)
    theirs = grid_of(dataset)
    alignment = _nested(theirs, grid)
    if alignment is None and (theirs.crs is None) != (grid.crs is None):
        alignment = _laid_on(reference, theirs, grid)
    if alignment is None and theirs.crs is None and theirs.affine.is_identity and grid.affine.is_identity:
        raise GridMismatchError(
            f"{reference} is {theirs.width} x {theirs.height} px and the scene {grid.width} x {grid.height} px; "
            f"neither has coordinates, so the map's size must be the scene's or a whole multiple of it. "
            f"Give both a CRS and a transform (gdal_translate -a_srs, -a_ullr)."
        )
    if alignment is None:
        alignment = _warped(theirs, grid)
    if alignment is None or not alignment.covered:
        raise GridMismatchError(
            f"{reference} does not touch the scene: the map is {describe(theirs)}, the scene {describe(grid)}. "
            f"Choose a map of the same ground, or correct the CRS of the one that is wrong (gdal_edit.py -a_srs)."
        )
    if alignment.covered < 1 - 1e-6:
        share = min(max(100 * alignment.covered, 0.1), 99.9)
        log.info("%s covers %.1f %% of the scene; the rest is nodata", reference, share)
    return alignment


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


def _nested(theirs: GeoBox, grid: GeoBox) -> Alignment | None:
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
    return Alignment(factor, float(factor), (row, col), covered)


def _multiple(theirs: GeoBox, grid: GeoBox) -> Alignment | None:
    """Placement of a map with whole times as many pixels as the scene along both sides; else None."""
    factor = theirs.width // grid.width
    if factor < 1 or (theirs.width, theirs.height) != (grid.width * factor, grid.height * factor):
        return None
    return Alignment(factor, float(factor), (0, 0), 1.0)


def _laid_on(reference: Path, theirs: GeoBox, grid: GeoBox) -> Alignment:
    alignment = _multiple(theirs, grid)
    if alignment is None:
        raise GridMismatchError(
            f"{reference} is {describe(theirs)}, but the scene is {describe(grid)}. Where one of them has no CRS, "
            f"the map's size must be the scene's or a whole multiple of it. Assign the CRS (gdal_edit.py -a_srs)."
        )
    log.warning(
        "only one of %s and its scene has a CRS: their pixels are laid on each other, corner to corner", reference
    )
    return alignment


def _warped(theirs: GeoBox, grid: GeoBox) -> Alignment | None:
    ours, map_outline = footprint(grid, theirs.crs), footprint(theirs)
    if not map_outline.is_valid or not ours.is_valid or not ours.intersects(map_outline):
        return None
    ratio = _ratio(theirs, grid)
    if ratio is None:
        return None
    covered = float(ours.intersection(map_outline).area / ours.area)
    return Alignment(min(max(1, floor(ratio + 0.5)), LARGEST_FACTOR), ratio, None, covered)


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
    """

    def __init__(self, reference: Path, grid: GeoBox, alignment: Alignment, *, fill_code: int) -> None:
        self.path, self.alignment, self.fill_code = reference, alignment, fill_code
        self.files = ExitStack()
        source = self.files.enter_context(open_raster(reference))
        self.is_bytes = source.dtypes[0] == "uint8"
        declared = source.nodata
        self.empty = fill_code if declared is None or 0 <= declared < CODES else int(declared)
        self.dataset = source
        # how the fine pixels lie in the map, where they are not its own
        self.lattice = None if alignment.origin else Lattice(grid_of(source), grid, alignment.factor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    def read(self, window: Window) -> tuple[NDArray[np.uint8], int]:
        """Codes under a window of the scene's grid, which may reach out of it, and how many of them are known
        to lie outside of the map (none for a warped map).

        returns  (height * factor, width * factor) uint8
        Raises InputFileError naming file and rows where a block can't be read or holds no class code.
        """
        if self.lattice:
            return self._warp(window, self.lattice), 0
        fine = self._fine(window)
        inside = fine.clip(self.dataset.shape)
        if inside == fine:
            return self._codes(fine), 0
        codes = np.full(fine.shape, self.fill_code, np.uint8)
        if 0 not in inside.shape:
            codes[inside.slices_in(fine)] = self._codes(inside)
        return codes, codes.size - inside.height * inside.width

    def count_outside(self, window: Window) -> int:
        """How many fine pixels of a window lie outside of the map, as `read` says."""
        if self.lattice:
            return 0
        fine = self._fine(window)
        inside = fine.clip(self.dataset.shape)
        return fine.height * fine.width - inside.height * inside.width

    def _fine(self, window: Window) -> Window:
        factor, (row, col) = self.alignment.factor, self.alignment.origin or (0, 0)
        return Window(
            row + window.row * factor, col + window.col * factor, window.height * factor, window.width * factor
        )

    def _warp(self, window: Window, lattice: Lattice) -> NDArray[np.uint8]:
        """The map pixel under the centre of each fine pixel."""
        factor, cell = self.alignment.factor, lattice.cell
        codes = np.full((window.height * factor, window.width * factor), self.fill_code, np.uint8)
        cols, rows, cells = lattice.nodes(window)
        smooth = smooth_cells(cols, rows)
        near = [_bounds(cols[node], rows[node]) for node in _nodes_of(smooth)]
        first = (window.row - cells.row * cell) * factor, (window.col - cells.col * cell) * factor
        odd = []
        for i, j in np.argwhere(~smooth):  # few, at the end of a projection's world: place by place
            part = Window((cells.row + i) * cell, (cells.col + j) * cell, cell, cell).intersection(window)
            if part:
                places = lattice.places(
                    *np.meshgrid(
                        part.col + (np.arange(part.width * factor) + 0.5) / factor,
                        part.row + (np.arange(part.height * factor) + 0.5) / factor,
                    )
                )
                odd.append((part, places))
                near.append(_bounds(*places))
        found = _around([bounds for bounds in near if bounds]).clip(self.dataset.shape)
        if 0 in found.shape:
            return codes
        source = self._codes(found)
        gather(source, found.row, found.col, cols, rows, smooth, cell * factor, *first, codes)
        for part, (across, down) in odd:
            inside = np.isfinite(across) & np.isfinite(down)
            c = np.floor(np.where(inside, across, -1)).astype(np.int64) - found.col
            r = np.floor(np.where(inside, down, -1)).astype(np.int64) - found.row
            inside &= (c >= 0) & (r >= 0) & (c < found.width) & (r < found.height)
            row, col = (part.row - window.row) * factor, (part.col - window.col) * factor
            target = codes[row : row + part.height * factor, col : col + part.width * factor]
            target[inside] = source[r[inside], c[inside]]
        return codes

    def _codes(self, fine: Window) -> NDArray[np.uint8]:
        values = read_window(self.dataset, fine, 1)
        if self.is_bytes:
            return values
        values = np.where(values == self.empty, self.fill_code, values)
        if values.min() < 0 or values.max() >= CODES:
            strange = values[(values < 0) | (values >= CODES)][0]
            raise InputFileError(
                f"{self.path} holds {strange} in {_rows(fine)}, but class codes are from 0 to 255. "
                f"If it means nodata, declare it: gdal_edit.py -a_nodata {strange} {self.path.name}"
            )
        return values.astype(np.uint8)


def _rows(fine: Window) -> str:
    return f"rows {fine.row} to {fine.row_stop}"


def _nodes_of(smooth: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The nodes of smooth cells, as a mask of all nodes; nothing where no cell is smooth."""
    mask = np.zeros((2 * smooth.shape[0] + 1, 2 * smooth.shape[1] + 1), bool)
    for i in range(3):
        for j in range(3):
            mask[i : i + 2 * smooth.shape[0] : 2, j : j + 2 * smooth.shape[1] : 2] |= smooth
    return [mask] if mask.any() else []


def _bounds(cols: NDArray[np.float64], rows: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    """Least and greatest column and row of places, of those that are finite."""
    known = np.isfinite(cols) & np.isfinite(rows)
    if not known.any():
        return None
    cols, rows = cols[known], rows[known]
    return float(cols.min()), float(cols.max()), float(rows.min()), float(rows.max())


def _around(bounds: list[tuple[float, float, float, float]]) -> Window:
    """A window of map pixels that holds all bounds, and a little more, since parabolas may bulge."""
    if not bounds:
        return Window(0, 0, 0, 0)
    left, top = floor(min(b[0] for b in bounds)) - MARGIN, floor(min(b[2] for b in bounds)) - MARGIN
    right, bottom = floor(max(b[1] for b in bounds)) + MARGIN, floor(max(b[3] for b in bounds)) + MARGIN
    return Window(top, left, bottom - top + 1, right - left + 1)
