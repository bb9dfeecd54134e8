r"""Blending of overlapping windows in a sliding-window pass, in little memory.

Along an axis, two neighbours are blended in a zone around the middle of their overlap:

    window 0   [=========\\\\\-]                one weight falls from 1 to 0
    window 1           [-/////======\\\\\-]     as the other rises: they sum to 1
    window 2                     [-/////=========]
    blocks     0         1          2            pixels that a window completes: up to its next zone

Every pixel outside of the zones comes from one window. So a pass in row-major order carries over only the right
zone of the last window and the lower zones of the last strip: (zone, width, classes), not (size, width, classes).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import SettingsError, did_you_mean
from cobertes.geo.windows import Window, interior_cuts, window_starts

INTERIOR, COSINE, GAUSSIAN = BLENDS = ("interior", "cosine", "gaussian")

SIGMA = 1 / 8
"""Standard deviation of the Gaussian in window sizes, as in nnU-Net (Isensee et al. 2021)."""


@dataclass(frozen=True)
class AxisWindow:
    """Window along one axis, in pixels.

    ``start``  first pixel
    ``first``  first pixel of its block: start of its zone with the window before
    ``last``   end of its block: start of its zone with the window after
    ``stop``   end of that zone
    ``fade``   (n,) float32: its weight in the zone with the window before, rising; empty without one
    """

    start: int
    first: int
    last: int
    stop: int
    fade: NDArray[np.float32]


def spans(length: int, size: int, overlap: int, blend: str = INTERIOR) -> list[AxisWindow]:
    """Windows along an axis; their blocks partition it. Starts are those of `window_starts`.

    interior  no zones: neighbours meet in the middle of their overlap
    cosine    weights follow half a cosine wave, over ``overlap`` pixels
    gaussian  weights of Gaussians around the windows' centres, with `SIGMA`
    Zones never meet: an overlap of more than half the window blends no more than one of half.
    Raises SettingsError for other blendings, and if the overlap is not smaller than the size.
    """
    if blend not in BLENDS:
        raise SettingsError(f"no blending '{blend}'.{did_you_mean(blend, BLENDS)}")
    starts = window_starts(length, size, overlap)
    cuts = interior_cuts(starts, length, size)
    zones, fades = [(0, 0)], [np.ones(0, np.float32)]
    for k, (before, after) in enumerate(pairwise(starts), start=1):
        half = 0 if blend == INTERIOR else min(overlap, cuts[k] - cuts[k - 1], cuts[k + 1] - cuts[k]) // 2
        zones.append((cuts[k] - half, cuts[k] + half))
        fades.append(_fade(*zones[-1], before, after, size, blend))
    zones.append((length, length))
    return [
        AxisWindow(start, zone[0], *following, fade)
        for start, (zone, following), fade in zip(starts, pairwise(zones), fades, strict=True)
    ]


def _fade(begin: int, end: int, before: int, after: int, size: int, blend: str) -> NDArray[np.float32]:
    """(n,) weight of the later of two windows in their zone."""
    centres = np.arange(begin, end) + 0.5
    if blend == GAUSSIAN:
        near, far = centres - (after + size / 2), centres - (before + size / 2)
        return (1 / (1 + np.exp((near**2 - far**2) / (2 * (SIGMA * size) ** 2)))).astype(np.float32)
    return (0.5 - 0.5 * np.cos(np.pi * (centres - begin) / max(end - begin, 1))).astype(np.float32)


@dataclass(frozen=True)
class WindowPlan:
    """Windows of ``size`` that cover a raster, in rows and columns; independent of the memory available."""

    size: int
    rows: tuple[AxisWindow, ...]
    cols: tuple[AxisWindow, ...]

    @classmethod
    def of(cls, shape: tuple[int, int], size: int, overlap: int, blend: str) -> "WindowPlan":
        """Plan for a raster of (height, width). Raises as `spans` does."""
        return cls(size, *(tuple(spans(length, size, overlap, blend)) for length in shape))

    @property
    def count(self) -> int:
        """Number of windows, and of blocks."""
        return len(self.rows) * len(self.cols)

    def number(self, row: int, col: int) -> int:
        """Number of a block in row-major order."""
        return row * len(self.cols) + col

    def window(self, row: int, col: int) -> Window:
        """Pixels to read; they may reach out of a raster that is smaller."""
        return Window(self.rows[row].start, self.cols[col].start, self.size, self.size)

    def block(self, row: int, col: int) -> Window:
        """Pixels that are complete once this window and all before it are added."""
        y, x = self.rows[row], self.cols[col]
        return Window(y.first, x.first, y.last - y.first, x.last - x.first)

    def extent(self, row: int, col: int) -> Window:
        """Pixels in which this window has a weight."""
        y, x = self.rows[row], self.cols[col]
        return Window(y.first, x.first, y.stop - y.first, x.stop - x.first)

    def contributes_to(self, row: int, col: int) -> Iterator[tuple[int, int]]:
        """Blocks in which this window has a weight: its own, and those that begin with its zones."""
        down = [row, row + 1] if self.rows[row].stop > self.rows[row].last else [row]
        right = [col, col + 1] if self.cols[col].stop > self.cols[col].last else [col]
        yield from ((i, j) for i in down for j in right)

    def carry_over(self) -> int:
        """Pixels of the lower zones of a strip, at most: carried over from one strip to the next."""
        return max(span.stop - span.last for span in self.rows) * self.cols[-1].last


class Blender:
    """Blends windows in row-major order, and returns the block that each one completes.

    A window may be left out if no pixel of its `WindowPlan.extent` is wanted. Columns may be processed in groups
    from left to right; each group needs one more column to its left.
    """

    def __init__(self, plan: WindowPlan) -> None:
        self.plan = plan
        self.above: dict[int, tuple[int, NDArray[np.float32]]] = {}
        self.beside: tuple[int, int, NDArray[np.float32]] | None = None

    def add(self, row: int, col: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(height, width, K) of block (row, col), from (size, size, K) of its window."""
        y, x = self.plan.rows[row], self.plan.cols[col]
        rows = values[y.first - y.start : y.stop - y.start]
        out = rows[:, x.first - x.start : x.last - x.start]
        if x.fade.size or y.fade.size or y.stop > y.last:
            out = out.copy()
        if x.fade.size and self.beside is not None and self.beside[:2] == (row, col - 1):
            _fade_in(out[:, : x.fade.size], self.beside[2], x.fade[None, :, None])
        if x.stop > x.last:
            self.beside = row, col, rows[:, x.last - x.start : x.stop - x.start].copy()
        above, lower_zone = self.above.pop(col, (-1, values))
        if y.fade.size and above == row - 1:
            _fade_in(out[: y.fade.size], lower_zone, y.fade[:, None, None])
        height = y.last - y.first
        if y.stop > y.last:
            self.above[col] = row, out[height:].copy()
        return out[:height]


def _fade_in(out: NDArray[np.float32], before: NDArray[np.float32], share: NDArray[np.float32]) -> None:
    """Blend in place: ``out`` becomes ``before`` + share * (``out`` - ``before``)."""
    out -= before
    out *= share
    out += before
