"""Distance of pixels from class boundaries, and confusion counts by distance, purity and block.

A A A B B      distance   3 2 1 1 2      Chebyshev, to the nearest pixel of another class; pixels
A A A B B                 3 2 1 1 2      without a class form no boundary
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.labels.legend import IGNORE_INDEX
from cobertes.numba_cache import compiled

TOLERANCES = (1, 3)
"""Distances in pixels up to which a pixel is near a boundary."""

FAR = 255
"""Distance of pixels beyond the largest tolerance, and of pixels without a class."""

PURE, NOT_KNOWN = 100, 255
PURITY_LIMITS = (PURE, 75, 50, 0)
"""Lowest percent of each group of pixels by purity."""

PURITY_GROUPS = ("pure", "75 to 99 %", "50 to 74 %", "under 50 %")


@compiled
def boundary_distance(index: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Distance (height, width) uint8 of each pixel to the nearest one of another class, FAR beyond ``radius``.

    index   (height, width) uint8 class indices, IGNORE_INDEX for none
    """
    height, width = index.shape
    distance = np.full((height, width), np.uint8(FAR))
    for row in range(height):
        for col in range(width):
            mine = index[row, col]
            if mine == IGNORE_INDEX:
                continue
            for d in range(1, radius + 1):
                found = False
                top, bottom = max(0, row - d), min(height - 1, row + d)
                left, right = max(0, col - d), min(width - 1, col + d)
                for i in range(top, bottom + 1):
                    # the ring at this distance: full rows above and below, two ends of the others
                    step = 1 if abs(i - row) == d else 2 * d
                    for j in range(col - d, col + d + 1, step):
                        if left <= j <= right:
                            other = index[i, j]
                            found = found or (other != mine and other != IGNORE_INDEX)  # noqa: PLR1714
                if found:
                    distance[row, col] = d
                    break
    return distance


@compiled
def count_pixels(
    reference: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    to_reference: NDArray[np.uint8],
    to_predicted: NDArray[np.uint8],
    purity: NDArray[np.uint8],
    counts: NDArray[np.int64],
    by_purity: NDArray[np.int64],
    by_distance: NDArray[np.int64],
    bands: NDArray[np.int64],
    purity_sum: NDArray[np.int64],
) -> None:
    """Count the pixels of a window in every way in one pass. Arrays of the window are (height, width) uint8.

    reference, predicted       class indices; pixels with the reference IGNORE_INDEX are not counted
    to_reference, to_predicted from `boundary_distance` of each
    purity        percent, 255 unknown
    counts        (K, K), added to, as are the following
    by_purity     (groups, K, K)
    by_distance   (tolerances + 1, K, K): up to the first tolerance, up to the second, beyond
    bands         (tolerances, 3, K): pixels of each class near its own boundary in the reference, in the
                  prediction, in both; for boundary IoU
    purity_sum    (2,): sum of the known purities, their number
    """
    height, width = reference.shape
    for row in range(height):
        for col in range(width):
            r = reference[row, col]
            if r == IGNORE_INDEX:
                continue
            p = predicted[row, col]
            counts[r, p] += 1
            share = purity[row, col]
            if share != NOT_KNOWN:
                purity_sum[0] += share
                purity_sum[1] += 1
                for group in range(len(PURITY_LIMITS)):
                    if share >= PURITY_LIMITS[group]:
                        by_purity[group, r, p] += 1
                        break
            ring = 0
            while ring < len(TOLERANCES) and to_reference[row, col] > TOLERANCES[ring]:
                ring += 1
            by_distance[ring, r, p] += 1
            for t in range(len(TOLERANCES)):
                near_r, near_p = to_reference[row, col] <= TOLERANCES[t], to_predicted[row, col] <= TOLERANCES[t]
                bands[t, 0, r] += near_r
                bands[t, 1, p] += near_p
                bands[t, 2, r] += near_r and near_p and r == p


def boundary_iou(bands: NDArray[Any]) -> NDArray[np.float64]:
    """Boundary IoU (..., K) (Cheng et al. 2021, CVPR) of ``bands`` (..., 3, K) from `count_pixels`.

    IoU of the pixels of a class near its boundary, in the reference and in the prediction. The edge of the
    labelled pixels is no boundary here. NaN for classes without a boundary in the reference.
    """
    reference, predicted, both = (bands[..., i, :].astype(float) for i in range(3))
    union = reference + predicted - both
    return np.divide(both, union, out=np.full(both.shape, np.nan), where=reference > 0)
