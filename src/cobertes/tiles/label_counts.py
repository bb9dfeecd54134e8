"""Class histograms of any tile, interior or block, from one streaming pass over the labels.

The borders of all of these cut an area into cells; the pass counts the classes of each cell, and a summed-area
table (Crow 1984) gives the histogram of any window whose borders are among the cuts:

    cuts   0   s   e   0'      counts of a window = table[bottom, right] - table[top, right]
           |---|---|---|                           - table[bottom, left] + table[top, left]

The histograms of square cells are counted in the same pass, for the range of autocorrelation.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend
from cobertes.numba_cache import compiled
from cobertes.progress import Advance
from cobertes.tiles.label_io import read_labels

STRIP_ROWS = 512
READ_THREADS = 2

SQUARES = 512
"""Maximum number of square cells along the longer side of an area."""


@compiled
def _count(
    codes: NDArray[np.uint8],
    index: NDArray[np.uint8],
    rows: NDArray[np.int64],
    col_cuts: NDArray[np.int64],
    counts: NDArray[np.integer],
) -> None:
    """Add the pixels of each class to ``counts`` (cell rows, cell cols, K); ``rows`` (height,) are cell rows."""
    classes = counts.shape[2]
    histogram = np.zeros(256, np.int64)
    for row in range(codes.shape[0]):
        for cell in range(len(col_cuts) - 1):
            histogram[:] = 0
            for col in range(col_cuts[cell], col_cuts[cell + 1]):
                histogram[index[codes[row, col]]] += 1
            for k in range(classes):
                counts[rows[row], cell, k] += histogram[k]


@dataclass(frozen=True)
class LabelCounts:
    """Class histogram of an area's labels, as a summed-area table.

    row_cuts, col_cuts  (rows + 1,), (cols + 1,) borders that windows may have
    table               (rows + 1, cols + 1, K) int64: pixels per class above and left of a pair of cuts
    squares             (K, rows, cols) int32: pixels per class in squares of ``side`` pixels; K = 0 if not counted
    """

    row_cuts: NDArray[np.int64]
    col_cuts: NDArray[np.int64]
    table: NDArray[np.int64]
    squares: NDArray[np.int32]
    side: int

    def counts(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        """Count the pixels per class (n, K) of windows whose borders are cuts."""
        sides = np.array([(w.row, w.row_stop, w.col, w.col_stop) for w in windows], np.int64).reshape(-1, 4)
        top, bottom = (np.searchsorted(self.row_cuts, sides[:, i]) for i in (0, 1))
        left, right = (np.searchsorted(self.col_cuts, sides[:, i]) for i in (2, 3))
        t = self.table
        return np.asarray(t[bottom, right] - t[top, right] - t[bottom, left] + t[top, left])

    def grid(self, row_edges: NDArray[np.int64], col_edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the pixels per class (rows, cols, K) between edges that are cuts."""
        corners = self.table[np.searchsorted(self.row_cuts, row_edges)]
        corners = corners[:, np.searchsorted(self.col_cuts, col_edges)]
        return np.asarray(np.diff(np.diff(corners, axis=0), axis=1))


def square_side(length: int) -> int:
    """Side in pixels of the square cells of an area whose longer side is ``length``."""
    return max(1, -(-length // SQUARES))


def count_labels(
    path: Path,
    shape: tuple[int, int],
    row_cuts: Iterable[int],
    col_cuts: Iterable[int],
    legend: Legend,
    advance: Advance = lambda amount, note="": None,
    *,
    squares: bool = False,
) -> LabelCounts:
    """Count the labels of an area, strip by strip. Raises InputFileError.

    shape               (height, width) in pixels
    row_cuts, col_cuts  borders of the windows to be counted, in pixels
    advance             receives the share of the area that was read
    squares             count square cells as well
    """
    index = legend.index_table()
    rows, cols = (np.unique([0, length, *cuts]) for length, cuts in zip(shape, (row_cuts, col_cuts), strict=True))
    side = square_side(max(shape))
    square_rows, square_cols = (_borders(length, side) for length in shape)
    cells = np.zeros((len(rows) - 1, len(cols) - 1, len(legend)), np.int64)
    in_squares = np.zeros((len(square_rows) - 1, len(square_cols) - 1, len(legend) if squares else 0), np.int32)

    def read(strip: tuple[int, int]) -> NDArray[np.uint8]:
        return read_labels(path, Window(strip[0], 0, strip[1] - strip[0], shape[1]))

    strips = list(pairwise(_borders(shape[0], STRIP_ROWS).tolist()))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, len(strips), 2 * READ_THREADS):  # a few strips at a time: memory stays bounded
            group = strips[first : first + 2 * READ_THREADS]
            for (top, bottom), codes in zip(group, pool.map(read, group), strict=True):
                inside = np.arange(top, bottom)
                _count(codes, index, np.searchsorted(rows, inside, "right") - 1, cols, cells)
                if squares:
                    _count(codes, index, inside // side, square_cols, in_squares)
                advance((bottom - top) / shape[0])
    table = np.zeros((len(rows), len(cols), len(legend)), np.int64)
    np.cumsum(np.cumsum(cells, axis=0), axis=1, out=table[1:, 1:])
    return LabelCounts(rows, cols, table, np.moveaxis(in_squares, 2, 0), side)


def _borders(length: int, step: int) -> NDArray[np.int64]:
    return np.array([*range(0, length, step), length], np.int64)
