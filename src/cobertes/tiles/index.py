"""Tile index: one row per location, its seasons together; no tile is written to a file.

    labels  --count--->  class histograms of tiles, interiors and blocks; the range of autocorrelation
                         |-> filters on labels: tiles without labels, of sea alone ... are never read
                         '-> the split, from the histograms of the blocks
    scenes  --measure->  validity, clouds, snow, moments of each remaining tile (cached)
                         '-> filters on measurements, then on the location in the split -> keep, reason

Each pixel counts once in the statistics at any overlap, because the tiles' interiors partition an area.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Polygon, box

from cobertes.atomic_io import StrPath, replacing
from cobertes.errors import InputFileError, NoTilesError, SettingsError
from cobertes.geo.area import Area
from cobertes.geo.grid import crop, footprint, resolution
from cobertes.geo.windows import Window, interiors, tile_windows
from cobertes.labels.legend import Legend
from cobertes.progress import SILENT, Advance, Progress
from cobertes.settings import SplitSettings, TileSettings
from cobertes.tiles.band_statistics import PERCENTILES, Moments, Statistics
from cobertes.tiles.block_split import choose_block, guard_band, make_split
from cobertes.tiles.filters import (
    BETWEEN,
    CLOUDY,
    GUARD,
    SNOWY,
    SplitLocation,
    filter_by_labels,
    filter_by_measurements,
    first_reasons,
    locate_in_split,
)
from cobertes.tiles.label_counts import LabelCounts, count_labels, square_side
from cobertes.tiles.polygon_split import read_polygons
from cobertes.tiles.split import Part, Split, block_edges
from cobertes.tiles.tile_measurements import Tile, TileMeasurements, TileReader, measure_tiles
from cobertes.tiles.variogram import RangeEstimator

log = logging.getLogger(__name__)

MOST_SAID = 3
"""Scenes of an impossible scale that are named one by one."""

RANGE_AREAS = 50
"""Maximum number of areas, evenly chosen, from which the range of autocorrelation is measured."""


@dataclass(frozen=True)
class TileIndex:
    """Tile table, split and statistics of the training tiles.

    ``table`` has the columns area, row, col, height, width, block, split, keep, reason, labelled (share of
    pixels with a label); per season valid_SEASON (share with an observation), cloud_SEASON and snow_SEASON
    (shares of the observed pixels; all NaN if the scenes were not read, the last two also without a mask and
    usable bands); counts (labelled pixels per class index; observed ones only, if the scenes were read), dominant
    (class key), entropy (of the class shares, in bits) and geometry.
    ``range_px`` is the range of autocorrelation of the labels in pixels, None if not needed or not found.
    """

    table: gpd.GeoDataFrame
    split: Split
    statistics: Statistics
    range_px: float | None = None


def build_index(
    areas: Sequence[Area],
    labels: Mapping[str, StrPath],
    legend: Legend,
    *,
    tiles: TileSettings | None = None,
    split: SplitSettings | None = None,
    polygons: StrPath | None = None,
    cache: StrPath | None = None,
    fingerprint: str = "",
    progress: Progress = SILENT,
) -> TileIndex:
    """Index the tiles of all areas, assign the split, and compute the statistics of the training tiles.

    labels     area name -> labels on the area's grid
    polygons   split given by the user (``split.by = "polygons"``)
    cache      file of the tile measurements, reused if its ``fingerprint`` (of scenes, labels and tiles) matches
    Raises NoTilesError without training or validation tiles, SplitError for too few blocks, SettingsError for an
    overlap not smaller than the tile, InputFileError.
    """
    label_files = {name: Path(path) for name, path in labels.items()}
    polygons, cache = (None if path is None else Path(path) for path in (polygons, cache))
    tiles, split = tiles or TileSettings(), split or SplitSettings()
    areas = sorted(areas, key=lambda area: area.name)
    _require_valid(tiles, split)
    by_area = {area.name: _tiles_of(area, tiles) for area in areas}
    found = [tile for area in areas for tile in by_area[area.name]]
    with progress.bar("labels of tiles", len(areas), "areas") as advance:
        histograms, range_px = _count_labels(areas, label_files, legend, tiles, split, advance)
    if not any(histogram.table.any() for histogram in histograms.values()):
        raise NoTilesError(
            f"none of {len(found)} tiles has a label. Check that the reference map lies on the scenes, its codes "
            f"and labels.as-nodata."
        )
    assigned = _assign_blocks(areas, label_files, legend, histograms, range_px, tiles, split, polygons)
    counts, own = (_tile_counts(histograms, by_area, which) for which in ("window", "interior"))
    by_labels = filter_by_labels(counts, tiles, legend)
    scenes = list(areas[0].scenes.values())
    measurements = (TileMeasurements.load(cache, fingerprint) if cache else None) or TileMeasurements.empty(
        counts, own, len(scenes), len(scenes[0].bands)
    )
    reader = TileReader.for_areas(areas, label_files, legend, tiles)
    measure_tiles(
        reader, found, by_labels == "", measurements,
        save=partial(measurements.save, cache, fingerprint) if cache else None, progress=progress,
    )  # fmt: skip
    if "drop" in (tiles.clouds, tiles.snow):
        _warn_of_scales(reader.impossible_scales(found, measurements))
    locations = [locate_in_split(tile.window, assigned.areas[tile.area], assigned.guard) for tile in found]
    sizes = np.array([tile.window.height * tile.window.width for tile in found])
    by_measurements = filter_by_measurements(measurements, sizes, tiles)
    reasons = first_reasons(by_labels, by_measurements, [location.reason for location in locations])
    table = _table(areas, found, locations, reasons, measurements, counts, legend)
    _require_training_tiles(table, tiles, assigned.block)
    return TileIndex(table, assigned, _statistics(areas[0], table, measurements), range_px)


def _warn_of_scales(lines: Sequence[str]) -> None:
    for line in lines[:MOST_SAID]:
        log.warning("%s", line)
    if len(lines) > MOST_SAID:
        log.warning("the same for %d more scenes", len(lines) - MOST_SAID)


def save_index(index: gpd.GeoDataFrame, path: Path) -> None:
    """Write the index as GeoParquet."""
    with replacing(path) as temporary:
        index.to_parquet(temporary)


def load_index(path: Path) -> gpd.GeoDataFrame:
    """Read the index. Raises InputFileError."""
    if not path.exists():
        raise InputFileError(f"no tile index at {path}. Run `cobertes run PROJECT --only tiles` first.")
    try:
        return gpd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputFileError(f"can't read {path}: {error}. Run the tiles stage again.") from error


def window_of(row: Any) -> Window:
    """Window of a row of the index."""
    return Window(int(row.row), int(row.col), int(row.height), int(row.width))


def _require_valid(tiles: TileSettings, split: SplitSettings) -> None:
    if tiles.overlap >= tiles.size:
        raise SettingsError(
            f"tiles.overlap = {tiles.overlap} px must be smaller than tiles.size = {tiles.size} px"
        )
    if split.method == "random":
        if tiles.overlap or split.by != "block":
            raise SettingsError(
                'split.method = "random" draws single tiles: it needs tiles.overlap = 0 and split.by = "block"'
            )
        log.warning(
            'split.method = "random": neighbouring tiles lie on both sides, so the scores flatter. For comparison '
            "only; `cobertes audit-split` says by how much"
        )


def _tiles_of(area: Area, tiles: TileSettings) -> list[Tile]:
    """Tiles of an area in row-major order, with their interiors."""
    rows, cols = (
        {start: (a, b) for start, a, b in interiors(length, tiles.size, tiles.overlap)} for length in area.shape
    )
    found = []
    for window in tile_windows(area.shape, tiles.size, tiles.overlap):
        (top, bottom), (left, right) = rows[window.row], cols[window.col]
        found.append(Tile(area.name, window, Window(top, left, bottom - top, right - left)))
    return found


def _tile_counts(
    histograms: Mapping[str, LabelCounts],
    tiles: Mapping[str, Sequence[Tile]],
    which: Literal["window", "interior"],
) -> NDArray[np.int64]:
    """Count (n, K) labelled pixels per class of the windows, or interiors, of all tiles."""
    return np.concatenate([
        histograms[name].counts([getattr(tile, which) for tile in found]) for name, found in tiles.items()
    ])  # fmt: skip


def _cuts(area: Area, tiles: TileSettings) -> tuple[list[int], list[int]]:
    """Row and column borders of all tiles, interiors and blocks of whole tiles."""

    def along(length: int) -> list[int]:
        stride = tiles.size - tiles.overlap
        found = {cut for s, a, b in interiors(length, tiles.size, tiles.overlap) for cut in (s, a, b)}
        found |= {min(s + tiles.size, length) for s, _, _ in interiors(length, tiles.size, tiles.overlap)}
        return sorted(found | set(range(0, length, stride)))

    return along(area.shape[0]), along(area.shape[1])


def _assign_blocks(
    areas: Sequence[Area],
    labels: Mapping[str, Path],
    legend: Legend,
    histograms: Mapping[str, LabelCounts],
    range_px: float | None,
    tiles: TileSettings,
    split: SplitSettings,
    polygons: Path | None,
) -> Split:
    """Choose the block size, and assign the blocks of all areas to the parts of the split."""
    block = choose_block([area.shape for area in areas], tiles.size - tiles.overlap, split, range_px)
    if range_px is not None:
        _log_range(range_px, block, areas[0])
    edges = {a.name: (block_edges(a.shape[0], block), block_edges(a.shape[1], block)) for a in areas}
    counts = {a.name: _block_counts(a, labels[a.name], histograms[a.name], edges[a.name], legend) for a in areas}
    return make_split(
        areas, counts, edges, block=block, guard=guard_band(tiles.size, split), classes=legend.keys,
        settings=split, polygons=None if polygons is None else read_polygons(polygons),
    )  # fmt: skip


def _block_counts(
    area: Area,
    labels: Path,
    histogram: LabelCounts,
    edges: tuple[NDArray[np.int64], NDArray[np.int64]],
    legend: Legend,
) -> NDArray[np.int64]:
    """Count (block rows, block cols, K) pixels per class; reads again if blocks and tiles end at other pixels."""
    if not (np.isin(edges[0], histogram.row_cuts).all() and np.isin(edges[1], histogram.col_cuts).all()):
        histogram = count_labels(labels, area.shape, edges[0].tolist(), edges[1].tolist(), legend)
    return histogram.grid(*edges)


def _count_labels(
    areas: Sequence[Area],
    labels: Mapping[str, Path],
    legend: Legend,
    tiles: TileSettings,
    split: SplitSettings,
    advance: Advance,
) -> tuple[dict[str, LabelCounts], float | None]:
    """Histograms of every area, and the range of autocorrelation in pixels if the block size depends on it."""
    range_needed = split.by == "block" and split.block is None and split.method == "block"
    sampled = {area.name for area in areas[:: -(-len(areas) // RANGE_AREAS)]} if range_needed else set()
    estimator = RangeEstimator([area.shape for area in areas], square_side(max(max(area.shape) for area in areas)))
    found = {}
    for area in areas:
        histogram = count_labels(
            labels[area.name], area.shape, *_cuts(area, tiles), legend, advance, squares=area.name in sampled
        )
        if histogram.squares.size:
            estimator.add(histogram.squares, histogram.side)
        found[area.name] = replace(histogram, squares=histogram.squares[:0])  # they are large
    return found, estimator.result().range_ if range_needed else None


def _log_range(range_px: float, block: int, area: Area) -> None:
    size = (
        ""
        if area.grid.crs is None or area.grid.crs.geographic
        else f" ({range_px * resolution(area.grid) / 1000:.1f} km)"
    )
    if block >= range_px:
        log.info("labels resemble each other over %.0f px%s: blocks of %d px", range_px, size, block)
    else:
        log.warning(
            "labels resemble each other over %.0f px%s, but larger blocks than %d px would be fewer than 20: "
            "held-out ground is not quite new ground",
            range_px,
            size,
            block,
        )


def _table(
    areas: Sequence[Area],
    tiles: Sequence[Tile],
    locations: Sequence[SplitLocation],
    reasons: NDArray[np.object_],
    measurements: TileMeasurements,
    counts: NDArray[np.int64],
    legend: Legend,
) -> gpd.GeoDataFrame:
    geometry, crs = _geometries(areas, tiles)
    windows = [tile.window for tile in tiles]
    size = np.array([window.height * window.width for window in windows])
    total = measurements.counts.sum(axis=1)
    shares = measurements.counts / np.maximum(total, 1)[:, None]
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    keys = np.array([*legend.keys, None], object)
    columns: dict[str, Any] = {
        "area": [tile.area for tile in tiles],
        **{side: [getattr(window, side) for window in windows] for side in ("row", "col", "height", "width")},
        "block": [location.block for location in locations],
        "split": [location.split for location in locations],
        "keep": reasons == "",
        "reason": reasons,
        "labelled": counts.sum(axis=1) / size,
    }
    for s, season in enumerate(areas[0].scenes):
        for what in ("valid", "cloud", "snow"):
            columns[f"{what}_{season}"] = getattr(measurements, what)[:, s]
    columns["counts"] = measurements.counts.tolist()
    columns["dominant"] = keys[np.where(total > 0, measurements.counts.argmax(axis=1), len(legend))]
    columns["entropy"] = np.where(total > 0, -(shares * logs).sum(axis=1), np.nan)
    return gpd.GeoDataFrame(columns, geometry=geometry, crs=crs)


def _geometries(areas: Sequence[Area], tiles: Sequence[Tile]) -> tuple[list[Polygon], str | None]:
    """Outlines in EPSG:4326; if an area has no CRS, all in pixels, with the areas side by side."""
    windows: dict[str, list[Window]] = {area.name: [] for area in areas}
    for tile in tiles:  # in the order of the areas
        windows[tile.area].append(tile.window)
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


def _require_training_tiles(index: gpd.GeoDataFrame, tiles: TileSettings, block: int) -> None:
    kept = index[index["keep"]]
    for part in (Part.TRAIN, Part.VALIDATION):
        if (kept["split"] == part.label).any():
            continue
        reasons = index.loc[~index["keep"], "reason"].value_counts()
        why = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
        raise NoTilesError(
            f"no {part.label} tile is left of {len(index)} (left out: {why}). " + _way_out(reasons, tiles, block)
        )


def _way_out(reasons: Any, tiles: TileSettings, block: int) -> str:
    """Advice about the filter that excluded most tiles."""
    asks_more = {
        "few labelled pixels": ("min-labelled", tiles.min_labelled),
        "few valid pixels": ("min-valid", tiles.min_valid),
    }
    for reason in reasons.index:  # the most frequent one first
        if reason == "no observation":
            return "The scenes hold no valid pixel there: check their nodata value (`scene-nodata`)."
        if reason in asks_more:
            key, value = asks_more[reason]
            return f"tiles.{key} = {value:g} asks for more: lower it."
        if reason in (CLOUDY, SNOWY):
            key = "clouds" if reason == CLOUDY else "snow"
            return f'tiles.max-{reason.removesuffix("y")} asks for less: raise it, or set tiles.{key} = "keep".'
        if reason in (GUARD, BETWEEN):
            return (
                f"Tiles of {tiles.size} px do not fit blocks of {block} px: smaller tiles.size or larger "
                f"split.block."
            )
    return "Check the reference map's place, its codes and tiles.drop-only."


def _statistics(area: Area, index: gpd.GeoDataFrame, measurements: TileMeasurements) -> Statistics:
    training = (index["keep"] & (index["split"] == Part.TRAIN.label)).to_numpy()
    seasons = tuple(area.scenes)
    total = Moments.total(
        np.repeat(measurements.pixels[training][:, :, None], measurements.mean.shape[2], axis=2),
        measurements.mean[training],
        measurements.squares[training],
    )
    for season, pixels in zip(seasons, total.count[:, 0], strict=True):
        if pixels == 0:
            raise NoTilesError(
                f"season '{season}' has no valid pixel in the training tiles. Check its files and their nodata "
                f"value (`scene-nodata`), or leave the season out."
            )
    sample = (
        measurements.sample[training].reshape(-1, *measurements.sample.shape[2:]).astype(np.float64)
    )  # (pixels, S, B)
    unobserved = np.isnan(sample).all(axis=0)
    sample[:, unobserved] = total.mean[unobserved]  # so few observed pixels that none was sampled
    percentiles = np.nanpercentile(sample, PERCENTILES, axis=0)
    return Statistics(
        seasons,
        next(iter(area.scenes.values())).band_names,
        total.mean,
        total.std,
        np.moveaxis(percentiles, 0, 2),
        int(total.count.max()),
        measurements.own_counts[training].sum(axis=0),
    )
