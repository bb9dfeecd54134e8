"""A training in TensorBoard: curves, scores per class, and a few held-out places as pictures.

cobertes run project.toml &  tensorboard --logdir runs/NAME/tensorboard
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.geo.bands import default_rgb
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.learn.encoding import Inputs
from cobertes.learn.inference import Forward, HeldOut
from cobertes.tiles.dataset import LabelledDataset

PLACES = 3
"""Held-out windows that are shown: scene, labels and what the model says, side by side."""
STRETCH = 2.5
"""Standard deviations of a band that are black and white."""
UNKNOWN = (128, 128, 128)


class TensorBoardLogger:
    """Writes TensorBoard's files; ``purge`` is the first epoch that an interrupted training does again."""

    def __init__(self, folder: Path, purge: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def __enter__(self) -> "TensorBoardLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def epoch(self, record: Mapping[str, float]) -> None:
        """Curves of an epoch's record."""
        for name, value in record.items():
            self.writer.add_scalar(name, value, int(record["epoch"]))

    def classes(self, matrix: ConfusionMatrix, legend: Legend, epoch: int) -> None:
        """IoU and Dice of every class: as curves, and as a table."""
        lines = ["| class | IoU | Dice | pixels |", "|---|---|---|---|"]
        for land, iou, dice, support in zip(legend.classes, matrix.iou, matrix.dice, matrix.support, strict=True):
            self.writer.add_scalar(f"iou/{land.key}", iou, epoch)
            self.writer.add_scalar(f"dice/{land.key}", dice, epoch)
            lines.append(f"| {land.name} | {iou:.3f} | {dice:.3f} | {support:,} |")
        self.writer.add_text("classes", "\n".join(lines), epoch)

    def places(
        self, forward: Forward, inputs: Inputs, ground: LabelledDataset, held_out: Sequence[HeldOut], epoch: int
    ) -> None:
        """Pictures of some held-out windows."""
        step = max(1, len(held_out) // PLACES)
        for number, (area, planned) in enumerate(held_out[step // 2 :: step][:PLACES]):
            observed, labels = ground.read_hwc(area, planned.window)
            x = inputs.encode(observed)
            predicted = forward(torch.from_numpy(x[None])).argmax(dim=1)[0].cpu().numpy().astype(np.uint8)
            parts = [scene_colours(x, inputs), *(class_colours(y, ground.legend) for y in (labels, predicted))]
            self.writer.add_image(f"place-{number + 1}", np.concatenate(parts, axis=1), epoch, dataformats="HWC")


def scene_colours(x: NDArray[np.float32], inputs: Inputs) -> NDArray[np.uint8]:
    """(H, W, 3) of the channels (C, H, W) of the last season in natural colours."""
    first = x.shape[0] - len(inputs.bands)
    bands = [first + inputs.bands.index(name) for name in default_rgb(inputs.bands)]
    shown = (x[bands].transpose(1, 2, 0) / STRETCH + 1) / 2
    return np.asarray(shown.clip(0, 1) * 255, np.uint8)


def class_colours(index: NDArray[np.uint8], legend: Legend) -> NDArray[np.uint8]:
    """(H, W, 3) of class indices (H, W) in the legend's colours."""
    table = np.full((IGNORE_INDEX + 1, 3), UNKNOWN, np.uint8)
    table[: len(legend)] = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in legend.colours]
    return np.asarray(table[index])
