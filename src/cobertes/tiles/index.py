"""The tile index: one row per place, its seasons together; nothing is cut into files.

Pass 1 reads the labels: class counts per block and per tile. The split is drawn from the blocks' counts.
Pass 2 reads the scenes, only where a tile is labelled and wanted: validity, and the statistics of the
training ground. Each pixel counts once there at any overlap, because the tiles' interiors partition an area.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from shapely.geometry import Polygon, box

from cobertes.errors import InputFileError, NoTilesError, SettingsError
from cobertes.files import replacing
from cobertes.geo.area import Area
from cobertes.geo.grid import crop, footprint
from cobertes.geo.windows import Window, interiors, tile_windows
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.progress import SILENT, Progress
from cobertes.settings import SplitSettings, TileSettings
from cobertes.tiles.split import (
    EMPTY,
    LEFT_OUT,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
    AreaSplit,
    Split,
    block_edges,
    choose_block,
    make_split,
)
from cobertes.tiles.statistics import Moments, Statistics

log = logging.getLogger(__name__)

READ_THREADS = 2

Cells = tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]
"""Start of a tile -> its interior, along rows and along columns."""


@dataclass(frozen=True)
class TileIndex:
    """What the tiles stage finds: the table, the split and the statistics of the training tiles.

    ``frame`` has the columns area, row, col, height, width, block, split, keep, reason, labelled (share of
    pixels with a label), valid_SEASON (share with an observation; NaN where the scenes were not read), counts
    (labelled pixels per class index; observed ones only, where the scenes were read), dominant (class key)
    and geometry.
    """

    frame: gpd.GeoDataFrame
    split: Split
    statistics: Statistics


def read_labels(path: Path, window: Window) -> NDArray[np.uint8]:
    """Class codes of a window of a labels file, (height, width) uint8; the window lies inside."""
    try:
        with rasterio.open(path) as dataset:
            codes: NDArray[np.uint8] = dataset.read(
                1, window=rasterio.windows.Window(window.col, window.row, window.width, window.height)
            )
            return codes
    except RasterioError as error:
        raise InputFileError(f"can't read the labels {path}: {error}. Run the labels stage again.") from error


def build_index(
    areas: Sequence[Area],
    labels: dict[str, Path],
    legend: Legend,
    *,
    tiles: TileSettings,
    split: SplitSettings,
    progress: Progress = SILENT,
) -> TileIndex:
    """Index the tiles of all areas, draw the split, and measure the training ground.

    labels   area name -> labels on the area's grid
    Raises NoTilesError where nothing is left to learn from, SplitError where the ground can't be split,
    SettingsError where a tile's overlap is not smaller than its size.
    """
    areas = sorted(areas, key=lambda area: area.name)
    if tiles.overlap >= tiles.size:
        raise SettingsError(
            f"tiles.overlap = {tiles.overlap} px must be smaller than tiles.size = {tiles.size} px"
        )
    stride = tiles.size - tiles.overlap
    block = choose_block([area.shape for area in areas], stride, split)
    guard = tiles.size // 2 if split.guard is None else split.guard
    edges = {a.name: (block_edges(a.shape[0], block), block_edges(a.shape[1], block)) for a in areas}
    rows: list[dict[str, Any]] = []
    block_counts: dict[str, NDArray[np.int64]] = {}
    with progress.bar(
        "labels of tiles", sum(len(edges[a.name][0]) - 1 for a in areas), "rows of blocks"
    ) as advance:
        for area in areas:
            block_counts[area.name] = _count_blocks(labels[area.name], edges[area.name], legend, advance)
            rows += _count_tiles(area, labels[area.name], tiles, legend)
    if not any(counts.any() for counts in block_counts.values()):
        raise NoTilesError(
            f"none of {len(rows)} tiles has a label. Check that the reference map lies on the scenes, its codes "
            f"and labels.as-nodata."
        )
    drawn = make_split(areas, block_counts, edges, block=block, guard=guard, classes=legend.keys, settings=split)
    dropped = {legend.index(what) for what in tiles.drop_only}
    for row in rows:
        _judge(row, drawn.areas[row["area"]], guard, dropped, legend)
    moments = _observe(areas, labels, legend, rows, tiles, progress)
    frame = _frame(areas, rows, legend)
    _require_training_tiles(frame, tiles, block)
    statistics = _statistics(areas[0], rows, moments)
    return TileIndex(frame, drawn, statistics)


def save_index(frame: gpd.GeoDataFrame, path: Path) -> None:
    """Write the index as GeoParquet."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary)


def load_index(path: Path) -> gpd.GeoDataFrame:
    """Read the index. Raises InputFileError."""
    if not path.exists():
        raise InputFileError(f"no tile index at {path}. Run `cobertes run PROJECT --only tiles` first.")
    try:
        return gpd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputFileError(f"can't read {path}: {error}. Run the tiles stage again.") from error


def _count_blocks(
    path: Path, edges: tuple[NDArray[np.int64], NDArray[np.int64]], legend: Legend, advance: Any
) -> NDArray[np.int64]:
    """(block rows, block cols, K) pixels per class, strip by strip of at most 512 rows."""
    row_edges, col_edges = edges
    table, k = legend.index_table(), len(legend)
    counts = np.zeros((len(row_edges) - 1, len(col_edges) - 1, k), np.int64)
    for i, (top, bottom) in enumerate(pairwise(row_edges)):
        for start in range(int(top), int(bottom), 512):
            height = min(512, int(bottom) - start)
            strip = table[read_labels(path, Window(start, 0, height, int(col_edges[-1])))]
            for j, (left, right) in enumerate(pairwise(col_edges)):
                counts[i, j] += _class_counts(strip[:, left:right], k)
        advance(1)
    return counts


def _class_counts(indices: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    return np.bincount(indices.ravel(), minlength=IGNORE_INDEX + 1)[:classes]


def _count_tiles(area: Area, path: Path, tiles: TileSettings, legend: Legend) -> list[dict[str, Any]]:
    """A row per tile with its class counts, in all and in its own interior."""
    table, rows = legend.index_table(), []
    cells = _cells(area, tiles)
    strip, strip_row = np.zeros((0, 0), np.uint8), -1
    for window in tile_windows(area.shape, tiles.size, tiles.overlap):
        if window.row != strip_row:  # tiles come row by row: read each strip once
            strip_row = window.row
            strip = table[read_labels(path, Window(strip_row, 0, window.height, area.shape[1]))]
        indices = strip[:, window.col : window.col_stop]
        own = _class_counts(indices[_interior(cells, window).within(window)], len(legend))
        counts = _class_counts(indices, len(legend))
        rows.append({"area": area.name, "window": window, "counts": counts, "own_counts": own})
    return rows


def _judge(row: dict[str, Any], split: AreaSplit, guard: int, dropped: set[int], legend: Legend) -> None:
    """Split, keep and reason of a tile, from the labels alone."""
    window, counts = row["window"], row["counts"]
    letters = set(np.unique(split.touched(window)).tolist()) - {EMPTY}
    row["block"] = "{}-{}".format(*split.block_of(window))
    row["labelled"] = counts.sum() / (window.height * window.width)
    row["split"] = SPLIT_NAMES[next(iter(letters))] if len(letters) == 1 else SPLIT_NAMES[EMPTY]
    present = set(np.flatnonzero(counts).tolist())
    if not present:
        row["reason"] = "no labels"
    elif present <= dropped:
        row["reason"] = f"only {', '.join(legend.keys[i] for i in sorted(present))}"
    elif len(letters) > 1:
        row["reason"] = "between splits"
    elif letters == {LEFT_OUT} or (letters == {TRAIN} and not split.allows_training(window, guard)):
        row["reason"] = "guard band"
    else:
        row["reason"] = ""
    row["keep"] = not row["reason"]


def _observe(
    areas: Sequence[Area],
    labels: dict[str, Path],
    legend: Legend,
    rows: list[dict[str, Any]],
    tiles: TileSettings,
    progress: Progress,
) -> dict[str, list[Moments]]:
    """Read the scenes of wanted tiles: set their validity, return the moments of training ground per season."""
    moments: dict[str, list[Moments]] = {season: [] for area in areas for season in area.scenes}
    by_name = {area.name: (area, labels[area.name], _cells(area, tiles)) for area in areas}
    for row in rows:
        row |= {f"valid_{season}": np.nan for season in by_name[row["area"]][0].scenes}
    wanted = [row for row in rows if row["keep"]]

    def read(row: dict[str, Any]) -> dict[str, Moments]:
        area, path, cells = by_name[row["area"]]
        return _observe_tile(area, path, _interior(cells, row["window"]), tiles.min_labelled, legend, row)

    with (
        progress.bar("scenes of tiles", len(wanted), "tiles") as advance,
        ThreadPoolExecutor(READ_THREADS) as pool,
    ):
        for found in pool.map(read, wanted):
            for season, value in found.items():
                moments[season].append(value)
            advance(1)
    return moments


def _cells(area: Area, tiles: TileSettings) -> Cells:
    """Where each tile's interior lies; interiors partition the area."""
    rows, cols = (
        {start: (a, b) for start, a, b in interiors(length, tiles.size, tiles.overlap)} for length in area.shape
    )
    return rows, cols


def _interior(cells: Cells, window: Window) -> Window:
    (top, bottom), (left, right) = cells[0][window.row], cells[1][window.col]
    return Window(top, left, bottom - top, right - left)


def _observe_tile(
    area: Area, labels: Path, interior: Window, min_labelled: float, legend: Legend, row: dict[str, Any]
) -> dict[str, Moments]:
    """Set a tile's validity, counts, keep and reason; the moments of its interior if it is kept for training."""
    window, training = row["window"], row["split"] == SPLIT_NAMES[TRAIN]
    inside, seen = interior.within(window), np.zeros(window.shape, bool)
    found = {}
    for season, scene in area.scenes.items():
        values, valid = scene.read(window)
        row[f"valid_{season}"] = float(valid.mean())
        seen |= valid
        if training:
            found[season] = Moments.of(values[:, *inside][:, valid[inside]])
    if not seen.all():  # a label counts only where a season was observed
        indices = np.where(seen, legend.index_table()[read_labels(labels, window)], IGNORE_INDEX)
        row["counts"] = _class_counts(indices, len(legend))
        row["own_counts"] = _class_counts(indices[inside], len(legend))
    if not row["counts"].any():
        row["reason"] = "no observation"
    elif row["counts"].sum() < min_labelled * seen.size:
        row["reason"] = "few labelled pixels"
    row["keep"] = not row["reason"]
    return found if row["keep"] else {}


def _frame(areas: Sequence[Area], rows: list[dict[str, Any]], legend: Legend) -> gpd.GeoDataFrame:
    geometry, crs = _geometries(areas, rows)
    columns = {
        "area": [row["area"] for row in rows],
        **{side: [getattr(row["window"], side) for row in rows] for side in ("row", "col", "height", "width")},
        **{name: [row[name] for row in rows] for name in ("block", "split", "keep", "reason", "labelled")},
        **{f"valid_{s}": [row.get(f"valid_{s}", np.nan) for row in rows] for s in areas[0].scenes},
        "counts": [row["counts"].tolist() for row in rows],
        "dominant": [legend.keys[int(row["counts"].argmax())] if row["counts"].any() else None for row in rows],
    }
    return gpd.GeoDataFrame(columns, geometry=geometry, crs=crs)


def _geometries(areas: Sequence[Area], rows: list[dict[str, Any]]) -> tuple[list[Polygon], str | None]:
    """Outlines in EPSG:4326; where an area has no CRS, all in pixels, areas side by side."""
    windows: dict[str, list[Window]] = {area.name: [] for area in areas}
    for row in rows:  # area by area, as the areas come
        windows[row["area"]].append(row["window"])
    outlines: list[Polygon] = []
    if all(area.grid.crs is not None for area in areas):
        for area in areas:
            own = [footprint(crop(area.grid, window)) for window in windows[area.name]]
            outlines += gpd.GeoSeries(own, crs=area.grid.crs.proj).to_crs("EPSG:4326").tolist()
        return outlines, "EPSG:4326"
    left = 0
    for area in areas:
        for window in windows[area.name]:
            outlines.append(box(left + window.col, -window.row_stop, left + window.col_stop, -window.row))
        left += area.shape[1] + 1
    return outlines, None


def _require_training_tiles(frame: gpd.GeoDataFrame, tiles: TileSettings, block: int) -> None:
    kept = frame[frame["keep"]]
    for letter in (TRAIN, VALIDATION):
        if (kept["split"] == SPLIT_NAMES[letter]).any():
            continue
        reasons = frame.loc[~frame["keep"], "reason"].value_counts()
        why = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
        raise NoTilesError(
            f"no {SPLIT_NAMES[letter]} tile is left of {len(frame)} (left out: {why}). "
            + _way_out(reasons, tiles, block)
        )


def _way_out(reasons: Any, tiles: TileSettings, block: int) -> str:
    """What to do about the filter that the last tiles met; a tile is judged by its place before it is read."""
    if "no observation" in reasons:
        return "The scenes hold no valid pixel there: check their nodata value (`scene-nodata`)."
    if "few labelled pixels" in reasons:
        return f"tiles.min-labelled = {tiles.min_labelled:g} asks for more: lower it."
    if {"guard band", "between splits"} & set(reasons.index):
        return (
            f"Tiles of {tiles.size} px do not fit blocks of {block} px: smaller tiles.size or larger split.block."
        )
    return "Check the reference map's place, its codes and tiles.drop-only."


def _statistics(area: Area, rows: list[dict[str, Any]], moments: dict[str, list[Moments]]) -> Statistics:
    seasons = tuple(area.scenes)
    totals = [sum(moments[season][1:], moments[season][0]) for season in seasons]
    for season, total in zip(seasons, totals, strict=True):
        if total.count == 0:
            raise NoTilesError(
                f"season '{season}' has no valid pixel in the training tiles. Check its files and their nodata "
                f"value (`scene-nodata`), or leave the season out."
            )
    training = [row["own_counts"] for row in rows if row["keep"] and row["split"] == SPLIT_NAMES[TRAIN]]
    return Statistics(
        seasons,
        next(iter(area.scenes.values())).band_names,
        np.stack([total.mean for total in totals]),
        np.stack([total.std for total in totals]),
        max(total.count for total in totals),
        np.sum(training, axis=0),
    )


HELD_OUT = {"validation": VALIDATION, "test": TEST}
"""Names of the splits that can be judged."""
