"""Connected patches of a raster of any height, followed from row to row; memory goes with the width.

    row above   1 1 . 2 2      runs of one kind; a run joins the patches of its kind that it touches above
    row         . 1 1 2 .      (not over corners, so that ragged boundaries do not chain up)

A patch without a run in the last row is complete, and handed over with what was summed on the way.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cobertes.labels.connected_objects import count_runs, find_root
from cobertes.numba_cache import compiled

PARENT, KIND, PIXELS, CORE, CONFIDENCE, TOP, BOTTOM, LEFT, RIGHT, SEED_ROW, SEED_COL = range(11)
FIELDS = 11
"""Of a patch: kind; pixels, those in its core, sum of confidence; box (stops excluded); one pixel of it."""

NONE = -1
"""Kind of pixels that belong to no patch."""


@compiled
def _join(patches: NDArray[np.int64], kept: int, other: int) -> None:
    """Add patch ``other`` to ``kept``."""
    patches[other, PARENT] = kept
    for field in (PIXELS, CORE, CONFIDENCE):
        patches[kept, field] += patches[other, field]
    for field in (TOP, LEFT):
        patches[kept, field] = min(patches[kept, field], patches[other, field])
    for field in (BOTTOM, RIGHT):
        patches[kept, field] = max(patches[kept, field], patches[other, field])


@compiled
def _follow(
    kinds: NDArray[np.int32],
    core: NDArray[np.bool_],
    confidence: NDArray[np.uint8],
    first: int,
    runs: NDArray[np.int64],
    above: int,
    patches: NDArray[np.int64],
    used: int,
) -> tuple[int, int]:
    """Join the runs of further rows to patches; returns the runs of the last row and the patches in use.

    kinds, core, confidence  (height, width); the top row is row ``first``
    runs     (3, width + 1) int64: first and stop column and patch of the ``above`` runs of the row before;
             replaced by the last row's
    patches  (n, FIELDS) int64, of which ``used`` are in use
    """
    parents = patches[:, PARENT]
    height, width = kinds.shape
    now = np.empty_like(runs)
    for row in range(height):
        count, start, col = 0, 0, 0
        while col < width:
            kind = kinds[row, col]
            stop = col + 1
            while stop < width and kinds[row, stop] == kind:
                stop += 1
            if kind == NONE:
                col = stop
                continue
            while start < above and runs[1, start] <= col:
                start += 1
            mine, i = -1, start
            while i < above and runs[0, i] < stop:
                other = find_root(parents, runs[2, i])
                if patches[other, KIND] == kind and other != mine:
                    if mine < 0:
                        mine = other
                    else:
                        _join(patches, mine, other)
                i += 1
            if mine < 0:
                mine = used
                used += 1
                patches[mine, PARENT], patches[mine, KIND] = mine, kind
                patches[mine, PIXELS] = patches[mine, CORE] = patches[mine, CONFIDENCE] = 0
                patches[mine, TOP], patches[mine, BOTTOM] = first + row, first + row + 1
                patches[mine, LEFT], patches[mine, RIGHT] = col, stop
                patches[mine, SEED_ROW], patches[mine, SEED_COL] = first + row, col
            patches[mine, BOTTOM] = first + row + 1
            patches[mine, LEFT] = min(patches[mine, LEFT], col)
            patches[mine, RIGHT] = max(patches[mine, RIGHT], stop)
            for at in range(col, stop):
                patches[mine, PIXELS] += 1
                patches[mine, CORE] += core[row, at]
                patches[mine, CONFIDENCE] += confidence[row, at]
            now[0, count], now[1, count], now[2, count] = col, stop, mine
            count += 1
            col = stop
        above = count
        runs[:, :count] = now[:, :count]
    return above, used


class PatchFollower:
    """Follows the patches of a raster that is handed over from top to bottom; ``width`` in pixels."""

    def __init__(self, width: int) -> None:
        self.runs = np.zeros((3, width + 1), np.int64)
        self.run_count = 0
        self.row = 0
        self.patches = np.zeros((0, FIELDS), np.int64)

    def add(
        self, kinds: NDArray[np.int32], core: NDArray[np.bool_], confidence: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Take in the next rows; returns the patches (n, FIELDS) that are complete.

        kinds       (height, width) int32, NONE outside of patches
        core        which pixels count to the core of their patch
        confidence  uint8, summed up
        """
        active = len(self.patches)
        patches = np.zeros((active + count_runs(kinds), FIELDS), np.int64)
        patches[:active] = self.patches
        self.run_count, used = _follow(
            kinds, core, confidence, self.row, self.runs, self.run_count, patches, active
        )
        self.row += len(kinds)
        return self._settle(patches[:used])

    def finish(self) -> NDArray[np.int64]:
        """The patches that reach the last row."""
        self.run_count = 0
        return self._settle(self.patches)

    def _settle(self, patches: NDArray[np.int64]) -> NDArray[np.int64]:
        """Hand over complete patches, keep those that the last row's runs belong to, numbered anew."""
        own = np.array([find_root(patches[:, PARENT], int(p)) for p in self.runs[2, : self.run_count]], np.int64)
        still, self.runs[2, : self.run_count] = np.unique(own, return_inverse=True)
        roots = np.flatnonzero(patches[:, PARENT] == np.arange(len(patches)))
        self.patches = patches[still].copy()
        self.patches[:, PARENT] = np.arange(len(still))
        return patches[np.setdiff1d(roots, still)]


def core_of(kinds: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which pixels have all eight neighbours of their own kind; those at the edge of the array have not."""
    core = np.zeros(kinds.shape, bool)
    if min(kinds.shape) < 3:
        return core
    middle = kinds[1:-1, 1:-1]
    core[1:-1, 1:-1] = middle != NONE
    height, width = kinds.shape
    for row in range(3):
        for col in range(3):
            core[1:-1, 1:-1] &= kinds[row : row + height - 2, col : col + width - 2] == middle
    return core


def overlapping(length: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Strips as (read start, read stop, first row, stop row): a row more on each side where there is one."""
    for row in range(0, length, rows):
        stop = min(length, row + rows)
        yield max(0, row - 1), min(length, stop + 1), row, stop
