"""Inference pipeline: reading, model and blending at the same time, in one order for any number of threads.

    threads     prefetch windows ──> batches of one shape ──┐
    a thread                                              model ──┐
    the caller                                                  blend, block by block

Windows are taken in row-major order and keep it. A batch is filled with windows that are needed, across strips;
the last one with zeros, so that the model always gets one shape. The logits of a window do not depend on the
others in its batch, so neither does the map.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.geo.blending import Blender, WindowPlan
from cobertes.learn.inference import prefetch

Position = tuple[int, int]
"""Row and column of a window in its plan."""

Item = TypeVar("Item")
WindowData = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Channels (C, H, W) of a window, and its valid mask (H, W)."""

END: Any = object()


@dataclass(frozen=True)
class MapBlock:
    """Block of the plan finished by the window at ``position``.

    logits  (height, width, K) float32; None if no pixel of the window is needed
    valid   (height, width) bool; None likewise
    """

    position: Position
    logits: NDArray[np.float32] | None
    valid: NDArray[np.bool_] | None


def in_background(items: Iterator[Item]) -> Iterator[Item]:
    """Prefetch the items of a generator with one thread, up to two ahead. Its error is raised in order."""
    with (
        closing(items),  # type: ignore[type-var]
        closing(prefetch(repeat((None,)), lambda _: next(items, END), threads=1, ahead=3)) as upcoming,  # type: ignore[type-var]
    ):
        for [(_, item)] in upcoming:
            if item is END:
                return
            yield item


@dataclass(frozen=True)
class Batch:
    """Windows of a model call, in order, and those skipped between them.

    windows   positions with their valid masks (H, W); None for a skipped window
    channels  (B, C, H, W) float32 of those not skipped; None if all are
    """

    windows: list[tuple[Position, NDArray[np.bool_] | None]]
    channels: Tensor | None


def batches(read: Iterator[tuple[Position, WindowData | None]], size: int) -> Iterator[Batch]:
    """Batches of ``size`` windows; skipped windows keep their order between them."""
    windows: list[tuple[Position, NDArray[np.bool_] | None]] = []
    channels: list[NDArray[np.float32]] = []
    with closing(read):  # type: ignore[type-var]
        for position, data in read:
            windows.append((position, None if data is None else data[1]))
            if data is not None:
                channels.append(data[0])
            if len(channels) == size or (not channels and len(windows) == size):
                yield Batch(windows, _stack(channels, size))
                windows, channels = [], []
        if windows:
            yield Batch(windows, _stack(channels, size))


def _stack(windows: list[NDArray[np.float32]], size: int) -> Tensor | None:
    """(size, C, H, W), channels last in memory like the windows themselves; padded with zeros."""
    if not windows:
        return None
    channels, height, width = windows[0].shape
    out = np.empty((size, height, width, channels), np.float32)
    for i, x in enumerate(windows):
        out[i] = x.transpose(1, 2, 0)
    out[len(windows) :] = 0
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def map_blocks(
    forward: Callable[[Tensor], Tensor],
    plan: WindowPlan,
    positions: Iterable[Position],
    read: Callable[[Position], WindowData | None],
    *,
    batch_size: int,
    threads: int,
    ahead: int,
) -> Iterator[MapBlock]:
    """Blended block of every position, in order.

    forward    channels (B, C, H, W) -> logits (B, K, H, W), on any device
    positions  in row-major order, or groups of columns one after the other, each in row-major order
    read       channels and valid mask of a window; None to skip it
    ahead      windows that ``threads`` prefetch
    """

    def windows() -> Iterator[tuple[Position, WindowData | None]]:
        with closing(prefetch(([p] for p in positions), read, threads=threads, ahead=ahead)) as upcoming:  # type: ignore[type-var]
            for [window] in upcoming:
                yield window

    def predictions() -> Iterator[tuple[Batch, Tensor | None]]:
        with closing(in_background(batches(windows(), batch_size))) as upcoming:  # type: ignore[type-var]
            for batch in upcoming:
                yield batch, None if batch.channels is None else forward(batch.channels)

    blender = Blender(plan)
    with closing(in_background(predictions())) as predicted:  # type: ignore[type-var]
        for batch, logits in predicted:
            values = iter([] if logits is None else _channels_last(logits))
            for (row, col), valid in batch.windows:
                if valid is None:
                    yield MapBlock((row, col), None, None)
                    continue
                y, x = plan.rows[row], plan.cols[col]
                inside = valid[y.first - y.start : y.last - y.start, x.first - x.start : x.last - x.start]
                yield MapBlock((row, col), blender.add(row, col, next(values)), inside)


def _channels_last(logits: Tensor) -> NDArray[np.float32]:
    """(B, H, W, K) float32 in CPU memory, the classes of a pixel together."""
    values: NDArray[np.float32] = logits.float().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return values
