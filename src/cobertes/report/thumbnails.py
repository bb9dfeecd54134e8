"""Pictures for the report: a scene, its labels and its map as small PNGs, a training history as curves.

    30000 x 30000 px, longest side 700  ->  cells of 43 x 43 px  ->  a picture of 698 x 698 dots

A dot is one cell: the mean of its valid pixels (scenes, confidence), its commonest code (labels, map) or the
share of its pixels that differ (disagreement). Row 0 is the top. Files are read from their overviews or strip
by strip, so memory depends on the width of a scene, not on its height.
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import rasterio
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cobertes.errors import BandMismatchError, did_you_mean
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.nodata import valid_mask_chw
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend

STRIP_PIXELS = 4_000_000
"""Pixels per band that are read at once: 133 rows of a scene 30,000 px wide."""

CACHE_BYTES = 128 << 20
"""GDAL's block cache while pictures are made: two rows of storage blocks of a 10-band scene 30,000 px wide."""

CONFIDENCE: Colormap = matplotlib.colormaps["cividis"]
DISAGREEMENT: Colormap = LinearSegmentedColormap.from_list("disagreement", ["#dfe3e6", "#e08a6a", "#a50026"])


@dataclass(frozen=True)
class Picture:
    """A PNG (bytes) of ``width`` x ``height`` dots."""

    png: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """For the ``src`` of an ``<img>``."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def cell_size(shape: tuple[int, int], longest: int) -> int:
    """Side of a cell in pixels, so that the longer side has at most ``longest`` cells."""
    return max(1, math.ceil(max(shape) / longest))


# --- scenes


def scene_pictures(scenes: Sequence[Scene], rgb: Sequence[str], cell: int) -> list[Picture]:
    """One picture per season, all with the same stretch (2nd to 98th percentile per band), empty = transparent.

    rgb   names of the bands shown as red, green and blue
    Raises BandMismatchError where a scene lacks one of them, InputFileError where it can't be read.
    """
    seasons = [scene_cells(_only(scene, rgb), cell) for scene in scenes]
    known = np.concatenate([values[:, ~np.isnan(values[0])] for values in seasons], axis=1)
    low, high = np.percentile(known, (2, 98), axis=1) if known.size else (np.zeros(len(rgb)), np.ones(len(rgb)))
    span = np.where(high > low, high - low, 1.0)
    return [_rgb_picture((values - low[:, None, None]) / span[:, None, None]) for values in seasons]


def scene_cells(scene: Scene, cell: int) -> NDArray[np.float32]:
    """Mean of the valid pixels of every cell.

    returns  (bands, ceil(height / cell), ceil(width / cell)) float32, NaN where no pixel is valid
    """
    with _gdal():
        if cell > 1 and all(_has_overviews(path) for path in scene.files):
            return _cells_from_overviews(scene, cell)
        sums, counts = [], []
        for window in _strips(scene.shape, cell):
            values, valid = scene.read_chw(window)
            values[:, ~valid] = 0
            sums.append(_sum_cells(values, cell))
            counts.append(_sum_cells(valid, cell))
    count = np.concatenate(counts)
    mean = np.concatenate(sums, axis=1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan).astype(np.float32)


def window_picture(scene: Scene, rgb: Sequence[str], window: Window) -> Picture:
    """A window of a scene pixel by pixel, stretched by itself; arguments as in `scene_pictures`."""
    values, valid = _only(scene, rgb).read_chw(window)
    cells = np.where(valid, values, np.nan).astype(np.float32)
    known = cells[:, valid]
    low, high = np.percentile(known, (2, 98), axis=1) if known.size else (np.zeros(len(rgb)), np.ones(len(rgb)))
    span = np.where(high > low, high - low, 1.0)
    return _rgb_picture((cells - low[:, None, None]) / span[:, None, None])


def _only(scene: Scene, names: Sequence[str]) -> Scene:
    by_name = {band.name: band for band in scene.bands}
    for name in names:
        if name not in by_name:
            raise BandMismatchError(f"{scene.files[0]}: no band '{name}' to show.{did_you_mean(name, by_name)}")
    return replace(scene, bands=tuple(by_name[name] for name in names))


def _has_overviews(path: str) -> bool:
    with open_raster(path) as dataset:
        return bool(dataset.overviews(1))


def _cells_from_overviews(scene: Scene, cell: int) -> NDArray[np.float32]:
    shape = _cells(scene.shape, cell)
    values = np.zeros((len(scene.bands), *shape), scene.dtype)
    for i, band in enumerate(scene.bands):
        values[i] = read_window(band.path, None, band.index, shape=shape, resampling="average")
    valid = valid_mask_chw(values, scene.nodata)
    return np.where(valid, values, np.nan).astype(np.float32)


def _rgb_picture(values: NDArray[np.floating[Any]]) -> Picture:
    seen = ~np.isnan(values[0])
    dots = np.zeros((*seen.shape, 4), np.uint8)
    dots[..., :3] = np.moveaxis(np.nan_to_num(values).clip(0, 1) * 255, 0, -1).round()
    dots[..., 3] = seen * 255
    return _picture(dots)


# --- codes, confidence, disagreement


def read_codes(path: Path, cell: int) -> NDArray[np.uint8]:
    """The commonest code of every cell."""
    return _read_cells(path, cell, "mode")[0]


def codes_picture(codes: NDArray[np.uint8], legend: Legend) -> Picture:
    """Codes (height, width) in the legend's colours; codes without a class are transparent."""
    palette = np.zeros((256, 4), np.uint8)
    for land in legend.classes:
        palette[land.code] = [int(land.colour[i : i + 2], 16) for i in (1, 3, 5)] + [255]
    return _picture(palette[codes])


def read_confidence(path: Path, cell: int) -> NDArray[np.float32]:
    """Mean confidence of every cell in percent, NaN where there is none."""
    percent, nodata = _read_cells(path, cell, "average")
    return np.where(percent == nodata, np.nan, percent).astype(np.float32)


def shares_picture(shares: NDArray[np.floating[Any]], colours: Colormap) -> Picture:
    """Shares (height, width) from 0 to 1 as colours of a ramp; NaN is transparent."""
    dots = colours(np.nan_to_num(shares), bytes=True)
    dots[..., 3] = ~np.isnan(shares) * 255
    return _picture(dots)


def css_gradient(colours: Colormap) -> str:
    """The ramp as stops of a CSS ``linear-gradient``, from low to high."""
    return ", ".join(matplotlib.colors.to_hex(colours(i / 8)) for i in range(9))


def disagreement(predicted: Path, labels: Path, legend: Legend, cell: int) -> NDArray[np.float32] | None:
    """Share of the labelled pixels of every cell where map and labels differ; every pixel is compared.

    returns  (rows, cols) float32, NaN where no pixel has both; None where the files differ in shape
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
    """(256,) int64: pixels of every code in a raster of codes, all pixels counted."""
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
    """GDAL's block cache would grow to a twentieth of the machine's memory."""
    return rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS", GDAL_CACHEMAX=CACHE_BYTES)


def _cells(shape: tuple[int, int], cell: int) -> tuple[int, int]:
    return math.ceil(shape[0] / cell), math.ceil(shape[1] / cell)


def _strips(shape: tuple[int, int], cell: int) -> Iterator[Window]:
    """Full-width strips of whole rows of cells; the last one is what is left."""
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


# --- curves


@dataclass(frozen=True)
class Curve:
    """A line of a chart: SVG ``path``, ``dots`` for its points where they are few, its ``last`` value as text."""

    name: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over epochs in SVG units; ticks are (position, text); ``mark`` is the x of the epoch kept."""

    title: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: float | None


PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 46.0, 348.0, 12.0, 170.0


def draw_chart(
    title: str, epochs: Sequence[int], series: dict[str, Sequence[float | None]], *, log: bool = False, mark: Any
) -> Chart | None:
    """Lay out curves over epochs; None marks a gap. Returns None where no value is known.

    log   the axis shows powers of ten; values of 0 and below are gaps
    mark  the epoch to point out, or None
    """
    lines = {name: [_scaled(value, log) for value in values] for name, values in series.items()}
    known = [value for values in lines.values() for value in values if value is not None]
    if not known:
        return None
    ticks = _log_ticks(known) if log else MaxNLocator(5, min_n_ticks=3).tick_values(min(known), max(known))
    low, high = float(ticks[0]), float(ticks[-1])

    def x(epoch: float) -> float:
        span = max(epochs) - min(epochs)
        return PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * ((epoch - min(epochs)) / span if span else 0.5)

    def y(value: float) -> float:
        return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * (value - low) / (high - low)

    curves = []
    for name, values in lines.items():
        points = [None if v is None else (x(e), y(v)) for e, v in zip(epochs, values, strict=True)]
        dots = tuple(point for point in points if point) if len(epochs) <= 20 else ()
        last = next((v for v in reversed(series[name]) if v is not None), None)
        if last is not None:
            curves.append(Curve(name, _path(points), dots, f"{last:.3g}"))
    whole = [t for t in MaxNLocator(6, integer=True).tick_values(min(epochs), max(epochs)) if t == int(t)]
    x_ticks = tuple((x(t), f"{t:.0f}") for t in whole if min(epochs) <= t <= max(epochs))
    y_ticks = tuple((y(t), f"{10**t:.0e}".replace("e-0", "e-") if log else f"{t:.6g}") for t in ticks)
    marked = mark if isinstance(mark, int) and min(epochs) <= mark <= max(epochs) else None
    return Chart(title, tuple(curves), x_ticks, y_ticks, None if marked is None else x(marked))


def _scaled(value: float | None, log: bool) -> float | None:
    if value is None or (log and value <= 0):
        return None
    return math.log10(value) if log else value


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten around the logarithms ``values``, with 2 and 5 between them where there are only two."""
    low, high = math.floor(min(values) + 1e-9), math.ceil(max(values) - 1e-9)
    if high - low > 1:
        return [float(t) for t in range(low, high + 1)]
    return [low, low + math.log10(2), low + math.log10(5), low + 1.0]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path that starts anew after every gap."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "L"
    return "".join(parts)
