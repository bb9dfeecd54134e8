"""Scan of the codes in a reference map: all pixels of a small one, storage blocks drawn over a large one."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError
from cobertes.geo.io import open_raster
from cobertes.geo.windows import Window
from cobertes.labels.legend import CODES
from cobertes.labels.map_values import MapValues, map_values, read_values

SAMPLE_BLOCKS, SAMPLE_PIXELS = 400, 100_000_000
"""Storage blocks sampled from a larger map, or as many more as hold these pixels."""
MOST_VALUES = 200_000
"""Different values at which a raster is taken for a quantity, not for classes."""


@dataclass(frozen=True)
class CodeScan:
    """Codes of a map.

    counts  scanned pixels by code, ascending; those without data by NaN, mask or alpha are left out
    values  what the file says of its values
    all     True if every pixel was scanned
    """

    counts: dict[int, int]
    values: MapValues
    all: bool

    @property
    def found(self) -> list[int]:
        """Codes that occur, without declared nodata."""
        return [code for code in self.counts if code != self.values.nodata_code]

    @property
    def pixels(self) -> int:
        """Scanned pixels with data, declared nodata included."""
        return sum(self.counts.values())

    @property
    def is_zero_in_doubt(self) -> bool:
        """True if 0 occurs and nothing in the file decides if it is a class or nodata."""
        return 0 in self.counts and self.values.nodata is None and not self.values.are_colours


def scan_codes(reference: Path) -> CodeScan:
    """Count the codes of a map. Raises InputFileError for a file that can't be read or holds no codes."""
    counts: Counter[int] = Counter()
    with open_raster(reference) as dataset:
        values = map_values(reference, dataset)
        blocks = [window for _, window in dataset.block_windows(1)]
        pixels = dataset.width * dataset.height
        take = max(SAMPLE_BLOCKS, SAMPLE_PIXELS * len(blocks) // pixels)
        everything = pixels <= SAMPLE_PIXELS or take >= len(blocks)
        chosen = np.arange(len(blocks))
        if not everything:  # drawn, not every n-th: that might be one column of blocks
            chosen = np.sort(np.random.default_rng(0).choice(len(blocks), take, replace=False))
        for i in chosen:
            block = blocks[i]
            window = Window(block.row_off, block.col_off, block.height, block.width)
            part, known = read_values(dataset, values, window)
            counts.update(_count(part if known is None else part[known], values, reference))
            if len(counts) > MOST_VALUES:
                raise InputFileError(
                    f"{reference} holds more than {MOST_VALUES:,} different values: it is a quantity, "
                    f"not classes. Choose the map of classes."
                )
    return CodeScan(dict(sorted(counts.items())), values, everything)


def _count(part: NDArray[Any], values: MapValues, reference: Path) -> dict[int, int]:
    if values.are_bytes:
        counts = np.bincount(part.ravel(), minlength=CODES)
        return {code: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
    if part.dtype.kind == "f":
        part = part[~np.isnan(part)]
        if values.nodata is not None and values.nodata_code is None:
            part = part[part != part.dtype.type(values.nodata)]
        odd = part[(part != np.floor(part)) | ~np.isfinite(part)]
        if odd.size:
            raise InputFileError(
                f"{reference} holds {odd[0]:g}, but class codes are whole numbers. Choose the map of classes: "
                f"this one holds a quantity, or was resampled by a mean."
            )
    codes, numbers = np.unique(part, return_counts=True)
    return {int(code): int(number) for code, number in zip(codes, numbers, strict=True)}
