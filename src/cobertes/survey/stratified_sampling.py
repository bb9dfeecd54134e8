"""Stratified random sampling of a map of any size, in two passes over its rows: count, then locate.

ranks of the sampled pixels, class by class, drawn without replacement among the counted ones
3rd, 17th, 20th ... pixel of water in row-major order -> its row and column, found in the second pass
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
"""Pixels read at once: 533 rows of a map 30,000 px wide."""

CACHE_BYTES = 128 << 20


@dataclass(frozen=True)
class ClassRaster:
    """Raster of class codes: its grid, nodata, and names and colours by code."""

    path: Path
    grid: GeoBox
    nodata: int | None
    names: dict[int, str]
    colours: dict[int, str]

    def name(self, code: int) -> str:
        """Name of a code in the file, or the code itself."""
        return self.names.get(code) or f"code {code}"


def open_map(path: Path) -> ClassRaster:
    """Read the metadata of a map of uint8 codes. Raises InputFileError for other rasters."""
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
    """Iterate over strips, top to bottom: first row and codes (rows, width) uint8. Raises InputFileError."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_NUM_THREADS="ALL_CPUS"), open_raster(path) as file:
        block = file.block_shapes[0][0]
        rows = max(block, STRIP_PIXELS // file.width // block * block)
        with progress.bar(name, file.height * file.width / 1e6, "Mpx") as advance:
            for row in range(0, file.height, rows):
                height = min(rows, file.height - row)
                yield row, read_window(file, Window(row, 0, height, file.width), 1)
                advance(height * file.width / 1e6)


def count_codes(class_map: ClassRaster, progress: Progress = SILENT) -> NDArray[np.int64]:
    """Count the pixels of every code, (256,) int64; 0 for nodata."""
    counts = np.zeros(256, np.int64)
    for _, codes in strips(class_map.path, progress, "counting"):
        histogram(codes, counts)
    if class_map.nodata is not None and 0 <= class_map.nodata < 256:
        counts[class_map.nodata] = 0
    return counts


def count_both(class_map: ClassRaster, strata: ClassRaster, progress: Progress = SILENT) -> NDArray[np.int64]:
    """Count the pixels (256, 256) int64 by code of a map (rows) and stratum on its grid (columns)."""
    counts = np.zeros(256 * 256, np.int64)
    with open_raster(strata.path) as file:
        for row, codes in strips(class_map.path, progress, "counting"):
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
    positions: NDArray[np.int64],
) -> None:
    """Write the positions of the pixels whose rank among those of their code is in ``ranks``.

    codes     (rows, width); its top row is row ``first`` of the map
    ranks     (n,) ascending within each code;  ``stop`` (256,) end of those of each code
    at, seen  (256,) next rank of each code, and its pixels so far; both carried from strip to strip
    positions (n, 2) row and column, written
    """
    height, width = codes.shape
    for row in range(height):
        for col in range(width):
            code = codes[row, col]
            if at[code] < stop[code] and seen[code] == ranks[at[code]]:
                positions[at[code], 0] = first + row
                positions[at[code], 1] = col
                at[code] += 1
            seen[code] += 1


def draw_pixels(
    class_map: ClassRaster,
    counts: NDArray[np.int64],
    wanted: dict[int, int],
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a random sample without replacement: positions (n, 2) row, column and codes (n,), code by code.

    counts   (256,) from `count_codes`;  wanted: code -> number of pixels
    Raises SettingsError if a code has fewer pixels than wanted; InputFileError.
    """
    rng = np.random.default_rng(seed)
    stop, parts = np.zeros(256, np.int64), []
    start = np.zeros(256, np.int64)
    total = 0
    for code in range(256):
        start[code] = total
        number = wanted.get(code, 0)
        if number > counts[code]:
            raise SettingsError(f"{class_map.path}: {number} pixels of code {code} wanted, it has {counts[code]}")
        if number:
            parts.append(_ranks(rng, int(counts[code]), number))
            total += number
        stop[code] = total
    ranks = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    positions, at, seen = np.zeros((total, 2), np.int64), start.copy(), np.zeros(256, np.int64)
    for row, codes in strips(class_map.path, progress, "drawing"):
        _find(codes, row, ranks, stop, at, seen, positions)
    return positions, np.repeat(np.arange(256), stop - start)


def _ranks(rng: np.random.Generator, population: int, number: int) -> NDArray[np.int64]:
    """Draw ``number`` different ranks below ``population``, ascending, in memory proportional to ``number``."""
    if number * 4 > population:
        return np.sort(rng.permutation(population)[:number]).astype(np.int64)
    chosen = np.unique(rng.integers(0, population, number))
    while len(chosen) < number:
        more = rng.integers(0, population, number - len(chosen))
        chosen = np.unique(np.concatenate([chosen, more]))
    return chosen.astype(np.int64)


def values_at(class_map: ClassRaster, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Read the codes (n,) at coordinates in the map's CRS; outside it nodata, or -1 without one."""
    col, row = ~class_map.grid.affine * (np.asarray(x), np.asarray(y))
    rows, cols = np.floor(row).astype(int), np.floor(col).astype(int)
    inside = (rows >= 0) & (rows < class_map.grid.height) & (cols >= 0) & (cols < class_map.grid.width)
    found = np.full(len(rows), -1 if class_map.nodata is None else class_map.nodata, np.int64)
    with open_raster(class_map.path) as file:
        for i in np.lexsort((cols, rows)):
            if inside[i]:
                found[i] = read_window(file, Window(int(rows[i]), int(cols[i]), 1, 1), 1)[0, 0]
    return found


def require_grid_of(strata: ClassRaster, class_map: ClassRaster) -> None:
    """Raise GridMismatchError if the grids of strata and map differ."""
    if not same_grid(strata.grid, class_map.grid):
        raise GridMismatchError(
            f"{strata.path} is {describe(strata.grid)}, but {class_map.path} is {describe(class_map.grid)}. "
            f"Bring the strata onto the map's grid (gdalwarp -r near)."
        )
