r"""Blending: how the windows that see a pixel share it, and in how little memory.

Along an axis, neighbours meet in a zone around the middle of what they share, and fade into each other there:

    window 0   [=========\\\\\-]                one share falls from 1 to 0
    window 1           [-/////======\\\\\-]     as the other rises: they sum to 1
    window 2                     [-/////=========]
    blocks     0         1          2            what a window finishes: up to its next zone

Everything outside of the zones comes from one window. So a pass in row-major order needs to keep the right zone
of the last window, and the lower zones of the last strip: (zone, width, classes), never (size, width, classes).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import SettingsError, did_you_mean
from cobertes.geo.windows import Window, window_starts

INTERIOR, COSINE, GAUSSIAN = BLENDS = ("interior", "cosine", "gaussian")

SIGMA = 1 / 8
"""Of the Gaussian, as a share of the window: as nnU-Net has it (Isensee et al. 2021)."""


@dataclass(frozen=True)
class AxisWindow:
    """A window along one axis, in pixels.

    ``start``  its first pixel
    ``first``  first pixel that it finishes, where its zone with the window before begins
    ``last``   end of what it finishes, where its zone with the window after begins
    ``stop``   end of that zone
    ``fade``   (n,) float32: its share in the zone with the window before, rising; empty without one
    """

    start: int
    first: int
    last: int
    stop: int
    fade: NDArray[np.float32]


def spans(length: int, size: int, overlap: int, blend: str = INTERIOR) -> list[AxisWindow]:
    """The windows along an axis; what they finish partitions it. Starts are those of `windows.starts`.

    interior  no zones: neighbours meet in the middle of what they share
    cosine    shares follow half a cosine wave, over ``overlap`` pixels
    gaussian  shares are those of Gaussians around the windows' centres, with `SIGMA`
    A zone is never wider than half the way to the next one: beyond an overlap of half the window nothing is
    gained. Raises SettingsError for other blendings, and where the overlap is not smaller than the size.
    """
    if blend not in BLENDS:
        raise SettingsError(f"no blending '{blend}'.{did_you_mean(blend, BLENDS)}")
    first = window_starts(length, size, overlap)
    cuts = [0, *((a + size + b) // 2 for a, b in pairwise(first)), length]
    zones, fades = [(0, 0)], [np.ones(0, np.float32)]
    for k, (before, after) in enumerate(pairwise(first), start=1):
        half = 0 if blend == INTERIOR else min(overlap, cuts[k] - cuts[k - 1], cuts[k + 1] - cuts[k]) // 2
        zones.append((cuts[k] - half, cuts[k] + half))
        fades.append(_fade(*zones[-1], before, after, size, blend))
    zones.append((length, length))
    return [
        AxisWindow(start, zone[0], *following, fade)
        for start, (zone, following), fade in zip(first, pairwise(zones), fades, strict=True)
    ]


def _fade(begin: int, end: int, before: int, after: int, size: int, blend: str) -> NDArray[np.float32]:
    """(n,) share of the later of two windows in their zone."""
    place = np.arange(begin, end) + 0.5
    if blend == GAUSSIAN:
        near, far = place - (after + size / 2), place - (before + size / 2)
        return (1 / (1 + np.exp((near**2 - far**2) / (2 * (SIGMA * size) ** 2)))).astype(np.float32)
    return (0.5 - 0.5 * np.cos(np.pi * (place - begin) / max(end - begin, 1))).astype(np.float32)


@dataclass(frozen=True)
class WindowPlan:
    """The windows of ``size`` that map a raster, in rows and columns; the same whatever memory there is."""

    size: int
    rows: tuple[AxisWindow, ...]
    cols: tuple[AxisWindow, ...]

    @classmethod
    def of(cls, shape: tuple[int, int], size: int, overlap: int, blend: str) -> "WindowPlan":
        """Over a raster of (height, width). Raises as `spans` does."""
        return cls(size, *(tuple(spans(length, size, overlap, blend)) for length in shape))

    @property
    def count(self) -> int:
        """Number of windows, and of blocks."""
        return len(self.rows) * len(self.cols)

    def number(self, row: int, col: int) -> int:
        """Of a block, in row-major order."""
        return row * len(self.cols) + col

    def window(self, row: int, col: int) -> Window:
        """The pixels that are read; it may reach out of a raster that is smaller."""
        return Window(self.rows[row].start, self.cols[col].start, self.size, self.size)

    def block(self, row: int, col: int) -> Window:
        """The pixels that are finished once this window is added, by it and those before it."""
        y, x = self.rows[row], self.cols[col]
        return Window(y.first, x.first, y.last - y.first, x.last - x.first)

    def reach(self, row: int, col: int) -> Window:
        """All pixels that this window has a share in."""
        y, x = self.rows[row], self.cols[col]
        return Window(y.first, x.first, y.stop - y.first, x.stop - x.first)

    def contributes_to(self, row: int, col: int) -> Iterator[tuple[int, int]]:
        """The blocks that this window has a share in: its own, and those that begin with its zones."""
        down = [row, row + 1] if self.rows[row].stop > self.rows[row].last else [row]
        right = [col, col + 1] if self.cols[col].stop > self.cols[col].last else [col]
        yield from ((i, j) for i in down for j in right)

    def carry_over(self) -> int:
        """Pixels of the lower zones of a strip at most: what has to be kept from one strip to the next."""
        return max(span.stop - span.last for span in self.rows) * self.cols[-1].last


class Blender:
    """Adds windows in row-major order and gives back the block that each one finishes.

    Windows may be left out where no pixel that they have a share in matters. Columns may be worked off in
    groups from left to right: of each group, one more column to the left is needed.
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
        above, kept = self.above.pop(col, (-1, values))
        if y.fade.size and above == row - 1:
            _fade_in(out[: y.fade.size], kept, y.fade[:, None, None])
        height = y.last - y.first
        if y.stop > y.last:
            self.above[col] = row, out[height:].copy()
        return out[:height]


def _fade_in(out: NDArray[np.float32], before: NDArray[np.float32], share: NDArray[np.float32]) -> None:
    """``out`` becomes ``before`` + share * (``out`` - ``before``)."""
    out -= before
    out *= share
    out += before
