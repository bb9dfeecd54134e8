"""Assignment of blocks to the parts of the split: block size, random search, guard bands and their cost."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from shapely.geometry import box
from shapely.strtree import STRtree

from cobertes.errors import SplitError
from cobertes.geo.area import Area
from cobertes.geo.grid import ALIGNMENT, crop, footprint, resolution
from cobertes.settings import SplitSettings
from cobertes.tiles.polygon_split import split_by_polygons
from cobertes.tiles.split import (
    HELD_OUT,
    AreaSplit,
    Cells,
    Part,
    Split,
    block_edges,
)

log = logging.getLogger(__name__)

MIN_BLOCKS = 20
"""Blocks below which scores are unreliable: the default block shrinks to have at least as many."""
TILES_PER_BLOCK = 4
"""Minimum default side of a block, in tiles, if the area allows: smaller blocks lose much to guard bands."""
PIECES = 4
"""Cells along the side of a tile in a split given by polygons."""
CANDIDATES = 1000
"""Random splits compared; the one with the most similar class shares is chosen."""
GUARD_SHARE_WARNING = 0.25
GUARD_CELLS = 4_000_000
"""Maximum cells of an area on which the share of guard bands is measured: a large area has many small blocks."""


def choose_block(
    shapes: Sequence[tuple[int, int]], stride: int, settings: SplitSettings, range_px: float | None = None
) -> int:
    """Choose the side of a block in pixels: ``settings.block``, or four tiles and at least ``range_px``.

    shapes    (height, width) of the areas in pixels
    range_px  range of spatial autocorrelation of the labels, if known
    The default shrinks until there are 20 blocks. Raises SplitError if one block would cover the only area.
    """
    if settings.method == "random":
        return stride
    if settings.by == "polygons":
        return max(1, stride // PIECES)
    if settings.by != "block":
        return max(max(shape) for shape in shapes)

    def blocks(side: int) -> int:
        return sum((len(block_edges(h, side)) - 1) * (len(block_edges(w, side)) - 1) for h, w in shapes)

    if settings.block is not None:
        if blocks(settings.block) == 1:
            height, width = shapes[0]
            raise SplitError(
                f"split.block = {settings.block} px, but the area has {width} x {height} px: one block can't be "
                f"split. Leave split.block out, or take at most {max(1, min(height, width) // 4)} px."
            )
        return settings.block
    for tiles in range(max(TILES_PER_BLOCK, ceil((range_px or 0) / stride)), 0, -1):
        if blocks(tiles * stride) >= MIN_BLOCKS:
            return tiles * stride
    side = stride
    while side > 1 and blocks(side) < MIN_BLOCKS:
        side = max(1, int(side * 0.9))
    return side


def guard_band(size: int, settings: SplitSettings) -> int:
    """Width in pixels between training windows and held-out blocks: ``settings.guard``, or half of ``size``."""
    if settings.method == "random":
        return 0
    return size // 2 if settings.guard is None else settings.guard


def make_split(
    areas: Sequence[Area],
    counts: Mapping[str, NDArray[np.int64]],
    edges: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    *,
    block: int,
    guard: int,
    classes: Sequence[str],
    settings: SplitSettings,
    polygons: gpd.GeoDataFrame | None = None,
    quiet: bool = False,
) -> Split:
    """Assign the blocks at random, stratified by class: the best of many random splits.

    counts    per area: (block rows, block cols, K) labelled pixels per class
    edges     per area: borders of the block rows and columns, in pixels
    polygons  split given by the user, from `read_polygons` (``settings.by = "polygons"``): no random search then
    quiet     log no warnings about missing classes and guard bands
    Deterministic in ``settings.seed`` and the set of areas, in any order. Raises SplitError for too few blocks.
    """
    if polygons is not None:
        result = {a.name: split_by_polygons(a, edges[a.name], counts[a.name], polygons) for a in areas}
    else:
        result = _random_split(areas, counts, edges, settings)
    cells: Cells = "pieces" if polygons is not None else "tiles" if settings.method == "random" else "blocks"
    split = Split(result, block, guard, cells)
    _apply_guard_between_areas(areas, split)
    if not quiet:
        _warn(split, counts, classes, settings)
    return split


def _random_split(
    areas: Sequence[Area],
    counts: Mapping[str, NDArray[np.int64]],
    edges: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    settings: SplitSettings,
) -> dict[str, AreaSplit]:
    """Assign the blocks of all areas, from the best random split of the units."""
    unit_of, units = _units(areas, counts, settings)
    needed = 2 + (settings.test > 0)
    if len(units) < needed:
        way_out = {
            "block": "Use smaller tiles (tiles.size) or blocks (split.block).",
            "area": 'Add areas, or split them by block (split.by = "block").',
            "group": 'Add areas of other groups, or split by block or area (split.by = "area").',
        }
        raise SplitError(
            f"found {len(units)} labelled {settings.by}s to split, needed at least {needed}. "
            + way_out[settings.by]
        )
    if len(units) < MIN_BLOCKS:
        log.warning(
            "only %d labelled %ss to split: scores from less than %d say little about other ground",
            len(units),
            settings.by,
            MIN_BLOCKS,
        )
    part_of_unit = _search(units, settings)
    result = {}
    for area in areas:
        block_counts = counts[area.name]
        parts = np.full(block_counts.shape[:2], Part.NONE, "<U1")
        for row, col in np.argwhere(block_counts.sum(axis=2) > 0):
            parts[row, col] = part_of_unit[unit_of(area, int(row), int(col))]
        result[area.name] = AreaSplit(parts, *edges[area.name])
    return result


def _units(
    areas: Sequence[Area], counts: Mapping[str, NDArray[np.int64]], settings: SplitSettings
) -> tuple[Any, Any]:
    """Units of assignment: the function from (area, row, col) to its unit, and class counts (K,) by unit."""

    def unit_of(area: Area, row: int, col: int) -> tuple[str, int, int]:
        if settings.by == "group" and area.group is not None:
            return f"group:{area.group}", 0, 0
        return (area.name, row, col) if settings.by == "block" else (area.name, 0, 0)

    units: dict[tuple[str, int, int], NDArray[np.int64]] = {}
    for area in areas:
        for row, col in np.argwhere(counts[area.name].sum(axis=2) > 0):
            key = unit_of(area, int(row), int(col))
            units[key] = units.get(key, 0) + counts[area.name][row, col]
    return unit_of, dict(sorted(units.items()))


def _search(units: Mapping[tuple[str, int, int], NDArray[np.int64]], settings: SplitSettings) -> dict[Any, str]:
    """Part of every unit, from the random split with the lowest score.

    The score of a split is the mean relative deviation of the class shares from the requested one, plus 1 for
    every class that a held-out part lacks or has alone.
    """
    table = np.stack(list(units.values())).astype(float)  # (units, K)
    table = table[:, table.sum(axis=0) > 0]
    shares = table / table.sum(axis=0)
    size = table.sum(axis=1) / table.sum()
    rng = np.random.default_rng(settings.seed)
    targets = [(Part.VALIDATION, settings.validation), *([(Part.TEST, settings.test)] if settings.test else [])]
    best, best_score = np.full(len(size), Part.TRAIN), np.inf
    for _ in range(1 if settings.method == "random" else CANDIDATES):
        parts, score, free = np.full(len(size), Part.TRAIN), 0.0, rng.permutation(len(size))
        for i, (part, share) in enumerate(targets, start=1):
            # at least one unit, and at least one left for each split to come and for training
            most = len(free) - 1 - len(targets[i:])
            take = min(int(np.argmin(abs(np.cumsum(size[free]) - share))) + 1, most)
            parts[free[:take]], free = part, free[take:]
            held_out = shares[parts == part].sum(axis=0)
            missing = (held_out == 0).sum() + (held_out > 1 - 1e-9).sum()
            score += float(np.minimum(abs(held_out / share - 1), 2).mean()) + float(missing)
        if score < best_score:
            best, best_score = parts, score
    return dict(zip(units, best.tolist(), strict=True))


def _apply_guard_between_areas(areas: Sequence[Area], split: Split) -> None:
    """Leave out blocks that overlap or adjoin held-out blocks of another area.

    Training blocks keep the guard band, in the area's own pixels, from validation and test blocks of others;
    validation blocks, by which the epoch is chosen, must not overlap test blocks. Areas without CRS are
    unrelated.
    """
    near = list(_neighbours([area for area in areas if area.grid.crs is not None], split.guard))
    for area, others in near:
        _leave_out(area, Part.VALIDATION, others, (Part.TEST,), 0, split)
    for area, others in near:
        _leave_out(area, Part.TRAIN, others, HELD_OUT, split.guard, split)


def _neighbours(areas: Sequence[Area], guard: int) -> Iterator[tuple[Area, list[Area]]]:
    """Pairs of an area and the areas near its guard band, by their bounding boxes in degrees."""
    if len(areas) < 2:
        return
    boxes = [box(*footprint(area.grid, "EPSG:4326").bounds) for area in areas]
    tree = STRtree(boxes)
    for i, area in enumerate(areas):
        west, south, east, north = boxes[i].bounds
        margin = 2 * guard * max(east - west, north - south) / min(area.shape)
        near = tree.query(box(west - margin, south - margin, east + margin, north + margin))
        if others := [areas[j] for j in sorted(near) if j != i]:
            yield area, others


def _leave_out(
    area: Area, part: Part, others: Sequence[Area], held_out: Iterable[Part], guard: int, split: Split
) -> None:
    """Leave out the area's blocks of a part within ``guard`` pixels of the others' ``held_out`` blocks."""
    blocks, crs = split.areas[area.name], area.grid.crs
    tree = STRtree(
        [
            footprint(crop(other.grid, window), crs)
            for other in others
            for kind in held_out
            for window in split.areas[other.name].windows(kind)
        ]
    )
    margin = (guard - ALIGNMENT) * resolution(area.grid)  # touching is not overlapping
    for row, col in np.argwhere(blocks.parts == part):
        shape = footprint(crop(area.grid, blocks.block(int(row), int(col))))
        if len(tree.query(box(*shape.buffer(margin).bounds), predicate="intersects")):
            blocks.parts[row, col] = Part.GUARD


def _warn(
    split: Split, counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], settings: SplitSettings
) -> None:
    """Warn of labels lost to guard bands and of classes that a part lacks. Raises SplitError if required."""
    totals = {
        part: sum(counts[name][area.parts == part].sum(axis=0) for name, area in split.areas.items())
        for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)
    }
    sides = (Part.TRAIN, Part.VALIDATION, Part.TEST) if settings.test else (Part.TRAIN, Part.VALIDATION)
    everywhere = sum(area_counts.sum(axis=(0, 1)) for area_counts in counts.values())
    absent = [key for key, count in zip(classes, everywhere, strict=True) if not count]
    if absent:
        many, listed = len(absent) > 1, "', '".join(absent)
        text = f"class{'es' if many else ''} '{listed}' never occur{'' if many else 's'} in the labels"
        _report_missing(settings, text, "leave it out of the legend", "learnt or judged")
    for i, key in enumerate(classes):
        present = [s.label for s in sides if totals[s][i]]
        missing = [s.label for s in sides if not totals[s][i]]
        if missing and everywhere[i]:
            where = " and ".join(present) or "ground left out beside other areas"
            text = f"class '{key}' is in {where} but not in {' and '.join(missing)}"
            _report_missing(settings, text, "use smaller blocks", "learnt" if "train" in missing else "judged")
    lost = guard_share(split, counts)
    if lost > GUARD_SHARE_WARNING and settings.by == "block":
        log.warning(
            "guard bands take %.0f %% of the labelled ground: larger blocks (split.block = %d px) or a narrower "
            "split.guard (%d px now) leave more to learn from",
            100 * lost,
            split.block,
            split.guard,
        )


def _report_missing(settings: SplitSettings, text: str, way_out: str, lacks: str) -> None:
    if settings.require_all_classes:
        raise SplitError(f"{text}. Set split.require-all-classes = false, or {way_out}.")
    log.warning("%s: it can't be %s", text, lacks)


def guard_share(split: Split, counts: Mapping[str, NDArray[np.int64]]) -> float:
    """Share of the labelled pixels that guard bands exclude from training, on a grid of 1/32 block or coarser."""
    lost = total = 0.0
    for name, area in split.areas.items():
        labelled = counts[name].sum(axis=2)
        total += labelled.sum()
        lost += labelled[area.parts == Part.GUARD].sum()
        coarsest = int(np.sqrt(int(area.row_edges[-1]) * int(area.col_edges[-1]) / GUARD_CELLS))
        step = max(1, split.block // 32, min(coarsest, split.block // 2))
        rows = np.searchsorted(area.row_edges, np.arange(0, area.row_edges[-1], step), "right") - 1
        cols = np.searchsorted(area.col_edges, np.arange(0, area.col_edges[-1], step), "right") - 1
        fine = area.parts[np.ix_(rows, cols)]
        near = maximum_filter(np.isin(fine, list(HELD_OUT)), 2 * (split.guard // step) + 1, mode="constant")
        cells = np.bincount(rows, minlength=len(labelled))[:, None] * np.bincount(
            cols, minlength=labelled.shape[1]
        )
        lost += (labelled / cells)[np.ix_(rows, cols)][near & (fine == Part.TRAIN)].sum()
    return float(lost / total) if total else 0.0
