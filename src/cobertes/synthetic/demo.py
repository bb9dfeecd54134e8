"""Synthetic demo data of `cobertes demo`: two scenes, a 1 m reference map and a project, with known answers.

    landscape (1 m materials) -+-> class codes                                     -> data/reference-1m.tif
                               +-> mean spectrum of every 10 x 10 block, by season
                                   -> variation of fields and stands -> illumination of slopes
                                   -> snow, clouds and their shadow -> sensor noise -> data/april.tif, august.tif

The files have the layout of the model case: pixel-interleaved 96 x 96 storage blocks for the scenes, strips
of one row for the reference map, which has a few codes outside the legend, as real ones do.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import scipy.ndimage
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.atomic_io import StrPath, replacing, write_text
from cobertes.errors import SettingsError, StorageError
from cobertes.numba_cache import compiled
from cobertes.progress import SILENT, Advance, Progress
from cobertes.synthetic.landscape import Landscape, build_landscape
from cobertes.synthetic.nature import FACTOR, MATERIALS, Floats, fractal, sample

BANDS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
"""Band names in the order of the model case: bands 1 to 3 are red, green, blue."""

ORIGIN = (400_000.0, 4_600_000.0)
CRS = "EPSG:32631"
STORAGE_BLOCK = 96
SMALLEST = 96
STRIP = 32  # scene rows mixed at once; 320 rows of the fine map

# Surface reflectance in percent: typical values of Sentinel-2's bands, rounded, after the spectra of the
# ECOSTRESS (formerly ASTER) library (Baldridge et al. 2009, Remote Sensing of Environment 113, 711-715), the
# USGS library (Kokaly et al. 2017, USGS Data Series 1035) and, for roofs and paving, the London urban
# library (Kotthaus et al. 2014, ISPRS J. Photogrammetry and Remote Sensing 94, 194-212). They are visual
# means over kinds and moisture, not spectra of single samples.
SPECTRA = """
                       B02  B03  B04  B05  B06  B07  B08  B8A  B11  B12
conifer                2.0  3.6  2.5  6.0 16.0 19.0 20.5 21.5 10.5  5.0
evergreen oak          2.4  4.5  3.2  7.5 18.0 21.5 23.0 24.5 13.5  7.0
broadleaf in spring    1.7  4.6  2.2  8.4 28.0 34.5 35.5 37.5 16.8  7.2
broadleaf in summer    1.9  3.6  2.0  6.0 25.0 32.0 33.0 35.0 15.5  6.2
leafless               4.8  6.4  8.0 10.0 13.5 15.0 16.5 18.0 22.0 15.5
shrub                  3.5  5.5  5.6  9.0 16.0 18.5 20.5 22.0 20.0 12.0
grass                  3.2  7.0  4.6 11.5 26.0 31.0 34.0 35.5 22.5 12.0
dry grass              7.0 10.5 13.5 17.0 20.5 22.5 25.0 27.0 34.0 24.0
green crop             2.6  6.4  3.2 10.0 32.0 40.0 43.0 44.5 20.0  9.0
dense crop             2.2  5.5  2.6  9.0 31.0 40.0 43.0 45.0 20.0  9.0
rape in bloom          4.2 13.0 10.5 16.5 29.5 34.5 37.5 38.5 21.0 11.0
stubble                8.5 12.0 16.0 19.5 22.0 24.0 26.5 28.5 37.0 28.0
brown soil             6.0  8.5 11.5 14.0 15.5 17.0 18.5 20.0 27.0 23.0
light soil            10.5 14.5 19.0 22.0 23.5 25.0 26.5 28.0 36.0 31.0
vine                   3.0  6.0  4.0  9.5 24.0 29.0 32.0 33.5 20.0 10.5
olive                  4.5  6.5  6.0  9.0 16.5 19.0 21.0 22.5 19.0 11.5
limestone             16.0 20.0 23.5 25.5 26.5 27.5 29.0 30.0 33.5 30.0
schist                 8.5 10.0 11.5 12.5 13.5 14.0 15.0 15.5 19.5 17.5
sand                  18.0 24.0 30.0 33.0 34.5 35.5 37.0 38.0 45.0 41.0
asphalt                8.5  9.5 10.5 11.5 12.0 12.5 13.0 13.5 15.5 14.5
ballast                9.5 11.0 12.5 14.0 14.5 15.0 15.5 16.0 20.0 19.0
concrete              17.0 19.5 22.0 23.5 24.5 25.0 26.0 26.5 29.5 27.5
tile                   7.5  9.5 16.0 20.0 21.5 23.0 24.5 25.5 31.0 29.0
dark roof              7.5  8.0  8.5  9.0  9.5 10.0 10.5 11.0 13.0 12.5
metal                 32.0 33.0 33.5 33.5 34.0 34.0 34.5 34.5 36.0 34.0
fibre cement          20.0 22.0 23.5 24.5 25.0 25.5 26.5 27.0 29.0 27.0
pool                  22.0 24.0 12.0  8.0  5.0  4.5  4.0  3.5  2.0  1.5
clear water            3.0  3.4  2.0  1.5  1.0  0.9  0.8  0.7  0.4  0.3
turbid water           5.0  7.5  6.5  5.5  3.0  2.8  2.5  2.0  1.0  0.8
snow                  84.0 85.0 84.0 82.0 80.0 78.0 76.0 73.0 10.0  8.0
cloud                 54.0 54.0 55.0 56.0 57.0 57.0 58.0 59.0 45.0 35.0
"""


def _parse_spectra(table: str) -> dict[str, Floats]:
    head, *rows = table.strip().splitlines()
    order = [head.split().index(band) for band in BANDS]
    parsed: dict[str, Floats] = {}
    for row in rows:
        name, values = row[:20].strip(), np.array(row[20:].split(), np.float32) / 100
        parsed[name] = values[order]
    return parsed


REFLECTANCE = _parse_spectra(SPECTRA)
"""Reflectance (10,) float32, 0 to 1, by name, in the order of `BANDS`."""

VISIBLE, INFRARED, SHORTWAVE = slice(0, 3), slice(4, 8), slice(8, 10)


@dataclass(frozen=True)
class Season:
    """Season of a scene: ``sun`` elevation and azimuth in degrees; shares of ``snow`` and ``clouds``."""

    name: str
    sun: tuple[float, float]
    snow: float
    clouds: float


SEASONS = (Season("april", (54.0, 155.0), 0.012, 0.025), Season("august", (60.0, 146.0), 0.0, 0.010))


def write_demo(out: StrPath, *, size: int = 1200, seed: int = 0, progress: Progress = SILENT) -> Path:
    """Write scenes, reference map and project file; returns the path of the project file.

    size     side of the scenes in pixels of 10 m, at least 96; the reference map has ten times as many
    seed     seed of landscape, clouds and noise; the same seed and size give the same pixels

    Existing files of those names are replaced. About 20 s and 0.9 GB of memory at size 1200.
    Raises SettingsError (size), StorageError (disk full, no permission).
    """
    out = Path(out)
    if size < SMALLEST:
        raise SettingsError(
            f"a landscape of {size} x {size} px has no room for 12 classes: size starts at {SMALLEST}"
        )
    data = out / "data"
    _require_space(data, size)
    with progress.bar("demo data", total=4, unit="step") as advance:
        landscape = build_landscape(size, seed)
        advance(1)
        mixture = _write_reference(data / "reference-1m.tif", landscape, advance)
        for number, season in enumerate(SEASONS):
            bands = mixture[..., number * len(BANDS) : (number + 1) * len(BANDS)]
            pixels = _simulate_scene(landscape, bands, season, np.random.default_rng([seed, size, number + 1]))
            _write_scene(data / f"{season.name}.tif", pixels)
            advance(1)
    project = out / "project.toml"
    write_text(project, _project(size))
    return project


def _project(size: int) -> str:
    # a small landscape needs small tiles, for enough of them to split
    tile = min(64, max(32, size // 6 // 32 * 32))
    values = {"@km@": f"{size * 10 / 1000:g}", "@tile@": str(tile)}
    text = PROJECT
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def _require_space(data: Path, size: int) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't make the folder {data}: {error.strerror}. Choose another --out.") from error
    needed = size**2 * (FACTOR**2 + len(SEASONS) * len(BANDS) * 2) + 10_000_000
    free = shutil.disk_usage(data).free
    if needed > free:
        raise StorageError(
            f"{data} has {free / 1e6:,.0f} MB free, the demo data need {needed / 1e6:,.0f} MB. "
            f"Free some space or choose another --out."
        )


@compiled
def mix_rows(
    materials: NDArray[np.uint8],
    inside: Floats,
    first: int,
    spectra: Floats,
    classes: NDArray[np.uint8],
    mixture: Floats,
    codes: NDArray[np.uint8],
) -> None:
    """Compute the mean spectrum of every 10 x 10 block, and the class codes of the reference map.

    materials (10 H, W) uint8: material numbers of the rows from ``first`` (in 10 m pixels) on
    inside   (size, size) float32: negative outside the region
    spectra  (materials, bands) float32
    classes  (materials,) uint8: class code of each material
    mixture  (H, W / 10, bands) float32, written
    codes    (10 H, W) uint8, written; 0 outside the region
    """
    counts = np.zeros(classes.size, np.int64)
    for row in range(mixture.shape[0]):
        for col in range(mixture.shape[1]):
            counts[:] = 0
            # far from the border one sample is enough
            near = abs(inside[first + row, col]) < 6
            for r in range(row * 10, row * 10 + 10):
                for c in range(col * 10, col * 10 + 10):
                    counts[materials[r, c]] += 1
                    distance = inside[first + row, col]
                    if near:
                        distance = sample(inside, first * 10 + r + 0.5, c + 0.5)
                    codes[r, c] = classes[materials[r, c]] if distance > 0 else 0
            for b in range(mixture.shape[2]):
                mixture[row, col, b] = 0
            for material in range(classes.size):
                if counts[material]:
                    for b in range(mixture.shape[2]):
                        mixture[row, col, b] += counts[material] * spectra[material, b] / 100


def _write_reference(path: Path, landscape: Landscape, advance: Advance) -> Floats:
    """Write the reference map; returns the mixed spectra of all seasons (size, size, seasons * bands)."""
    size = len(landscape.elevation)
    spectra = np.array([np.concatenate([REFLECTANCE[a], REFLECTANCE[b]]) for _, a, b in MATERIALS.values()])
    classes = np.array([code for code, _, _ in MATERIALS.values()], np.uint8)
    mixture = np.empty((size, size, spectra.shape[1]), np.float32)
    grid = _grid(size * FACTOR, 10.0 / FACTOR)
    with _writing(path, grid, count=1, dtype="uint8", nodata=0, blockysize=1) as file:
        for first in range(0, size, STRIP):
            last = min(first + STRIP, size)
            materials = landscape.materials[first * FACTOR : last * FACTOR]
            codes = np.empty_like(materials)
            mix_rows(materials, landscape.inside, first, spectra, classes, mixture[first:last], codes)
            window = rasterio.windows.Window(0, first * FACTOR, size * FACTOR, len(codes))
            file.write(codes, 1, window=window)
            advance((last - first) / size)
    return mixture


def _simulate_scene(
    landscape: Landscape, mixture: Floats, season: Season, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Simulate a scene: (bands, size, size) uint16, reflectance x 10,000; 0 outside the scene."""
    size = len(landscape.elevation)
    scene = np.ascontiguousarray(np.moveaxis(mixture, 2, 0))
    _vary(scene, landscape.parcels, rng)
    scene *= _illumination(landscape.elevation, season.sun)
    if season.snow:
        _blend(scene, _snow(landscape.elevation, season, rng), REFLECTANCE["snow"])
    _add_clouds(scene, season, rng)
    scene *= 1 + 0.012 * rng.standard_normal(scene.shape, np.float32)
    scene += 0.0015 * rng.standard_normal(scene.shape, np.float32)
    # the mosaics of the seasons end a little inside or outside the region, each differently
    observed = landscape.inside > 0.006 * size * np.clip(fractal(rng, size, 2.0, size / 8), -1.5, 1.5)
    return np.where(observed, np.clip(np.rint(scene * 10_000), 1, 20_000), 0).astype(np.uint16)


def _vary(scene: Floats, parcels: NDArray[np.uint16], rng: np.random.Generator) -> None:
    """Vary brightness and vigour: from field to field, and continuously outside fields."""
    size = scene.shape[1]
    fields = parcels > 0
    brightness, vigour = (
        np.where(
            fields, rng.standard_normal(2**16, np.float32)[parcels], fractal(rng, size, 1.2, min(40, size / 4))
        )
        + 0.4 * fractal(rng, size, 0.6, 10)
        for _ in range(2)
    )
    scene[VISIBLE] *= np.exp(0.11 * brightness - 0.10 * vigour)
    scene[3] *= np.exp(0.09 * brightness - 0.04 * vigour)
    scene[INFRARED] *= np.exp(0.06 * brightness + 0.09 * vigour)
    scene[SHORTWAVE] *= np.exp(0.09 * brightness - 0.09 * vigour)


def _illumination(elevation: Floats, sun: tuple[float, float]) -> Floats:
    """Illumination (size, size) of each slope relative to level ground.

    Direct light is proportional to the cosine of the angle between sun and slope normal (the cosine law of Teillet
    et al. 1982, Canadian Journal of Remote Sensing 8, 84-106, applied forward); 40 % is diffuse.
    """
    down_row, down_col = (-g for g in np.gradient(elevation, 10.0))
    height, azimuth = np.radians(sun)
    # rows run to the south
    towards = down_col * np.sin(azimuth) - down_row * np.cos(azimuth)
    facing = (np.sin(height) + np.cos(height) * towards) / np.sqrt(1 + down_row**2 + down_col**2)
    return np.asarray(0.4 + 0.6 * np.maximum(facing, 0) / np.sin(height), np.float32)


def _snow(elevation: Floats, season: Season, rng: np.random.Generator) -> Floats:
    """Snow fraction (size, size): patches at high elevation, and lower down on northern slopes."""
    size = len(elevation)
    north = np.gradient(scipy.ndimage.gaussian_filter(elevation, 4), 10.0)[0]
    cold = elevation / elevation.std() - 1.5 * north + 0.5 * fractal(rng, size, 1.3, min(40, size / 4))
    edge = np.quantile(cold, 1 - season.snow)
    return np.asarray(np.clip((cold - edge) / 0.15, 0, 1), np.float32)


def _add_clouds(scene: Floats, season: Season, rng: np.random.Generator) -> None:
    """Add clouds with soft edges, and their shadows on the side away from the sun."""
    size = scene.shape[1]
    field = fractal(rng, size, 2.2, min(60, size / 4))
    clouds = np.clip((field - np.quantile(field, 1 - season.clouds)) / 0.35, 0, 1)
    azimuth, offset = np.radians(season.sun[1]), min(35.0, size / 8)
    shadow = scipy.ndimage.shift(clouds, (offset * np.cos(azimuth), -offset * np.sin(azimuth)), order=1)
    scene *= 1 - 0.6 * np.clip(shadow, 0, 1).astype(np.float32)
    _blend(scene, np.asarray(clouds, np.float32), REFLECTANCE["cloud"])


def _blend(scene: Floats, share: Floats, spectrum: Floats) -> None:
    scene += share * (spectrum[:, None, None] - scene)


def _grid(size: int, pixel: float) -> GeoBox:
    return GeoBox((size, size), Affine(pixel, 0, ORIGIN[0], 0, -pixel, ORIGIN[1]), CRS)


def _write_scene(path: Path, pixels: NDArray[np.uint16]) -> None:
    grid = _grid(pixels.shape[1], 10.0)
    layout = {"tiled": True, "blockxsize": STORAGE_BLOCK, "blockysize": STORAGE_BLOCK, "interleave": "pixel"}
    with _writing(path, grid, count=len(BANDS), dtype="uint16", **layout) as file:
        file.write(pixels)
        for i, name in enumerate(BANDS, start=1):
            file.set_band_description(i, name)


@contextmanager
def _writing(path: Path, grid: GeoBox, **profile: Any) -> Iterator[Any]:
    """Open an uncompressed GeoTIFF for writing; it gets its name when complete. Raises StorageError."""
    height, width = grid.shape
    needed = height * width * profile["count"] * np.dtype(profile["dtype"]).itemsize
    georeference = {"height": height, "width": width, "crs": CRS, "transform": grid.affine}
    with replacing(path) as temporary:
        with rasterio.open(temporary, "w", driver="GTiff", **georeference, **profile) as file:
            yield file
        # GDAL only logs failures while closing a file
        if temporary.stat().st_size < needed:
            raise StorageError(f"can't write {path}: the disk is full. Free some space or choose another folder.")


PROJECT = """\
# A made-up landscape of @km@ x @km@ km, written by `cobertes demo`. Run it again with: cobertes run project.toml
# Paths are relative to this file.

name = "demo"
legend = "catalonia-12"
bands = ["B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]

[[area]]
name = "mini-catalonia"
scenes = { april = "data/april.tif", august = "data/august.tif" }   # 10 m
reference = "data/reference-1m.tif"                                 # 1 m

[labels]
method = "majority"
# two codes that the legend lacks are left over from the 41-class map: beaches and sea
codes = { 19 = "bare-soil", 41 = "water" }

[tiles]
size = @tile@
drop-only = ["water"]      # the open sea teaches nothing

[split]
validation = 0.2           # in blocks of ground, never at random

[train]
minutes = 3.5              # of 100 epochs or this time, whichever is over first
"""
