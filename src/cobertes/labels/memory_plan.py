"""Windows of a label pass: fit for how the map is stored and for the memory there is.

rows of 300,000 x 1     [=========================]     strips of full width
                        [=========================]

blocks of 960 x 960     [====][====][====][====]        squares that end where blocks end
                        [====][====][====][====]
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, gcd, isqrt

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from cobertes.geo.grid import grid_of, same_crs
from cobertes.geo.windows import Window
from cobertes.labels.label_pass import NEAREST, LabelTask
from cobertes.labels.reference_map import Alignment

LIBRARIES_MB = 250
"""Peak memory of the process before the first window: interpreter, numpy, GDAL, numba."""

WINDOW_PIXELS = 27_000_000
"""Fine pixels of a window, at most: 5,120 x 5,120, where blocks of 1,024 px and scene pixels of 10 meet."""

WINDOW_BYTES = 75_000_000
"""Memory of a window and all that is made from it, at most. Windows do not depend on the number of threads, and
on ``memory`` only where it is scarce."""

CACHE_BYTES = 64_000_000
"""What GDAL keeps of the map's storage blocks, unless these are very large."""

WARP_CACHE_BYTES = 160_000_000
"""The same for a warped map, whose windows lie askew over the blocks."""


@dataclass(frozen=True)
class Layout:
    """How a map is best read.

    ``block`` (height, width) of its storage on the fine grid; ``itemsize`` bytes of a pixel; ``width`` of the
    map in its own pixels; ``in_strips``: blocks are as wide as the map and lie along the scene's rows.
    """

    block: tuple[int, int]
    itemsize: int
    width: int
    in_strips: bool

    @classmethod
    def of(cls, dataset: rasterio.DatasetReader, alignment: Alignment, grid: GeoBox) -> "Layout":
        """The layout of an open map for a scene's grid."""
        block, itemsize = dataset.block_shapes[0], np.dtype(dataset.dtypes[0]).itemsize
        in_strips = block[1] >= dataset.width
        if alignment.origin is not None:
            return cls(block, itemsize, dataset.width, in_strips)
        turned = not same_crs(grid_of(dataset), grid) or bool(grid.affine.b or dataset.transform.b)
        return cls((1, 1), itemsize, dataset.width, in_strips and not turned)


@dataclass(frozen=True)
class LabelMemory:
    """How memory is shared out: ``workers`` threads of ``window`` fine pixels each, ``cache`` bytes for GDAL."""

    workers: int
    window: int
    cache: int

    @classmethod
    def of(cls, memory: int, layout: Layout, task: LabelTask, products: Iterable[str]) -> "LabelMemory":
        """For ``memory`` MB in all. Scarce memory costs threads first."""
        alignment, grid = task.alignment, task.grid
        free = max(memory - LIBRARIES_MB, 40) * 1_000_000
        # GDAL decodes whole blocks: its cache should hold those that a window shares with the next
        block = layout.block[0] * min(layout.block[1], layout.width) * layout.itemsize
        least = WARP_CACHE_BYTES if alignment.origin is None else CACHE_BYTES
        cache = min(max(least, 4 * block), free // 2)
        pixel_bytes = _bytes_of_a_pixel(layout, task, set(products))
        pixels = int((free - cache) / pixel_bytes)
        smallest = (grid.width if layout.in_strips else 1) * alignment.factor**2
        window = max(smallest, min(WINDOW_PIXELS, int(WINDOW_BYTES / pixel_bytes), pixels))
        return cls(max(1, min(_processors(), pixels // window)), window, cache)


def _bytes_of_a_pixel(layout: Layout, task: LabelTask, products: set[str]) -> float:
    """Memory of a fine pixel and its part of what is made, in bytes."""
    classes = len(task.legend)
    read: float = 2 * layout.itemsize  # as read, and a padded or converted copy
    if task.alignment.origin is None:  # a part of the map, and the fine pixels taken from it
        read = 1 + 2 * read * (task.alignment.ratio / task.alignment.factor) ** 2
    made = len(products) + classes * ("fractions" in products)
    if products != {NEAREST}:
        made += 4 * (classes + 1)  # votes
    if task.reach:
        read, made = 2 * read, 2 * made + 8 * (classes + 1)  # neighbours around a window, and scores
    return read + made / task.alignment.factor**2


def strip_cache(memory: int, layout: Layout) -> int:
    """Bytes for GDAL where a map is read in strips of its full width: a row of storage blocks, if it fits."""
    free = max(memory - LIBRARIES_MB, 40) * 1_000_000
    row = layout.block[0] * layout.width * layout.itemsize
    return min(max(WARP_CACHE_BYTES, row + row // 8), free // 2)


def _processors() -> int:
    """Processors that this process may use: fewer than the machine's in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_windows(grid: GeoBox, alignment: Alignment, layout: Layout, pixels: int) -> list[Window]:
    """Windows of about ``pixels`` fine pixels at most, which partition the scene.

    They end where storage blocks end, as far as scene pixels allow: with factor 10, blocks of 960 give steps
    of 96 scene pixels, blocks of 1024 steps of 512.
    """
    factor = alignment.factor
    row, col = alignment.origin or (0, 0)
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
    """Cuts of 0 .. length, at most ``step`` apart, at edges of storage blocks where these are near enough."""
    unit = block // gcd(block, factor)
    first = 0
    if unit <= step:
        step -= step % unit
        first = ceil((-origin % block) / factor) % step
    return sorted({0, length, *range(first, length, step)})
