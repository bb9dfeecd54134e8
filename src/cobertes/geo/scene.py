"""A scene: a whole image of one area and season, read window by window onto one grid.

It may be one file, a VRT, or a file per band, also where bands have different resolutions: the grid is that
of the finest band in use, coarser ones come onto it by bilinear interpolation on reading.
"""

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from cobertes.errors import BandMismatchError, GridMismatchError, InputFileError, did_you_mean
from cobertes.geo.grid import describe, footprint, grid_of, open_raster, resolution, same_grid
from cobertes.geo.mmap_tiff import MappedChunks, mmap_geotiff
from cobertes.geo.nodata import holds, valid_mask_chw, valid_mask_hwc
from cobertes.geo.windows import Window

log = logging.getLogger(__name__)

PIXEL_CRS = "EPSG:3857"
"""Stands in for the CRS that a file lacks when a coarser band has to be resampled: both sides use it."""

EXACT = 1e-6
"""Error of the warper's coordinates in pixels, at most. (Zero fails: rasterio 1.4 then sets no transformer.)"""

OPEN_FILES = 64
"""Files that a thread keeps open, of all scenes together: a system may allow a process 256."""

Observation = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values and validity of a window: (bands, height, width) or (height, width, bands), and (height, width)."""

WORDS = re.compile(r"[^A-Za-z0-9]+")
SENTINEL_BAND = re.compile(r"^[Bb]\d{1,2}[Aa]?$")


@dataclass(frozen=True)
class BandSource:
    """Where a band is stored: ``path`` and ``index`` (from 1) in that file."""

    name: str
    path: str
    index: int

    @property
    def words(self) -> list[str]:
        """The words of the file's name, in lower case."""
        return [word.lower() for word in WORDS.split(Path(self.path).stem)]


class _Handles(threading.local):
    """Open datasets of this thread, last used last: a GDAL handle must not be shared by threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: OrderedDict[tuple[object, str], Any] = OrderedDict()


_handles = _Handles()


@dataclass(frozen=True)
class Scene:
    """A scene ready to be read: ``bands`` in order, on ``grid``.

    ``dtype`` is the common type of the bands; ``nodata`` the value of empty pixels, None where nothing says;
    ``resampling`` brings files of another grid onto it ("bilinear"; "nearest" for codes, in any CRS).
    Scenes can be pickled and shared between threads and processes: files are opened where they are read.
    """

    bands: tuple[BandSource, ...]
    grid: GeoBox
    dtype: str
    nodata: float | None = None
    resampling: str = "bilinear"
    _key: object = field(default_factory=object, init=False, repr=False, compare=False)
    """Tells this scene's open files from those of another: a file may have been replaced between the two."""

    def __reduce__(self) -> tuple[type["Scene"], tuple[Any, ...]]:
        return Scene, (self.bands, self.grid, self.dtype, self.nodata, self.resampling)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names in the order of the channels."""
        return tuple(band.name for band in self.bands)

    @property
    def files(self) -> tuple[str, ...]:
        """The files it is read from, each once."""
        return tuple(dict.fromkeys(band.path for band in self.bands))

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` of the grid."""
        return int(self.grid.height), int(self.grid.width)

    def read_chw(self, window: Window) -> Observation:
        """Values and validity of a window, which may reach out of the scene.

        returns  values (bands, height, width) in ``dtype``, 0 outside the scene;
                 valid (height, width) bool, False outside and where the pixel is empty (`valid_mask_chw`)
        Raises InputFileError naming file and window where a block can't be read.
        """
        values = np.zeros((len(self.bands), *window.shape), self.dtype)
        valid = np.zeros(window.shape, bool)
        inside = window.clip(self.shape)
        if 0 in inside.shape:
            return values, valid
        rows, cols = inside.slices_in(window)
        if (mapped := self.mapped) is not None:
            values[:, rows, cols] = mapped.read(inside, self._channels).transpose(2, 0, 1)
        else:
            for path in self.files:
                positions = [i for i, band in enumerate(self.bands) if band.path == path]
                indexes = [self.bands[i].index for i in positions]
                values[positions, rows, cols] = self._read_file(path, indexes, inside)
        valid[rows, cols] = valid_mask_chw(values[:, rows, cols], self.nodata)
        return values, valid

    def read_hwc(self, window: Window) -> Observation:
        """The same with each pixel's bands together: values (height, width, bands), valid (height, width)."""
        if (mapped := self.mapped) is None:
            values, valid = self.read_chw(window)
            return np.ascontiguousarray(values.transpose(1, 2, 0)), valid
        inside = window.clip(self.shape)
        if inside == window:
            pixels = mapped.read(window, self._channels)
            return pixels, valid_mask_hwc(pixels, self.nodata)
        pixels = np.zeros((*window.shape, len(self.bands)), self.dtype)
        valid = np.zeros(window.shape, bool)
        if 0 not in inside.shape:
            pixels[inside.slices_in(window)] = part = mapped.read(inside, self._channels)
            valid[inside.slices_in(window)] = valid_mask_hwc(part, self.nodata)
        return pixels, valid

    def may_have_data(self, window: Window) -> bool:
        """Whether anything is stored in a window inside the scene: False only where it is empty for certain.

        A sparse GeoTIFF leaves out the storage blocks of ground that was not observed; no pixel is read for this.
        """
        if self.resampling != "bilinear":
            return True
        return any(self._file_stores(path, window) for path in self.files)

    def _file_stores(self, path: str, window: Window) -> bool:
        dataset = self._dataset(path)
        if dataset.driver != "GTiff" or (dataset.nodata != self.nodata and self.nodata not in (None, 0)):
            return True  # a block that is left out holds the file's nodata, or 0
        height, width = dataset.block_shapes[0]
        together = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
        indexes = [1] if together else [band.index for band in self.bands if band.path == path]
        return any(
            dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index)
            for index in indexes
            for row in range(window.row // height, (window.row_stop - 1) // height + 1)
            for col in range(window.col // width, (window.col_stop - 1) // width + 1)
        )

    @property
    def mapped(self) -> MappedChunks | None:
        """The scene's one file as it lies on disk, where that can be read without decoding."""
        own_grid = len(self.files) == 1 and self.resampling == "bilinear"  # a mask may lie on another grid
        found = mmap_geotiff(self.files[0]) if own_grid else None
        return found if found is not None and found.dtype == self.dtype else None

    @property
    def _channels(self) -> NDArray[np.int64]:
        return np.array([band.index - 1 for band in self.bands], np.int64)

    def _read_file(self, path: str, indexes: list[int], window: Window) -> NDArray[Any]:
        try:
            return self._dataset(path).read(
                indexes, window=rasterio.windows.Window(window.col, window.row, window.width, window.height)
            )
        except RasterioError as error:
            raise InputFileError(
                f"can't read rows {window.row} to {window.row_stop}, columns {window.col} to {window.col_stop} "
                f"of {path}: {error.__cause__ or error}. The file may be truncated: fetch it again."
            ) from error

    def _dataset(self, path: str) -> Any:
        if _handles.pid != os.getpid():
            _handles.__init__()  # type: ignore[misc]  # after a fork: the parent's handles are not ours
        files, key = _handles.open, (self._key, path)
        if key not in files:
            source = open_raster(path)
            files[key] = source if same_grid(grid_of(source), self.grid) else self._on_grid(source)
            if len(files) > OPEN_FILES:
                files.popitem(last=False)[1].close()
        files.move_to_end(key)
        return files[key]

    def _on_grid(self, source: rasterio.DatasetReader) -> WarpedVRT:
        nodata = self.nodata if holds(np.dtype(source.dtypes[0]), self.nodata) else None
        return WarpedVRT(
            source,
            src_crs=source.crs or PIXEL_CRS,
            crs=self.grid.crs.proj if self.grid.crs is not None else PIXEL_CRS,
            transform=self.grid.affine,
            width=self.grid.width,
            height=self.grid.height,
            resampling=Resampling[self.resampling],
            tolerance=EXACT,
            src_nodata=nodata,
            nodata=nodata,
        )


def seen_in_any(observed: Mapping[str, Observation]) -> NDArray[np.bool_]:
    """(height, width): where at least one season has an observation."""
    return reduce(np.logical_or, (valid for _, valid in observed.values()))


def open_mask(path: str, grid: GeoBox) -> Scene:
    """A raster of codes (clouds, snow) of any grid and CRS, read by nearest onto ``grid``.

    Raises InputFileError, GridMismatchError.
    """
    with open_raster(path) as dataset:
        dtype = str(dataset.dtypes[0])
        if np.dtype(dtype) != np.uint8:
            raise InputFileError(f"{path} holds {dtype}, but a mask of cloud and snow codes holds uint8")
        if (dataset.crs is None) != (grid.crs is None):
            lacking = path if dataset.crs is None else "the scene"
            raise GridMismatchError(f"{path} can't be placed on its scene: {lacking} has no CRS.")
    return Scene((BandSource("mask", path, 1),), grid, dtype, None, "nearest")


def open_scene(files: list[str], bands: list[str] | None = None, nodata: float | None = None) -> Scene:
    """Inspect the files of a scene and choose its bands.

    bands    names wanted, in order; None or empty takes all. Names are looked for in the band descriptions,
             then in the words of the names of files with one band (``T31TDG_B02_10m.tif``); where neither
             knows any of them and the number of bands agrees, they name the bands in the order of the files.
    nodata   value of empty pixels for files that do not say
    Raises BandMismatchError, GridMismatchError, InputFileError.
    """
    found: list[BandSource] = []
    single: set[str] = set()
    facts: dict[str, tuple[GeoBox, str, float | None]] = {}
    for path in files:
        with open_raster(path) as dataset:
            if dataset.count == 0:
                raise InputFileError(f"{path} holds no bands of its own. Name one of its subdatasets or files.")
            facts[path] = grid_of(dataset), str(np.result_type(*dataset.dtypes)), dataset.nodata
            if dataset.count == 1:
                single.add(path)
            for i in dataset.indexes:
                found.append(BandSource(_band_name(path, dataset, i, len(files), len(found)), path, i))
    chosen = _choose(found, bands or [], single)
    used = {band.path: facts[band.path] for band in chosen}
    grid = min((grid for grid, _, _ in used.values()), key=resolution)
    for path, (other, _, _) in used.items():
        _require_same_ground(path, other, grid)
    dtype = str(np.result_type(*(dtype for _, dtype, _ in used.values())))
    declared = _declared_nodata({path: value for path, (_, _, value) in used.items()})
    return Scene(tuple(chosen), grid, dtype, nodata if declared is None else declared)


def _band_name(path: str, dataset: rasterio.DatasetReader, index: int, files: int, before: int) -> str:
    description = dataset.descriptions[index - 1]
    if description:
        return str(description)
    if files > 1 and dataset.count == 1:
        words = [word for word in WORDS.split(Path(path).stem) if SENTINEL_BAND.match(word)]
        return words[-1].upper() if words else Path(path).stem
    return f"band{before + 1}"


def _declared_nodata(values: Mapping[str, float | None]) -> float | None:
    """The one nodata value that the files of a scene declare, None where none does."""
    says = [(path, value) for path, value in values.items() if value is not None]
    for path, value in says:
        first, nodata = says[0]
        if value != nodata and not (np.isnan(value) and np.isnan(nodata)):
            raise BandMismatchError(
                f"{path} declares nodata {value:g}, but {first} declares {nodata:g}. The bands of a scene must "
                f"share it: set one with `gdal_edit -a_nodata` (it changes no pixels)."
            )
    return says[0][1] if says else None


def _choose(found: list[BandSource], wanted: list[str], single: set[str]) -> list[BandSource]:
    """The wanted bands in order; ``single`` are the files with one band, whose own name may tell it."""
    files = list(dict.fromkeys(band.path for band in found))
    where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files"
    _require_once(wanted or [band.name for band in found], where)
    if not wanted:
        return found
    by_name = {name: _called(found, name, single) for name in wanted}
    if not any(by_name.values()):
        if len(found) != len(wanted):
            raise BandMismatchError(
                f"{where}: {len(found)} bands ({', '.join(band.name for band in found)}), but {len(wanted)} are "
                f"named ({', '.join(wanted)}). Name the bands of the scene in `bands`, in its order."
            )
        return [BandSource(name, band.path, band.index) for name, band in zip(wanted, found, strict=True)]
    for name, bands in by_name.items():
        if not bands:
            hint = did_you_mean(name, (band.name for band in found))
            raise BandMismatchError(f"{where}: no band '{name}'.{hint}")
        if len(bands) > 1:
            a, b = (f"band {band.index} of {band.path}" for band in bands[:2])
            raise BandMismatchError(f"{where}: '{name}' may be {a} or {b}. Name the files one by one.")
    return [BandSource(name, by_name[name][0].path, by_name[name][0].index) for name in wanted]


def _require_once(names: list[str], where: str) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise BandMismatchError(
            f"{where}: the band '{twice[0]}' is there more than once. Say in `bands` which bands to use, each "
            f"once; where the files are seasons, name them: april=FILE august=FILE."
        )


def _called(found: list[BandSource], name: str, single: set[str]) -> list[BandSource]:
    """The bands of this name; where there is none, those whose file has it in its own name."""
    named = [band for band in found if band.name.lower() == name.lower()]
    return named or [band for band in found if band.path in single and name.lower() in band.words]


def _require_same_ground(path: str, other: GeoBox, grid: GeoBox) -> None:
    if other.crs == grid.crs:
        ours, theirs = footprint(grid), footprint(other)
        slack = resolution(other) * 1.01
        if ours.buffer(slack).contains(theirs) and theirs.buffer(slack).contains(ours):
            return
    raise GridMismatchError(
        f"{path} is {describe(other)}, but the finest band of its scene is {describe(grid)}. The bands of a "
        f"scene must share CRS and extent: use the files of one granule."
    )
