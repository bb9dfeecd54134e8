"""Scene: a complete image of one area and season, read window by window on one grid.

It is one file, a VRT, or a file per band. If bands differ in resolution, the grid is that of the finest band in
use, and coarser ones are resampled to it by bilinear interpolation on reading.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from cobertes.geo.band_selection import BandSource, SceneFiles, choose_bands, find_bands
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
from cobertes.geo.io import container_file, open_raster, read_window
from cobertes.geo.mmap_tiff import MappedChunks, mmap_geotiff
from cobertes.geo.mosaic import fill_gaps, mosaic_grid, place_parts
from cobertes.geo.nodata import can_hold, valid_mask_chw, valid_mask_hwc
from cobertes.geo.observation import Observation
from cobertes.geo.products.band_vocabulary import BandLabel
from cobertes.geo.products.record import QualityLayer
from cobertes.geo.radiometry import Conversion, RadiometricConvention, conversion_between
from cobertes.geo.raster_facts import inspect_raster
from cobertes.geo.stored_values import told_conventions
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
    conversion: Conversion | None = None
    """Conversion of stored values into the requested convention (`in_conventions`); None if it is the same."""
    target: tuple[RadiometricConvention, ...] = ()
    """Requested conventions; empty: values are returned as stored."""
    quality: tuple[QualityLayer, ...] = ()
    """Layers of clouds and snow that came with the bands."""
    parts: tuple["Scene", ...] = ()
    """Granules of a mosaic, the first valid one wins; the bands above are those of the first."""
    source: str = ""
    """The product it was opened from, "" for plain files."""
    _key: object = field(default_factory=object, init=False, repr=False, compare=False)
    """Identity of this scene among open files: a file may have been replaced since another scene opened it."""

    def __reduce__(self) -> tuple[type["Scene"], tuple[Any, ...]]:
        rest = self.conversion, self.target, self.quality, self.parts, self.source
        return Scene, (self.bands, self.grid, self.dtype, self.nodata, self.resampling, *rest)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names in the order of the channels."""
        return tuple(band.name for band in self.bands)

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the bands, without duplicates."""
        bands = [band for scene in self.parts or (self,) for band in scene.bands]
        return tuple(dict.fromkeys(band.path for band in bands))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Products, archives and cubes it was opened from, and plain files, without duplicates."""
        scenes = self.parts or (self,)
        opened = [[scene.source] if scene.source else map(container_file, scene.files) for scene in scenes]
        return tuple(dict.fromkeys(path for paths in opened for path in paths))

    @property
    def conventions(self) -> tuple[RadiometricConvention, ...]:
        """Radiometric convention of the stored values, by band."""
        return tuple(band.convention or RadiometricConvention() for band in self.bands)

    @property
    def target_conventions(self) -> tuple[RadiometricConvention, ...]:
        """Radiometric convention of the values after the conversion on reading, by band."""
        return self.target or self.conventions

    @property
    def labels(self) -> tuple[BandLabel, ...]:
        """Names with wavelengths, where these are known."""
        return tuple(BandLabel(band.name, band.wavelength) for band in self.bands)

    def with_conventions(self, told: Sequence[RadiometricConvention]) -> "Scene":
        """The scene whose stored values mean what somebody says, one convention for each band."""
        bands = tuple(replace(band, convention=one) for band, one in zip(self.bands, told, strict=True))
        return replace(self, bands=bands, parts=tuple(part.with_conventions(told) for part in self.parts))

    def in_conventions(self, wanted: Sequence[RadiometricConvention]) -> "Scene":
        """The scene with its values converted on reading into these conventions, one for each band.

        Raises BandMismatchError where one can't be made from the other.
        """
        target = tuple(wanted)
        if not self.parts:
            conversion = conversion_between(self.conventions, target, self.band_names)
            return replace(self, conversion=conversion, target=target)
        parts = tuple(part.in_conventions(wanted) for part in self.parts)
        ways = {part.conversion for part in parts}
        if len(ways) == 1:
            return replace(self, parts=parts, conversion=ways.pop(), target=target)
        bands = tuple(replace(band, convention=one) for band, one in zip(self.bands, target, strict=True))
        return replace(self, bands=bands, parts=parts, conversion=None, target=target, dtype="float32")

    def select(self, names: Sequence[str]) -> "Scene":
        """The scene with some of its bands, in this order."""
        at = [self.band_names.index(name) for name in names]
        conversion = self.conversion.select(at) if self.conversion is not None else None
        return replace(
            self,
            bands=tuple(self.bands[i] for i in at),
            conversion=conversion,
            target=tuple(self.target[i] for i in at) if self.target else (),
            parts=tuple(part.select(names) for part in self.parts),
        )

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
        returns  values (bands, height, width), stored ones or, of a scene with a conversion, converted ones in
                 float32; valid (height, width) bool
        Raises GridMismatchError if the box lies outside the scene, InputFileError.
        """
        shown = self.read_chw(self._part(window, bbox, crs))
        return Observation(shown.converted(0), shown[1])

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
        return to_data_array(*self.read(window=part), self.band_names, crop(self.grid, part))

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
        if self.parts:
            return self._read_parts(window)
        values = np.zeros((len(self.bands), *window.shape), self.dtype)
        valid = np.zeros(window.shape, bool)
        inside = window.clip(self.shape)
        if 0 in inside.shape:
            return Observation(values, valid, self.conversion)
        rows, cols = inside.slices_in(window)
        if (chunks := self.memory_map) is not None:
            values[:, rows, cols] = chunks.read(inside, self._channels).transpose(2, 0, 1)
        else:
            for path in self.files:
                positions = [i for i, band in enumerate(self.bands) if band.path == path]
                indexes = [self.bands[i].index for i in positions]
                values[positions, rows, cols] = read_window(self._dataset(path), inside, indexes)
        valid[rows, cols] = valid_mask_chw(values[:, rows, cols], self.nodata)
        return Observation(values, valid, self.conversion)

    def _read_parts(self, window: Window) -> Observation:
        """The same of a mosaic; converted at once where its granules store their values differently."""
        mixed = len({part.conversion for part in self.parts}) > 1
        values = np.zeros((len(self.bands), *window.shape), self.dtype)
        valid = np.zeros(window.shape, bool)
        for part, (row, col) in zip(self.parts, self.placed, strict=True):
            there = Window(window.row - row, window.col - col, window.height, window.width)
            inside = there.clip(part.shape)
            if 0 in inside.shape or valid[where := inside.slices_in(there)].all():
                continue
            seen = part.read_chw(inside)
            fill_gaps(values[:, *where], valid[where], seen.converted(0) if mixed else seen[0], seen[1])
        return Observation(values, valid, self.conversion)

    @property
    def placed(self) -> list[tuple[int, int]]:
        """Row and column of the first pixel of each granule of a mosaic."""
        return place_parts([part.grid for part in self.parts], self.grid)

    def read_hwc(self, window: Window) -> Observation:
        """Read as `read_chw` does, with the bands last: values (height, width, bands), valid (height, width)."""
        if (chunks := self.memory_map) is None:
            shown = self.read_chw(window)
            return Observation(np.ascontiguousarray(shown[0].transpose(1, 2, 0)), shown[1], shown.conversion)
        inside = window.clip(self.shape)
        if inside == window:
            pixels = chunks.read(window, self._channels)
            return Observation(pixels, valid_mask_hwc(pixels, self.nodata), self.conversion)
        pixels = np.zeros((*window.shape, len(self.bands)), self.dtype)
        valid = np.zeros(window.shape, bool)
        if 0 not in inside.shape:
            pixels[inside.slices_in(window)] = part = chunks.read(inside, self._channels)
            valid[inside.slices_in(window)] = valid_mask_hwc(part, self.nodata)
        return Observation(pixels, valid, self.conversion)

    def may_have_data(self, window: Window) -> bool:
        """Check storage blocks of a window inside the scene: False only if it is certainly empty.

        A sparse GeoTIFF leaves out storage blocks without an observation; no pixel is read for this.
        """
        if self.resampling != "bilinear" or self.parts:
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


def open_scene(
    files: Sequence[str], bands: Sequence[str | BandLabel] | None = None, nodata: float | None = None
) -> Scene:
    """Inspect the files of a scene, or products as downloaded, and choose the bands.

    files    band files of one scene, a product (folder, zip, tar ...), or several products: a mosaic, in which the
             first that has a pixel wins
    bands    names wanted, in order; None or empty takes all spectral ones. Bands are found by name and by what
             names and wavelengths mean, then by the words of the names of files with one band
             (``T31TDG_B02_10m.tif``); where no name means anything and the number of bands agrees, they name
             the bands in the order of the files.
    nodata   value of empty pixels for files that do not say
    Raises BandMismatchError, GridMismatchError, InputFileError.
    """
    parts: list[Scene] = []
    for found in find_bands(files):
        # a mosaic has the bands of its first granule
        wanted = bands or (parts[0].labels if parts else [])
        parts.append(_open_files(found, wanted, nodata))
    if len(parts) == 1:
        return parts[0]
    grid = mosaic_grid([part.grid for part in parts], [part.source or part.files[0] for part in parts])
    dtype = str(np.result_type(*(part.dtype for part in parts)))
    quality = tuple(layer for part in parts for layer in part.quality)
    first = parts[0]
    return replace(first, grid=grid, dtype=dtype, quality=quality, parts=tuple(parts))


def _open_files(found: SceneFiles, bands: Sequence[str | BandLabel], nodata: float | None) -> Scene:
    chosen = choose_bands(found, bands)
    used = {band.path: found.facts.get(band.path) or inspect_raster(band.path) for band in chosen}
    grid = min((facts.grid for facts in used.values()), key=resolution)
    for path, facts in used.items():
        _require_same_extent(path, facts.grid, grid)
    dtype = str(np.result_type(*(facts.dtype for facts in used.values())))
    declared = _declared_nodata({path: facts.nodata for path, facts in used.items()})
    empty = next((value for value in (found.nodata, declared, nodata) if value is not None), None)
    told = told_conventions(chosen, used)
    sources = (replace(band, convention=one) for band, one in zip(chosen, told, strict=True))
    source = found.product.path if found.product and not found.listed else ""
    return Scene(tuple(sources), grid, dtype, empty, quality=found.quality, source=source)


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
