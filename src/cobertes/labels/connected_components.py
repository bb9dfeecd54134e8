"""Connected components of a raster of any height, row by row; memory is proportional to its width.

    row above   1 1 . 2 2      runs of one kind; a run joins the components of its kind that it touches above,
    row         . 1 1 2 .      over corners too if asked

A component without a run in the last row is complete. (One pass with union-find, as in two-pass labelling of
Rosenfeld and Pfaltz 1966, but with statistics instead of labels.)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.numba_cache import compiled

PARENT, KIND, PIXELS, SUMS = range(4)
"""Columns of a component: parent, kind, pixels, then a sum per layer, then its box if asked."""

TOP, BOTTOM, LEFT, RIGHT, SEED_ROW, SEED_COL = BOX = range(6)
"""Columns of the box behind the sums, stops excluded, and one pixel of the component."""


@compiled
def count_runs(kinds: NDArray[Any]) -> int:
    """Count the runs of equal values along the rows of (height, width)."""
    height, width = kinds.shape
    runs = height
    for row in range(height):
        line = kinds[row]
        for col in range(1, width):
            runs += line[col] != line[col - 1]
    return runs


@compiled
def find_root(parents: NDArray[np.int64], one: int) -> int:
    """Representative of a joined component; halves the path to it."""
    while parents[one] != one:
        parents[one] = parents[parents[one]]
        one = parents[one]
    return one


@compiled
def _roots(parents: NDArray[np.int64], ones: NDArray[np.int64]) -> NDArray[np.int64]:
    roots = np.empty_like(ones)
    for i in range(ones.size):
        roots[i] = find_root(parents, ones[i])
    return roots


@compiled
def _join(components: NDArray[np.int64], one: int, other: int, box: int) -> None:
    """Add component ``other`` to ``one``; ``box`` is the first column of the boxes."""
    components[other, PARENT] = one
    for column in range(PIXELS, box):
        components[one, column] += components[other, column]
    if box < components.shape[1]:
        for column in (box + TOP, box + LEFT):
            components[one, column] = min(components[one, column], components[other, column])
        for column in (box + BOTTOM, box + RIGHT):
            components[one, column] = max(components[one, column], components[other, column])


@compiled
def _begin(components: NDArray[np.int64], new: int, kind: int, row: int, col: int, box: int) -> None:
    """Begin component ``new`` at a pixel."""
    components[new] = 0
    components[new, PARENT], components[new, KIND] = new, kind
    if box < components.shape[1]:
        components[new, box + TOP], components[new, box + LEFT] = row, col
        components[new, box + SEED_ROW], components[new, box + SEED_COL] = row, col


@compiled
def _add_run(
    components: NDArray[np.int64],
    one: int,
    row: int,
    col: int,
    stop: int,
    layers: NDArray[Any],
    line: int,
    factor: int,
    matching: bool,
) -> None:
    """Add a run of row ``row`` to the statistics of its component; ``line`` is its row in ``layers``."""
    components[one, PIXELS] += stop - col
    for i in range(layers.shape[0]):
        if matching and components[one, SUMS + i]:
            continue  # whether it is 0 is all that counts
        for at in range(col // factor, (stop - 1) // factor + 1):
            value = layers[i, line, at]
            components[one, SUMS + i] += value == components[one, KIND] if matching else value
    box = SUMS + layers.shape[0]
    if box < components.shape[1]:
        components[one, box + BOTTOM] = row + 1
        components[one, box + LEFT] = min(components[one, box + LEFT], col)
        components[one, box + RIGHT] = max(components[one, box + RIGHT], stop)


@compiled
def _follow(
    kinds: NDArray[Any],
    stop_kind: int,
    layers: NDArray[Any],
    factor: int,
    matching: bool,
    reach: int,
    first_row: int,
    runs: NDArray[np.int64],
    above: int,
    components: NDArray[np.int64],
    used: int,
) -> tuple[int, int]:
    """Join the runs of further rows; returns the runs of the last row and the components in use.

    runs   (3, width + 1) int64: start, stop and component of the ``above`` runs of the row before; replaced by
           those of the last row
    reach  1 if corners connect, else 0;  ``first_row``: number of the first row; others as in the follower
    """
    parents, box = components[:, PARENT], SUMS + layers.shape[0]
    height, width = kinds.shape
    now = np.empty_like(runs)
    for row in range(height):
        line = kinds[row]
        count, start, col = 0, 0, 0
        while col < width:
            kind = line[col]
            stop = col + 1
            while stop < width and line[stop] == kind:
                stop += 1
            if kind < 0 or kind >= stop_kind:
                col = stop
                continue
            while start < above and runs[1, start] + reach <= col:
                start += 1
            mine, i = -1, start
            while i < above and runs[0, i] < stop + reach:
                other = find_root(parents, runs[2, i])
                if components[other, KIND] == kind and other != mine:
                    if mine < 0:
                        mine = other
                    else:
                        _join(components, mine, other, box)
                i += 1
            if mine < 0:
                mine = used
                used += 1
                _begin(components, mine, kind, first_row + row, col, box)
            _add_run(components, mine, first_row + row, col, stop, layers, row // factor, factor, matching)
            now[0, count], now[1, count], now[2, count] = col, stop, mine
            count += 1
            col = stop
        above = count
        runs[:, :count] = now[:, :count]
    return above, used


class ComponentFollower:
    """Finds the components of a raster that is added from top to bottom.

    width      pixels of a row
    stop_kind  kinds from 0 up to it, excluded, make components; others are background
    sums       number of layers
    factor     pixels of the raster along a pixel of the layers
    matching   count the layers' pixels of the component's own kind, as far as 0 or not; else sum their values
    corners    pixels that touch at a corner are connected
    boxes      add the six columns of `BOX`
    """

    def __init__(
        self,
        width: int,
        stop_kind: int,
        sums: int,
        *,
        factor: int = 1,
        matching: bool = False,
        corners: bool = False,
        boxes: bool = False,
    ) -> None:
        self.stop_kind, self.factor, self.matching, self.corners = stop_kind, factor, matching, corners
        self.runs = np.zeros((3, width + 1), np.int64)
        self.run_count = self.row = 0
        self.components = np.zeros((0, SUMS + sums + (len(BOX) if boxes else 0)), np.int64)

    def add(self, kinds: NDArray[Any], layers: NDArray[Any]) -> NDArray[np.int64]:
        """Add the next rows; returns the components (n, columns) that are complete.

        kinds   (height, width) integers
        layers  (sums, height / factor, width / factor)
        """
        active = len(self.components)
        components = np.empty((active + count_runs(kinds), self.components.shape[1]), np.int64)
        components[:active] = self.components
        self.run_count, used = _follow(
            kinds, self.stop_kind, layers, self.factor, self.matching, int(self.corners), self.row,
            self.runs, self.run_count, components, active,
        )  # fmt: skip
        self.row += len(kinds)
        return self._split(components[:used])

    def finish(self) -> NDArray[np.int64]:
        """Components that reach the last row."""
        self.run_count = 0
        return self._split(self.components)

    def _split(self, components: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the complete components, and renumber those that runs of the last row belong to."""
        own = _roots(components[:, PARENT], self.runs[2, : self.run_count])
        active, self.runs[2, : self.run_count] = np.unique(own, return_inverse=True)
        complete = components[:, PARENT] == np.arange(len(components))
        complete[active] = False
        self.components = components[active]
        self.components[:, PARENT] = np.arange(len(active))
        return components[complete]
