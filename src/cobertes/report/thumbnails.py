"""Thumbnails for the report: scene, labels, map, confidence and disagreement as small PNGs.

    30000 x 30000 px, longest side 700  ->  cells of 43 x 43 px  ->  a thumbnail of 698 x 698 px

A thumbnail pixel is one cell: the mean of its valid pixels (scenes, confidence), its modal code (labels, map) or
the share of its pixels that differ (disagreement). Row 0 is the top. Files are read from their overviews or strip
by strip, so memory depends on the width of a scene, not on its height.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rasterio
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.image import imsave
from numpy.typing import NDArray

from cobertes.errors import BandMismatchError, did_you_mean
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.nodata import valid_mask_chw
from cobertes.geo.observation import Observation
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend

STRIP_PIXELS = 4_000_000
"""Pixels per band that are read at once: 133 rows of a scene 30,000 px wide."""

CACHE_BYTES = 128 << 20
"""GDAL's block cache meanwhile: two rows of storage blocks of a 10-band scene 30,000 px wide."""

CONFIDENCE: Colormap = matplotlib.colormaps["cividis"]
DISAGREEMENT: Colormap = LinearSegmentedColormap.from_list("disagreement", ["#dfe3e6", "#e08a6a", "#a50026"])


@dataclass(frozen=True)
class AreaRasters:
    """Rasters by area name: maps (class codes), confidence (percent), labels (class codes); any may be missing."""

    maps: Mapping[str, Path]
    confidence: Mapping[str, Path]
    labels: Mapping[str, Path]


@dataclass(frozen=True)
class Picture:
    """PNG (bytes) of ``width`` x ``height`` pixels."""

    png: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """Data URI for the ``src`` of an ``<img>``."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def cell_size(shape: tuple[int, int], longest: int) -> int:
    """Side of a cell in pixels: at most ``longest`` cells on the longer side."""
    return max(1, math.ceil(max(shape) / longest))


# --- scenes


def scene_pictures(scenes: Sequence[Scene], rgb: Sequence[str], cell: int) -> list[Picture]:
    """One picture per season, all with the same stretch (2nd to 98th percentile per band); nodata is transparent.

    rgb   names of the bands shown as red, green and blue
    Raises BandMismatchError if a scene lacks one of them, InputFileError if it can't be read.
    """
    seasons = [scene_cells(_only(scene, rgb), cell) for scene in scenes]
    known = np.concatenate([values[:, ~np.isnan(values[0])] for values in seasons], axis=1)
    low, high = np.percentile(known, (2, 98), axis=1) if known.size else (np.zeros(len(rgb)), np.ones(len(rgb)))
    span = np.where(high > low, high - low, 1.0)
    return [_rgb_picture((values - low[:, None, None]) / span[:, None, None]) for values in seasons]


def scene_cells(scene: Scene, cell: int) -> NDArray[np.float32]:
    """Mean of the valid pixels of every cell.

    returns  (bands, ceil(height / cell), ceil(width / cell)) float32; NaN: no valid pixel
    """
    with _gdal():
        if cell > 1 and not scene.parts and all(_has_overviews(path) for path in scene.files):
            return _cells_from_overviews(scene, cell)
        sums, counts = [], []
        for window in _strips(scene.shape, cell):
            shown = scene.read_chw(window)
            values, valid = shown.converted(0), shown[1]
            values[:, ~valid] = 0
            sums.append(_sum_cells(values, cell))
            counts.append(_sum_cells(valid, cell))
    count = np.concatenate(counts)
    mean = np.concatenate(sums, axis=1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan).astype(np.float32)


def window_picture(scene: Scene, rgb: Sequence[str], window: Window) -> Picture:
    """Window of a scene at full resolution, with its own stretch; arguments as in `scene_pictures`."""
    values, valid = _only(scene, rgb).read_chw(window)
    cells = np.where(valid, values, np.nan).astype(np.float32)
    known = cells[:, valid]
    low, high = np.percentile(known, (2, 98), axis=1) if known.size else (np.zeros(len(rgb)), np.ones(len(rgb)))
    span = np.where(high > low, high - low, 1.0)
    return _rgb_picture((cells - low[:, None, None]) / span[:, None, None])


def _only(scene: Scene, names: Sequence[str]) -> Scene:
    for name in names:
        if name not in scene.band_names:
            hint = did_you_mean(name, scene.band_names)
            raise BandMismatchError(f"{scene.files[0]}: no band '{name}' to show.{hint}")
    return scene.select(names)


def _has_overviews(path: str) -> bool:
    with open_raster(path) as dataset:
        return bool(dataset.overviews(1))


def _cells_from_overviews(scene: Scene, cell: int) -> NDArray[np.float32]:
    shape = _cells(scene.shape, cell)
    values = np.zeros((len(scene.bands), *shape), scene.dtype)
    for i, band in enumerate(scene.bands):
        values[i] = read_window(band.path, None, band.index, shape=shape, resampling="average")
    shown = Observation(values, valid_mask_chw(values, scene.nodata), scene.conversion)
    return np.where(shown[1], shown.converted(0), np.nan).astype(np.float32)


def _rgb_picture(values: NDArray[np.floating[Any]]) -> Picture:
    valid = ~np.isnan(values[0])
    dots = np.zeros((*valid.shape, 4), np.uint8)
    dots[..., :3] = np.moveaxis(np.nan_to_num(values).clip(0, 1) * 255, 0, -1).round()
    dots[..., 3] = valid * 255
    return _picture(dots)


# --- codes, confidence, disagreement


def read_codes(path: Path, cell: int) -> NDArray[np.uint8]:
    """Modal code of every cell, (rows, cols) uint8."""
    return _read_cells(path, cell, "mode")[0]


def codes_picture(codes: NDArray[np.uint8], legend: Legend) -> Picture:
    """Codes (height, width) in the legend's colours; other codes are transparent."""
    palette = np.zeros((256, 4), np.uint8)
    for land in legend.classes:
        palette[land.code] = [*land.rgb, 255]
    return _picture(palette[codes])


def read_confidence(path: Path, cell: int) -> NDArray[np.float32]:
    """Mean confidence of every cell in percent, (rows, cols) float32; NaN without a map."""
    percent, nodata = _read_cells(path, cell, "average")
    return np.where(percent == nodata, np.nan, percent).astype(np.float32)


def shares_picture(shares: NDArray[np.floating[Any]], colours: Colormap) -> Picture:
    """Shares (height, width) from 0 to 1 in a colour map; NaN is transparent."""
    dots = colours(np.nan_to_num(shares), bytes=True)
    dots[..., 3] = ~np.isnan(shares) * 255
    return _picture(dots)


def css_gradient(colours: Colormap) -> str:
    """Stops of a CSS ``linear-gradient`` for a colour map, from low to high."""
    return ", ".join(matplotlib.colors.to_hex(colours(i / 8)) for i in range(9))


def disagreement(predicted: Path, labels: Path, legend: Legend, cell: int) -> NDArray[np.float32] | None:
    """Share of disagreeing pixels among the labelled pixels of every cell, at full resolution.

    returns  (rows, cols) float32, NaN: no pixel with both; None if the files differ in shape
    """
    index = legend.index_table()
    differs, both = [], []
    with _gdal(), open_raster(predicted) as a, open_raster(labels) as b:
        if a.shape != b.shape:
            return None
        for window in _strips(a.shape, cell):
            ours, theirs = index[read_window(a, window, 1)], index[read_window(b, window, 1)]
            known = (ours != IGNORE_INDEX) & (theirs != IGNORE_INDEX)
            both.append(_sum_cells(known, cell))
            differs.append(_sum_cells(known & (ours != theirs), cell))
    count = np.concatenate(both)
    return np.where(count > 0, np.concatenate(differs) / np.maximum(count, 1), np.nan).astype(np.float32)


def count_codes(path: Path) -> NDArray[np.int64]:
    """Histogram of the codes of a raster, (256,) int64, over all pixels."""
    counts = np.zeros(256, np.int64)
    with _gdal(), open_raster(path) as dataset:
        for window in _strips(dataset.shape, 1):
            counts += np.bincount(read_window(dataset, window, 1).ravel(), minlength=256)
    return counts


def _read_cells(path: Path, cell: int, resampling: str) -> tuple[NDArray[np.uint8], float | None]:
    with _gdal(), open_raster(path) as dataset:
        cells = _cells(dataset.shape, cell)
        return read_window(dataset, None, 1, shape=cells, resampling=resampling), dataset.nodata


# --- cells


def _gdal() -> rasterio.Env:
    """Bounded block cache: GDAL's default is a twentieth of the machine's memory."""
    return rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS", GDAL_CACHEMAX=CACHE_BYTES)


def _cells(shape: tuple[int, int], cell: int) -> tuple[int, int]:
    return math.ceil(shape[0] / cell), math.ceil(shape[1] / cell)


def _strips(shape: tuple[int, int], cell: int) -> Iterator[Window]:
    """Full-width strips of whole rows of cells; the last one may be lower."""
    height, width = shape
    rows = cell * max(1, STRIP_PIXELS // (cell * width))
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def _sum_cells(values: NDArray[Any], cell: int) -> NDArray[np.float64]:
    """Sum over cells of (..., height, width); the last row and column of cells may be smaller."""
    rows, cols = np.arange(0, values.shape[-2], cell), np.arange(0, values.shape[-1], cell)
    return np.add.reduceat(np.add.reduceat(values, rows, axis=-2, dtype=np.float64), cols, axis=-1)


def _picture(dots: NDArray[np.uint8]) -> Picture:
    file = io.BytesIO()
    imsave(file, dots, format="png", pil_kwargs={"optimize": True})
    return Picture(file.getvalue(), dots.shape[1], dots.shape[0])
