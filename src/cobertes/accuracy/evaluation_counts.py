"""Counts of an evaluation: by block, season, purity, distance from boundaries, and tile.

    boundaries, block_confusion <-- evaluation_counts

Predicted windows are added one by one; memory depends on the number of blocks and classes, not of pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.accuracy import metrics
from cobertes.accuracy.block_confusion import Block, BlockFinder, BlockMatrices, held_out_blocks
from cobertes.accuracy.boundaries import (
    NOT_KNOWN,
    PURITY_GROUPS,
    TOLERANCES,
    boundary_distance,
    boundary_iou,
    count_pixels,
)
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.geo.grid import pixel_hectares
from cobertes.geo.windows import TiledWindow, Window
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part

WORST_TILES = 6
"""Number of tiles listed as the worst."""


@dataclass
class EvaluationCounts:
    """Counts over the blocks of a held-out part; `begin` creates empty counts, `add` counts a window.

    blocks       the held-out blocks; ``counts`` (n, K, K) their matrices
    by_purity    (groups, K, K), groups as in PURITY_GROUPS;  ``purity_sum`` (2,) sum and number
    by_distance  (tolerances + 1, K, K): up to the first tolerance from boundaries, up to the second, beyond
    bands        (tolerances, 3, K), for boundary IoU
    seasons      matrices by season, or by the seasons that were observed
    tiles        area -> (rows, cols, 2): labelled and wrongly mapped pixels of squares of ``side`` pixels
    """

    dataset: LabelledDataset
    blocks: tuple[Block, ...]
    counts: NDArray[np.int64]
    by_purity: NDArray[np.int64]
    purity_sum: NDArray[np.int64]
    by_distance: NDArray[np.int64]
    bands: NDArray[np.int64]
    tiles: dict[str, NDArray[np.int64]]
    side: int
    finder: BlockFinder
    seasons: dict[str, ConfusionMatrix] = field(default_factory=dict)

    @classmethod
    def begin(cls, dataset: LabelledDataset, part: Part, side: int) -> "EvaluationCounts":
        """Create empty counts of the blocks of ``part``, and of tiles of ``side`` pixels."""
        blocks, k = held_out_blocks(dataset, part), len(dataset.legend)

        def zeros(*shape: int) -> NDArray[np.int64]:
            return np.zeros(shape, np.int64)

        tiles = {
            name: zeros(-(-dataset.areas[name].shape[0] // side), -(-dataset.areas[name].shape[1] // side), 2)
            for name in dict.fromkeys(block.area for block in blocks)
        }
        return cls(
            dataset, blocks, zeros(len(blocks), k, k), zeros(len(PURITY_GROUPS), k, k), zeros(2),
            zeros(len(TOLERANCES) + 1, k, k), zeros(len(TOLERANCES), 3, k), tiles, side,
            BlockFinder(blocks, dataset),
        )  # fmt: skip

    @property
    def matrices(self) -> BlockMatrices:
        """Confusion matrices by block."""
        return BlockMatrices(self.blocks, self.counts)

    def add(
        self,
        area: str,
        planned: TiledWindow,
        reference: NDArray[np.uint8],
        predicted: NDArray[np.uint8],
        purity: NDArray[np.uint8] | None = None,
    ) -> int:
        """Count the interior of a window, which lies in one block; returns the position of the block.

        reference  (height, width) uint8 class indices of the window, IGNORE_INDEX for pixels not to evaluate; the
                   margin around the interior is used for the distance from boundaries
        predicted  (height, width) uint8 class indices of the map
        purity     (height, width) uint8 percent; 255 or None if unknown
        Raises ValueError for a class index of the map that the legend lacks.
        """
        block = self.finder.number(area, planned.interior)
        inside = planned.interior.slices_in(planned.window)
        known = reference != IGNORE_INDEX
        if not known[inside].any():
            return block
        predicted = np.where(known, predicted, IGNORE_INDEX).astype(np.uint8)
        if (predicted[known] >= len(self.dataset.legend)).any():
            raise ValueError("a class index of the map is none of the legend's")
        # only pixels within the largest tolerance of the interior affect its distances
        near = planned.interior.pad(TOLERANCES[-1])
        near = planned.window.intersection(near) or planned.interior
        around, core = near.slices_in(planned.window), planned.interior.slices_in(near)
        distances = [
            boundary_distance(np.ascontiguousarray(x[around]), TOLERANCES[-1]) for x in (reference, predicted)
        ]
        unknown = np.full(reference.shape, NOT_KNOWN, np.uint8)
        count_pixels(
            reference[inside], predicted[inside], distances[0][core], distances[1][core],
            (unknown if purity is None else purity)[inside],
            self.counts[block], self.by_purity, self.by_distance, self.bands, self.purity_sum,
        )  # fmt: skip
        self._add_tiles(area, planned.interior, known[inside], (predicted != reference)[inside])
        return block

    def add_season(self, name: str, reference: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Count the pixels of a season; arrays (height, width) as in `add`, already cropped to the interior."""
        k = len(self.dataset.legend)
        found = ConfusionMatrix.of(reference, predicted, k)
        self.seasons[name] = self.seasons.get(name, ConfusionMatrix.empty(k)) + found

    def _add_tiles(self, area: str, window: Window, known: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> None:
        rows, cols = np.arange(window.row, window.row_stop), np.arange(window.col, window.col_stop)
        top, left = window.row // self.side, window.col // self.side
        first_rows, first_cols = (np.unique(x // self.side, return_index=True)[1] for x in (rows, cols))
        for layer, values in enumerate((known, wrong)):
            sums = np.add.reduceat(values, first_rows, axis=0, dtype=np.int64)
            sums = np.add.reduceat(sums, first_cols, axis=1)
            self.tiles[area][top : top + len(first_rows), left : left + len(first_cols), layer] += sums

    def worst_tiles(self) -> list[dict[str, object]]:
        """Tiles with the lowest accuracy, of those with at least half of their pixels evaluated."""
        found = []
        for area, sums in self.tiles.items():
            known, wrong = sums[..., 0], sums[..., 1]
            for row, col in np.argwhere(known * 2 >= self.side**2):
                window = Window(int(row) * self.side, int(col) * self.side, self.side, self.side)
                inside = window.clip(self.dataset.areas[area].shape)
                found.append((float(1 - wrong[row, col] / known[row, col]), area, inside, int(known[row, col])))
        return [
            {"area": area, "window": [w.row, w.col, w.height, w.width], "accuracy": share, "pixels": pixels}
            for share, area, w, pixels in sorted(found)[:WORST_TILES]
        ]

    def hectares(self) -> NDArray[np.float64] | None:
        """Area (K,) of the reference pixels per class in hectares; None if a pixel size is unknown."""
        sizes = {name: pixel_hectares(self.dataset.areas[name].grid) for name in self.tiles}
        if any(size is None for size in sizes.values()):
            return None
        total = np.zeros(len(self.dataset.legend))
        for name, matrix in self.matrices.by_area().items():
            total += matrix.support * float(sizes[name] or 0)
        return total

    def purity_scores(self) -> dict[str, Any] | None:
        """Scores by purity group and of all mixed pixels, and the mean purity; None if unknown."""
        if not self.purity_sum[1]:
            return None
        groups = {name: self.by_purity[i] for i, name in enumerate(PURITY_GROUPS)}
        groups["mixed"] = self.by_purity[1:].sum(axis=0)
        return {
            "mean": float(self.purity_sum[0] / self.purity_sum[1] / 100),
            "groups": self._brief(groups),
        }

    def boundary_scores(self) -> dict[str, Any]:
        """Scores by distance from the reference's boundaries, and boundary IoU by tolerance."""
        first, second = TOLERANCES
        near = self.by_distance.cumsum(axis=0)
        zones = {
            f"within {first} px": near[0],
            f"within {second} px": near[1],
            f"beyond {second} px": self.by_distance[2],
        }
        iou, averaged = boundary_iou(self.bands), self.matrices.total.averaged
        return {
            "zones": self._brief(zones),
            "boundary_iou": {
                f"{tolerance} px": {
                    "mean": float(metrics.mean_over(iou[t], averaged)),
                    "classes": dict(zip(self.dataset.legend.keys, iou[t].tolist(), strict=True)),
                }
                for t, tolerance in enumerate(TOLERANCES)
            },
        }

    def _brief(self, groups: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, float | int]]:
        matrices = {name: ConfusionMatrix(counts) for name, counts in groups.items()}
        return brief_scores(matrices, self.matrices.total.averaged)


def brief_scores(
    matrices: Mapping[str, ConfusionMatrix], classes: NDArray[np.bool_]
) -> dict[str, dict[str, float | int]]:
    """Pixels, overall accuracy and mean IoU by name; means over the same ``classes`` (K,), so comparable."""
    return {
        name: {
            "pixels": matrix.pixels,
            "miou": float(metrics.mean_over(matrix.iou, classes)),
            "overall_accuracy": matrix.overall_accuracy,
        }
        for name, matrix in matrices.items()
    }
