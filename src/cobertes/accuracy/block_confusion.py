"""Confusion matrices by block, the unit of the split and of the bootstrap.

Pixels of a block are correlated, so an interval that counts pixels is far too narrow; a bootstrap resamples
*units*: a block, or all blocks of one group of areas if the split is by group.
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
from cobertes.tiles.split import Part


@dataclass(frozen=True)
class Block:
    """Held-out block: its area, its window there, and the unit that it is resampled with."""

    area: str
    window: Window
    unit: str

    @property
    def key(self) -> tuple[str, Window]:
        """Identity of the block: area and window."""
        return self.area, self.window


def held_out_blocks(dataset: LabelledDataset, part: Part) -> tuple[Block, ...]:
    """List the blocks of a part, area by area.

    Pieces of a user's polygons are no independent blocks. They are merged into rectangles, and all that are
    8-connected form one unit.
    """
    found = []
    for name, split in dataset.split.areas.items():
        pieces = dataset.split.cells == "pieces"
        numbers = label(split.parts == part, np.ones((3, 3)))[0] if pieces else None
        for window in split.rectangles(part) if pieces else split.windows(part):
            position: tuple[object, ...] = (window.row, window.col)
            if numbers is not None:
                position = ("ground", int(numbers[split.block_of(Window(window.row, window.col, 1, 1))]))
            found.append(Block(name, window, dataset.areas[name].group or ":".join(map(str, (name, *position)))))
    return tuple(found)


class BlockFinder:
    """Lookup of the block that contains a window, for windows that no block border cuts."""

    def __init__(self, blocks: Sequence[Block], dataset: LabelledDataset) -> None:
        self.split = dataset.split.areas
        self.numbers = {name: np.full(split.parts.shape, -1) for name, split in self.split.items()}
        for number, block in enumerate(blocks):
            split, window = self.split[block.area], block.window
            rows = np.searchsorted(split.row_edges, (window.row, window.row_stop))
            cols = np.searchsorted(split.col_edges, (window.col, window.col_stop))
            self.numbers[block.area][slice(*rows), slice(*cols)] = number

    def number(self, area: str, window: Window) -> int:
        """Find the position of the block that contains ``window``. Raises KeyError if none does."""
        found = int(self.numbers[area][self.split[area].block_of(window)])
        if found < 0:
            raise KeyError(f"{area}: {window}")
        return found


@dataclass(frozen=True)
class BlockMatrices:
    """Confusion matrix per block: ``counts`` (n, K, K) int64, rows = reference, columns = predicted."""

    blocks: tuple[Block, ...]
    counts: NDArray[np.int64]

    @property
    def total(self) -> ConfusionMatrix:
        """Sum over all blocks."""
        return ConfusionMatrix(self.counts.sum(axis=0))

    def by_area(self) -> dict[str, ConfusionMatrix]:
        """Sum by area, of the areas with labelled held-out pixels."""
        areas = [block.area for block in self.blocks]
        return {
            name: ConfusionMatrix(found)
            for name in dict.fromkeys(areas)
            if (found := self.counts[[area == name for area in areas]].sum(axis=0)).any()
        }

    def by_unit(self) -> NDArray[np.int64]:
        """Sum by unit (units, K, K), of the units with labelled pixels."""
        sums = self.unit_sums()
        return sums[sums.any(axis=(1, 2))]

    def unit_sums(self) -> NDArray[np.int64]:
        """Sum by unit (units, K, K), of all units, in the order of the blocks."""
        units = {unit: number for number, unit in enumerate(dict.fromkeys(block.unit for block in self.blocks))}
        sums = np.zeros((len(units), *self.counts.shape[1:]), np.int64)
        np.add.at(sums, [units[block.unit] for block in self.blocks], self.counts)
        return sums

    def take(self, positions: Iterable[int]) -> "BlockMatrices":
        """Select blocks by position, in that order."""
        positions = list(positions)
        return BlockMatrices(tuple(self.blocks[i] for i in positions), self.counts[positions])


def block_scores(matrices: BlockMatrices) -> list[dict[str, Any]]:
    """Overall accuracy and labelled pixels of every block, for JSON; a window is [row, col, height, width]."""
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
    """Write the matrices of several methods over the same blocks as JSON, one line per block.

    A matrix is written as its nonzero cells, ``[reference, predicted, pixels]`` by class index.
    """
    blocks = next(iter(methods.values())).blocks
    lines = []
    for number, block in enumerate(blocks):
        w = block.window
        fields: dict[str, Any] = {
            "area": block.area,
            "window": [w.row, w.col, w.height, w.width],
            "unit": block.unit,
        }
        cells = {name: list(_cells(found.counts[number])) for name, found in methods.items()}
        lines.append("    " + json.dumps(fields | cells, ensure_ascii=False))
    head = {"rows": "reference", "columns": "predicted", "classes": list(keys), "methods": list(methods)}
    body = ",\n".join(lines)
    text = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
    write_text(path, f'{text},\n  "blocks": [\n{body}\n  ]\n}}\n')


def load_blocks(path: Path) -> tuple[list[str], dict[str, BlockMatrices]]:
    """Read class keys, and matrices by method, from a file of `save_blocks`. Raises InputFileError."""
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
