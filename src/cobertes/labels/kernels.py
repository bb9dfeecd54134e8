"""The loops over fine pixels: each looks at every pixel of a map window once.

    fine pixels, factor 3            one label
    +---+---+---+
    | 1 | 1 | 4 |   table: 4 -> 2    class 1: 4 votes  <- wins, purity 4 of 8 = 50 %
    +---+---+---+                    class 2: 4 votes  (a tie goes to the lower code)
    | 4 | 0 | 1 |   nodata: 0        nodata:  1, does not vote
    +---+---+---+
    | 1 | 4 | 4 |
    +---+---+---+

Kernels release the interpreter lock, so threads run them side by side on windows of their own. They are not
``parallel=True``: numba's default threading layer fails when several Python threads call it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

FRACTION_UNITS = 10_000
"""Fractions are stored as uint16 in units of 1/10000."""

NO_FRACTION = 65_535
"""Nodata of a fractions raster: no fine pixel of the block is known."""

NO_PURITY = 255
"""Nodata of a purity raster, whose values are percent."""

STRIDE = 4096
"""Fine pixels of a row that are looked at together: ten such rows stay in the processor's cache."""

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on the first call and keep the machine code on disk for the next process.

    It is kept beside the module, else in the user's cache folder. Where neither can be written (a read-only
    installation without a home), every process compiles again: a few seconds.
    """
    try:
        kernel: Function = njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba: "no locator available"
        kernel = njit(function, nogil=True)
    return kernel


@compiled
def tally(codes: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add the number of pixels of each code to ``counts``.

    codes   (height, width) uint8
    counts  (256,) int64, added to
    """
    # Runs of one code would wait for their own last addition; four lanes take turns.
    lanes = np.zeros((4, 256), np.int64)
    height, width = codes.shape
    fours = width - width % 4
    for row in range(height):
        line = codes[row]
        for col in range(0, fours, 4):
            lanes[0, line[col]] += 1
            lanes[1, line[col + 1]] += 1
            lanes[2, line[col + 2]] += 1
            lanes[3, line[col + 3]] += 1
        for col in range(fours, width):
            lanes[0, line[col]] += 1
    for code in range(256):
        counts[code] += lanes[0, code] + lanes[1, code] + lanes[2, code] + lanes[3, code]


@compiled
def aggregate(  # noqa: PLR0912, PLR0915 (one loop nest, read top to bottom)
    fine: NDArray[np.uint8],
    factor: int,
    index: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    order: NDArray[np.int64],
    nodata: int,
    required: int,
    label: NDArray[np.uint8],
    purity: NDArray[np.uint8],
    fractions: NDArray[np.uint16],
    seen: NDArray[np.int64],
) -> None:
    """Majority, purity and fractions of every ``factor x factor`` block, and the source codes that occur.

    fine       (H * factor, W * factor) uint8: source codes
    index      (256,) uint8: class index of each source code, K where it does not vote
    codes      (K,) uint8: legend code of each class index; K up to 254
    order      (K,) int64: class indexes by ascending code, so that ties go to the lower code
    required   fewest voting pixels (from 1) for a block to get a label
    label      (H, W) uint8, written: code of the class with most votes, ``nodata`` where too few vote
    purity     (H, W) uint8, written: percent of the votes that the label got, 255 without a label; or (0, 0)
    fractions  (K, H, W) uint16, written: votes of a class in 1/10000 of the block's pixels, so that classes
               sum to the valid share; 65535 where nothing votes; or (K, 0, 0)
    seen       (256,) int64, added to: fine pixels of each source code
    """
    height, width = label.shape
    classes = codes.size
    pixels = factor * factor
    with_purity, with_fractions = purity.size > 0, fractions.size > 0
    votes = np.zeros(classes + 1, np.int64)
    even, odd = np.zeros(classes + 1, np.int64), np.zeros(classes + 1, np.int64)
    seen_odd = np.zeros(256, np.int64)
    group = max(1, STRIDE // factor)
    varies = np.empty(group * factor, np.uint8)
    for row in range(height):
        for start in range(0, width, group):
            stop = min(start + group, width)
            rows = fine[row * factor : (row + 1) * factor, start * factor : stop * factor]
            # Most blocks of a fine map hold one code. Which columns are not of one code is found by
            # vector instructions, so only mixed blocks pay for a histogram.
            top = rows[0]
            varies[:] = 0
            for r in range(1, factor):
                line = rows[r]
                for x in range(top.size):
                    varies[x] |= line[x] ^ top[x]
            for col in range(start, stop):
                left = (col - start) * factor
                code = top[left]
                mixed = 0
                for x in range(left, left + factor):
                    mixed |= varies[x] | (top[x] ^ code)
                if mixed == 0:
                    seen[code] += pixels
                    votes[:] = 0
                    votes[index[code]] = pixels
                    winner = int(index[code])
                else:
                    # two histograms take turns: an addition need not wait for the one before
                    even[:] = 0
                    odd[:] = 0
                    for r in range(factor):
                        line = rows[r]
                        for x in range(left, left + factor - 1, 2):
                            seen[line[x]] += 1
                            even[index[line[x]]] += 1
                            seen_odd[line[x + 1]] += 1
                            odd[index[line[x + 1]]] += 1
                        if factor % 2:
                            x = left + factor - 1
                            seen[line[x]] += 1
                            even[index[line[x]]] += 1
                    winner = classes
                    most = 0
                    for k in range(classes + 1):
                        votes[k] = even[k] + odd[k]
                    for k in order:
                        if votes[k] > most:
                            most = votes[k]
                            winner = k
                valid = pixels - votes[classes]
                labelled = valid >= required
                label[row, col] = codes[winner] if labelled else nodata
                if with_purity:
                    share = (200 * votes[winner] + valid) // (2 * valid) if labelled else NO_PURITY
                    purity[row, col] = share
                if with_fractions:
                    # rounding the running sum, not each share, keeps the total exact
                    below, total = 0, 0
                    for k in range(classes):
                        total += votes[k]
                        reached = (2 * FRACTION_UNITS * total + pixels) // (2 * pixels)
                        fractions[k, row, col] = reached - below if valid else NO_FRACTION
                        below = reached
    for code in range(256):
        seen[code] += seen_odd[code]
