"""Reference map read as codes on a fine grid that nests in the scene's grid.

    scene grid        +-----------+-----------+     factor 3: every scene pixel holds 3 x 3 fine pixels
                      |   |   |   |   |   |   |
    fine grid         |---+---+---|---+---+---|     aligned: the fine pixels are the map's own
                      |   |   |   |   |   |   |     warped:  each takes the map pixel under its centre

A map whose pixels nest is read unchanged. Any other is resampled by nearest to the fine grid (`approx_transform`),
never averaged: codes have no mean.
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
from cobertes.labels.approx_transform import ApproxTransform, gather, smooth_cells
from cobertes.labels.kernels import find_slots, find_slots_of_floats
from cobertes.labels.map_values import map_values, read_values
from cobertes.labels.recode import CodeSlots

log = logging.getLogger(__name__)

LARGEST_FACTOR = 64
"""Most fine pixels along a scene pixel of a warped map: 4096 samples suffice for a majority."""

MARGIN = 2
"""Map pixels read beyond the nodes of a window."""


@dataclass(frozen=True)
class Alignment:
    """Position of a reference map on a scene's grid.

    ``factor`` fine pixels along a scene pixel; ``ratio`` scene pixel / map pixel; ``origin`` (row, col) of the
    scene's corner in the map's pixels if they nest, None for a warped map; ``covered`` share of the scene that
    the map covers.
    """

    factor: int
    ratio: float
    origin: tuple[int, int] | None
    covered: float


def align(reference: Path, dataset: rasterio.DatasetReader, grid: GeoBox) -> Alignment:
    """Position of an open reference map on a scene's grid; reads no pixel.

    Raises GridMismatchError if the two do not overlap, or lack the coordinates to decide it; InputFileError if
    the file can't have class codes.
    """
    map_values(reference, dataset)
    map_grid = grid_of(dataset)
    alignment = _nested(map_grid, grid)
    if alignment is None and (map_grid.crs is None) != (grid.crs is None):
        alignment = _pixel_aligned(reference, map_grid, grid)
    if alignment is None and map_grid.crs is None and map_grid.affine.is_identity and grid.affine.is_identity:
        raise GridMismatchError(
            f"{reference} is {map_grid.width} x {map_grid.height} px and the scene {grid.width} x {grid.height} "
            f"px; neither has coordinates, so the map's size must be the scene's or a whole multiple of it. "
            f"Give both a CRS and a transform (gdal_translate -a_srs, -a_ullr)."
        )
    if alignment is None:
        alignment = _warped(map_grid, grid)
    if alignment is None or not alignment.covered:
        raise GridMismatchError(
            f"{reference} does not touch the scene: the map is {describe(map_grid)}, the scene {describe(grid)}. "
            f"Choose a map of the same ground, or correct the CRS of the one that is wrong (gdal_edit.py -a_srs)."
        )
    if alignment.covered < 1 - 1e-6:
        share = min(max(100 * alignment.covered, 0.1), 99.9)
        log.info("%s covers %.1f %% of the scene; the rest is nodata", reference, share)
    return alignment


def _nested(map_grid: GeoBox, grid: GeoBox) -> Alignment | None:
    """Placement of a map whose pixels tile the scene's pixels exactly, to 1 % of a map pixel; else None."""
    if not same_crs(map_grid, grid):
        return None
    if map_grid.crs is None and map_grid.affine.is_identity and grid.affine.is_identity:
        return _whole_multiple(map_grid, grid)
    to_map = ~map_grid.affine * grid.affine
    factor = floor(to_map.a + 0.5)
    col, row = (floor(value + 0.5) for value in to_map * (0, 0))
    corners = [(0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height)]
    expected = Affine.translation(col, row) * Affine.scale(factor)
    if factor < 1 or not all(
        np.allclose(to_map * corner, expected * corner, rtol=0, atol=ALIGNMENT) for corner in corners
    ):
        return None
    inside = Window(row, col, grid.height * factor, grid.width * factor).clip(tuple(map_grid.shape))
    covered = inside.height * inside.width / (grid.height * grid.width * factor**2)
    return Alignment(factor, float(factor), (row, col), covered)


def _whole_multiple(map_grid: GeoBox, grid: GeoBox) -> Alignment | None:
    """Alignment of a map whose size is a whole multiple of the scene's; None for others."""
    factor = map_grid.width // grid.width
    if factor < 1 or (map_grid.width, map_grid.height) != (grid.width * factor, grid.height * factor):
        return None
    return Alignment(factor, float(factor), (0, 0), 1.0)


def _pixel_aligned(reference: Path, map_grid: GeoBox, grid: GeoBox) -> Alignment:
    alignment = _whole_multiple(map_grid, grid)
    if alignment is None:
        raise GridMismatchError(
            f"{reference} is {describe(map_grid)}, but the scene is {describe(grid)}. "
            f"Where one of them has no CRS, "
            f"the map's size must be the scene's or a whole multiple of it. Assign the CRS (gdal_edit.py -a_srs)."
        )
    log.warning(
        "only one of %s and its scene has a CRS: their pixels are laid on each other, corner to corner", reference
    )
    return alignment


def _warped(map_grid: GeoBox, grid: GeoBox) -> Alignment | None:
    ours, map_outline = footprint(grid, map_grid.crs), footprint(map_grid)
    if not map_outline.is_valid or not ours.is_valid or not ours.intersects(map_outline):
        return None
    ratio = _ratio(map_grid, grid)
    if ratio is None:
        return None
    covered = float(ours.intersection(map_outline).area / ours.area)
    return Alignment(min(max(1, floor(ratio + 0.5)), LARGEST_FACTOR), ratio, None, covered)


def _ratio(map_grid: GeoBox, grid: GeoBox) -> float | None:
    """Scene pixel / map pixel, as lengths, at the scene's centre; None if it can't be projected."""
    col, row = grid.width / 2, grid.height / 2
    points = [grid.affine * point for point in ((col, row), (col + 1, row), (col, row + 1))]
    if not same_crs(map_grid, grid):
        xs, ys = transform_points(str(grid.crs), str(map_grid.crs), *zip(*points, strict=True))
        points = list(zip(xs, ys, strict=True))
    (x0, y0), (x1, y1), (x2, y2) = (~map_grid.affine * point for point in points)
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    return sqrt(area) if np.isfinite(area) and area > 0 else None


class ReferenceReader:
    """Open reference map, read as codes on the fine grid by one thread: GDAL handles must not be shared.

    fill_code  source code for pixels outside of the map; it must mean nodata
    """

    def __init__(
        self,
        reference: Path,
        grid: GeoBox,
        alignment: Alignment,
        *,
        fill_code: int,
        slots: CodeSlots | None = None,
    ) -> None:
        self.path, self.alignment, self.fill_code, self.slots = reference, alignment, fill_code, slots
        self.files = ExitStack()
        source = self.files.enter_context(open_raster(reference))
        self.values = map_values(reference, source)
        self.is_plain = self.values.are_bytes and not self.values.masked
        self.dataset = source
        # None if the fine pixels are the map's own
        self.transform = None if alignment.origin else ApproxTransform(grid_of(source), grid, alignment.factor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    def read(self, window: Window) -> tuple[NDArray[np.uint8], int]:
        """Read the codes under a window of the scene's grid, which may reach out of it.

        returns  (height * factor, width * factor) uint8; number of fine pixels outside of the map
        Raises InputFileError naming file and rows if a block can't be read or has values that are no codes.
        """
        if self.transform:
            return self._warp(window, self.transform), 0
        fine = self._fine(window)
        inside = fine.clip(self.dataset.shape)
        if inside == fine:
            return self._codes(fine), 0
        codes = np.full(fine.shape, self.fill_code, np.uint8)
        if 0 not in inside.shape:
            codes[inside.slices_in(fine)] = self._codes(inside)
        return codes, codes.size - inside.height * inside.width

    def count_outside(self, window: Window) -> int:
        """Count the fine pixels of a window outside of the map; 0 for a warped map, where it is not known."""
        if self.transform:
            return 0
        fine = self._fine(window)
        inside = fine.clip(self.dataset.shape)
        return fine.height * fine.width - inside.height * inside.width

    def _fine(self, window: Window) -> Window:
        factor, (row, col) = self.alignment.factor, self.alignment.origin or (0, 0)
        return Window(
            row + window.row * factor, col + window.col * factor, window.height * factor, window.width * factor
        )

    def _warp(self, window: Window, transform: ApproxTransform) -> NDArray[np.uint8]:
        """Resample by nearest: the map pixel under the centre of each fine pixel."""
        factor, cell = self.alignment.factor, transform.cell
        codes = np.full((window.height * factor, window.width * factor), self.fill_code, np.uint8)
        cols, rows, cells = transform.nodes(window)
        smooth = smooth_cells(cols, rows)
        near = [_bounds(cols[node], rows[node]) for node in _nodes_of(smooth)]
        first = (window.row - cells.row * cell) * factor, (window.col - cells.col * cell) * factor
        odd = []
        for i, j in np.argwhere(~smooth):  # few, at the limits of a projection: projected pixel by pixel
            part = Window((cells.row + i) * cell, (cells.col + j) * cell, cell, cell).intersection(window)
            if part:
                places = transform.to_map(
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
        """Codes of a map of bytes, slots of every other one, in a window of its own pixels."""
        if self.is_plain:
            return read_window(self.dataset, fine, 1)
        values, known = read_values(self.dataset, self.values, fine)
        if self.slots is None:
            return values if known is None else np.where(known, values, np.uint8(self.fill_code))
        slots = np.empty(fine.shape, np.uint8)
        places = (self.slots.first, self.slots.last, self.slots.slot, self.slots.other, slots)
        if np.issubdtype(values.dtype, np.integer):
            find_slots(values, *places)
        else:
            nodata = np.nan if self.values.nodata is None else self.values.nodata
            odd = find_slots_of_floats(values, values.dtype.type(nodata), self.slots.empty, *places)
            if odd >= 0:
                raise InputFileError(
                    f"{self.path} holds {values.flat[odd]:g} in {_rows(fine)}, but class codes are whole numbers. "
                    f"Choose the map of classes: this one holds a quantity, or was resampled by a mean."
                )
        if known is not None:
            slots[~known] = self.slots.empty
        return slots

    def unknown_codes(self, window: Window) -> dict[int, int]:
        """Pixels of each code without a slot of its own, under a window of the scene.

        Of a warped map, all pixels that are read for the window count.
        """
        if self.slots is None:
            return {}
        fine = self._fine(window)
        if self.transform:
            near = _bounds(*self.transform.nodes(window)[:2])
            fine = _around([near] if near else [])
        inside = fine.clip(self.dataset.shape)
        if 0 in inside.shape:
            return {}
        values, _ = read_values(self.dataset, self.values, inside)
        codes, counts = np.unique(values[self._codes(inside) == self.slots.other], return_counts=True)
        return {int(code): int(count) for code, count in zip(codes, counts, strict=True)}


def _rows(fine: Window) -> str:
    return f"rows {fine.row} to {fine.row_stop}"


def _nodes_of(smooth: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Mask of the nodes of smooth cells; an empty list without any."""
    mask = np.zeros((2 * smooth.shape[0] + 1, 2 * smooth.shape[1] + 1), bool)
    for i in range(3):
        for j in range(3):
            mask[i : i + 2 * smooth.shape[0] : 2, j : j + 2 * smooth.shape[1] : 2] |= smooth
    return [mask] if mask.any() else []


def _bounds(cols: NDArray[np.float64], rows: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    """Smallest and largest column and row among finite positions."""
    known = np.isfinite(cols) & np.isfinite(rows)
    if not known.any():
        return None
    cols, rows = cols[known], rows[known]
    return float(cols.min()), float(cols.max()), float(rows.min()), float(rows.max())


def _around(bounds: list[tuple[float, float, float, float]]) -> Window:
    """Window of map pixels around all bounds, with a margin, since parabolas may exceed their nodes."""
    if not bounds:
        return Window(0, 0, 0, 0)
    left, top = floor(min(b[0] for b in bounds)) - MARGIN, floor(min(b[2] for b in bounds)) - MARGIN
    right, bottom = floor(max(b[1] for b in bounds)) + MARGIN, floor(max(b[3] for b in bounds)) + MARGIN
    return Window(top, left, bottom - top + 1, right - left + 1)
