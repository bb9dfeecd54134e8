"""The tile index: one row per place, its seasons together; nothing is cut into files.

    labels  --census-->  class counts of tiles, interiors and blocks; the range of autocorrelation
                         |-> rules on labels: tiles without labels, of sea alone ... are never read
                         '-> the split, drawn from the blocks' counts
    scenes  --observe->  validity, clouds, snow, moments of each remaining tile (kept for the next time)
                         '-> rules on what was seen, then on the place in the split -> keep, reason

Each pixel counts once in the statistics at any overlap, because the tiles' interiors partition an area.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Polygon, box

from cobertes.atomic_io import replacing
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
    Situation,
    first_reasons,
    judge_labels,
    judge_observations,
    judge_place,
)
from cobertes.tiles.label_counts import LabelCounts, square_side, take_census
from cobertes.tiles.polygon_split import read_polygons
from cobertes.tiles.split import SPLIT_NAMES, TEST, TRAIN, VALIDATION, Split, block_edges
from cobertes.tiles.tile_measurements import Place, TileMeasurements, TileReader, observe
from cobertes.tiles.variogram import RangeMeter

log = logging.getLogger(__name__)

RANGE_AREAS = 50
"""Areas, evenly chosen, from which the range of autocorrelation is measured, at most."""

HELD_OUT = {"validation": VALIDATION, "test": TEST}
"""Names of the splits that can be judged."""


@dataclass(frozen=True)
class TileIndex:
    """What the tiles stage finds: the table, the split and the statistics of the training tiles.

    ``table`` has the columns area, row, col, height, width, block, split, keep, reason, labelled (share of
    pixels with a label); per season valid_SEASON (share with an observation), cloud_SEASON and snow_SEASON
    (shares of the observed pixels; all NaN where the scenes were not read, the last two also where nothing
    tells); counts (labelled pixels per class index; observed ones only, where the scenes were read), dominant
    (class key), entropy (of the class shares, in bits) and geometry.
    ``reach`` is how far labels resemble each other in pixels, None where it was not asked or not found.
    """

    table: gpd.GeoDataFrame
    split: Split
    statistics: Statistics
    reach: float | None = None


def build_index(
    areas: Sequence[Area],
    labels: Mapping[str, Path],
    legend: Legend,
    *,
    tiles: TileSettings,
    split: SplitSettings,
    polygons: Path | None = None,
    cache: Path | None = None,
    fingerprint: str = "",
    progress: Progress = SILENT,
) -> TileIndex:
    """Index the tiles of all areas, draw the split, and measure the training ground.

    labels     area name -> labels on the area's grid
    polygons   a user's own split (``split.by = "polygons"``)
    cache      where observations are kept for the next time, and found again where ``fingerprint``, the
               fingerprint of scenes, labels and tiles, is the same
    Raises NoTilesError where nothing is left to learn from, SplitError where the ground can't be split,
    SettingsError where a tile's overlap is not smaller than its size.
    """
    areas = sorted(areas, key=lambda area: area.name)
    _require_fitting(tiles, split)
    by_area = {area.name: _places(area, tiles) for area in areas}
    places = [place for area in areas for place in by_area[area.name]]
    stride = tiles.size - tiles.overlap
    with progress.bar("labels of tiles", len(areas), "areas") as advance:
        censuses, reach = _take_censuses(areas, labels, legend, tiles, split, advance)
    if not any(census.table.any() for census in censuses.values()):
        raise NoTilesError(
            f"none of {len(places)} tiles has a label. Check that the reference map lies on the scenes, its codes "
            f"and labels.as-nodata."
        )
    block = choose_block([area.shape for area in areas], stride, split, reach)
    if reach is not None:
        _tell_range(reach, block, areas[0])
    guard = guard_band(tiles.size, split)
    edges = {a.name: (block_edges(a.shape[0], block), block_edges(a.shape[1], block)) for a in areas}
    block_counts = {
        a.name: _block_counts(a, labels[a.name], censuses[a.name], edges[a.name], legend) for a in areas
    }
    drawn = make_split(
        areas, block_counts, edges, block=block, guard=guard, classes=legend.keys, settings=split,
        polygons=None if polygons is None else read_polygons(polygons),
    )  # fmt: skip

    counts, own = (
        np.concatenate([
            censuses[name].counts([getattr(place, side) for place in found]) for name, found in by_area.items()
        ])
        for side in ("window", "interior")
    )  # fmt: skip
    by_labels = judge_labels(counts, tiles, legend)
    scene = next(iter(areas[0].scenes.values()))
    seen = (TileMeasurements.load(cache, fingerprint) if cache else None) or TileMeasurements.empty(
        counts, own, len(areas[0].scenes), len(scene.bands)
    )
    observe(
        TileReader.of(areas, labels, legend, tiles),
        places,
        by_labels == "",
        seen,
        save=lambda: seen.save(cache, fingerprint) if cache else None,
        progress=progress,
    )
    sizes = np.array([place.window.height * place.window.width for place in places])
    situations = [judge_place(place.window, drawn.areas[place.area], guard) for place in places]
    reasons = first_reasons(
        by_labels, judge_observations(seen, sizes, tiles), [situation.reason for situation in situations]
    )
    index = _frame(areas, places, situations, reasons, seen, counts, legend)
    _require_training_tiles(index, tiles, block)
    return TileIndex(index, drawn, _statistics(areas[0], index, seen), reach)


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
    """The window of a row of the index."""
    return Window(int(row.row), int(row.col), int(row.height), int(row.width))


def _require_fitting(tiles: TileSettings, split: SplitSettings) -> None:
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


def _places(area: Area, tiles: TileSettings) -> list[Place]:
    """The tiles of an area, row by row, with their interiors."""
    rows, cols = (
        {start: (a, b) for start, a, b in interiors(length, tiles.size, tiles.overlap)} for length in area.shape
    )
    found = []
    for window in tile_windows(area.shape, tiles.size, tiles.overlap):
        (top, bottom), (left, right) = rows[window.row], cols[window.col]
        found.append(Place(area.name, window, Window(top, left, bottom - top, right - left)))
    return found


def _cuts(area: Area, tiles: TileSettings) -> tuple[list[int], list[int]]:
    """Borders along rows and columns that tiles, interiors and blocks of whole tiles may have."""

    def along(length: int) -> list[int]:
        stride = tiles.size - tiles.overlap
        found = {cut for s, a, b in interiors(length, tiles.size, tiles.overlap) for cut in (s, a, b)}
        found |= {min(s + tiles.size, length) for s, _, _ in interiors(length, tiles.size, tiles.overlap)}
        return sorted(found | set(range(0, length, stride)))

    return along(area.shape[0]), along(area.shape[1])


def _block_counts(
    area: Area,
    labels: Path,
    census: LabelCounts,
    edges: tuple[NDArray[np.int64], NDArray[np.int64]],
    legend: Legend,
) -> NDArray[np.int64]:
    """(block rows, block cols, K) pixels per class; read again where blocks do not end where tiles do."""
    if not (np.isin(edges[0], census.row_cuts).all() and np.isin(edges[1], census.col_cuts).all()):
        census = take_census(labels, area.shape, edges[0].tolist(), edges[1].tolist(), legend)
    return census.grid(*edges)


def _take_censuses(
    areas: Sequence[Area],
    labels: Mapping[str, Path],
    legend: Legend,
    tiles: TileSettings,
    split: SplitSettings,
    advance: Advance,
) -> tuple[dict[str, LabelCounts], float | None]:
    """Every area's census; and how far labels resemble each other, where the size of the blocks depends on it."""
    wanted = split.by == "block" and split.block is None and split.method == "block"
    looked_at = {area.name for area in areas[:: -(-len(areas) // RANGE_AREAS)]} if wanted else set()
    meter = RangeMeter([area.shape for area in areas], square_side(max(max(area.shape) for area in areas)))
    found = {}
    for area in areas:
        census = take_census(
            labels[area.name], area.shape, *_cuts(area, tiles), legend, advance, squares=area.name in looked_at
        )
        if census.squares.size:
            meter.add(census.squares, census.side)
        found[area.name] = replace(census, squares=census.squares[:0])  # they are large
    return found, meter.result().range_ if wanted else None


def _tell_range(reach: float, block: int, area: Area) -> None:
    size = (
        ""
        if area.grid.crs is None or area.grid.crs.geographic
        else f" ({reach * resolution(area.grid) / 1000:.1f} km)"
    )
    if block >= reach:
        log.info("labels resemble each other over %.0f px%s: blocks of %d px", reach, size, block)
    else:
        log.warning(
            "labels resemble each other over %.0f px%s, but larger blocks than %d px would be fewer than 20: "
            "held-out ground is not quite new ground",
            reach,
            size,
            block,
        )


def _frame(
    areas: Sequence[Area],
    places: Sequence[Place],
    situations: Sequence[Situation],
    reasons: NDArray[np.object_],
    seen: TileMeasurements,
    counts: NDArray[np.int64],
    legend: Legend,
) -> gpd.GeoDataFrame:
    geometry, crs = _geometries(areas, places)
    windows = [place.window for place in places]
    size = np.array([window.height * window.width for window in windows])
    total = seen.counts.sum(axis=1)
    shares = seen.counts / np.maximum(total, 1)[:, None]
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    keys = np.array([*legend.keys, None], object)
    columns: dict[str, Any] = {
        "area": [place.area for place in places],
        **{side: [getattr(window, side) for window in windows] for side in ("row", "col", "height", "width")},
        "block": [situation.block for situation in situations],
        "split": [situation.split for situation in situations],
        "keep": reasons == "",
        "reason": reasons,
        "labelled": counts.sum(axis=1) / size,
    }
    for s, season in enumerate(areas[0].scenes):
        for what in ("valid", "cloud", "snow"):
            columns[f"{what}_{season}"] = getattr(seen, what)[:, s]
    columns["counts"] = seen.counts.tolist()
    columns["dominant"] = keys[np.where(total > 0, seen.counts.argmax(axis=1), len(legend))]
    columns["entropy"] = np.where(total > 0, -(shares * logs).sum(axis=1), np.nan)
    return gpd.GeoDataFrame(columns, geometry=geometry, crs=crs)


def _geometries(areas: Sequence[Area], places: Sequence[Place]) -> tuple[list[Polygon], str | None]:
    """Outlines in EPSG:4326; where an area has no CRS, all in pixels, areas side by side."""
    windows: dict[str, list[Window]] = {area.name: [] for area in areas}
    for place in places:  # area by area, as the areas come
        windows[place.area].append(place.window)
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
    for letter in (TRAIN, VALIDATION):
        if (kept["split"] == SPLIT_NAMES[letter]).any():
            continue
        reasons = index.loc[~index["keep"], "reason"].value_counts()
        why = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
        raise NoTilesError(
            f"no {SPLIT_NAMES[letter]} tile is left of {len(index)} (left out: {why}). "
            + _way_out(reasons, tiles, block)
        )


def _way_out(reasons: Any, tiles: TileSettings, block: int) -> str:
    """What to do about the rule that most tiles met."""
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


def _statistics(area: Area, index: gpd.GeoDataFrame, seen: TileMeasurements) -> Statistics:
    training = (index["keep"] & (index["split"] == SPLIT_NAMES[TRAIN])).to_numpy()
    seasons = tuple(area.scenes)
    total = Moments.total(
        np.repeat(seen.pixels[training][:, :, None], seen.mean.shape[2], axis=2),
        seen.mean[training],
        seen.squares[training],
    )
    for season, pixels in zip(seasons, total.count[:, 0], strict=True):
        if pixels == 0:
            raise NoTilesError(
                f"season '{season}' has no valid pixel in the training tiles. Check its files and their nodata "
                f"value (`scene-nodata`), or leave the season out."
            )
    sample = seen.sample[training].reshape(-1, *seen.sample.shape[2:]).astype(np.float64)  # (pixels, S, B)
    unseen = np.isnan(sample).all(axis=0)
    sample[:, unseen] = total.mean[unseen]  # so few observed pixels that none was drawn
    percentiles = np.nanpercentile(sample, PERCENTILES, axis=0)
    return Statistics(
        seasons,
        next(iter(area.scenes.values())).band_names,
        total.mean,
        total.std,
        np.moveaxis(percentiles, 0, 2),
        int(total.count.max()),
        seen.own_counts[training].sum(axis=0),
    )
