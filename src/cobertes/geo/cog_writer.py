"""Writing rasters: first an uncompressed file of known size, then one copy to COG, then the final name.

    FOLDER/.map.tif.partial/pixels.raw      memory-mapped, filled by the caller
                           /pixels.vrt      GDAL's description of it: grid, nodata, palette, names
                           /map.tif         COG copied from it
                           /map.tif.aux.xml class names (a GeoTIFF has no field for them), renamed first
                           /map.qml         legend for QGIS, renamed second
    FOLDER/map.tif

At any moment FOLDER/map.tif is either the old file or the complete new one. (rasterio's own COG driver in write
mode holds the raster in memory; a compressed GeoTIFF that is killed half-way reads back as empty.)
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from cobertes.errors import CobertesError, InputFileError, OutputExistsError, SettingsError, StorageError
from cobertes.geo.io import open_raster, read_window, source_files
from cobertes.geo.mmap_tiff import release
from cobertes.geo.overviews import level_shapes, write_levels
from cobertes.geo.qgis_style import hex_to_rgb, is_replaceable, style_of, style_path
from cobertes.geo.windows import Window

GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
GDAL_CACHE_BYTES = 128 * 2**20  # rasterio passes a number on in bytes, so 128 would be 128 bytes
RAW = "pixels.raw"
CODE_LEVEL, SHARE_LEVEL = "6", "1"  # deflate: a higher level shrinks codes, shares hardly, in twice the time
READ_BACK = 512, 1024  # (height, width) in pixels of the windows in which a finished COG is verified
READ_BACK_CACHE_BYTES = 32 * 2**20  # each tile is read once, so a larger cache only takes memory


@dataclass(frozen=True)
class Categories:
    """Classes of a raster of codes: ``names`` and ``colours`` (``#rrggbb``) by code."""

    names: dict[int, str]
    colours: dict[int, str]


@dataclass(frozen=True)
class RasterSpec:
    """Specification of a new raster: type, bands by description, nodata, tags, and categories if it has codes."""

    dtype: str
    descriptions: tuple[str, ...]
    nodata: float | None = None
    categories: Categories | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", MappingProxyType(dict(self.tags)))


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Check that an output can be written, before any work is spent on it.

    Raises OutputExistsError, StorageError.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder. Name a file in it.")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists. Use --overwrite to replace it, or another -o FILE.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't make the folder {path.parent}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"no permission to write into {path.parent}. Choose another output.")


def check_not_input(outputs: Iterable[Path | None], inputs: Iterable[Path | str]) -> None:
    """Raise SettingsError if an output would overwrite an input, or a file that a virtual input refers to.

    A hard link to an input is that input.
    """
    wanted = [path for path in outputs if path is not None]
    existing = {path: path.stat() for path in wanted if path.exists()}
    if not existing:
        return
    for name in inputs:
        for file in source_files(str(name)):
            if not Path(file).exists():
                continue
            for path, state in existing.items():
                if os.path.samestat(state, Path(file).stat()):
                    source = "" if file == str(name) else f" (of {name})"
                    raise SettingsError(f"{path} is an input{source}. Name another file for the output.")


def partial_folder(path: Path) -> Path:
    """Folder in which a raster is written before it gets its name."""
    return path.parent / f".{path.name}.partial"


@contextmanager
def new_raster(
    path: Path,
    grid: GeoBox,
    spec: RasterSpec,
    *,
    overwrite: bool = False,
    resumable: bool = False,
    final_tags: Callable[[], Mapping[str, str]] = dict,
) -> Iterator[Any]:
    """Yield the pixels (bands, height, width) of a new raster; on leaving, it becomes a COG at ``path``.

    The array is a ``np.memmap`` that starts at zero. If the block raises, nothing is left behind.

    resumable   reuse the pixels that an interrupted pass left in `partial_folder`, and leave them there after an
                interrupt, a full disk, a lack of GPU memory or an unexpected error, but not after an error of the
                user's. The caller has to keep account of the pixels written (`Ledger`).
    final_tags  further tags, computed once all pixels are written
    Raises OutputExistsError, StorageError (disk full, no permission).
    """
    check_writable(path, overwrite=overwrite)
    partial, keep = partial_folder(path), False
    try:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        pixels = _allocate(partial / RAW, spec, grid)
        yield pixels
        del pixels
        spec = replace(spec, tags={**spec.tags, **final_tags()})
        _copy_to_cog(partial, path.name, grid, spec)
        side = f"{path.name}.aux.xml"
        if (partial / side).exists():
            os.replace(partial / side, path.parent / side)
        else:  # an older file's names and statistics would be taken for the new one's
            (path.parent / side).unlink(missing_ok=True)
        if spec.categories and is_replaceable(style_path(path)):
            style = style_path(partial / path.name)
            style.write_text(style_of(spec.categories.names, spec.categories.colours), encoding="utf-8")
            os.replace(style, style_path(path))
        os.replace(partial / path.name, path)
    except OSError as error:
        keep = resumable
        if isinstance(error, CobertesError) or error.errno not in STORAGE_ERRORS:
            raise
        raise StorageError(
            f"can't write {path}: {error.strerror}. Free some space or choose another folder."
        ) from error
    except BaseException as error:
        keep = resumable and (not isinstance(error, CobertesError) or isinstance(error, MemoryError))
        raise
    finally:
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)


def _allocate(path: Path, spec: RasterSpec, grid: GeoBox) -> Any:
    shape = (len(spec.descriptions), grid.height, grid.width)
    size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
    if path.exists() and path.stat().st_size == size:  # left by an interrupted pass
        return np.memmap(path, spec.dtype, "r+", shape=shape)
    # overviews take a third of it, and the COG at most as much as both
    needed, free = int(size * 2.7), shutil.disk_usage(path.parent).free
    if needed > free:
        raise StorageError(
            f"{path.parent.parent} has {free / 1e6:,.0f} MB free, the raster needs up to {needed / 1e6:,.0f} MB. "
            f"Free some space or choose another folder."
        )
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk raises an error here, not a SIGBUS later
        else:
            file.truncate(size)
    return np.memmap(path, spec.dtype, "r+", shape=shape)


def _copy_to_cog(partial: Path, name: str, grid: GeoBox, spec: RasterSpec) -> None:
    shape = (len(spec.descriptions), grid.height, grid.width)
    codes = spec.categories is not None
    levels = write_levels(partial / RAW, spec.dtype, shape, nodata=spec.nodata, codes=codes)
    for level, (height, width) in zip(levels, level_shapes(shape[1:]), strict=True):
        _write_vrt(level, GeoBox((height, width), Affine.identity(), None), spec, [])
    _write_vrt(partial / RAW, grid, spec, levels)
    (partial / name).unlink(missing_ok=True)
    try:
        # without one big read, GDAL reads complete lines of the raw file again for every tile of a wide raster
        with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_NUM_THREADS="ALL_CPUS", GDAL_ONE_BIG_READ="YES"):
            rasterio.shutil.copy(
                (partial / RAW).with_suffix(".vrt"),
                partial / name,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=CODE_LEVEL if codes else SHARE_LEVEL,
                BLOCKSIZE="512",
                OVERVIEWS="FORCE_USE_EXISTING" if levels else "NONE",
                BIGTIFF="IF_SAFER",
            )
    except (RasterioError, CPLE_BaseError) as error:  # rasterio does not wrap all of GDAL's errors
        raise StorageError(f"can't write {partial.parent / name}: {error}. Is the disk full?") from error
    _read_back(partial, name, grid, spec, levels)


def _read_back(partial: Path, name: str, grid: GeoBox, spec: RasterSpec, levels: list[Path]) -> None:
    """Raise StorageError unless the COG has the pixels of the raw files: GDAL's threads only log a full disk."""
    shapes = [(grid.height, grid.width), *level_shapes((grid.height, grid.width))]
    try:
        with rasterio.Env(GDAL_CACHEMAX=READ_BACK_CACHE_BYTES, GDAL_NUM_THREADS="ALL_CPUS"):
            complete = all(
                _same_pixels(partial / name, raw, spec, shape, level)
                for level, (raw, shape) in enumerate(zip([partial / RAW, *levels], shapes, strict=True), -1)
            )
    except (InputFileError, CPLE_BaseError):
        complete = False
    if not complete:
        raise StorageError(
            f"can't write {partial.parent / name}: what was written reads back otherwise. Is the disk full?"
        )


def _same_pixels(path: Path, raw: Path, spec: RasterSpec, shape: tuple[int, int], level: int) -> bool:
    """Compare an overview ``level`` of a COG (-1: its pixels) with a raw file bit by bit, NaN included."""
    bits = f"u{np.dtype(spec.dtype).itemsize}"
    expected = np.memmap(raw, bits, "r", shape=(len(spec.descriptions), *shape))
    options = {"overview_level": level} if level >= 0 else {}
    with open_raster(path, **options) as file:
        if file.shape != shape:
            return False
        for top, left in product(range(0, shape[0], READ_BACK[0]), range(0, shape[1], READ_BACK[1])):
            window = Window(top, left, *READ_BACK).clip(shape)
            for band, pixels in enumerate(read_window(file, window).view(bits)):
                if not np.array_equal(pixels, expected[(band, *window.slices)]):
                    return False
                release(expected)  # reading a page loads 15 neighbours: 32 MB for 512 rows of a band
    return True


def _write_vrt(raw: Path, grid: GeoBox, spec: RasterSpec, levels: list[Path]) -> None:
    """Write GDAL's description of a raw file beside it; its names and colours are copied into the COG."""
    item = np.dtype(spec.dtype).itemsize
    a = grid.affine
    head = [f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">']
    if grid.crs is not None:
        head.append(f'<SRS dataAxisToSRSAxisMapping="1,2">{escape(grid.crs.to_wkt())}</SRS>')
    if grid.crs is not None or not a.is_identity:
        head.append(f"<GeoTransform>{a.c!r},{a.a!r},{a.b!r},{a.f!r},{a.d!r},{a.e!r}</GeoTransform>")
    tags = dict(spec.tags)
    if spec.categories:
        tags |= {f"class_{code}": label for code, label in spec.categories.names.items()}
    items = "".join(f"<MDI key={_quote(key)}>{escape(value)}</MDI>" for key, value in tags.items())
    head.append(f"<Metadata>{items}</Metadata>")
    for number, description in enumerate(spec.descriptions):
        head.append(
            f'<VRTRasterBand dataType="{GDAL_TYPES[spec.dtype]}" band="{number + 1}" subClass="VRTRawRasterBand">'
            f"<Description>{escape(description)}</Description>"
            + (f"<NoDataValue>{float(spec.nodata)!r}</NoDataValue>" if spec.nodata is not None else "")
            + (_category_xml(spec.categories) if spec.categories else "")
            + "".join(
                f'<Overview><SourceFilename relativeToVRT="1">{level.with_suffix(".vrt").name}</SourceFilename>'
                f"<SourceBand>{number + 1}</SourceBand></Overview>"
                for level in levels
            )
            + f'<SourceFilename relativeToVRT="1">{raw.name}</SourceFilename>'
            f"<ImageOffset>{number * grid.height * grid.width * item}</ImageOffset>"
            f"<PixelOffset>{item}</PixelOffset><LineOffset>{grid.width * item}</LineOffset>"
            "<ByteOrder>LSB</ByteOrder></VRTRasterBand>"
        )
    raw.with_suffix(".vrt").write_text("\n".join([*head, "</VRTDataset>"]), encoding="utf-8")


def _quote(text: str) -> str:
    return '"' + escape(text, {'"': "&quot;"}) + '"'


def _category_xml(categories: Categories) -> str:
    """XML of names and colours for codes 0 to the highest; codes without a class are nameless and black."""
    names, colours = "", ""
    for code in range(max(categories.names) + 1):
        names += f"<Category>{escape(categories.names.get(code, ''))}</Category>"
        red, green, blue = hex_to_rgb(categories.colours.get(code, "#000000"))
        colours += f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="255"/>'
    return (
        f"<ColorInterp>Palette</ColorInterp><CategoryNames>{names}</CategoryNames>"
        f"<ColorTable>{colours}</ColorTable>"
    )
