"""The block split: which ground is learnt from and which is kept to judge.

Neighbouring pixels resemble each other, and so does the same place in another season. So the unit that is
drawn is a *block* of ground (or a whole area, or a group of areas), never a tile and never a season, and
training windows keep a *guard band* away from other splits (Roberts et al. 2017, Ecography 40, 913-929;
Kattenborn et al. 2022, ISPRS Open Journal 5, 100018).

    t t t v        A letter per block: t train, v validation, e test, g left out beside another area's
    t t t v        validation ground, - nothing labelled. A training window (w) with its guard band (.)
    t[.w.]t        touches neither v nor e; the window itself touches no g.
"""

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from shapely.geometry import box
from shapely.strtree import STRtree

from cobertes.errors import InputFileError, SplitError, did_you_mean
from cobertes.geo.area import Area
from cobertes.geo.grid import ALIGNMENT, crop, footprint, resolution
from cobertes.geo.windows import Window
from cobertes.settings import SplitSettings

log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST, LEFT_OUT, EMPTY = "t", "v", "e", "g", "-"
SPLIT_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test", LEFT_OUT: "guard", EMPTY: "none"}

MIN_BLOCKS = 20
"""Fewer blocks than this make a split that says little: the default block shrinks to reach it."""
TILES_PER_BLOCK = 4
"""Largest default side of a block, in tiles."""
CANDIDATES = 1000
"""Random splits compared; the one whose class shares are most alike is taken."""
GUARD_SHARE_WARNING = 0.25
GUARD_CELLS = 4_000_000
"""Cells of an area, at most, on which the share of guard bands is measured: a large area has many small blocks."""


def block_edges(length: int, block: int) -> NDArray[np.int64]:
    """Borders of the blocks along an axis; a last piece under half a block joins its neighbour."""
    count = max(1, int(length / block + 0.5))
    return np.array([i * block for i in range(count)] + [length], np.int64)


@dataclass(frozen=True)
class AreaSplit:
    """The blocks of one area: ``letters`` (rows, cols) of str, with their borders in pixels."""

    letters: NDArray[np.str_]
    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]

    def touched(self, window: Window) -> NDArray[np.str_]:
        """Letters of the blocks that a window touches; the window may reach out of the area."""
        return self.letters[self._under(window)]

    def parts(self, window: Window, letter: str) -> list[Window]:
        """What a window shares with the blocks of a split, block by block."""
        rows, cols = self._under(window)
        blocks = [
            self.block(rows.start + int(r), cols.start + int(c))
            for r, c in np.argwhere(self.letters[rows, cols] == letter)
        ]
        return [part for block in blocks if (part := window.meet(block))]

    def _under(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of the blocks that a window touches."""
        inside = window.clip((int(self.row_edges[-1]), int(self.col_edges[-1])))
        top, bottom = np.searchsorted(self.row_edges, [inside.row, inside.row_stop - 1], "right") - 1
        left, right = np.searchsorted(self.col_edges, [inside.col, inside.col_stop - 1], "right") - 1
        return slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)

    def allows_training(self, window: Window, guard: int) -> bool:
        """Whether a training window may lie here: its guard band included it touches no other split."""
        if np.isin(self.touched(window), [VALIDATION, TEST, LEFT_OUT]).any():
            return False
        return guard == 0 or not np.isin(self.touched(window.grow(guard)), [VALIDATION, TEST]).any()

    def windows(self, letter: str) -> list[Window]:
        """The blocks of a split, row by row."""
        return [self.block(int(r), int(c)) for r, c in np.argwhere(self.letters == letter)]

    def block(self, row: int, col: int) -> Window:
        """The pixels of block ``(row, col)``."""
        top, left = int(self.row_edges[row]), int(self.col_edges[col])
        return Window(top, left, int(self.row_edges[row + 1]) - top, int(self.col_edges[col + 1]) - left)

    def block_of(self, window: Window) -> tuple[int, int]:
        """The block under the middle of a window."""
        row = np.searchsorted(self.row_edges, window.row + window.height // 2, "right") - 1
        col = np.searchsorted(self.col_edges, window.col + window.width // 2, "right") - 1
        return min(int(row), self.letters.shape[0] - 1), min(int(col), self.letters.shape[1] - 1)


@dataclass(frozen=True)
class Split:
    """The split of a whole project: an `AreaSplit` per area, the block and the guard band in pixels."""

    areas: dict[str, AreaSplit]
    block: int
    guard: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a string of letters per row of blocks, readable as a map."""
        return {
            "block": self.block,
            "guard": self.guard,
            "areas": {name: ["".join(row) for row in area.letters] for name, area in self.areas.items()},
            "edges": {
                name: {"rows": area.row_edges.tolist(), "cols": area.col_edges.tolist()}
                for name, area in self.areas.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Split":
        """From what `to_dict` gives."""
        areas = {
            name: AreaSplit(
                np.array([list(row) for row in rows]),
                np.array(data["edges"][name]["rows"], np.int64),
                np.array(data["edges"][name]["cols"], np.int64),
            )
            for name, rows in data["areas"].items()
        }
        return cls(areas, int(data["block"]), int(data["guard"]))


def choose_block(shapes: Sequence[tuple[int, int]], stride: int, settings: SplitSettings) -> int:
    """Side of a block: as asked, or up to four tiles, less where that leaves under 20 blocks.

    Raises SplitError where the asked block leaves the only area in one piece.
    """
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
    for tiles in range(TILES_PER_BLOCK, 0, -1):
        if blocks(tiles * stride) >= MIN_BLOCKS:
            return tiles * stride
    side = stride
    while side > 1 and blocks(side) < MIN_BLOCKS:
        side = max(1, int(side * 0.9))
    return side


def read_groups(path: Path) -> dict[str, str]:
    """Area -> group from the first two columns of a CSV with a header. Raises InputFileError."""
    if not path.is_file():
        raise InputFileError(f"no groups file at {path} (split.groups)")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row[:2]] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"can't read {path} as a CSV: {error}") from error
    if len(rows) < 2 or any(len(row) < 2 for row in rows):
        raise InputFileError(f"{path}: a groups file needs a header and two columns, area and group")
    groups: dict[str, str] = {}
    for area, group in rows[1:]:
        if groups.setdefault(area, group) != group:
            raise InputFileError(f"{path}: area '{area}' is in the groups {groups[area]} and {group}")
    return groups


def make_split(
    areas: Sequence[Area],
    counts: Mapping[str, NDArray[np.int64]],
    edges: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    *,
    block: int,
    guard: int,
    classes: Sequence[str],
    settings: SplitSettings,
) -> Split:
    """Draw the split: of many random ones, that in which each class's share is most alike.

    counts   per area: (block rows, block cols, K) labelled pixels per class
    edges    per area: borders of the block rows and columns, in pixels
    Deterministic in ``settings.seed`` and the set of areas, in whatever order they come.
    Raises SplitError where there is too little to split.
    """
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
    split = Split(result, block, guard)
    _leave_out_beside_other_areas(areas, split)
    _warn(split, counts, classes, settings)
    return split


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
    for _ in range(CANDIDATES):
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
    if lost > GUARD_SHARE_WARNING:
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


def require_known_groups(areas: Sequence[str], groups: Mapping[str, str], path: Path) -> None:
    """Raise SplitError where an area has no group."""
    missing = [name for name in areas if name not in groups]
    if missing:
        raise SplitError(
            f"{path}: no group for {len(missing)} areas, first '{missing[0]}'.{did_you_mean(missing[0], groups)}"
        )
