"""Inference over planned windows, which training's validation, evaluation and prediction share."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
"""Batches that are read or being read, the one that the caller takes next included."""

Forward = Callable[[Tensor], Tensor]
"""Channels (B, C, H, W) float32 -> logits (B, K, H, W), on any device."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    batches: Iterable[Sequence[Item]],
    read: Callable[[Item], Result],
    *,
    threads: int | None = None,
    ahead: int | None = None,
) -> Iterator[list[tuple[Item, Result]]]:
    """Batches of ``(item, read(item))`` in order, read by threads while the caller computes.

    batches  of any sizes; taken from the iterable as late as possible
    threads  by default `READ_THREADS`
    ahead    batches in memory, by default `BATCHES_AHEAD`; only from 2 on one is read while the caller computes
    An error of ``read`` is raised in the order of the items. Closing the iterator ends the threads.
    """
    ahead = BATCHES_AHEAD if ahead is None else ahead
    pool = ThreadPoolExecutor(READ_THREADS if threads is None else threads)
    try:
        pending: deque[list[tuple[Item, Future[Result]]]] = deque()
        upcoming = iter(batches)
        while True:
            while len(pending) < ahead and (batch := next(upcoming, None)) is not None:
                pending.append([(item, pool.submit(read, item)) for item in batch])
            if not pending:
                return
            yield [(item, future.result()) for item, future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Slices of ``size`` items; the last one may be smaller."""
    return (items[i : i + size] for i in range(0, len(items), size))


HeldOut = tuple[str, TiledWindow]
"""Name of an area, and a planned window whose interior lies in held-out blocks."""


def plan_blocks(dataset: LabelledDataset, part: Part, size: int, overlap: int) -> list[HeldOut]:
    """Plan windows over the blocks of a split alone: little computation, for every epoch's validation."""
    return [
        (name, planned)
        for name, area_split in dataset.split.areas.items()
        for rectangle in area_split.rectangles(part)
        for strip in plan_strips(rectangle, size, overlap)
        for planned in strip
    ]


def each_season(forward: Forward, inputs: Inputs) -> Forward:
    """Model of single seasons, applied to all: the mean of the probabilities over the seasons observed in a pixel.

    The result takes the channels of all seasons side by side and returns the logarithm of that mean. A model that
    takes all seasons at once is returned as it is.
    """
    if inputs.mode != "separate":
        return forward
    bands = len(inputs.bands)

    def mean_over_seasons(x: Tensor) -> Tensor:
        total, weight = torch.zeros(()), torch.zeros(())
        for season in torch.split(x, bands, dim=1):
            probabilities = forward(season.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1)
            observed = (season != 0).any(dim=1, keepdim=True).to(probabilities)
            total = total.to(probabilities) + probabilities * observed
            weight = weight.to(probabilities) + observed
        return (total / weight.clamp(min=1)).clamp(min=1e-9).log()

    return mean_over_seasons


def evaluate_windows(
    forward: Forward,
    inputs: Inputs,
    dataset: LabelledDataset,
    windows: Sequence[HeldOut],
    batch_size: int,
    advance: Callable[[float], None] = lambda amount: None,
) -> tuple[ConfusionMatrix, float]:
    """Confusion matrix and mean cross-entropy over the interiors of windows; NaN if no pixel is labelled."""
    classes = len(dataset.legend)
    matrix, loss, weight = ConfusionMatrix.empty(classes), 0.0, 0.0

    def read(item: HeldOut) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        observed, labels = dataset.read_hwc(item[0], item[1].window)
        return inputs.encode(observed), labels

    for batch in prefetch(batched(windows, batch_size), read):
        x = torch.from_numpy(np.stack([x for _, (x, _) in batch]))
        y = np.full((len(batch), *x.shape[-2:]), IGNORE_INDEX, np.uint8)
        for i, ((_, planned), (_, labels)) in enumerate(batch):
            interior = planned.interior.slices_in(planned.window)
            y[i][interior] = labels[interior]
        logits = forward(x)
        total, count = CROSS_ENTROPY(logits, torch.from_numpy(y).to(logits.device).long())
        matrix += ConfusionMatrix.of(y, logits.argmax(dim=1).cpu().numpy(), classes)
        loss, weight = loss + float(total), weight + float(count)
        advance(len(batch))
    return matrix, loss / weight if weight else float("nan")
