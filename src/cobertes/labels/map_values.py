"""Values of a reference map's file: one band of codes of any type, or three bands of colours, and nodata.

A file can mark pixels without data by a nodata value, NaN, an internal mask and an alpha band. GDAL honours one
of these at a time; here they add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from cobertes.errors import InputFileError
from cobertes.geo.io import read_window
from cobertes.geo.windows import Window

WHOLE = 2.0**53
"""Whole numbers below it are exact as floats, and no code is beyond."""

RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True)
class MapValues:
    """Values of a reference map's file.

    dtype     numpy name of the type
    nodata    value that the file declares, or None
    bands     the band of codes, or those of red, green and blue: a code is then red x 65536 + green x 256 + blue
    masked    True if the file has an internal mask or an alpha band
    names     code of each class name that comes with the file
    name      file name, for messages
    """

    dtype: str = "uint8"
    nodata: float | None = None
    bands: tuple[int, ...] = (1,)
    masked: bool = False
    names: Mapping[str, int] = field(default_factory=dict)
    name: str = "the reference map"

    @property
    def are_colours(self) -> bool:
        """True if codes are colours."""
        return len(self.bands) == 3

    @property
    def are_bytes(self) -> bool:
        """True if codes are 0 to 255."""
        return self.dtype == "uint8" and not self.are_colours

    @property
    def nodata_code(self) -> int | None:
        """Code that the declared nodata value is; None if no code can have it."""
        if self.nodata is None or not abs(self.nodata) < WHOLE or not float(self.nodata).is_integer():
            return None
        return int(self.nodata) * (0x010101 if self.are_colours else 1)

    @property
    def pixel_bytes(self) -> int:
        """Memory of a pixel as it is read, in bytes."""
        codes = 4 if self.are_colours else 0
        return np.dtype(self.dtype).itemsize * len(self.bands) + codes + self.masked

    def text(self, code: int) -> str:
        """A code for people: 311, or #33cc33."""
        return f"#{code:06x}" if self.are_colours else str(code)


def map_values(reference: Path, dataset: rasterio.DatasetReader) -> MapValues:
    """Values of an open reference map. Raises InputFileError for a file that can't hold classes."""
    kinds, dtype = dataset.colorinterp, str(dataset.dtypes[0])
    bands = [number for number, kind in enumerate(kinds, 1) if kind != ColorInterp.alpha]
    if dtype.startswith("complex"):
        raise InputFileError(f"{reference} holds {dtype}, which can't be class codes. Choose the map of classes.")
    if len(bands) == 3 and dtype == "uint8" and all(kind in kinds for kind in RGB):
        bands = [kinds.index(kind) + 1 for kind in RGB]
    elif len(bands) != 1:
        listed = ", ".join(
            f"{number} {dataset.descriptions[number - 1] or kinds[number - 1].name}" for number in bands[:12]
        )
        raise InputFileError(
            f"{reference} has {len(bands)} bands ({listed}), but a reference map has one band of class codes, or "
            f"red, green and blue. Write the band of codes to a file of its own: gdal_translate -b NUMBER "
            f"{reference.name} codes.tif"
        )
    masked = MaskFlags.per_dataset in dataset.mask_flag_enums[bands[0] - 1]
    return MapValues(dtype, dataset.nodata, tuple(bands), masked, name=reference.name)


def read_values(
    dataset: rasterio.DatasetReader, values: MapValues, window: Window
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Codes (height, width) of a window, int32 for colours, else of the file's type; and the pixels that hold data
    by mask or alpha, None if the file has neither."""
    found = read_window(dataset, window, list(values.bands))
    if values.are_colours:
        red, green, blue = found.astype(np.int32)
        codes: NDArray[Any] = (red << 16) | (green << 8) | blue
    else:
        codes = found[0]
    if not values.masked:
        return codes, None
    return codes, dataset.read_masks(values.bands[0], window=window.to_rasterio()) > 0
