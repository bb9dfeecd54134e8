"""Block split of the labelled area into training, validation and test blocks.

Neighbouring pixels are correlated, and so are the seasons of one location. So the unit of assignment is a *block*
of pixels (or an area, or a group of areas), never a tile and never a season, and training windows keep a
*guard band* away from the other parts (Roberts et al. 2017, Ecography 40, 913-929;
Kattenborn et al. 2022, ISPRS Open Journal 5, 100018).

    t t t v        A letter per block: t train, v validation, e test, g guard (left out beside the held-out
    t t t v        blocks of another area), - without labels. A training window (w) with its guard band (.)
    t[.w.]t        touches neither v nor e; the window itself touches no g.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError, SplitError, did_you_mean
from cobertes.geo.windows import Window, runs

Cells = Literal["blocks", "tiles", "pieces"]


class Part(StrEnum):
    """Part of the split that a block belongs to, by its letter in split.json."""

    TRAIN = "t"
    VALIDATION = "v"
    TEST = "e"
    GUARD = "g"
    NONE = "-"

    @property
    def label(self) -> str:
        """Name of the part in the tile index: train, validation, test, guard or none."""
        return self.name.lower()


HELD_OUT = frozenset({Part.VALIDATION, Part.TEST})
"""Parts that no training window may touch."""


def block_edges(length: int, block: int) -> NDArray[np.int64]:
    """Block borders along an axis, (n + 1,) int64 pixels; a remainder under half a block joins the last block."""
    count = max(1, int(length / block + 0.5))
    return np.array([i * block for i in range(count)] + [length], np.int64)


@dataclass(frozen=True)
class AreaSplit:
    """Blocks of one area: ``parts`` (rows, cols) str, the letter of each block's `Part`; borders in pixels."""

    parts: NDArray[np.str_]
    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]

    def parts_under(self, window: Window) -> NDArray[np.str_]:
        """Parts (rows, cols) of the blocks that a window touches; the window may extend beyond the area."""
        return self.parts[self._block_slices(window)]

    def intersections(self, window: Window, part: Part) -> list[Window]:
        """Intersections of a window with the blocks of a part, block by block."""
        rows, cols = self._block_slices(window)
        blocks = [
            self.block(rows.start + int(r), cols.start + int(c))
            for r, c in np.argwhere(self.parts[rows, cols] == part)
        ]
        return [common for block in blocks if (common := window.intersection(block))]

    def _block_slices(self, window: Window) -> tuple[slice, slice]:
        """Slices of block rows and columns that a window touches."""
        inside = window.clip((int(self.row_edges[-1]), int(self.col_edges[-1])))
        top, bottom = np.searchsorted(self.row_edges, [inside.row, inside.row_stop - 1], "right") - 1
        left, right = np.searchsorted(self.col_edges, [inside.col, inside.col_stop - 1], "right") - 1
        return slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)

    def allows_training(self, window: Window, guard: int) -> bool:
        """Return True if the window, padded by ``guard`` pixels, touches no held-out block."""
        if not (HELD_OUT | {Part.GUARD}).isdisjoint(self.parts_under(window).ravel().tolist()):
            return False
        near = self.parts_under(window.pad(guard)).ravel().tolist() if guard else []
        return HELD_OUT.isdisjoint(near)

    def windows(self, part: Part) -> list[Window]:
        """Blocks of a part, in row-major order."""
        return [self.block(int(r), int(c)) for r, c in np.argwhere(self.parts == part)]

    def rectangles(self, part: Part) -> list[Window]:
        """Blocks of a part merged into few rectangles: runs along a row, joined with equal runs below."""
        done: list[Window] = []
        growing: dict[tuple[int, int], Window] = {}
        for row, matches in enumerate(self.parts == part):
            below: dict[tuple[int, int], Window] = {}
            for start, stop in runs(matches):
                first, last = self.block(row, start), self.block(row, stop - 1)
                above = growing.pop((start, stop), None)
                top = first.row if above is None else above.row
                below[start, stop] = Window(top, first.col, first.row_stop - top, last.col_stop - first.col)
            done += growing.values()
            growing = below
        return sorted([*done, *growing.values()])

    def block(self, row: int, col: int) -> Window:
        """Window of block ``(row, col)``."""
        top, left = int(self.row_edges[row]), int(self.col_edges[col])
        return Window(top, left, int(self.row_edges[row + 1]) - top, int(self.col_edges[col + 1]) - left)

    def block_of(self, window: Window) -> tuple[int, int]:
        """Row and column of the block under the centre of a window."""
        row = np.searchsorted(self.row_edges, window.row + window.height // 2, "right") - 1
        col = np.searchsorted(self.col_edges, window.col + window.width // 2, "right") - 1
        return min(int(row), self.parts.shape[0] - 1), min(int(col), self.parts.shape[1] - 1)


@dataclass(frozen=True)
class Split:
    """Split of a project: an `AreaSplit` per area; side of a block and width of the guard band in pixels.

    cells   kind of the cells of an `AreaSplit`: independent blocks; single tiles without guard bands; or pieces of
            a user's polygons, which are contiguous
    """

    areas: dict[str, AreaSplit]
    block: int
    guard: int
    cells: Cells = "blocks"

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON: a string of letters per row of blocks, readable as a map."""
        return {
            "block": self.block,
            "guard": self.guard,
            "cells": self.cells,
            "areas": {name: ["".join(row) for row in area.parts] for name, area in self.areas.items()},
            "edges": {
                name: {"rows": area.row_edges.tolist(), "cols": area.col_edges.tolist()}
                for name, area in self.areas.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Split":
        """Restore from the output of `to_dict`."""
        areas = {
            name: AreaSplit(
                np.array([list(row) for row in rows]),
                np.array(data["edges"][name]["rows"], np.int64),
                np.array(data["edges"][name]["cols"], np.int64),
            )
            for name, rows in data["areas"].items()
        }
        return cls(areas, int(data["block"]), int(data["guard"]), data["cells"])


def read_groups(path: Path) -> dict[str, str]:
    """Read area -> group from the first two columns of a CSV with a header. Raises InputFileError."""
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


def require_known_groups(areas: Sequence[str], groups: Mapping[str, str], path: Path) -> None:
    """Raise SplitError if an area has no group."""
    missing = [name for name in areas if name not in groups]
    if missing:
        raise SplitError(
            f"{path}: no group for {len(missing)} areas, first '{missing[0]}'.{did_you_mean(missing[0], groups)}"
        )
