"""Connected objects of a fine map, row by row: how many are small, and which of them labels have kept.

    fine row above   AAAA....BBB     runs of one class; a run joins what it touches above, corners included
    fine row         ..AAA.BBBAA     AAA joins A, BBB joins B, AA begins anew
                                     an object without a run in the last row is complete: it is counted

Memory is in proportion to the map's width, whatever its height. Corners connect, so that a path one pixel wide
that runs aslant is one object and not a hundred.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.numba_cache import compiled

MOST_METHODS = 8
"""Which methods kept an object is a bit each."""


@dataclass(frozen=True)
class ObjectCounts:
    """Objects under each limit, and those of which a method's labels show nothing.

    objects  (L, K) int64: objects of fewer fine pixels than each limit, by class
    lost     (M, L, K) int64: those that touch no scene pixel with their class in a method's labels
    """

    objects: NDArray[np.int64]
    lost: NDArray[np.int64]


class ObjectCounter:
    """Counts the objects of a map that is handed over from top to bottom.

    width    scene pixels across; ``factor`` times as many fine pixels
    classes  K; class indexes from K on are nodata and no objects
    methods  M, up to 8
    limits   sizes in fine pixels; an object counts under every limit that it stays below
    """

    def __init__(self, width: int, factor: int, classes: int, methods: int, limits: tuple[int, ...]) -> None:
        if not 1 <= methods <= MOST_METHODS:
            raise ValueError(f"from 1 to {MOST_METHODS} methods, not {methods}")
        self.factor, self.limits = factor, np.array(limits, np.int64)
        self.counts = ObjectCounts(
            np.zeros((len(limits), classes), np.int64), np.zeros((methods, len(limits), classes), np.int64)
        )
        # runs of the last row: first and stop column, object; then per object: parent, pixels, kept, class
        self.runs = np.zeros((3, width * factor + 1), np.int64)
        self.run_count = 0
        self.objects = np.zeros((4, 0), np.int64)

    def add(self, fine: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Take in the next scene rows.

        fine    (n * factor, width * factor) uint8 class indexes
        labels  (M, n, width) uint8 class indexes
        """
        active = self.objects.shape[1]
        objects = np.zeros((4, active + count_runs(fine)), np.int64)
        objects[:, :active] = self.objects
        classes = self.counts.objects.shape[1]
        self.run_count, used = _follow(
            fine, labels, self.factor, classes, self.runs, self.run_count, objects, active
        )
        self.objects = _settle(objects[:, :used], self.runs, self.run_count, self.limits, *self._totals())

    def finish(self) -> ObjectCounts:
        """Count what reaches the last row too, and return everything."""
        self.run_count = 0
        self.objects = _settle(self.objects, self.runs, 0, self.limits, *self._totals())
        return self.counts

    def _totals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.counts.objects, self.counts.lost


@compiled
def count_runs(fine: NDArray[Any]) -> int:
    """Runs of equal values along the rows of (height, width)."""
    height, width = fine.shape
    runs = height
    for row in range(height):
        line = fine[row]
        for col in range(1, width):
            runs += line[col] != line[col - 1]
    return runs


@compiled
def find_root(parents: NDArray[np.int64], one: int) -> int:
    """The first of those that ``one`` was joined with; the way there is shortened."""
    while parents[one] != one:
        parents[one] = parents[parents[one]]
        one = parents[one]
    return one


@compiled
def _follow(  # noqa: PLR0912 (one loop nest, read top to bottom)
    fine: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    factor: int,
    classes: int,
    runs: NDArray[np.int64],
    above: int,
    objects: NDArray[np.int64],
    used: int,
) -> tuple[int, int]:
    """Join the runs of further rows to objects; returns the runs of the last row and the objects in use.

    runs     (3, width + 1) int64: first and stop column and object of the ``above`` runs of the row before;
             replaced by the last row's
    objects  (4, n) int64: parent, pixels, methods that kept it as bits, class; the first ``used`` are in use
    """
    parents, sizes, kept, kinds = objects[0], objects[1], objects[2], objects[3]
    height, width = fine.shape
    methods = labels.shape[0]
    all_kept = (1 << methods) - 1
    now = np.empty_like(runs)
    for row in range(height):
        line = fine[row]
        count, first, col = 0, 0, 0
        while col < width:
            kind = line[col]
            stop = col + 1
            while stop < width and line[stop] == kind:
                stop += 1
            if kind >= classes:
                col = stop
                continue
            while first < above and runs[1, first] < col:
                first += 1
            mine = -1
            i = first
            while i < above and runs[0, i] <= stop:
                other = find_root(parents, runs[2, i])
                if kinds[other] == kind and other != mine:
                    if mine < 0:
                        mine = other
                    else:
                        parents[other] = mine
                        sizes[mine] += sizes[other]
                        kept[mine] |= kept[other]
                i += 1
            if mine < 0:
                mine = used
                used += 1
                parents[mine], sizes[mine], kept[mine], kinds[mine] = mine, 0, 0, kind
            sizes[mine] += stop - col
            if kept[mine] != all_kept:
                for place in range(col // factor, (stop - 1) // factor + 1):
                    for method in range(methods):
                        if labels[method, row // factor, place] == kind:
                            kept[mine] |= 1 << method
            now[0, count], now[1, count], now[2, count] = col, stop, mine
            count += 1
            col = stop
        above = count
        runs[:, :count] = now[:, :count]
    return above, used


@compiled
def _settle(
    objects: NDArray[np.int64],
    runs: NDArray[np.int64],
    count: int,
    limits: NDArray[np.int64],
    total: NDArray[np.int64],
    lost: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Count the complete objects, and return those that the last row's runs still hold, numbered anew.

    Arguments as in `_follow` and `ObjectCounts`.
    """
    used = objects.shape[1]
    numbers = np.full(used, -1, np.int64)
    open_ones = 0
    for i in range(count):
        root = find_root(objects[0], runs[2, i])
        if numbers[root] < 0:
            numbers[root] = open_ones
            open_ones += 1
        runs[2, i] = numbers[root]
    left = np.empty((4, open_ones), np.int64)
    for one in range(used):
        if objects[0, one] != one:
            continue
        new = numbers[one]
        if new >= 0:
            left[0, new] = new
            left[1:, new] = objects[1:, one]
            continue
        for i in range(limits.size):
            if objects[1, one] < limits[i]:
                total[i, objects[3, one]] += 1
                for method in range(lost.shape[0]):
                    if not objects[2, one] >> method & 1:
                        lost[method, i, objects[3, one]] += 1
    return left
