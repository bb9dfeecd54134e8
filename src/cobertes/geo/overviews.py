"""The smaller versions of a raster, from its raw file: each pixel stands for 2 x 2 of the level below.

    codes    1 1      the most frequent one, the lower     shares   10 30      their mean: 20
             4 0  ->  one at ties: 1 (nodata is 0)                  20  -  ->  (nodata counts for nothing)

GDAL's own way, which compresses every level twice, takes longer than all the rest of writing a COG.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.jit import compiled

SMALLEST = 512
"""Levels end where both sides have no more pixels than this."""

STRIP_PIXELS = 8_000_000
"""Pixels that a thread halves together."""

THREADS = 2


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of each level: 1500 x 900 -> 750 x 450, and no more."""
    shapes = []
    while max(shape) > SMALLEST:
        shape = (shape[0] + 1) // 2, (shape[1] + 1) // 2
        shapes.append(shape)
    return shapes


def write_levels(
    raw: Path, dtype: str, shape: tuple[int, int, int], *, nodata: float | None, codes: bool
) -> list[Path]:
    """Write a raw file per level beside ``raw``, which holds (bands, height, width) of ``dtype``.

    codes  the values are names: the most frequent one stands for four, not their mean
    """
    bands, written = shape[0], []
    below, below_shape = raw, shape[1:]
    for number, level_shape in enumerate(level_shapes(shape[1:])):
        level = raw.with_name(f"overview-{number}.raw")
        _halve(below, below_shape, level, level_shape, bands, np.dtype(dtype), nodata, codes)
        below, below_shape = level, level_shape
        written.append(level)
    return written


def _halve(
    below: Path,
    below_shape: tuple[int, int],
    level: Path,
    shape: tuple[int, int],
    bands: int,
    dtype: np.dtype[Any],
    nodata: float | None,
    codes: bool,
) -> None:
    (below_height, below_width), (height, width) = below_shape, shape
    rows = max(1, STRIP_PIXELS // below_width // 2)
    empty = np.array([0 if nodata is None else nodata], dtype)[0]

    def halve(band: int, top: int) -> None:
        stop = min(top + rows, height)
        first, last = 2 * top, min(2 * stop, below_height)
        # plain reads and writes: the pages of a memory map would count as memory of the process
        four = np.fromfile(
            below, dtype, (last - first) * below_width,
            offset=(band * below_height + first) * below_width * dtype.itemsize,
        ).reshape(-1, below_width)  # fmt: skip
        one = np.empty((stop - top, width), dtype)
        if codes:
            _most_frequent(four, empty, nodata is not None, one)
        else:
            _mean(four, empty, nodata is not None, np.issubdtype(dtype, np.integer), one)
        with level.open("r+b") as file:
            file.seek((band * height + top) * width * dtype.itemsize)
            file.write(one.tobytes())

    level.touch()
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(halve, band, top) for band in range(bands) for top in range(0, height, rows)]
        for job in jobs:
            job.result()


@compiled
def _most_frequent(four: NDArray[Any], nodata: Any, has_nodata: bool, one: NDArray[Any]) -> None:
    height, width = four.shape
    for row in range(one.shape[0]):
        for col in range(one.shape[1]):
            most, winner = 0, nodata
            for r in range(2 * row, min(2 * row + 2, height)):
                for c in range(2 * col, min(2 * col + 2, width)):
                    code = four[r, c]
                    if has_nodata and code == nodata:
                        continue
                    number = 0
                    for i in range(2 * row, min(2 * row + 2, height)):
                        for j in range(2 * col, min(2 * col + 2, width)):
                            number += four[i, j] == code
                    if number > most or (number == most and code < winner):
                        most, winner = number, code
            one[row, col] = winner


@compiled
def _mean(four: NDArray[Any], nodata: Any, has_nodata: bool, whole: bool, one: NDArray[Any]) -> None:
    """Whole numbers are rounded half up; where nothing is known, nodata or NaN stays."""
    height, width = four.shape
    for row in range(one.shape[0]):
        for col in range(one.shape[1]):
            number, total = 0, 0.0
            for r in range(2 * row, min(2 * row + 2, height)):
                for c in range(2 * col, min(2 * col + 2, width)):
                    value = four[r, c]
                    # NaN is the one value that is not itself
                    if not (has_nodata and value == nodata) and value == value:  # noqa: PLR0124
                        number += 1
                        total += value
            if number == 0:
                one[row, col] = nodata if has_nodata else four[2 * row, 2 * col]
            elif whole:
                one[row, col] = np.floor(total / number + 0.5)
            else:
                one[row, col] = total / number
