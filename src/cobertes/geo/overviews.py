"""Overviews of a raster, computed from its raw file: each pixel summarizes 2 x 2 of the level below.

    codes    1 1      the most frequent one, the lower     shares   10 30      their mean: 20
             4 0  ->  one at ties: 1 (nodata is 0)                  20  -  ->  (nodata is left out)

GDAL's own overviews, which compress every level twice, take longer than the rest of writing a COG.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.numba_cache import compiled

SMALLEST = 512
"""Largest side in pixels of the last level."""

STRIP_PIXELS = 8_000_000
"""Pixels that a thread halves at once."""

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

    codes  values are class codes: four become the most frequent one, not their mean
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
        # plain reads and writes: pages of a memory map would count as memory of the process
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
        try:
            for job in jobs:
                job.result()
        finally:  # a full disk or Ctrl-C stops the pool at once
            pool.shutdown(cancel_futures=True)


# At an odd edge the last row or column is counted twice, which changes neither a mean nor the most frequent code.


@compiled
def _most_frequent(four: NDArray[Any], nodata: Any, has_nodata: bool, one: NDArray[Any]) -> None:
    height, width = four.shape
    for row in range(one.shape[0]):
        upper, lower = four[2 * row], four[min(2 * row + 1, height - 1)]
        for col in range(one.shape[1]):
            left, right = 2 * col, min(2 * col + 1, width - 1)
            a, b, c, d = upper[left], upper[right], lower[left], lower[right]
            if (a == b) & (a == c) & (a == d):  # true for most of a map
                one[row, col] = a
                continue
            most, winner = 0, nodata
            for code in (a, b, c, d):
                if has_nodata and code == nodata:
                    continue
                number = (a == code) + (b == code) + (c == code) + (d == code)
                if number > most or (number == most and code < winner):
                    most, winner = number, code
            one[row, col] = winner


@compiled
def _mean(four: NDArray[Any], nodata: Any, has_nodata: bool, integer: bool, one: NDArray[Any]) -> None:
    """Mean of 2 x 2 pixels, integers rounded half up; nodata or NaN if none of the four is valid."""
    height, width = four.shape
    for row in range(one.shape[0]):
        upper, lower = four[2 * row], four[min(2 * row + 1, height - 1)]
        out = one[row]
        for col in range(width // 2):  # without a test for the edge, it compiles to vector instructions
            left, right = 2 * col, 2 * col + 1
            out[col] = _mean_of(upper[left], upper[right], lower[left], lower[right], nodata, has_nodata, integer)
        if width % 2:
            a, b = upper[width - 1], lower[width - 1]
            out[width // 2] = _mean_of(a, a, b, b, nodata, has_nodata, integer)


@compiled
def _mean_of(a: Any, b: Any, c: Any, d: Any, nodata: Any, has_nodata: bool, integer: bool) -> Any:
    # NaN is the only value unequal to itself
    has_a = not (has_nodata and a == nodata) and a == a  # noqa: PLR0124
    has_b = not (has_nodata and b == nodata) and b == b  # noqa: PLR0124
    has_c = not (has_nodata and c == nodata) and c == c  # noqa: PLR0124
    has_d = not (has_nodata and d == nodata) and d == d  # noqa: PLR0124
    number = has_a + has_b + has_c + has_d
    total = ((a if has_a else 0.0) + (b if has_b else 0.0)) + ((c if has_c else 0.0) + (d if has_d else 0.0))
    mean = total / max(number, 1)
    if number == 0:
        return np.float64(nodata) if has_nodata else np.float64(a)
    return np.floor(mean + 0.5) if integer else mean
