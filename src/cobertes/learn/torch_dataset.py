"""PyTorch view of a labelled dataset: the kept tiles of a split as normalised tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cobertes.learn.encoding import Inputs
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import window_of


class TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """Tiles of a split, one sample per row of the index.

    A sample is (x, y): x (seasons * bands, H, W) float32, normalised, 0 where not observed; y (H, W) int64 class
    indices, 255 (ignore_index) where not labelled or not observed. Tiles are not augmented; `batches` of
    `cobertes.learn.loader` draws random windows as the training loop does.
    """

    def __init__(self, dataset: LabelledDataset, index: Any, statistics: Statistics, split: str = "train") -> None:
        """Take the kept tiles of a split: train, validation or test."""
        self.dataset = dataset
        self.rows = index[index["keep"] & (index["split"] == split)].reset_index(drop=True)
        self.inputs = Inputs.of(statistics, "stack")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)}")
        row = self.rows.iloc[number]
        observed, labels = self.dataset.read_hwc(row["area"], window_of(row))
        return torch.from_numpy(self.inputs.encode(observed)), torch.from_numpy(labels).long()
