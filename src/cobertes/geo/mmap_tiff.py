"""Memory-mapped reading of GeoTIFFs whose pixels are stored uncompressed and interleaved.

Such a file (the model case: 96 x 96 storage blocks) is a table of chunks:

    offsets    0  1  2         a window copies the runs of its rows out of the chunks it touches;
              +--+--+--+       no decoding, no lock, no handle per thread, and the system's page cache is
       row 0  |..|[.|.]|       the only cache
              +--+--+--+
       row 1  |..|[.|.]|       -1: nothing is stored there, the pixels are 0 (a sparse file)
              +--+--+--+

The tile store has the same form. All other files are read by GDAL.
"""

import mmap
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from cobertes.errors import InputFileError
from cobertes.geo.io import open_raster
from cobertes.geo.windows import Window
from cobertes.numba_cache import compiled

PLAIN_TYPES = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"}

NOT_STORED = -1
"""Offset of a chunk that a sparse file leaves out."""

RELEASE_BYTES = 128_000_000
"""Bytes read from a mapping between two calls of `release`."""

MAPPED_FILES = 64
"""Files that stay mapped: each takes a file descriptor, of which a system may allow a process 256."""


def release(pixels: Any) -> None:
    """Release the pages of a ``np.memmap`` from the process; data stay in the file and in the page cache.

    Otherwise every page that was touched counts as memory of the process. Safe while other threads read or write.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        pixels._mmap.madvise(mmap.MADV_DONTNEED)


@compiled
def _gather(
    flat: NDArray[Any],
    offsets: NDArray[np.int64],
    chunk: tuple[int, int, int],
    bands: NDArray[np.int64],
    start: tuple[int, int],
    out: NDArray[Any],
) -> None:
    """Copy a window of chunks (height, width, channels) into ``out`` (height, width, bands), C-contiguous.

    flat     (n,) values of the file; ``offsets`` (rows, cols) first value of each chunk, -1 for none
    bands    (b,) channels to copy, in order
    start    row and col of the window's first pixel, inside the raster
    """
    height, width, channels = chunk
    row, col = start
    lines = out.reshape(out.shape[0], out.shape[1] * len(bands))
    all_bands = len(bands) == channels
    for b in range(len(bands)):
        all_bands = all_bands and bands[b] == b
    for i in range(row // height, (row + out.shape[0] - 1) // height + 1):
        for j in range(col // width, (col + out.shape[1] - 1) // width + 1):
            top, bottom = max(row, i * height), min(row + out.shape[0], (i + 1) * height)
            left, right = max(col, j * width), min(col + out.shape[1], (j + 1) * width)
            if offsets[i, j] < 0:
                out[top - row : bottom - row, left - col : right - col] = 0
                continue
            for r in range(top, bottom):
                begin = offsets[i, j] + ((r - i * height) * width + left - j * width) * channels
                run = flat[begin : begin + (right - left) * channels]
                line = lines[r - row, (left - col) * len(bands) : (right - col) * len(bands)]
                if all_bands:  # one contiguous run of values: compiled to a block copy
                    for k in range(len(line)):
                        line[k] = run[k]
                else:
                    for c in range(right - left):
                        for b in range(len(bands)):
                            line[c * len(bands) + b] = run[c * channels + bands[b]]


class Values:
    """All values of a file as one memory-mapped array ``flat`` (n,), whose pages are released regularly.

    A page that was read counts as memory of the process as long as it is mapped, though the system may reclaim it
    at any time. So its pages are released after every `RELEASE_BYTES`; they stay in the page cache.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        count = path.stat().st_size // np.dtype(dtype).itemsize
        self._mapping = np.memmap(path, dtype, "r", shape=(count,))
        self.flat: NDArray[Any] = np.asarray(self._mapping)
        self._bytes = 0

    def touched(self, count: int) -> None:
        """Count bytes that were read. A rough count: threads may overwrite each other's."""
        self._bytes += count
        if self._bytes > RELEASE_BYTES:
            self._bytes = 0
            release(self._mapping)


@dataclass(frozen=True)
class MappedChunks:
    """Memory-mapped file of chunks.

    shape    (height, width) of the raster
    chunk    (height, width, channels) of a chunk, stored row by row, channels together
    offsets  (chunk rows, chunk cols) int64: first value of each in units of ``dtype``, -1 for chunks left out
    """

    path: Path
    shape: tuple[int, int]
    chunk: tuple[int, int, int]
    dtype: str
    offsets: NDArray[np.int64]
    values: "Values"

    @classmethod
    def open(
        cls,
        path: Path,
        shape: tuple[int, int],
        chunk: tuple[int, int, int],
        dtype: str,
        offsets: NDArray[np.int64],
    ) -> "MappedChunks":
        """Map the file. Raises InputFileError if it ends before its last chunk: reading there would crash."""
        rows = shape[0] - (offsets.shape[0] - 1) * chunk[0]
        last = min(chunk[0], rows) * chunk[1] * chunk[2]  # a strip at the end may be shorter, a block is not
        ends = offsets + prod(chunk)
        ends[-1] = offsets[-1] + (last if chunk[1] == shape[1] else prod(chunk))
        needed = int(ends[offsets >= 0].max(initial=0)) * np.dtype(dtype).itemsize
        try:
            found = path.stat().st_size
            if found < needed:
                raise InputFileError(
                    f"{path} has {found:,} bytes, but its storage blocks end at {needed:,}: it is truncated. "
                    f"Fetch it again."
                )
            values = Values(path, dtype)
        except (OSError, ValueError) as error:
            raise InputFileError(f"can't map {path}: {error}") from error
        return cls(path, shape, chunk, dtype, offsets, values)

    def read(self, window: Window, bands: NDArray[np.int64]) -> NDArray[Any]:
        """Values (height, width, bands) of a window inside the raster."""
        out = np.empty((*window.shape, len(bands)), self.dtype)
        _gather(self.values.flat, self.offsets, self.chunk, bands, (window.row, window.col), out)
        self.values.touched(out.nbytes)
        return out

    def all_stored(self, window: Window) -> bool:
        """Check that the file stores every chunk that a window inside the raster touches."""
        height, width, _ = self.chunk
        rows = slice(window.row // height, (window.row_stop - 1) // height + 1)
        cols = slice(window.col // width, (window.col_stop - 1) // width + 1)
        return bool((self.offsets[rows, cols] >= 0).all())


def mmap_geotiff(path: str) -> MappedChunks | None:
    """Map a GeoTIFF; None if it is compressed, not interleaved by pixel, truncated, or no local file.

    GDAL reads the rest, of a truncated file what can still be read.
    """
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return _mmap_version(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=MAPPED_FILES)
def _mmap_version(path: str, modified: int, size: int) -> MappedChunks | None:
    with open(path, "rb") as file:
        order = file.read(2)
    if order != (b"II" if sys.byteorder == "little" else b"MM"):
        return None
    with open_raster(path) as dataset:
        height, width = dataset.block_shapes[0]
        interleaved = dataset.count == 1 or dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
        plain = dataset.driver == "GTiff" and dataset.compression is None and dataset.dtypes[0] in PLAIN_TYPES
        if not (plain and interleaved) or dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
            return None
        rows, cols = -(-dataset.height // height), -(-dataset.width // width)
        found = np.array(
            [[_offset(dataset, col, row) for col in range(cols)] for row in range(rows)], np.int64
        ).reshape(rows, cols)
        itemsize = np.dtype(dataset.dtypes[0]).itemsize
        stored = found >= 0
        if (found[stored] % itemsize).any():
            return None
        if dataset.nodata not in (None, 0) and not stored.all():  # GDAL fills such blocks with nodata, we with 0
            return None
        offsets = np.where(stored, found // itemsize, NOT_STORED)
        chunk = (int(height), int(width), int(dataset.count))
        try:
            return MappedChunks.open(Path(path), dataset.shape, chunk, dataset.dtypes[0], offsets)
        except InputFileError:
            return None


def _offset(dataset: rasterio.DatasetReader, col: int, row: int) -> int:
    """Position of a storage block in the file in bytes, `NOT_STORED` if it has none."""
    text = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)
    return int(text) if text else NOT_STORED
