"""Opening and reading rasters: every damaged file becomes an error that names it and the way out.

Pixels are read through `read_window` everywhere, so no command ends with GDAL's own words and a traceback.
"""

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from cobertes.errors import InputFileError
from cobertes.geo.windows import Window

VIRTUAL, HEAD_BYTES = b"<VRTDataset", 512
"""Mark of a virtual raster, and in how many of its first bytes it is looked for."""

CONTAINER = re.compile(
    r'^/vsi(?:zip|tar)/(.+?\.(?:zip|tar|tar\.gz|tgz))/|^(?:vrt://)?(?:netcdf|zarr|hdf5):("[^"]+"|[^:]+):',
    re.IGNORECASE,
)
VARIABLE = re.compile(r"^(netcdf|zarr|hdf5):.+:", re.IGNORECASE)


class _WarningFilter:
    """The filter of `without_georeference_warning`, shared by all threads that are inside it.

    ``warnings.catch_warnings`` changes the whole process. If every thread entered it by itself, one that leaves
    would restore the filters of the others too early, or leave its own behind. So the first one in sets the
    filter, and the last one out takes it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.caught = warnings.catch_warnings()

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.caught.__exit__(None, None, None)


_filter = _WarningFilter()


@contextmanager
def without_georeference_warning() -> Iterator[None]:
    """Silence rasterio's warning about files without a transform, while one is opened.

    Such files are supported, and `grid.warn_without_crs` mentions all of them in one line.
    """
    _filter.enter()
    try:
        yield
    finally:
        _filter.leave()


def is_dataset_name(text: str) -> bool:
    """True for GDAL's names of a variable: ``netcdf:FILE:VARIABLE``, ``ZARR:"FOLDER":/ARRAY``."""
    return bool(VARIABLE.match(text))


def open_raster(path: str | PathLike[str], **options: Any) -> rasterio.DatasetReader:
    """Open a raster for reading; ``options`` are open options of its driver.

    Raises InputFileError with GDAL's reason.
    """
    local = "://" not in str(path) and not str(path).startswith("/vsi") and not is_dataset_name(str(path))
    if local and not Path(path).exists():
        raise InputFileError(f"no file at {path}. Check the path; paths in a project are relative to its file.")
    try:
        with without_georeference_warning():
            return rasterio.open(path, **options)
    except RasterioError as error:
        raise InputFileError(f"can't read {path} as a raster: {error}") from error


def read_window(
    source: rasterio.DatasetReader | str | PathLike[str],
    window: Window | None = None,
    bands: int | Sequence[int] | None = None,
    *,
    shape: tuple[int, int] | None = None,
    resampling: str = "nearest",
) -> NDArray[Any]:
    """Pixels of a window inside a raster, or of all of it.

    source      an open dataset, or a file that is opened for this one read
    bands       numbers from 1; None for all
    shape       (height, width) to resample to, by a method of rasterio's ``Resampling``
    returns     (height, width) for one band number, else (bands, height, width)
    Raises InputFileError naming the file and the rows and columns that can't be read.
    """
    if isinstance(source, str | PathLike):
        with open_raster(source) as dataset:
            return read_window(dataset, window, bands, shape=shape, resampling=resampling)
    area = Window(0, 0, source.height, source.width) if window is None else window
    out_shape = None if shape is None else shape if isinstance(bands, int) else (_count(source, bands), *shape)
    try:
        values: NDArray[Any] = source.read(
            bands, window=area.to_rasterio(), out_shape=out_shape, resampling=Resampling[resampling]
        )
    except RasterioError as error:
        raise InputFileError(
            f"can't read rows {area.row} to {area.row_stop}, columns {area.col} to {area.col_stop} "
            f"of {_name(source)}: {error.__cause__ or error}. The file may be truncated: fetch it again."
        ) from error
    return np.asarray(values)


def _count(source: rasterio.DatasetReader, bands: Sequence[int] | int | None) -> int:
    return int(source.count) if bands is None else len(bands) if not isinstance(bands, int) else 1


def _name(source: rasterio.DatasetReader) -> str:
    """Path of an open file, of the source if it is warped."""
    return fspath(source.src_dataset.name if isinstance(source, WarpedVRT) else source.name)


def container_file(path: str) -> str:
    """The file on disk that holds what GDAL opens by another name; the path itself for plain files.

    ``/vsizip/X.zip/a.jp2`` -> ``X.zip``; ``ZARR:"X.zarr":/b02`` -> ``X.zarr``
    """
    found = CONTAINER.match(path)
    return next((part.strip('"') for part in found.groups() if part), path) if found else path


def source_files(path: str) -> list[str]:
    """Files that a raster consists of: itself, and those that a VRT refers to, through VRTs of VRTs too.

    Of a file in an archive, and of a variable of a cube, it is the archive or cube.
    """
    found, waiting = [], [container_file(path)]
    while waiting:
        file = waiting.pop(0)
        if file not in found:
            found.append(file)
            waiting += _referred(file)
    return found


def _referred(path: str) -> list[str]:
    """Files that GDAL lists for a virtual raster, whatever its name ends in; none for other files."""
    if not path.lower().endswith(".vrt") and VIRTUAL not in _head(path):
        return []
    with open_raster(path) as dataset:
        return [str(file) for file in dataset.files if str(file) != path]


def _head(path: str) -> bytes:
    """First bytes of a local file; empty for any other."""
    if not Path(path).is_file():
        return b""
    try:
        with Path(path).open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise InputFileError(f"can't read {path}: {error.strerror}") from error
