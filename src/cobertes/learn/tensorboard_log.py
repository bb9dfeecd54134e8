"""TensorBoard log of a training: curves, scores per class, and pictures of a few held-out windows.

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

PICTURES = 3
"""Number of held-out windows shown: scene, labels and prediction, side by side."""
STRETCH = 2.5
"""Standard deviations from a band's mean that are shown black and white."""
UNKNOWN = (128, 128, 128)


class TensorBoardLogger:
    """Writer of TensorBoard's files; ``purge`` is the first epoch that a resumed training repeats."""

    def __init__(self, folder: Path, purge: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def __enter__(self) -> "TensorBoardLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def log_epoch(self, record: Mapping[str, float]) -> None:
        """Add an epoch's record to the curves."""
        for name, value in record.items():
            self.writer.add_scalar(name, value, int(record["epoch"]))

    def log_classes(self, matrix: ConfusionMatrix, legend: Legend, epoch: int) -> None:
        """Add IoU and Dice of every class: to curves, and as a table."""
        lines = ["| class | IoU | Dice | pixels |", "|---|---|---|---|"]
        for entry, iou, dice, support in zip(legend.classes, matrix.iou, matrix.dice, matrix.support, strict=True):
            self.writer.add_scalar(f"iou/{entry.key}", iou, epoch)
            self.writer.add_scalar(f"dice/{entry.key}", dice, epoch)
            lines.append(f"| {entry.name} | {iou:.3f} | {dice:.3f} | {support:,} |")
        self.writer.add_text("classes", "\n".join(lines), epoch)

    def log_windows(
        self, forward: Forward, inputs: Inputs, dataset: LabelledDataset, held_out: Sequence[HeldOut], epoch: int
    ) -> None:
        """Add pictures of some held-out windows."""
        step = max(1, len(held_out) // PICTURES)
        for number, (area, planned) in enumerate(held_out[step // 2 :: step][:PICTURES]):
            observed, labels = dataset.read_hwc(area, planned.window)
            x = inputs.encode(observed)
            predicted = forward(torch.from_numpy(x[None])).argmax(dim=1)[0].cpu().numpy().astype(np.uint8)
            panels = [scene_colours(x, inputs), *(class_colours(y, dataset.legend) for y in (labels, predicted))]
            self.writer.add_image(f"place-{number + 1}", np.concatenate(panels, axis=1), epoch, dataformats="HWC")


def scene_colours(x: NDArray[np.float32], inputs: Inputs) -> NDArray[np.uint8]:
    """Natural colours (H, W, 3) uint8 of the last season in channels (C, H, W)."""
    first = x.shape[0] - len(inputs.bands)
    bands = [first + inputs.bands.index(name) for name in default_rgb(inputs.bands)]
    shown = (x[bands].transpose(1, 2, 0) / STRETCH + 1) / 2
    return np.asarray(shown.clip(0, 1) * 255, np.uint8)


def class_colours(index: NDArray[np.uint8], legend: Legend) -> NDArray[np.uint8]:
    """Legend's colours (H, W, 3) uint8 of class indices (H, W)."""
    table = np.full((IGNORE_INDEX + 1, 3), UNKNOWN, np.uint8)
    table[: len(legend)] = [land.rgb for land in legend.classes]
    return np.asarray(table[index])
