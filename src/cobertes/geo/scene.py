"""Scene: a complete image of one area and season, read window by window on one grid.

It is one file, a VRT, or a file per band. If bands differ in resolution, the grid is that of the finest band in
use, and coarser ones are resampled to it by bilinear interpolation on reading.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo import BoundingBox
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from cobertes.errors import BandMismatchError, GridMismatchError, InputFileError
from cobertes.geo.band_selection import BandSource, band_sources, choose_bands
from cobertes.geo.grid import (
    bounds_window,
    crop,
    describe,
    footprint,
    full_window,
    grid_of,
    resolution,
    same_grid,
)
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.mmap_tiff import MappedChunks, mmap_geotiff
from cobertes.geo.nodata import can_hold, valid_mask_chw, valid_mask_hwc
from cobertes.geo.windows import Window
from cobertes.geo.xarray_io import to_data_array
from cobertes.html_repr import html_table

log = logging.getLogger(__name__)

PIXEL_CRS = "EPSG:3857"
"""Stand-in for a missing CRS when a coarser band is resampled: both sides use it."""

TOLERANCE = 1e-6
"""Largest error of the warper's coordinates in pixels. (Zero fails: rasterio 1.4 then sets no transformer.)"""

OPEN_FILES = 64
"""Files that a thread leaves open, of all scenes together: a system may allow a process 256."""

Observation = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values (bands, height, width) or (height, width, bands) of a window, and their validity (height, width)."""


class _Handles(threading.local):
    """Open datasets of this thread, the last used one at the end: threads must not share a GDAL handle."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: OrderedDict[tuple[object, str], Any] = OrderedDict()


_handles = _Handles()


@dataclass(frozen=True)
class Scene:
    """Scene ready to be read: ``bands`` in order, on ``grid``.

    ``dtype`` is the common type of the bands; ``nodata`` the value of empty pixels, None if none is declared;
    ``resampling`` the method for files of another grid ("bilinear"; "nearest" for codes, in any CRS).
    Scenes can be pickled and shared by threads and processes: each of them opens the files by itself.
    """

    bands: tuple[BandSource, ...]
    grid: GeoBox
    dtype: str
    nodata: float | None = None
    resampling: str = "bilinear"
    _key: object = field(default_factory=object, init=False, repr=False, compare=False)
    """Identity of this scene among open files: a file may have been replaced since another scene opened it."""

    def __reduce__(self) -> tuple[type["Scene"], tuple[Any, ...]]:
        return Scene, (self.bands, self.grid, self.dtype, self.nodata, self.resampling)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names in the order of the channels."""
        return tuple(band.name for band in self.bands)

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the bands, without duplicates."""
        return tuple(dict.fromkeys(band.path for band in self.bands))

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` of the grid."""
        return int(self.grid.height), int(self.grid.width)

    def read(
        self,
        *,
        window: Window | None = None,
        bbox: tuple[float, float, float, float] | None = None,
        crs: object = None,
    ) -> Observation:
        """Read a part of the scene, or all of it.

        window   in pixels
        bbox     (west, south, east, north) in ``crs``, by default the scene's: the pixels that it touches
        returns  values (bands, height, width) in ``dtype``; valid (height, width) bool
        Raises GridMismatchError if the box lies outside the scene, InputFileError.
        """
        return self.read_chw(self._part(window, bbox, crs))

    def to_xarray(
        self,
        *,
        window: Window | None = None,
        bbox: tuple[float, float, float, float] | None = None,
        crs: object = None,
    ) -> Any:
        """Read as `read` does, as a DataArray (band, y, x) in float32 with NaN for empty pixels.

        Its coordinates and CRS are those of the grid (the ``.odc`` accessor finds them). Needs xarray.
        """
        part = self._part(window, bbox, crs)
        return to_data_array(*self.read_chw(part), self.band_names, crop(self.grid, part))

    def _part(self, window: Window | None, bbox: tuple[float, float, float, float] | None, crs: object) -> Window:
        if bbox is None:
            return full_window(self.grid) if window is None else window
        if window is not None:
            raise GridMismatchError("a window and a bbox exclude each other: give one of them")
        if crs is not None and self.grid.crs is not None:
            bbox = BoundingBox(*bbox, crs=str(crs)).to_crs(self.grid.crs).bbox
        return bounds_window(self.grid, bbox)

    def _repr_html_(self) -> str:
        """Table of grid, bands and files."""
        rows = [
            ("grid", describe(self.grid)),
            ("bands", ", ".join(self.band_names)),
            ("type", self.dtype),
            ("nodata", "0 in all bands" if self.nodata is None else self.nodata),
            *(("file", file) for file in self.files),
        ]
        return html_table(("scene", ""), rows)

    def read_chw(self, window: Window) -> Observation:
        """Read values and validity of a window, which may reach out of the scene.

        returns  values (bands, height, width) in ``dtype``, 0 outside the scene;
                 valid (height, width) bool, False outside the scene and for empty pixels (`valid_mask_chw`)
        Raises InputFileError naming file and window if a block can't be read.
        """
        values = np.zeros((len(self.bands), *window.shape), self.dtype)
        valid = np.zeros(window.shape, bool)
        inside = window.clip(self.shape)
        if 0 in inside.shape:
            return values, valid
        rows, cols = inside.slices_in(window)
        if (chunks := self.memory_map) is not None:
            values[:, rows, cols] = chunks.read(inside, self._channels).transpose(2, 0, 1)
        else:
            for path in self.files:
                positions = [i for i, band in enumerate(self.bands) if band.path == path]
                indexes = [self.bands[i].index for i in positions]
                values[positions, rows, cols] = read_window(self._dataset(path), inside, indexes)
        valid[rows, cols] = valid_mask_chw(values[:, rows, cols], self.nodata)
        return values, valid

    def read_hwc(self, window: Window) -> Observation:
        """Read as `read_chw` does, with the bands last: values (height, width, bands), valid (height, width)."""
        if (chunks := self.memory_map) is None:
            values, valid = self.read_chw(window)
            return np.ascontiguousarray(values.transpose(1, 2, 0)), valid
        inside = window.clip(self.shape)
        if inside == window:
            pixels = chunks.read(window, self._channels)
            return pixels, valid_mask_hwc(pixels, self.nodata)
        pixels = np.zeros((*window.shape, len(self.bands)), self.dtype)
        valid = np.zeros(window.shape, bool)
        if 0 not in inside.shape:
            pixels[inside.slices_in(window)] = part = chunks.read(inside, self._channels)
            valid[inside.slices_in(window)] = valid_mask_hwc(part, self.nodata)
        return pixels, valid

    def may_have_data(self, window: Window) -> bool:
        """Check storage blocks of a window inside the scene: False only if it is certainly empty.

        A sparse GeoTIFF leaves out storage blocks without an observation; no pixel is read for this.
        """
        if self.resampling != "bilinear":
            return True
        return any(self._file_stores(path, window) for path in self.files)

    def _file_stores(self, path: str, window: Window) -> bool:
        dataset = self._dataset(path)
        if dataset.driver != "GTiff" or (dataset.nodata != self.nodata and self.nodata not in (None, 0)):
            return True  # a block that is left out reads as the file's nodata, or 0
        height, width = dataset.block_shapes[0]
        interleaved = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
        indexes = [1] if interleaved else [band.index for band in self.bands if band.path == path]
        return any(
            dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index)
            for index in indexes
            for row in range(window.row // height, (window.row_stop - 1) // height + 1)
            for col in range(window.col // width, (window.col_stop - 1) // width + 1)
        )

    @property
    def memory_map(self) -> MappedChunks | None:
        """Memory map of the scene's one file; None if its pixels need decoding or resampling."""
        own_grid = len(self.files) == 1 and self.resampling == "bilinear"  # a mask may have another grid
        found = mmap_geotiff(self.files[0]) if own_grid else None
        return found if found is not None and found.dtype == self.dtype else None

    @property
    def _channels(self) -> NDArray[np.int64]:
        return np.array([band.index - 1 for band in self.bands], np.int64)

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
        nodata = self.nodata if can_hold(np.dtype(source.dtypes[0]), self.nodata) else None
        return WarpedVRT(
            source,
            src_crs=source.crs or PIXEL_CRS,
            crs=self.grid.crs.proj if self.grid.crs is not None else PIXEL_CRS,
            transform=self.grid.affine,
            width=self.grid.width,
            height=self.grid.height,
            resampling=Resampling[self.resampling],
            tolerance=TOLERANCE,
            src_nodata=nodata,
            # rasterio asks GDAL for YES: nodata only if all bands are, which is right for 0 alone (see `nodata`)
            UNIFIED_SRC_NODATA="NO" if nodata else "YES",
            # with 0 as the result's nodata, GDAL before 3.12 makes a valid 0 of one band another value
            **({"nodata": None, "INIT_DEST": "0"} if nodata == 0 else {"nodata": nodata}),
        )


def valid_in_any(observed: Mapping[str, Observation]) -> NDArray[np.bool_]:
    """Pixels with an observation in at least one season: (height, width) bool."""
    return reduce(np.logical_or, (valid for _, valid in observed.values()))


def open_mask(path: str, grid: GeoBox) -> Scene:
    """Open a raster of codes (clouds, snow) of any grid and CRS as a scene on ``grid``, resampled by nearest.

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
    """Open the files of a scene and choose its bands.

    bands    names wanted, in order; None or empty for all. Names are looked for in the band descriptions, then
             in the words of the names of files with one band (``T31TDG_B02_10m.tif``). If neither has any of
             them and the number of bands agrees, they name the bands in the order of the files.
    nodata   value of empty pixels for files that declare none
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
            found += band_sources(path, dataset, len(files), len(found))
    chosen = choose_bands(found, bands or [], single)
    used = {band.path: facts[band.path] for band in chosen}
    grid = min((grid for grid, _, _ in used.values()), key=resolution)
    for path, (other, _, _) in used.items():
        _require_same_extent(path, other, grid)
    dtype = str(np.result_type(*(dtype for _, dtype, _ in used.values())))
    declared = _declared_nodata({path: value for path, (_, _, value) in used.items()})
    return Scene(tuple(chosen), grid, dtype, nodata if declared is None else declared)


def _declared_nodata(values: Mapping[str, float | None]) -> float | None:
    """Nodata value that the files of a scene declare in common, None if none does."""
    declared = [(path, value) for path, value in values.items() if value is not None]
    for path, value in declared:
        first, nodata = declared[0]
        if value != nodata and not (np.isnan(value) and np.isnan(nodata)):
            raise BandMismatchError(
                f"{path} declares nodata {value:g}, but {first} declares {nodata:g}. The bands of a scene must "
                f"share it: set one with `gdal_edit -a_nodata` (it changes no pixels)."
            )
    return declared[0][1] if declared else None


def _require_same_extent(path: str, other: GeoBox, grid: GeoBox) -> None:
    if other.crs == grid.crs:
        ours, theirs = footprint(grid), footprint(other)
        slack = resolution(other) * 1.01
        if ours.buffer(slack).contains(theirs) and theirs.buffer(slack).contains(ours):
            return
    raise GridMismatchError(
        f"{path} is {describe(other)}, but the finest band of its scene is {describe(grid)}. The bands of a "
        f"scene must share CRS and extent: use the files of one granule."
    )
