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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError, SplitError, did_you_mean
from cobertes.geo.windows import Window, runs

Cells = Literal["blocks", "tiles", "pieces"]

TRAIN, VALIDATION, TEST, LEFT_OUT, EMPTY = "t", "v", "e", "g", "-"
SPLIT_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test", LEFT_OUT: "guard", EMPTY: "none"}


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
        return [part for block in blocks if (part := window.intersection(block))]

    def _under(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of the blocks that a window touches."""
        inside = window.clip((int(self.row_edges[-1]), int(self.col_edges[-1])))
        top, bottom = np.searchsorted(self.row_edges, [inside.row, inside.row_stop - 1], "right") - 1
        left, right = np.searchsorted(self.col_edges, [inside.col, inside.col_stop - 1], "right") - 1
        return slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)

    def allows_training(self, window: Window, guard: int) -> bool:
        """Whether a training window may lie here: its guard band included it touches no other split."""
        if not {VALIDATION, TEST, LEFT_OUT}.isdisjoint(self.touched(window).ravel().tolist()):
            return False
        near = self.touched(window.pad(guard)).ravel().tolist() if guard else []
        return {VALIDATION, TEST}.isdisjoint(near)

    def windows(self, letter: str) -> list[Window]:
        """The blocks of a split, row by row."""
        return [self.block(int(r), int(c)) for r, c in np.argwhere(self.letters == letter)]

    def rectangles(self, letter: str) -> list[Window]:
        """The ground of a split in few rectangles: runs of blocks along a row, joined with equal runs below."""
        done: list[Window] = []
        growing: dict[tuple[int, int], Window] = {}
        for row, letters in enumerate(self.letters == letter):
            below: dict[tuple[int, int], Window] = {}
            for start, stop in runs(letters):
                first, last = self.block(row, start), self.block(row, stop - 1)
                above = growing.pop((start, stop), None)
                top = first.row if above is None else above.row
                below[start, stop] = Window(top, first.col, first.row_stop - top, last.col_stop - first.col)
            done += growing.values()
            growing = below
        return sorted([*done, *growing.values()])

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
    """The split of a whole project: an `AreaSplit` per area, the block and the guard band in pixels.

    cells   what the cells of an `AreaSplit` are: blocks that were drawn each by itself; single tiles without guard
            bands; or pieces of a user's polygons, which hang together
    """

    areas: dict[str, AreaSplit]
    block: int
    guard: int
    cells: Cells = "blocks"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a string of letters per row of blocks, readable as a map."""
        return {
            "block": self.block,
            "guard": self.guard,
            "cells": self.cells,
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
        return cls(areas, int(data["block"]), int(data["guard"]), data.get("cells", "blocks"))


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


def require_known_groups(areas: Sequence[str], groups: Mapping[str, str], path: Path) -> None:
    """Raise SplitError where an area has no group."""
    missing = [name for name in areas if name not in groups]
    if missing:
        raise SplitError(
            f"{path}: no group for {len(missing)} areas, first '{missing[0]}'.{did_you_mean(missing[0], groups)}"
        )
