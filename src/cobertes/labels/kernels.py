"""Kernels over fine pixels: votes of every scene pixel, and the layers computed from them.

    fine pixels, factor 3            votes of one scene pixel
    +---+---+---+
    | 1 | 1 | 4 |   table: 4 -> 2    class 1: 4  <- majority (a tie goes to the lower code), purity 4 of 8 = 50 %
    +---+---+---+                    class 2: 4  <- weighted majority, where class 2 counts more
    | 4 | 0 | 1 |   nodata: 0        nodata:  1, does not vote: 8 of 9 = 89 % are valid
    +---+---+---+
    | 1 | 4 | 4 |   (middle: 0)      nearest: nodata
    +---+---+---+

Every kernel counts in whole numbers, so its result does not depend on windows or threads. Kernels release the
interpreter lock, so threads run them side by side on windows of their own. They are not ``parallel=True``:
numba's default threading layer fails when several Python threads call it.
"""

import numpy as np
from numpy.typing import NDArray

from cobertes.numba_cache import compiled

NO_SHARE = 255
"""Nodata of purity, fractions and entropy, whose values are percent."""

STRIDE = 4096
"""Fine pixels of a row that are processed together: ten such rows stay in the CPU cache."""


@compiled
def histogram(codes: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
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
def count_votes(  # noqa: PLR0912 (one loop nest, read top to bottom)
    fine: NDArray[np.uint8],
    factor: int,
    index: NDArray[np.uint8],
    edge: int,
    votes: NDArray[np.int32],
    seen: NDArray[np.int64],
) -> None:
    """Count the fine pixels of each class in every ``factor x factor`` block, and the source codes that occur.

    fine   (H * factor, W * factor) uint8: source codes
    index  (256,) uint8: class index of each source code, K where it does not vote
    edge   blocks on each side that are not seen: neighbours of a window
    votes  (H, W, K + 1) int32, written: fine pixels by class index; the last ones do not vote
    seen   (256,) int64, added to: fine pixels of each source code, edges aside
    """
    height, width, _ = votes.shape
    pixels = factor * factor
    votes[:] = 0
    even, odd = np.zeros(256, np.int32), np.zeros(256, np.int32)
    met, known = np.empty(256, np.uint8), 0  # the codes that mixed blocks held so far
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
                is_seen = edge <= row < height - edge and edge <= col < width - edge
                code = top[left]
                mixed = 0
                for x in range(left, left + factor):
                    mixed |= varies[x] | (top[x] ^ code)
                if mixed == 0:
                    seen[code] += pixels * is_seen
                    votes[row, col, index[code]] = pixels
                    continue
                # two histograms take turns: an addition need not wait for the one before
                for r in range(factor):
                    line = rows[r]
                    for x in range(left, left + factor - 1, 2):
                        even[line[x]] += 1
                        odd[line[x + 1]] += 1
                    if factor % 2:
                        even[line[left + factor - 1]] += 1
                left_over = pixels
                for i in range(known):
                    code = met[i]
                    number = even[code] + odd[code]
                    left_over -= number
                    votes[row, col, index[code]] += number
                    seen[code] += number * is_seen
                    even[code] = 0
                    odd[code] = 0
                if left_over:
                    for new in range(256):
                        number = even[new] + odd[new]
                        if number:
                            met[known] = new
                            known += 1
                            votes[row, col, index[new]] += number
                            seen[new] += number * is_seen
                            even[new] = 0
                            odd[new] = 0


@compiled
def majority(
    votes: NDArray[np.int32],
    weights: NDArray[np.int64],
    order: NDArray[np.int64],
    codes: NDArray[np.uint8],
    nodata: int,
    required: int,
    label: NDArray[np.uint8],
) -> None:
    """The code of the class with the greatest votes x weight.

    votes     (H, W, K + 1) int32 from `count_votes`
    weights   (K,) int64, from 1; all the same: the plain majority
    order     (K,) int64: class indexes by ascending code, so that ties go to the lower code
    codes     (K,) uint8: legend code of each class index
    required  fewest voting pixels (from 1) for a label; below it ``nodata``
    label     (H, W) uint8, written
    """
    height, width, _ = votes.shape
    for row in range(height):
        for col in range(width):
            valid, most, winner = 0, 0, 0
            for k in order:
                number = votes[row, col, k]
                valid += number
                score = number * weights[k]
                if score > most:
                    most, winner = score, k
            label[row, col] = codes[winner] if valid >= required else nodata


@compiled
def majority_smooth(  # noqa: PLR0912 (one loop nest, read top to bottom)
    fine: NDArray[np.uint8],
    factor: int,
    index: NDArray[np.uint8],
    votes: NDArray[np.int32],
    gaussian_kernel: NDArray[np.int64],
    weights: NDArray[np.int64],
    order: NDArray[np.int64],
    codes: NDArray[np.uint8],
    nodata: int,
    required: int,
    label: NDArray[np.uint8],
) -> None:
    """`majority`, where a fine pixel's vote fades with its distance from the scene pixel's centre.

        fine pixels of three scene pixels   |  .  .  .  |  .  .  .  |  .  .  .  |
        kernel, radius 1, factor 3                1  5 20    57 80 57    20  5  1      (in x; the same in y)

    Votes of neighbours choose between classes; whether there is a label depends on the pixel itself.

    fine   ((H + 2 radius) * factor, (W + 2 radius) * factor) uint8: source codes, ``radius`` more on every side
    votes  (H + 2 radius, W + 2 radius, K + 1) int32 from `count_votes`
    gaussian_kernel  ((2 radius + 1) * factor,) int64: weight of a fine pixel by its position along one axis
    label  (H, W) uint8, written; other arguments as in `majority` and `count_votes`
    """
    height, width = label.shape
    classes, span, pixels = codes.size, gaussian_kernel.size // factor, factor * factor
    radius = span // 2
    cumulative = np.zeros(
        gaussian_kernel.size + 1, np.int64
    )  # cumulative kernel: a run of one class is a difference
    for x in range(gaussian_kernel.size):
        cumulative[x + 1] = cumulative[x] + gaussian_kernel[x]
    scores = np.zeros((height, width, classes + 1), np.int64)
    # a block of fine pixels votes for the scene pixel that it lies in and for all that it is a neighbour of
    for block in range(height + 2 * radius):
        above, below = max(0, block - height + 1), min(span, block + 1)
        for col in range(width + 2 * radius):
            left, right = max(0, col - width + 1), min(span, col + 1)
            solid = -1
            for k in range(classes + 1):
                if votes[block, col, k] == pixels:
                    solid = k
            if solid >= 0:
                for i in range(above, below):
                    high = cumulative[(i + 1) * factor] - cumulative[i * factor]
                    for j in range(left, right):
                        wide = cumulative[(j + 1) * factor] - cumulative[j * factor]
                        scores[block - i, col - j, solid] += high * wide
                continue
            for r in range(factor):
                line = fine[block * factor + r, col * factor : (col + 1) * factor]
                start = 0
                while start < factor:
                    stop = start + 1
                    while stop < factor and line[stop] == line[start]:
                        stop += 1
                    k = index[line[start]]
                    for j in range(left, right):
                        wide = cumulative[j * factor + stop] - cumulative[j * factor + start]
                        for i in range(above, below):
                            scores[block - i, col - j, k] += gaussian_kernel[i * factor + r] * wide
                    start = stop
    for row in range(height):
        for col in range(width):
            most, winner = np.int64(0), 0
            for k in order:
                score = scores[row, col, k] * weights[k]
                if score > most:
                    most, winner = score, k
            enough = pixels - votes[row + radius, col + radius, classes] >= required
            label[row, col] = codes[winner] if enough else nodata


@compiled
def measure_purity(
    votes: NDArray[np.int32], label: NDArray[np.uint8], index: NDArray[np.uint8], purity: NDArray[np.uint8]
) -> None:
    """Percent of a pixel's votes for its label, 255 without a label or votes.

    votes   (H, W, K + 1) int32 from `count_votes`
    label   (H, W) uint8: legend codes
    index   (256,) uint8: class index of each legend code, K for nodata
    purity  (H, W) uint8, written
    """
    height, width, most = votes.shape
    for row in range(height):
        for col in range(width):
            winner, valid = index[label[row, col]], 0
            for k in range(most - 1):
                valid += votes[row, col, k]
            known = valid > 0 and winner < most - 1
            purity[row, col] = (200 * votes[row, col, winner] + valid) // (2 * valid) if known else NO_SHARE


@compiled
def measure_fractions(votes: NDArray[np.int32], pixels: int, fractions: NDArray[np.uint8]) -> None:
    """Percent of a pixel that each class covers; they sum to `measure_valid` exactly. 255 without votes.

    votes      (H, W, K + 1) int32 from `count_votes`; ``pixels`` of each block
    fractions  (K, H, W) uint8, written
    """
    classes, height, width = fractions.shape
    for row in range(height):
        for col in range(width):
            # rounding the running sum, not each share, keeps the total exact
            below, total = 0, 0
            known = votes[row, col, classes] < pixels
            for k in range(classes):
                number = votes[row, col, k]
                share = 0 if known else NO_SHARE
                if number:
                    total += number
                    reached = (200 * total + pixels) // (2 * pixels)
                    share = reached - below
                    below = reached
                fractions[k, row, col] = share


@compiled
def measure_valid(votes: NDArray[np.int32], pixels: int, valid: NDArray[np.uint8]) -> None:
    """Percent of a pixel that votes: (H, W) uint8, written."""
    height, width, last = votes.shape
    for row in range(height):
        for col in range(width):
            valid[row, col] = (200 * (pixels - votes[row, col, last - 1]) + pixels) // (2 * pixels)


@compiled
def measure_entropy(votes: NDArray[np.int32], logs: NDArray[np.float64], entropy: NDArray[np.uint8]) -> None:
    """Mixture of a pixel: 0 one class, 100 all K classes in equal parts, 255 without votes.

    Shannon's entropy of the shares of the votes, in percent of its maximum, the logarithm of K.

    votes    (H, W, K + 1) int32 from `count_votes`
    logs     (pixels + 1,) float64: n * log(n), 0 for n = 0
    entropy  (H, W) uint8, written
    """
    height, width, last = votes.shape
    classes = last - 1
    most = np.log(classes) if classes > 1 else 1.0
    for row in range(height):
        for col in range(width):
            valid, total = 0, 0.0
            for k in range(classes):
                valid += votes[row, col, k]
                total += logs[votes[row, col, k]]
            if valid:
                share = (logs[valid] - total) / (valid * most)
                entropy[row, col] = int(100 * share + 0.5)
            else:
                entropy[row, col] = NO_SHARE


@compiled
def _slot_of(
    value: np.int64, first: NDArray[np.int64], last: NDArray[np.int64], slot: NDArray[np.uint8], other: int
) -> np.int64:
    low, high = 0, first.size
    while low < high:
        middle = (low + high) // 2
        if first[middle] <= value:
            low = middle + 1
        else:
            high = middle
    if low > 0 and value <= last[low - 1]:
        return np.int64(slot[low - 1])
    return np.int64(other)


@compiled
def find_slots(
    values: NDArray[np.integer],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    slot: NDArray[np.uint8],
    other: int,
    out: NDArray[np.uint8],
) -> None:
    """Slot of each value by binary search among intervals of codes.

    values       (height, width) of any integer type
    first, last  (n,) int64: intervals, ascending and apart; ``slot`` (n,) uint8 of each
    other        slot of values in no interval
    out          (height, width) uint8, written
    """
    height, width = values.shape
    for row in range(height):
        before = np.int64(values[row, 0])
        found = _slot_of(before, first, last, slot, other)
        for col in range(width):
            value = np.int64(values[row, col])
            if value != before:  # maps have long runs of one code
                before = value
                found = _slot_of(value, first, last, slot, other)
            out[row, col] = found


@compiled
def find_slots_of_floats(
    values: NDArray[np.floating],
    nodata: float,
    empty: int,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    slot: NDArray[np.uint8],
    other: int,
    out: NDArray[np.uint8],
) -> int:
    """`find_slots` of whole numbers kept as floats; NaN and ``nodata`` get the slot ``empty``.

    returns  position (row x width + col) of the first value that is no whole number, -1 if all are
    """
    height, width = values.shape
    for row in range(height):
        before = np.nan
        found = np.int64(empty)
        for col in range(width):
            value = np.float64(values[row, col])
            if value != before:
                before = value
                if np.isnan(value) or value == nodata:
                    found = np.int64(empty)
                elif value != np.floor(value) or abs(value) > 2.0**53:
                    return row * width + col
                else:
                    found = _slot_of(np.int64(value), first, last, slot, other)
            out[row, col] = found
    return -1
