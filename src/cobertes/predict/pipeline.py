"""Windows through a model: reader, model and blending at the same time, in one order whatever the threads.

    threads     read windows ahead ──> batches of one shape ──┐ queue
    a thread                                                model ──┐ queue
    the caller                                                    blend, block by block

Windows come in row-major order and keep it. A batch is filled up with windows that are needed, across strips;
the last one with zeros, so that the model always sees one shape. What a window gives does not depend on the
others in its batch, so neither do the results.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.geo.blending import Blender, WindowPlan

Place = tuple[int, int]
"""Row and column of a window in its plan."""

Item = TypeVar("Item")
Seen = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Channels (C, H, W) of a window, and where it is valid (H, W)."""

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class MapBlock:
    """What a window finishes: ``logits`` (height, width, K), None where nothing is to be seen; ``valid``."""

    place: Place
    logits: NDArray[np.float32] | None
    valid: NDArray[np.bool_] | None


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, made by a thread that is up to ``depth`` of them ahead. Its error comes out in its turn."""
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(more: bool, what: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((more, what), timeout=POLL_SECONDS)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            with closing(items):  # type: ignore[type-var]
                for item in items:
                    if not put(True, item):
                        return
            put(False, None)
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            more, what = waiting.get()
            if more:
                yield what
            elif what is None:
                return
            else:
                raise what
    finally:
        stopped.set()
        thread.join()


def read_in_order(
    places: Iterable[Place], read: Callable[[Place], Seen | None], threads: int, windows: int
) -> Iterator[tuple[Place, Seen | None]]:
    """``(place, read(place))`` in order, up to ``windows`` of them read ahead by threads."""
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[tuple[Place, Future[Seen | None]]] = deque()
        upcoming = iter(places)
        while True:
            while len(waiting) < windows and (place := next(upcoming, None)) is not None:
                waiting.append((place, pool.submit(read, place)))
            if not waiting:
                return
            place, future = waiting.popleft()
            yield place, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


Batch = tuple[list[tuple[Place, NDArray[np.bool_] | None]], Tensor | None]
"""Places with their validity (None: left out) in order, and the channels (B, C, H, W) of those not left out."""


def batches(seen: Iterator[tuple[Place, Seen | None]], size: int) -> Iterator[Batch]:
    """Batches of ``size`` windows; those left out travel along between them."""
    places: list[tuple[Place, NDArray[np.bool_] | None]] = []
    held: list[NDArray[np.float32]] = []
    with closing(seen):  # type: ignore[type-var]
        for place, found in seen:
            places.append((place, None if found is None else found[1]))
            if found is not None:
                held.append(found[0])
            if len(held) == size or (not held and len(places) == size):
                yield places, _stack(held, size)
                places, held = [], []
        if places:
            yield places, _stack(held, size)


def _stack(held: list[NDArray[np.float32]], size: int) -> Tensor | None:
    """(size, C, H, W), channels last in memory, as the windows themselves are."""
    if not held:
        return None
    channels, height, width = held[0].shape
    out = np.empty((size, height, width, channels), np.float32)
    for i, x in enumerate(held):
        out[i] = x.transpose(1, 2, 0)
    out[len(held) :] = 0
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def blocks(
    forward: Callable[[Tensor], Tensor],
    plan: WindowPlan,
    places: Iterable[Place],
    read: Callable[[Place], Seen | None],
    *,
    batch_size: int,
    threads: int,
    windows_ahead: int,
) -> Iterator[MapBlock]:
    """The finished block of every place, in order, blended.

    forward  channels (B, C, H, W) -> logits (B, K, H, W), on whatever device
    places   in row-major order, or groups of columns one after the other, each in row-major order
    read     channels and validity of a window; None to leave it out
    """

    def answers() -> Iterator[tuple[Batch, Tensor | None]]:
        read_ahead = ahead(batches(read_in_order(places, read, threads, windows_ahead), batch_size), 1)
        with closing(read_ahead):  # type: ignore[type-var]
            for batch in read_ahead:
                yield batch, None if batch[1] is None else forward(batch[1])

    blender = Blender(plan)
    answered = ahead(answers(), 1)
    with closing(answered):  # type: ignore[type-var]
        for (batch, _), logits in answered:
            values = None if logits is None else _pixels(logits)
            number = 0
            for (row, col), valid in batch:
                if valid is None or values is None:
                    yield MapBlock((row, col), None, None)
                    continue
                y, x = plan.rows[row], plan.cols[col]
                inside = valid[y.first - y.start : y.last - y.start, x.first - x.start : x.last - x.start]
                yield MapBlock((row, col), blender.add(row, col, values[number]), inside)
                number += 1


def _pixels(logits: Tensor) -> NDArray[np.float32]:
    """(B, H, W, K) float32 in this machine's memory, each pixel's classes together."""
    values: NDArray[np.float32] = logits.float().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return values
