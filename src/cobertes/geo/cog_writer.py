"""Writing rasters: first an uncompressed file of known size, then one copy to COG, then the final name.

    FOLDER/.map.tif.partial/pixels.raw      memory-mapped, filled by the caller
                           /pixels.vrt      says what the raw file is: grid, nodata, palette, names
                           /map.tif         the COG made from it
                           /map.tif.aux.xml class names (a GeoTIFF has no place for them), renamed first
                           /map.qml         QGIS's legend, renamed too
    FOLDER/map.tif

Whatever happens, FOLDER/map.tif is either the old file or the whole new one. (rasterio's own COG driver in
write mode keeps the raster in memory; a compressed GeoTIFF that is killed half-way reads back as empty.)
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from cobertes.errors import CobertesError, OutputExistsError, SettingsError, StorageError
from cobertes.geo.overviews import level_shapes, write_levels
from cobertes.geo.pages import release
from cobertes.geo.qgis_style import is_replaceable, style_of, style_path
from cobertes.geo.windows import Window

GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
GDAL_CACHE_BYTES = 128 * 2**20  # rasterio hands a number on as bytes, so 128 would be 128 bytes
RAW = "pixels.raw"
CODE_LEVEL, SHARE_LEVEL = "6", "1"  # of deflate: codes get smaller by it, shares hardly, but take twice the time
READ_BACK = 512, 1024  # (height, width) of the windows in which a finished COG is compared, in pixels
READ_BACK_CACHE_BYTES = 32 * 2**20  # each tile is read once, so a cache only takes memory


@dataclass(frozen=True)
class Categories:
    """What the codes of a raster mean: ``names`` and ``colours`` (``#rrggbb``) by code."""

    names: dict[int, str]
    colours: dict[int, str]


@dataclass(frozen=True)
class RasterSpec:
    """What a new raster holds: type, bands by description, nodata, and the codes' meaning if it has codes."""

    dtype: str
    descriptions: tuple[str, ...]
    nodata: float | None = None
    categories: Categories | None = None
    tags: dict[str, str] = field(default_factory=dict)


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError or StorageError before any work is spent on an output."""
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
    """Raise SettingsError where an output would be written onto an input."""
    read = {Path(path).resolve() for path in inputs}
    for path in outputs:
        if path is not None and path.resolve() in read:
            raise SettingsError(f"{path} is an input. Name another file for the output.")


def partial_folder(path: Path) -> Path:
    """Where a raster is made before it gets its name."""
    return path.parent / f".{path.name}.partial"


@contextmanager
def new_raster(
    path: Path, grid: GeoBox, kind: RasterSpec, *, overwrite: bool = False, resumable: bool = False
) -> Iterator[Any]:
    """Yield the pixels (bands, height, width) of a new raster; on leaving, it becomes a COG at ``path``.

    The array starts at zero and lives on disk (a ``np.memmap``). If the block raises, nothing stays behind.

    resumable   take up the pixels that an interrupted pass left in `partial_folder`, and leave them there when
                interrupted, when a disk or a GPU's memory fails or the unexpected happens, but not after a mistake
                of the user's;
                whoever asks for it knows which of them are written
    Raises OutputExistsError, StorageError (disk full, no permission).
    """
    check_writable(path, overwrite=overwrite)
    partial, keep = partial_folder(path), False
    try:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        pixels = _allocate(partial / RAW, kind, grid)
        yield pixels
        del pixels
        _copy_to_cog(partial, path.name, grid, kind)
        side = f"{path.name}.aux.xml"
        if (partial / side).exists():
            os.replace(partial / side, path.parent / side)
        else:  # names and statistics of an older file would stand beside the new one
            (path.parent / side).unlink(missing_ok=True)
        if kind.categories and is_replaceable(style_path(path)):
            style = style_path(partial / path.name)
            style.write_text(style_of(kind.categories.names, kind.categories.colours), encoding="utf-8")
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


def _allocate(path: Path, kind: RasterSpec, grid: GeoBox) -> Any:
    shape = (len(kind.descriptions), grid.height, grid.width)
    size = int(np.prod(shape)) * np.dtype(kind.dtype).itemsize
    if path.exists() and path.stat().st_size == size:  # an interrupted pass goes on
        return np.memmap(path, kind.dtype, "r+", shape=shape)
    # overviews are a third of it, and the COG needs at most as much as both
    needed, free = int(size * 2.7), shutil.disk_usage(path.parent).free
    if needed > free:
        raise StorageError(
            f"{path.parent.parent} has {free / 1e6:,.0f} MB free, the raster needs up to {needed / 1e6:,.0f} MB. "
            f"Free some space or choose another folder."
        )
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash later
        else:
            file.truncate(size)
    return np.memmap(path, kind.dtype, "r+", shape=shape)


def _copy_to_cog(partial: Path, name: str, grid: GeoBox, kind: RasterSpec) -> None:
    shape = (len(kind.descriptions), grid.height, grid.width)
    codes = kind.categories is not None
    levels = write_levels(partial / RAW, kind.dtype, shape, nodata=kind.nodata, codes=codes)
    for level, (height, width) in zip(levels, level_shapes(shape[1:]), strict=True):
        _write_vrt(level, GeoBox((height, width), Affine.identity(), None), kind, [])
    _write_vrt(partial / RAW, grid, kind, levels)
    (partial / name).unlink(missing_ok=True)
    try:
        # one big read: else whole lines of the raw file are read for every tile, again and again in a wide raster
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
    except (RasterioError, CPLE_BaseError) as error:  # rasterio lets some of GDAL's own errors through
        raise StorageError(f"can't write {partial.parent / name}: {error}. Is the disk full?") from error
    _read_back(partial, name, grid, kind, levels)


def _read_back(partial: Path, name: str, grid: GeoBox, kind: RasterSpec, levels: list[Path]) -> None:
    """Raise StorageError unless the COG holds the raw files' pixels: GDAL's threads only log a full disk."""
    shapes = [(grid.height, grid.width), *level_shapes((grid.height, grid.width))]
    try:
        with rasterio.Env(GDAL_CACHEMAX=READ_BACK_CACHE_BYTES, GDAL_NUM_THREADS="ALL_CPUS"):
            whole = all(
                _same_pixels(partial / name, raw, kind, shape, level)
                for level, (raw, shape) in enumerate(zip([partial / RAW, *levels], shapes, strict=True), -1)
            )
    except (RasterioError, CPLE_BaseError):
        whole = False
    if not whole:
        raise StorageError(
            f"can't write {partial.parent / name}: what was written reads back otherwise. Is the disk full?"
        )


def _same_pixels(path: Path, raw: Path, kind: RasterSpec, shape: tuple[int, int], level: int) -> bool:
    """Whether an overview ``level`` of a COG (-1: its pixels) has the very bits of a raw file; NaN too."""
    bits = f"u{np.dtype(kind.dtype).itemsize}"
    expected = np.memmap(raw, bits, "r", shape=(len(kind.descriptions), *shape))
    options = {"overview_level": level} if level >= 0 else {}
    with rasterio.open(path, **options) as file:
        if file.shape != shape:
            return False
        for top, left in product(range(0, shape[0], READ_BACK[0]), range(0, shape[1], READ_BACK[1])):
            rows, cols = Window(top, left, *READ_BACK).clip(shape).slices
            found = file.read(window=rasterio.windows.Window.from_slices(rows, cols)).view(bits)
            for band, pixels in enumerate(found):
                if not np.array_equal(pixels, expected[band, rows, cols]):
                    return False
                release(expected)  # a page that is touched brings 15 neighbours: 32 MB for 512 rows of a band
    return True


def _write_vrt(raw: Path, grid: GeoBox, kind: RasterSpec, levels: list[Path]) -> None:
    """GDAL's description of a raw file, beside it; what it says of names and colours goes on into the COG."""
    item = np.dtype(kind.dtype).itemsize
    a = grid.affine
    head = [f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">']
    if grid.crs is not None:
        head.append(f'<SRS dataAxisToSRSAxisMapping="1,2">{escape(grid.crs.to_wkt())}</SRS>')
    if grid.crs is not None or not a.is_identity:
        head.append(f"<GeoTransform>{a.c!r},{a.a!r},{a.b!r},{a.f!r},{a.d!r},{a.e!r}</GeoTransform>")
    tags = dict(kind.tags)
    if kind.categories:
        tags |= {f"class_{code}": label for code, label in kind.categories.names.items()}
    items = "".join(f"<MDI key={_quote(key)}>{escape(value)}</MDI>" for key, value in tags.items())
    head.append(f"<Metadata>{items}</Metadata>")
    for number, description in enumerate(kind.descriptions):
        head.append(
            f'<VRTRasterBand dataType="{GDAL_TYPES[kind.dtype]}" band="{number + 1}" subClass="VRTRawRasterBand">'
            f"<Description>{escape(description)}</Description>"
            + (f"<NoDataValue>{float(kind.nodata)!r}</NoDataValue>" if kind.nodata is not None else "")
            + (_category_xml(kind.categories) if kind.categories else "")
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
    """Names and colours for codes 0 .. the highest; codes without a class are nameless and black."""
    names, colours = "", ""
    for code in range(max(categories.names) + 1):
        names += f"<Category>{escape(categories.names.get(code, ''))}</Category>"
        colour = categories.colours.get(code)
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5)) if colour else (0, 0, 0)
        colours += f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="255"/>'
    return (
        f"<ColorInterp>Palette</ColorInterp><CategoryNames>{names}</CategoryNames>"
        f"<ColorTable>{colours}</ColorTable>"
    )
