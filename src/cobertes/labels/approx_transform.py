"""Approximate coordinate transform from a scene's fine pixels to a map's: exact at nodes, quadratic between.

    o---o---o---o---o     o  a node: projected exactly
    |       |       |     a cell is CELL scene pixels wide and has 3 x 3 nodes; a parabola through three of
    o   o   o   o   o     them gives the position of every fine pixel between, to a millionth of a map pixel
    |       |       |
    o---o---o---o---o

Projecting every pixel would take fifty times as long. Cells belong to the scene's grid, whatever window is read,
so a pixel always gets the same position.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.warp import transform as transform_points

from cobertes.geo.grid import same_crs
from cobertes.geo.windows import Window
from cobertes.numba_cache import compiled

CELLS = (16, 8, 4, 2, 1)
"""Sides of a cell in scene pixels: the first within the tolerance is used."""

TOLERANCE = 1e-6
"""Largest error of a position in map pixels."""

Floats = NDArray[np.float64]


class ApproxTransform:
    """Transform from pixels of a scene's ``grid`` to pixels of a map's; ``factor`` fine pixels per scene pixel."""

    def __init__(self, map_grid: GeoBox, grid: GeoBox, factor: int) -> None:
        self.map_grid, self.grid, self.factor = map_grid, grid, factor
        self.crs = None if same_crs(map_grid, grid) else (str(grid.crs), str(map_grid.crs))
        self.cell = next((cell for cell in CELLS if self._error(cell) <= TOLERANCE), CELLS[-1])

    def to_map(self, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Map columns and rows of scene columns and rows, arrays of one shape; infinite if not projectable."""
        xs, ys = self.grid.affine * (cols.ravel(), rows.ravel())
        if self.crs:
            xs, ys = (np.array(values) for values in transform_points(*self.crs, xs, ys))
        with np.errstate(invalid="ignore"):
            found = ~self.map_grid.affine * (xs, ys)
        return found[0].reshape(cols.shape), found[1].reshape(cols.shape)

    def nodes(self, window: Window) -> tuple[Floats, Floats, Window]:
        """Nodes of the R x C cells that cover a window of the scene.

        returns  map columns and rows (2 R + 1, 2 C + 1) of the nodes; the window of the cells, in cells
        """
        cell = self.cell
        top, left = window.row // cell, window.col // cell
        cells = Window(top, left, -(-window.row_stop // cell) - top, -(-window.col_stop // cell) - left)
        down = (top + np.arange(2 * cells.height + 1) / 2) * cell
        across = (left + np.arange(2 * cells.width + 1) / 2) * cell
        cols, rows = np.meshgrid(across, down)
        return *self.to_map(cols, rows), cells

    def _error(self, cell: int) -> float:
        """Largest error of the parabolas in nine cells of the scene; infinite if one can't be projected."""
        errors = []
        for down, across in product((0.0, 0.5, 1.0), repeat=2):
            top, left = (
                int(down * (self.grid.height - 1)) // cell * cell,
                int(across * (self.grid.width - 1)) // cell * cell,
            )
            at = np.array([0, 0.5, 1]) * cell
            exact = self.to_map(*np.meshgrid(left + at, top + at))
            between = np.array([0.25, 0.75])
            weights = _parabola(between)
            truth = self.to_map(*np.meshgrid(left + between * cell, top + between * cell))
            for nodes, true in zip(exact, truth, strict=True):
                with np.errstate(invalid="ignore"):
                    errors.append(np.abs(weights @ nodes @ weights.T - true).max())
        worst = float(np.max(errors))
        return worst if np.isfinite(worst) else np.inf


def _parabola(at: Floats) -> Floats:
    """(n, 3): weights of the values at 0, 1/2 and 1 for n positions between."""
    return np.stack([(1 - at) * (1 - 2 * at), 4 * at * (1 - at), at * (2 * at - 1)], axis=1)


def smooth_cells(cols: Floats, rows: Floats) -> NDArray[np.bool_]:
    """(R, C) bool: cells whose nodes are finite and nearly linear, so that parabolas are accurate.

    They are not at the limits of a projection, or at a jump of longitudes.
    """
    smooth = np.ones((cols.shape[0] // 2, cols.shape[1] // 2), bool)
    with np.errstate(invalid="ignore"):
        for values in (cols, rows):
            for lines in (values, values.T):
                bend = np.abs(lines[:-2:2] - 2 * lines[1:-1:2] + lines[2::2])
                span = np.abs(lines[2::2] - lines[:-2:2])
                gentle = np.isfinite(bend) & (bend <= 0.1 * span + 1.0)
                both = gentle[:, :-2:2] & gentle[:, 1:-1:2] & gentle[:, 2::2]
                smooth &= both if lines is values else both.T
    return smooth


@compiled
def gather(
    source: NDArray[np.uint8],
    top: int,
    left: int,
    cols: Floats,
    rows: Floats,
    smooth: NDArray[np.bool_],
    cell: int,
    first_row: int,
    first_col: int,
    out: NDArray[np.uint8],
) -> None:
    """Copy the map pixel under the centre of each fine pixel; pixels outside of ``source`` are unchanged.

    source     (h, w) uint8: a part of the map whose first pixel is the map's (top, left)
    cols, rows (2 R + 1, 2 C + 1) float64 from `ApproxTransform.nodes`
    smooth     (R, C) from `smooth_cells`; other cells are unchanged
    cell       side of a cell in fine pixels; ``first_row``, ``first_col`` of ``out`` in the first cell
    out        (height, width) uint8, written
    """
    height, width = source.shape
    number = cols.shape[1]
    xs, ys = np.empty(number), np.empty(number)
    for r in range(out.shape[0]):
        i = (first_row + r) // cell
        t = ((first_row + r) % cell + 0.5) / cell
        w0, w1, w2 = (1 - t) * (1 - 2 * t), 4 * t * (1 - t), t * (2 * t - 1)
        for n in range(number):
            xs[n] = w0 * cols[2 * i, n] + w1 * cols[2 * i + 1, n] + w2 * cols[2 * i + 2, n]
            ys[n] = w0 * rows[2 * i, n] + w1 * rows[2 * i + 1, n] + w2 * rows[2 * i + 2, n]
        c = 0
        while c < out.shape[1]:
            j = (first_col + c) // cell
            stop = min(out.shape[1], (j + 1) * cell - first_col)
            if smooth[i, j]:
                x0, x1, x2 = xs[2 * j], xs[2 * j + 1], xs[2 * j + 2]
                y0, y1, y2 = ys[2 * j], ys[2 * j + 1], ys[2 * j + 2]
                bx, cx = 4 * x1 - 3 * x0 - x2, 2 * x0 - 4 * x1 + 2 * x2
                by, cy = 4 * y1 - 3 * y0 - y2, 2 * y0 - 4 * y1 + 2 * y2
                for k in range(c, stop):
                    u = (first_col + k - j * cell + 0.5) / cell
                    col = int(np.floor(x0 + u * (bx + u * cx))) - left
                    row = int(np.floor(y0 + u * (by + u * cy))) - top
                    if 0 <= row < height and 0 <= col < width:
                        out[r, k] = source[row, col]
            c = stop
