"""Reading of label and share rasters by window."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.windows import Window

UNKNOWN_SHARE = 255


def read_labels(path: Path, window: Window) -> NDArray[np.uint8]:
    """Read class codes (height, width) uint8 of a window inside the file. Raises InputFileError."""
    return _read(path, window)[0]


def read_shares(path: Path, window: Window) -> NDArray[np.uint8]:
    """Read class shares, or purity, (height, width, bands) uint8 percent; 0 if unknown. Raises InputFileError."""
    shares = np.ascontiguousarray(np.moveaxis(_read(path, window), 0, 2))
    shares[shares == UNKNOWN_SHARE] = 0
    return shares


def count_bands(path: Path) -> int:
    """Count the bands of a file of labels or shares. Raises InputFileError."""
    with open_raster(path) as dataset:
        return int(dataset.count)


def _read(path: Path, window: Window) -> NDArray[np.uint8]:
    try:
        return read_window(path, window)
    except InputFileError as error:
        reason = error.__cause__ or error
        raise InputFileError(f"can't read the labels {path}: {reason}. Run the labels stage again.") from error
