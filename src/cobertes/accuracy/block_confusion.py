"""Confusion matrices by block: the unit in which ground is held out, and in which scores vary.

Pixels of a block resemble each other, so an interval that counts pixels is far too narrow; what is drawn again in
a bootstrap is a *unit*: a block, or all blocks of one group of areas where groups are held out as a whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.metrics import overall_accuracy
from cobertes.atomic_io import read_json, write_text
from cobertes.errors import InputFileError
from cobertes.geo.windows import Window
from cobertes.tiles.dataset import LabelledDataset


@dataclass(frozen=True)
class Block:
    """A block of held-out ground: its area, its pixels there, and the unit that it is drawn with."""

    area: str
    window: Window
    unit: str

    @property
    def place(self) -> tuple[str, Window]:
        """What tells it from other blocks."""
        return self.area, self.window


def held_out_blocks(ground: LabelledDataset, letter: str) -> tuple[Block, ...]:
    """The blocks of a split, area by area.

    Pieces of a user's polygons are no blocks: neighbours among them are the same ground. They are joined to
    rectangles, and all that hang together, also by a corner, are one unit.
    """
    found = []
    for name, split in ground.split.areas.items():
        whole = ground.split.cells == "pieces"
        numbers = label(split.letters == letter, np.ones((3, 3)))[0] if whole else None
        for window in split.rectangles(letter) if whole else split.windows(letter):
            place: tuple[object, ...] = (window.row, window.col)
            if numbers is not None:
                place = ("ground", int(numbers[split.block_of(Window(window.row, window.col, 1, 1))]))
            found.append(Block(name, window, ground.areas[name].group or ":".join(map(str, (name, *place)))))
    return tuple(found)


class BlockFinder:
    """Tells in which of some blocks a window lies that no border of theirs cuts."""

    def __init__(self, blocks: Sequence[Block], ground: LabelledDataset) -> None:
        self.split = ground.split.areas
        self.numbers = {name: np.full(split.letters.shape, -1) for name, split in self.split.items()}
        for number, block in enumerate(blocks):
            split, window = self.split[block.area], block.window
            rows = np.searchsorted(split.row_edges, (window.row, window.row_stop))
            cols = np.searchsorted(split.col_edges, (window.col, window.col_stop))
            self.numbers[block.area][slice(*rows), slice(*cols)] = number

    def number(self, area: str, part: Window) -> int:
        """Position of the block that ``part`` lies in. Raises KeyError where it lies in none."""
        found = int(self.numbers[area][self.split[area].block_of(part)])
        if found < 0:
            raise KeyError(f"{area}: {part}")
        return found


@dataclass(frozen=True)
class BlockMatrices:
    """A confusion matrix per block: ``counts`` (n, K, K) int64, rows = reference, columns = predicted."""

    blocks: tuple[Block, ...]
    counts: NDArray[np.int64]

    @property
    def total(self) -> ConfusionMatrix:
        """Of all blocks together."""
        return ConfusionMatrix(self.counts.sum(axis=0))

    def by_area(self) -> dict[str, ConfusionMatrix]:
        """Of each area with labelled held-out ground."""
        areas = [block.area for block in self.blocks]
        return {
            name: ConfusionMatrix(found)
            for name in dict.fromkeys(areas)
            if (found := self.counts[[area == name for area in areas]].sum(axis=0)).any()
        }

    def by_unit(self) -> NDArray[np.int64]:
        """(units, K, K) counts of the units that have any labelled pixel."""
        sums = self.unit_sums()
        return sums[sums.any(axis=(1, 2))]

    def unit_sums(self) -> NDArray[np.int64]:
        """(units, K, K) counts of all units, in the order in which the blocks name them."""
        units = {unit: number for number, unit in enumerate(dict.fromkeys(block.unit for block in self.blocks))}
        sums = np.zeros((len(units), *self.counts.shape[1:]), np.int64)
        np.add.at(sums, [units[block.unit] for block in self.blocks], self.counts)
        return sums

    def where(self, chosen: Iterable[int]) -> "BlockMatrices":
        """Those of some positions, in that order."""
        positions = list(chosen)
        return BlockMatrices(tuple(self.blocks[i] for i in positions), self.counts[positions])


def block_scores(matrices: BlockMatrices) -> list[dict[str, Any]]:
    """Overall accuracy and labelled pixels of every block, for JSON; a window is row, column, height, width."""
    return [
        {
            "area": block.area,
            "window": [block.window.row, block.window.col, block.window.height, block.window.width],
            "pixels": int(counts.sum()),
            "overall_accuracy": float(overall_accuracy(counts)),
        }
        for block, counts in zip(matrices.blocks, matrices.counts, strict=True)
    ]


def save_blocks(path: Path, methods: Mapping[str, BlockMatrices], keys: Sequence[str]) -> None:
    """Write the matrices of methods over the same blocks as JSON, a block a line.

    A matrix is written as its cells that are not 0, ``[reference, predicted, pixels]`` by class index.
    """
    blocks = next(iter(methods.values())).blocks
    lines = []
    for number, block in enumerate(blocks):
        w = block.window
        place = {"area": block.area, "window": [w.row, w.col, w.height, w.width], "unit": block.unit}
        cells = {name: list(_cells(found.counts[number])) for name, found in methods.items()}
        lines.append("    " + json.dumps(place | cells, ensure_ascii=False))
    head = {"rows": "reference", "columns": "predicted", "classes": list(keys), "methods": list(methods)}
    body = ",\n".join(lines)
    text = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
    write_text(path, f'{text},\n  "blocks": [\n{body}\n  ]\n}}\n')


def load_blocks(path: Path) -> tuple[list[str], dict[str, BlockMatrices]]:
    """Class keys, and the matrices by method, that `save_blocks` wrote. Raises InputFileError."""
    data = read_json(path)
    try:
        keys = [str(key) for key in data["classes"]]
        found = data["blocks"]
        blocks = tuple(Block(str(b["area"]), Window(*map(int, b["window"])), str(b["unit"])) for b in found)
        methods = {}
        for name in data["methods"]:
            counts = np.zeros((len(blocks), len(keys), len(keys)), np.int64)
            for number, block in enumerate(found):
                for r, p, pixels in block[name]:
                    counts[number, r, p] = pixels
            methods[str(name)] = BlockMatrices(blocks, counts)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputFileError(
            f"{path} holds no block matrices ({error!r}). Run the evaluate stage again."
        ) from error
    return keys, methods


def _cells(counts: NDArray[np.int64]) -> Iterator[list[int]]:
    for r, p in np.argwhere(counts):
        yield [int(r), int(p), int(counts[r, p])]
