"""Connected objects of a fine map: how many are small, and which of them labels preserve.

Corners connect, so that an oblique path one pixel wide is one object and not a hundred.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobertes.labels.connected_components import KIND, PIXELS, SUMS, ComponentFollower


@dataclass(frozen=True)
class ObjectCounts:
    """Objects under each limit, and those missing in each method's labels.

    objects  (L, K) int64: objects of fewer fine pixels than each limit, by class
    lost     (M, L, K) int64: those that touch no scene pixel with their class in a method's labels
    """

    objects: NDArray[np.int64]
    lost: NDArray[np.int64]


class ObjectCounter:
    """Counts the objects of a map that is added from top to bottom.

    width    scene pixels of a row; ``factor`` times as many fine pixels
    classes  K; class indexes from K on are nodata and no objects
    methods  M
    limits   sizes in fine pixels; an object counts under every limit that exceeds its size
    """

    def __init__(self, width: int, factor: int, classes: int, methods: int, limits: tuple[int, ...]) -> None:
        self.limits = limits
        self.counts = ObjectCounts(
            np.zeros((len(limits), classes), np.int64), np.zeros((methods, len(limits), classes), np.int64)
        )
        self.follower = ComponentFollower(
            width * factor, classes, methods, factor=factor, matching=True, corners=True
        )

    def add(self, fine: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Add the next scene rows.

        fine    (n * factor, width * factor) uint8 class indexes
        labels  (M, n, width) uint8 class indexes
        """
        self._count(self.follower.add(fine, labels))

    def finish(self) -> ObjectCounts:
        """Counts of all objects, those at the last row included."""
        self._count(self.follower.finish())
        return self.counts

    def _count(self, objects: NDArray[np.int64]) -> None:
        classes = self.counts.objects.shape[1]
        for i, limit in enumerate(self.limits):
            small = objects[objects[:, PIXELS] < limit]
            self.counts.objects[i] += np.bincount(small[:, KIND], minlength=classes)
            for method, lost in enumerate(self.counts.lost):
                missing = small[small[:, SUMS + method] == 0]
                lost[i] += np.bincount(missing[:, KIND], minlength=classes)
