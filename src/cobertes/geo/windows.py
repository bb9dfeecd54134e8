"""Windows over a grid: starts with overlap, and the interior of each.

A row of windows of ``size`` 6 with ``overlap`` 2 over 14 pixels (stride 4):

    pixels     0 1 2 3 4 5 6 7 8 9 . . . 13
    window 0   [=========|-]
    window 1           [-|=======|-]
    window 2                   [-|=========]
               interior 0 ends at 5, 1 at 9, 2 at 14: interiors partition the line

The last window is shifted inside, so it may share more than ``overlap`` with the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import rasterio.windows
from numpy.typing import NDArray

from cobertes.errors import SettingsError


@dataclass(frozen=True, order=True)
class Window:
    """A pixel rectangle: ``row``, ``col`` of its top-left pixel, then ``height``, ``width``."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        """End of the rows, excluded."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """End of the columns, excluded."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self.height, self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an array of the raster: ``array[window.slices]``; starts must not be negative."""
        return slice(self.row, self.row_stop), slice(self.col, self.col_stop)

    def clip(self, shape: tuple[int, int]) -> "Window":
        """Part inside a raster of ``shape`` (height, width); empty if they do not overlap."""
        row, col = max(self.row, 0), max(self.col, 0)
        height = max(0, min(self.row_stop, shape[0]) - row)
        width = max(0, min(self.col_stop, shape[1]) - col)
        return Window(row, col, height, width)

    def intersection(self, other: "Window") -> "Window | None":
        """Overlap with another window; None if there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height, width = min(self.row_stop, other.row_stop) - row, min(self.col_stop, other.col_stop) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def pad(self, pixels: int) -> "Window":
        """Window with a margin of ``pixels`` on every side."""
        return Window(self.row - pixels, self.col - pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def slices_in(self, outer: "Window") -> tuple[slice, slice]:
        """Slices of this window in an array that holds ``outer``."""
        row, col = self.row - outer.row, self.col - outer.col
        return slice(row, row + self.height), slice(col, col + self.width)

    def to_rasterio(self) -> rasterio.windows.Window:
        """Window as rasterio has it: offsets and sizes with the column first."""
        return rasterio.windows.Window(self.col, self.row, self.width, self.height)


def runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and stop position of every run of True in ``line`` (n,)."""
    ends = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in ends.reshape(-1, 2)]


def window_starts(length: int, size: int, overlap: int = 0) -> list[int]:
    """Starts of the windows that cover ``length``: length 110, size 64, overlap 32 -> 0, 32, 46.

    The last one is shifted inside; if ``length <= size`` there is one window, at 0.
    Raises SettingsError if the overlap is not smaller than the size.
    """
    if overlap >= size:
        raise SettingsError(f"overlap {overlap} px must be smaller than the window of {size} px")
    if length <= size:
        return [0]
    inner = list(range(0, length - size, size - overlap))
    return [*inner, length - size]


def interior_cuts(starts: list[int], length: int, size: int) -> list[int]:
    """Borders of interiors along an axis: neighbours meet in the middle of their overlap.

    Starts 0, 32, 46, length 110, size 64 -> 0, 48, 71, 110.
    """
    return [0, *((a + size + b) // 2 for a, b in pairwise(starts)), length]


def interiors(length: int, size: int, overlap: int) -> list[tuple[int, int, int]]:
    """``(window start, interior start, interior stop)`` along one axis; interiors partition the axis.

    Size 64, length 110, overlap 32 -> (0, 0, 48), (32, 48, 71), (46, 71, 110).
    """
    starts = window_starts(length, size, overlap)
    cuts = interior_cuts(starts, length, size)
    return [(start, *cut) for start, cut in zip(starts, pairwise(cuts), strict=True)]


def tile_windows(shape: tuple[int, int], size: int, overlap: int = 0) -> Iterator[Window]:
    """Windows of ``size`` that cover ``shape`` in row-major order; smaller only if the raster is."""
    for row in window_starts(shape[0], size, overlap):
        for col in window_starts(shape[1], size, overlap):
            yield Window(row, col, min(size, shape[0]), min(size, shape[1]))


@dataclass(frozen=True)
class TiledWindow:
    """Window of a full-scene pass: ``window`` is read, its ``interior`` is written."""

    window: Window
    interior: Window


def plan_strips(region: Window, size: int, overlap: int) -> list[list[TiledWindow]]:
    """Windows over ``region``, strip by strip from the top; their interiors partition it.

    Windows have exactly ``size`` x ``size`` pixels and may reach out of a region smaller than that.
    A strip's interiors share their rows, so a finished strip is a finished range of rows.
    """
    cols = interiors(region.width, size, overlap)
    return [
        [
            TiledWindow(
                Window(region.row + row, region.col + col, size, size),
                Window(region.row + top, region.col + left, bottom - top, right - left),
            )
            for col, left, right in cols
        ]
        for row, top, bottom in interiors(region.height, size, overlap)
    ]
