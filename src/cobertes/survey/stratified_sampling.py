"""A stratified random sample of a map of any size, in two passes over its rows: one counts, one finds.

ranks of the wanted pixels, class by class, drawn without replacement among the counted ones
3rd, 17th, 20th ... pixel of water in reading order -> its row and column when the second pass meets it
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.errors import GridMismatchError, InputFileError, SettingsError
from cobertes.geo.grid import describe, grid_of, same_grid
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.windows import Window
from cobertes.labels.kernels import histogram
from cobertes.numba_cache import compiled
from cobertes.progress import SILENT, Progress

STRIP_PIXELS = 16_000_000
"""Pixels that are read at once: 533 rows of a map 30,000 px wide."""

CACHE_BYTES = 128 << 20


@dataclass(frozen=True)
class ClassRaster:
    """A raster of codes: its grid, nodata, and the names and colours that its file gives its codes."""

    path: Path
    grid: GeoBox
    nodata: int | None
    names: dict[int, str]
    colours: dict[int, str]

    def name(self, code: int) -> str:
        """Of a code, as the file calls it, or the code itself."""
        return self.names.get(code) or f"code {code}"


def open_map(path: Path) -> ClassRaster:
    """What a map of uint8 codes says of itself. Raises InputFileError where it holds something else."""
    with open_raster(path) as file:
        if file.dtypes[0] != "uint8" or file.count != 1:
            raise InputFileError(
                f"{path} has {file.count} bands of {file.dtypes[0]}: a map has one band of uint8 class codes"
            )
        tags = {key.removeprefix("class_"): name for key, name in file.tags().items() if key.startswith("class_")}
        names = {int(code): name for code, name in tags.items() if code.isdecimal()}
        try:
            palette = file.colormap(1)
        except ValueError:  # it has none
            palette = {}
        colours = {code: "#{:02x}{:02x}{:02x}".format(*rgb[:3]) for code, rgb in palette.items()}
        nodata = None if file.nodata is None else int(file.nodata)
        return ClassRaster(path, grid_of(file), nodata, names, colours)


def strips(path: Path, progress: Progress = SILENT, name: str = "map") -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """First row and codes (rows, width) of full-width strips, from top to bottom. Raises InputFileError."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_NUM_THREADS="ALL_CPUS"), open_raster(path) as file:
        block = file.block_shapes[0][0]
        rows = max(block, STRIP_PIXELS // file.width // block * block)
        with progress.bar(name, file.height * file.width / 1e6, "Mpx") as advance:
            for row in range(0, file.height, rows):
                height = min(rows, file.height - row)
                yield row, read_window(file, Window(row, 0, height, file.width), 1)
                advance(height * file.width / 1e6)


def count_codes(coded: ClassRaster, progress: Progress = SILENT) -> NDArray[np.int64]:
    """(256,) pixels of every code; 0 for nodata."""
    counts = np.zeros(256, np.int64)
    for _, codes in strips(coded.path, progress, "counting"):
        histogram(codes, counts)
    if coded.nodata is not None and 0 <= coded.nodata < 256:
        counts[coded.nodata] = 0
    return counts


def count_both(coded: ClassRaster, strata: ClassRaster, progress: Progress = SILENT) -> NDArray[np.int64]:
    """(256, 256) pixels of every code of a map (rows) under every code of strata on its grid (columns)."""
    counts = np.zeros(256 * 256, np.int64)
    with open_raster(strata.path) as file:
        for row, codes in strips(coded.path, progress, "counting"):
            pairs = codes.astype(np.int32) * 256 + read_window(file, Window(row, 0, *codes.shape), 1)
            counts += np.bincount(pairs.ravel(), minlength=counts.size)
    return counts.reshape(256, 256)


@compiled
def _find(
    codes: NDArray[np.uint8],
    first: int,
    ranks: NDArray[np.int64],
    stop: NDArray[np.int64],
    at: NDArray[np.int64],
    seen: NDArray[np.int64],
    places: NDArray[np.int64],
) -> None:
    """Note the places of the pixels whose rank among those of their code is wanted.

    codes     (rows, width); its top row is row ``first`` of the map
    ranks     (n,) ascending within each code;  ``stop`` (256,) where those of a code end
    at, seen  (256,) next rank of each code, and its pixels so far; both go on from strip to strip
    places    (n, 2) row and column, written
    """
    height, width = codes.shape
    for row in range(height):
        for col in range(width):
            code = codes[row, col]
            if at[code] < stop[code] and seen[code] == ranks[at[code]]:
                places[at[code], 0] = first + row
                places[at[code], 1] = col
                at[code] += 1
            seen[code] += 1


def draw_pixels(
    coded: ClassRaster,
    counts: NDArray[np.int64],
    wanted: dict[int, int],
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places (n, 2) row, column and codes (n,) of a random sample without replacement, code by code.

    counts   (256,) from `count_codes`;  wanted: code -> number of pixels
    Raises SettingsError where more is wanted of a code than there is.
    """
    rng = np.random.default_rng(seed)
    stop, parts = np.zeros(256, np.int64), []
    start = np.zeros(256, np.int64)
    total = 0
    for code in range(256):
        start[code] = total
        number = wanted.get(code, 0)
        if number > counts[code]:
            raise SettingsError(f"{coded.path}: {number} pixels of code {code} wanted, it has {counts[code]}")
        if number:
            parts.append(_ranks(rng, int(counts[code]), number))
            total += number
        stop[code] = total
    ranks = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    places, at, seen = np.zeros((total, 2), np.int64), start.copy(), np.zeros(256, np.int64)
    for row, codes in strips(coded.path, progress, "drawing"):
        _find(codes, row, ranks, stop, at, seen, places)
    return places, np.repeat(np.arange(256), stop - start)


def _ranks(rng: np.random.Generator, population: int, number: int) -> NDArray[np.int64]:
    """``number`` different ranks below ``population``, ascending, in memory for the number alone."""
    if number * 4 > population:
        return np.sort(rng.permutation(population)[:number]).astype(np.int64)
    chosen = np.unique(rng.integers(0, population, number))
    while len(chosen) < number:
        more = rng.integers(0, population, number - len(chosen))
        chosen = np.unique(np.concatenate([chosen, more]))
    return chosen.astype(np.int64)


def values_at(coded: ClassRaster, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Codes (n,) of a map under places in its CRS; nodata, or -1 where the map has no such code, outside."""
    col, row = ~coded.grid.affine * (np.asarray(x), np.asarray(y))
    rows, cols = np.floor(row).astype(int), np.floor(col).astype(int)
    inside = (rows >= 0) & (rows < coded.grid.height) & (cols >= 0) & (cols < coded.grid.width)
    found = np.full(len(rows), -1 if coded.nodata is None else coded.nodata, np.int64)
    with open_raster(coded.path) as file:
        for i in np.lexsort((cols, rows)):
            if inside[i]:
                found[i] = read_window(file, Window(int(rows[i]), int(cols[i]), 1, 1), 1)[0, 0]
    return found


def require_grid_of(strata: ClassRaster, coded: ClassRaster) -> None:
    """Raise GridMismatchError where strata do not lie on the map's pixels."""
    if not same_grid(strata.grid, coded.grid):
        raise GridMismatchError(
            f"{strata.path} is {describe(strata.grid)}, but {coded.path} is {describe(coded.grid)}. "
            f"Bring the strata onto the map's grid (gdalwarp -r near)."
        )
