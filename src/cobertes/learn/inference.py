"""Running a model over planned windows: training's validation, evaluation and prediction all come here."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.geo.windows import TiledWindow, plan_strips
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.encoding import Inputs
from cobertes.learn.losses import CROSS_ENTROPY
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part

READ_THREADS = max(2, min(8, (os.cpu_count() or 2) // 2))
BATCHES_AHEAD = 3

Forward = Callable[[Tensor], Tensor]
"""Channels (B, C, H, W) float32 -> logits (B, K, H, W), on whatever device it likes."""

Item = TypeVar("Item")


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Any], batch_size: int
) -> Iterator[list[tuple[Item, Any]]]:
    """Batches of ``(item, read(item))`` in order, read by threads while the caller computes."""
    return read_groups_ahead([items[i : i + batch_size] for i in range(0, len(items), batch_size)], read)


def read_groups_ahead(
    groups: Iterable[Sequence[Item]], read: Callable[[Item], Any]
) -> Iterator[list[tuple[Item, Any]]]:
    """The same for groups of items that the caller has formed. An error of ``read`` comes out in its turn."""
    pool = ThreadPoolExecutor(READ_THREADS)
    try:
        waiting: deque[list[tuple[Item, Future[Any]]]] = deque()
        upcoming = iter(groups)
        while True:
            while len(waiting) < BATCHES_AHEAD and (group := next(upcoming, None)) is not None:
                waiting.append([(item, pool.submit(read, item)) for item in group])
            if not waiting:
                return
            yield [(item, future.result()) for item, future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


HeldOut = tuple[str, TiledWindow]
"""An area's name and a planned window of it whose interior is held-out ground."""


def plan_blocks(ground: LabelledDataset, part: Part, size: int, overlap: int) -> list[HeldOut]:
    """Windows laid out over the held-out ground alone: little computation, for every epoch's validation."""
    return [
        (name, planned)
        for name, split in ground.split.areas.items()
        for rectangle in split.rectangles(part)
        for strip in plan_strips(rectangle, size, overlap)
        for planned in strip
    ]


def each_season(forward: Forward, inputs: Inputs) -> Forward:
    """A model of single seasons applied to all of them: mean of the probabilities where a season is observed.

    The result takes the channels of all seasons side by side and gives the logarithm of that mean. A model that
    sees all seasons at once is left as it is.
    """
    if inputs.mode != "separate":
        return forward
    bands = len(inputs.bands)

    def averaged(x: Tensor) -> Tensor:
        total, weight = torch.zeros(()), torch.zeros(())
        for one in torch.split(x, bands, dim=1):
            probabilities = forward(one.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1)
            observed = (one != 0).any(dim=1, keepdim=True).to(probabilities)
            total = total.to(probabilities) + probabilities * observed
            weight = weight.to(probabilities) + observed
        return (total / weight.clamp(min=1)).clamp(min=1e-9).log()

    return averaged


def judge(
    forward: Forward,
    inputs: Inputs,
    ground: LabelledDataset,
    plan: Sequence[HeldOut],
    batch_size: int,
    advance: Callable[[float], None] = lambda amount: None,
) -> tuple[ConfusionMatrix, float]:
    """Confusion matrix and mean cross-entropy over the planned interiors; NaN where nothing is labelled."""
    classes = len(ground.legend)
    matrix, loss, weight = ConfusionMatrix.empty(classes), 0.0, 0.0

    def read(item: HeldOut) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        observed, labels = ground.read_hwc(item[0], item[1].window)
        return inputs.encode(observed), labels

    for batch in read_ahead(plan, read, batch_size):
        x = torch.from_numpy(np.stack([x for _, (x, _) in batch]))
        y = np.full((len(batch), *x.shape[-2:]), IGNORE_INDEX, np.uint8)
        for i, ((_, planned), (_, labels)) in enumerate(batch):
            inside = planned.interior.slices_in(planned.window)
            y[i][inside] = labels[inside]
        logits = forward(x)
        total, count = CROSS_ENTROPY(logits, torch.from_numpy(y).to(logits.device).long())
        matrix += ConfusionMatrix.of(y, logits.argmax(dim=1).cpu().numpy(), classes)
        loss, weight = loss + float(total), weight + float(count)
        advance(len(batch))
    return matrix, loss / weight if weight else float("nan")
