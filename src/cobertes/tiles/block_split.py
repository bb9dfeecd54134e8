"""Drawing the split: the size of the blocks, which of them are held out, and what that costs."""

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
from cobertes.tiles.polygon_split import letters_of
from cobertes.tiles.split import (
    EMPTY,
    LEFT_OUT,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
    AreaSplit,
    Cells,
    Split,
    block_edges,
)

log = logging.getLogger(__name__)

MIN_BLOCKS = 20
"""Fewer blocks than this make a split that says little: the default block shrinks to reach it."""
TILES_PER_BLOCK = 4
"""Least side of a block by default, in tiles, where there is room: smaller ones lose much to guard bands."""
PIECES = 4
"""Pieces that a tile's side is cut into where polygons say which ground is whose."""
CANDIDATES = 1000
"""Random splits compared; the one whose class shares are most alike is taken."""
GUARD_SHARE_WARNING = 0.25
GUARD_CELLS = 4_000_000
"""Cells of an area, at most, on which the share of guard bands is measured: a large area has many small blocks."""


def choose_block(
    shapes: Sequence[tuple[int, int]], stride: int, settings: SplitSettings, reach: float | None = None
) -> int:
    """Side of a block: as asked; or four tiles and at least ``reach`` pixels, less if that leaves under 20 blocks.

    reach   how far labels resemble each other, where that is known
    Raises SplitError where the asked block leaves the only area in one piece.
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
    for tiles in range(max(TILES_PER_BLOCK, ceil((reach or 0) / stride)), 0, -1):
        if blocks(tiles * stride) >= MIN_BLOCKS:
            return tiles * stride
    side = stride
    while side > 1 and blocks(side) < MIN_BLOCKS:
        side = max(1, int(side * 0.9))
    return side


def guard_band(size: int, settings: SplitSettings) -> int:
    """Pixels between training windows and held-out blocks: as asked, or half a tile of ``size``."""
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
    """Draw the split: of many random ones, that in which each class's share is most alike.

    counts    per area: (block rows, block cols, K) labelled pixels per class
    edges     per area: borders of the block rows and columns, in pixels
    polygons  a user's own split, from `read_polygons` (``settings.by = "polygons"``): nothing is drawn then
    quiet     nothing is said of what the split costs
    Deterministic in ``settings.seed`` and the set of areas, in whatever order they come.
    Raises SplitError where there is too little to split.
    """
    if polygons is not None:
        result = {
            area.name: AreaSplit(
                letters_of(area, edges[area.name], counts[area.name], polygons), *edges[area.name]
            )
            for area in areas
        }
    else:
        result = _drawn(areas, counts, edges, settings)
    cells: Cells = "pieces" if polygons is not None else "tiles" if settings.method == "random" else "blocks"
    split = Split(result, block, guard, cells)
    _leave_out_beside_other_areas(areas, split)
    if not quiet:
        _warn(split, counts, classes, settings)
    return split


def _drawn(
    areas: Sequence[Area],
    counts: Mapping[str, NDArray[np.int64]],
    edges: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    settings: SplitSettings,
) -> dict[str, AreaSplit]:
    """The letters of all areas' blocks, as drawn."""
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
    letter = _draw(units, settings)
    result = {}
    for area in areas:
        block_counts = counts[area.name]
        letters = np.full(block_counts.shape[:2], EMPTY, "<U1")
        for row, col in np.argwhere(block_counts.sum(axis=2) > 0):
            letters[row, col] = letter[unit_of(area, int(row), int(col))]
        result[area.name] = AreaSplit(letters, *edges[area.name])
    return result


def _units(
    areas: Sequence[Area], counts: Mapping[str, NDArray[np.int64]], settings: SplitSettings
) -> tuple[Any, Any]:
    """What is drawn as one: the function from (area, block) to its unit, and class counts by unit."""

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


def _draw(units: Mapping[tuple[str, int, int], NDArray[np.int64]], settings: SplitSettings) -> dict[Any, str]:
    """A letter per unit."""
    table = np.stack(list(units.values())).astype(float)  # (units, K)
    table = table[:, table.sum(axis=0) > 0]
    shares = table / table.sum(axis=0)
    size = table.sum(axis=1) / table.sum()
    rng = np.random.default_rng(settings.seed)
    wanted = [(VALIDATION, settings.validation), *([(TEST, settings.test)] if settings.test else [])]
    best, best_score = np.full(len(size), TRAIN), np.inf
    for _ in range(1 if settings.method == "random" else CANDIDATES):
        letters, score, free = np.full(len(size), TRAIN), 0.0, rng.permutation(len(size))
        for i, (name, share) in enumerate(wanted, start=1):
            # at least one unit, and at least one left for each split to come and for training
            most = len(free) - 1 - len(wanted[i:])
            take = min(int(np.argmin(abs(np.cumsum(size[free]) - share))) + 1, most)
            letters[free[:take]], free = name, free[take:]
            got = shares[letters == name].sum(axis=0)
            lost = (got == 0).sum() + (got > 1 - 1e-9).sum()
            score += float(np.minimum(abs(got / share - 1), 2).mean()) + float(lost)
        if score < best_score:
            best, best_score = letters, score
    return dict(zip(units, best.tolist(), strict=True))


def _leave_out_beside_other_areas(areas: Sequence[Area], split: Split) -> None:
    """Mark blocks that lie on or near another area's held-out ground.

    Training blocks keep the guard band, in the area's own pixels, from validation and test blocks of others;
    validation blocks, by which the epoch is chosen, must not lie on test blocks. Areas without CRS are
    unrelated places.
    """
    near = list(_neighbours([area for area in areas if area.grid.crs is not None], split.guard))
    for area, others in near:
        _leave_out(area, VALIDATION, others, (TEST,), 0, split)
    for area, others in near:
        _leave_out(area, TRAIN, others, (VALIDATION, TEST), split.guard, split)


def _neighbours(areas: Sequence[Area], guard: int) -> Iterator[tuple[Area, list[Area]]]:
    """Areas with those that lie within their guard band, give or take, by the boxes of both in degrees."""
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
    area: Area, letter: str, others: Sequence[Area], held_out: Iterable[str], guard: int, split: Split
) -> None:
    """Mark the area's blocks of a split within ``guard`` pixels of the others' held-out blocks."""
    blocks, crs = split.areas[area.name], area.grid.crs
    tree = STRtree(
        [
            footprint(crop(other.grid, window), crs)
            for other in others
            for name in held_out
            for window in split.areas[other.name].windows(name)
        ]
    )
    reach = (guard - ALIGNMENT) * resolution(area.grid)  # to touch is not to overlap
    for row, col in np.argwhere(blocks.letters == letter):
        shape = footprint(crop(area.grid, blocks.block(int(row), int(col))))
        if len(tree.query(box(*shape.buffer(reach).bounds), predicate="intersects")):
            blocks.letters[row, col] = LEFT_OUT


def _warn(
    split: Split, counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], settings: SplitSettings
) -> None:
    """Say what the split costs, and which classes one side lacks."""
    totals = {
        letter: sum(counts[name][area.letters == letter].sum(axis=0) for name, area in split.areas.items())
        for letter in (TRAIN, VALIDATION, TEST)
    }
    sides = (TRAIN, VALIDATION, TEST) if settings.test else (TRAIN, VALIDATION)
    everywhere = sum(area_counts.sum(axis=(0, 1)) for area_counts in counts.values())
    absent = [key for key, count in zip(classes, everywhere, strict=True) if not count]
    if absent:
        many, listed = len(absent) > 1, "', '".join(absent)
        text = f"class{'es' if many else ''} '{listed}' never occur{'' if many else 's'} in the labels"
        _lacking(settings, text, "leave it out of the legend", "learnt or judged")
    for i, key in enumerate(classes):
        present = [SPLIT_NAMES[s] for s in sides if totals[s][i]]
        missing = [SPLIT_NAMES[s] for s in sides if not totals[s][i]]
        if missing and everywhere[i]:
            where = " and ".join(present) or "ground left out beside other areas"
            text = f"class '{key}' is in {where} but not in {' and '.join(missing)}"
            _lacking(settings, text, "use smaller blocks", "learnt" if "train" in missing else "judged")
    lost = guard_share(split, counts)
    if lost > GUARD_SHARE_WARNING and settings.by == "block":
        log.warning(
            "guard bands take %.0f %% of the labelled ground: larger blocks (split.block = %d px) or a narrower "
            "split.guard (%d px now) leave more to learn from",
            100 * lost,
            split.block,
            split.guard,
        )


def _lacking(settings: SplitSettings, text: str, way_out: str, lacks: str) -> None:
    if settings.require_all_classes:
        raise SplitError(f"{text}. Set split.require-all-classes = false, or {way_out}.")
    log.warning("%s: it can't be %s", text, lacks)


def guard_share(split: Split, counts: Mapping[str, NDArray[np.int64]]) -> float:
    """Share of the labelled ground that guard bands keep from training (on a grid of 1/32 block, or coarser)."""
    lost = total = 0.0
    for name, area in split.areas.items():
        labelled = counts[name].sum(axis=2)
        total += labelled.sum()
        lost += labelled[area.letters == LEFT_OUT].sum()
        coarsest = int(np.sqrt(int(area.row_edges[-1]) * int(area.col_edges[-1]) / GUARD_CELLS))
        step = max(1, split.block // 32, min(coarsest, split.block // 2))
        rows = np.searchsorted(area.row_edges, np.arange(0, area.row_edges[-1], step), "right") - 1
        cols = np.searchsorted(area.col_edges, np.arange(0, area.col_edges[-1], step), "right") - 1
        fine = area.letters[np.ix_(rows, cols)]
        near = maximum_filter(np.isin(fine, [VALIDATION, TEST]), 2 * (split.guard // step) + 1, mode="constant")
        cells = np.bincount(rows, minlength=len(labelled))[:, None] * np.bincount(
            cols, minlength=labelled.shape[1]
        )
        lost += (labelled / cells)[np.ix_(rows, cols)][near & (fine == TRAIN)].sum()
    return float(lost / total) if total else 0.0
