"""Connected patches of disagreement, with their core, confidence and bounding box.

Corners do not connect, so that ragged boundaries between classes do not chain up to one patch.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cobertes.labels.connected_components import ComponentFollower

PARENT, KIND, PIXELS, CORE, CONFIDENCE, TOP, BOTTOM, LEFT, RIGHT, SEED_ROW, SEED_COL = range(11)
"""Columns of a patch: kind; pixels, those in its core, sum of confidence; box without stops; a pixel."""

NONE = -1
"""Kind of pixels that belong to no patch."""


class PatchFollower:
    """Finds the patches of a raster that is added from top to bottom; ``width`` in pixels."""

    def __init__(self, width: int) -> None:
        self.follower = ComponentFollower(width, np.iinfo(np.int32).max, sums=2, boxes=True)

    def add(
        self, kinds: NDArray[np.int32], core: NDArray[np.bool_], confidence: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Add the next rows; returns the patches (n, 11) that are complete.

        kinds       (height, width) int32, NONE outside of patches
        core        pixels in the core of their patch, bool
        confidence  uint8, summed over the patch
        """
        return self.follower.add(kinds, np.stack([core.view(np.uint8), confidence]))

    def finish(self) -> NDArray[np.int64]:
        """Patches that reach the last row."""
        return self.follower.finish()


def core_of(kinds: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels whose eight neighbours are all of their kind: bool; False at the edge of the array."""
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
    """Strips as (read start, read stop, first row, stop row): read with one row more on each side."""
    for row in range(0, length, rows):
        stop = min(length, row + rows)
        yield max(0, row - 1), min(length, stop + 1), row, stop
