"""Windows of a label pass, chosen by the map's storage layout and the memory available.

rows of 300,000 x 1     [=========================]     strips of full width
                        [=========================]

blocks of 960 x 960     [====][====][====][====]        squares that end at borders of blocks
                        [====][====][====][====]
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import ceil, gcd, isqrt

from cobertes.geo.windows import Window
from cobertes.labels.label_job import NEAREST, LabelJob, Layout

LIBRARIES_MB = 250
"""Peak memory of the process before the first window: interpreter, numpy, GDAL, numba."""

WINDOW_PIXELS = 27_000_000
"""Largest window in fine pixels: 5,120 x 5,120, the least common multiple of blocks of 1,024 and pixels of 10."""

WINDOW_BYTES = 75_000_000
"""Largest memory of a window and its outputs. Windows do not depend on the number of threads, and on ``memory``
only if it is scarce."""

CACHE_BYTES = 64_000_000
"""GDAL's cache of storage blocks, unless these are very large."""

WARP_CACHE_BYTES = 160_000_000
"""The same for a warped map, whose windows run obliquely across the blocks."""


def plan(job: LabelJob, memory: int, products: Iterable[str]) -> LabelJob:
    """Add windows, threads and GDAL's cache for ``memory`` MB in all. Scarce memory costs threads first."""
    layout, alignment = job.source.layout, job.alignment
    free = max(memory - LIBRARIES_MB, 40) * 1_000_000
    # GDAL decodes complete blocks: its cache should hold those that a window shares with the next one
    block = layout.block[0] * min(layout.block[1], layout.width) * layout.itemsize
    least = WARP_CACHE_BYTES if alignment.origin is None else CACHE_BYTES
    cache = min(max(least, 4 * block), free // 2)
    pixel_bytes = _bytes_per_pixel(job, set(products))
    pixels = int((free - cache) / pixel_bytes)
    smallest = (job.grid.width if layout.in_strips else 1) * job.pixels
    window = max(smallest, min(WINDOW_PIXELS, int(WINDOW_BYTES / pixel_bytes), pixels))
    workers = max(1, min(_processors(), pixels // window))
    return replace(job, windows=tuple(plan_windows(job, window)), workers=workers, cache=cache)


def _bytes_per_pixel(job: LabelJob, products: set[str]) -> float:
    """Memory in bytes of a fine pixel and its part of the outputs."""
    alignment, classes = job.alignment, len(job.legend)
    source: float = 2 * job.source.layout.itemsize  # as read, and a padded or converted copy
    if alignment.origin is None:  # a part of the map, and the fine pixels taken from it
        source = 1 + 2 * source * (alignment.ratio / alignment.factor) ** 2
    output = len(products) + classes * ("fractions" in products)
    if products != {NEAREST}:
        output += 4 * (classes + 1)  # votes
    if job.radius:
        source, output = 2 * source, 2 * output + 8 * (classes + 1)  # neighbours around a window, and scores
    return source + output / job.pixels


def strip_cache(memory: int, layout: Layout) -> int:
    """Bytes of GDAL's cache for a map read in strips of its full width: a row of storage blocks, if it fits."""
    free = max(memory - LIBRARIES_MB, 40) * 1_000_000
    row = layout.block[0] * layout.width * layout.itemsize
    return min(max(WARP_CACHE_BYTES, row + row // 8), free // 2)


def _processors() -> int:
    """CPUs available to this process: fewer than the machine's in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_windows(job: LabelJob, pixels: int) -> list[Window]:
    """Windows of about ``pixels`` fine pixels at most, which partition the scene.

    They end at borders of storage blocks, as far as scene pixels allow: with factor 10, blocks of 960 give steps
    of 96 scene pixels, blocks of 1024 steps of 512.
    """
    grid, layout, factor = job.grid, job.source.layout, job.alignment.factor
    row, col = job.alignment.origin or (0, 0)
    if layout.in_strips:
        height = max(1, pixels // (grid.width * factor**2))
        cols = [0, grid.width]
    else:
        height = max(1, isqrt(pixels) // factor)
        cols = _cuts(grid.width, height, factor, layout.block[1], col)
    rows = _cuts(grid.height, height, factor, layout.block[0], row)
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(cols)
    ]


def _cuts(length: int, step: int, factor: int, block: int, origin: int) -> list[int]:
    """Cuts of 0 .. length, at most ``step`` apart, at borders of storage blocks if these are close enough."""
    unit = block // gcd(block, factor)
    first = 0
    if unit <= step:
        step -= step % unit
        first = ceil((-origin % block) / factor) % step
    return sorted({0, length, *range(first, length, step)})
