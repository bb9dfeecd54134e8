"""One pass over a reference map: threads take windows, count votes, and write what was asked for.

    window of the scene -> codes on the fine grid -> votes per scene pixel -> nearest, majority, purity, ...
                           ReferenceReader.read      kernels.count_votes      memory-mapped outputs

Each thread takes the next window, reads it through its own handle and writes its own pixels, so one reads and
decodes while another counts. Windows share no pixels and sums are of whole numbers, so the result does not
depend on windows, threads or memory.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.geo.ledger import Ledger
from cobertes.geo.mmap_tiff import release
from cobertes.geo.windows import Window
from cobertes.labels import kernels
from cobertes.labels.legend import CODES, Legend
from cobertes.labels.reference_map import Alignment, ReferenceReader
from cobertes.progress import SILENT, Advance, Progress

NEAREST, MAJORITY, WEIGHTED = METHODS = ("nearest", "majority", "weighted-majority")

SHARES = ("purity", "fractions", "entropy", "valid")
"""What a pass can tell beside labels, in percent."""


@dataclass(frozen=True)
class LabelTask:
    """What a pass makes of which map.

    table    (256,) int16 from `recode_table`: legend code of each source code, -1 for unknown ones
    main     the method whose labels purity describes
    weights  (K,) int64 for the weighted majority
    bell     ((2 reach + 1) * factor,) int64 from `weights.gaussian_kernel`, empty without smoothing
    """

    reference: Path
    grid: GeoBox
    alignment: Alignment
    legend: Legend
    table: NDArray[np.int16]
    main: str
    min_valid: float = 0.0
    weights: NDArray[np.int64] = field(default_factory=lambda: np.ones(0, np.int64))
    gaussian_kernel: NDArray[np.int64] = field(default_factory=lambda: np.ones(0, np.int64))

    @cached_property
    def translate(self) -> NDArray[np.uint8]:
        """(256,) legend code of each source code; unknown ones are nodata."""
        return np.where(self.table >= 0, self.table, self.legend.nodata).astype(np.uint8)

    @cached_property
    def class_of(self) -> NDArray[np.uint8]:
        """(256,) class index of each legend code, K for nodata."""
        return np.minimum(self.legend.index_table(), len(self.legend)).astype(np.uint8)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(K,) class indexes by ascending code."""
        return np.argsort(self.legend.codes)

    @property
    def pixels(self) -> int:
        """Fine pixels of a scene pixel."""
        return self.alignment.factor**2

    @property
    def reach(self) -> int:
        """Neighbouring scene pixels on each side whose votes count."""
        return self.gaussian_kernel.size // self.alignment.factor // 2

    @property
    def fill_code(self) -> int:
        """The source code that stands for ground without the map."""
        return int(np.flatnonzero(self.table == self.legend.nodata)[0])


def count_codes(
    task: LabelTask, windows: list[Window], workers: int, progress: Progress = SILENT
) -> NDArray[np.int64]:
    """(256,) int64: map pixels of each source code, as far as the scene reaches."""
    seen, lock = np.zeros(CODES, np.int64), threading.Lock()

    def count(number: int, reader: ReferenceReader) -> int:
        fine, outside = reader.read(windows[number])
        own = np.zeros(CODES, np.int64)
        kernels.histogram(fine, own)
        own[reader.fill_code] -= outside
        with lock:
            seen[:] += own
        return fine.size

    _share_out(_Queue(task, range(len(windows)), 0), count, workers, progress, "counting")
    return seen


def make_products(
    task: LabelTask,
    windows: list[Window],
    outputs: Mapping[str, Any],
    ledger: Ledger,
    workers: int,
    progress: Progress = SILENT,
) -> None:
    """Write all windows that the ledger lacks.

    outputs  by name of `METHODS` and `SHARES`: memory-mapped (bands, height, width)
    ledger   with sums ``seen`` and ``written`` of 256 codes each: fine pixels, and pixels of the main labels
    """
    pages = list(outputs.values())

    def make(number: int, reader: ReferenceReader) -> int:
        window = windows[number]
        results, seen = products(task, window, reader, frozenset(outputs))
        for name, values in results.items():
            outputs[name][(slice(None), *window.slices)] = values
            release(outputs[name])
        written = np.zeros(CODES, np.int64)
        kernels.histogram(results[task.main], written)
        ledger.mark_done(number, {"seen": seen, "written": written})
        ledger.save_if_due(pages)
        return window.height * window.width * task.pixels

    left = [number for number in range(len(windows)) if number not in ledger.done]
    before = sum(windows[number].height * windows[number].width for number in ledger.done) * task.pixels
    try:
        _share_out(_Queue(task, left, before), make, workers, progress, "labels")
    except KeyboardInterrupt:
        ledger.save(pages)
        raise
    ledger.save_if_due(pages)


def products(
    task: LabelTask, window: Window, reader: ReferenceReader, names: frozenset[str]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """What was asked for in one window, and the (256,) source codes in it: outputs by name, (height, width) or
    (K, height, width)."""
    factor, reach, classes = task.alignment.factor, task.reach, len(task.legend)
    wide, outside = reader.read(window.pad(reach) if reach else window)
    edge = reach * factor
    fine = wide[edge : wide.shape[0] - edge, edge : wide.shape[1] - edge]
    if reach:
        outside = reader.outside(window)
    seen = np.zeros(CODES, np.int64)
    results: dict[str, NDArray[Any]] = {}
    methods = names & set(METHODS)
    same = methods if factor == 1 else methods & {NEAREST}
    middle = factor // 2  # 10 -> 5, 4 -> 2, as GDAL takes it
    for name in same:
        results[name] = task.translate[fine[middle::factor, middle::factor]]
    if names == same:
        kernels.histogram(fine, seen)
        seen[reader.fill_code] -= outside
        return results, seen

    votes = np.empty((wide.shape[0] // factor, wide.shape[1] // factor, classes + 1), np.int32)
    index = task.class_of[task.translate]
    kernels.count_votes(wide, factor, index, reach, votes, seen)
    seen[reader.fill_code] -= outside
    own = votes[reach : votes.shape[0] - reach, reach : votes.shape[1] - reach]
    legend = task.legend
    required = max(1, ceil(task.min_valid * task.pixels - 1e-9))
    vote = (task.order, legend.codes, legend.nodata, required)
    if MAJORITY in methods - same:
        label = results[MAJORITY] = np.empty(window.shape, np.uint8)
        kernels.majority(own, np.ones(classes, np.int64), *vote, label)
    if WEIGHTED in methods - same:
        label = results[WEIGHTED] = np.empty(window.shape, np.uint8)
        if task.gaussian_kernel.size:
            kernels.majority_smooth(wide, factor, index, votes, task.gaussian_kernel, task.weights, *vote, label)
        else:
            kernels.majority(own, task.weights, *vote, label)
    results |= _shares(task, own, results[task.main], names)
    return results, seen


def _shares(
    task: LabelTask, votes: NDArray[np.int32], label: NDArray[np.uint8], names: frozenset[str]
) -> dict[str, NDArray[np.uint8]]:
    shape, pixels = label.shape, task.pixels
    results = {name: np.empty(shape, np.uint8) for name in SHARES if name in names}
    if "purity" in names:
        kernels.measure_purity(votes, label, task.class_of, results["purity"])
    if "fractions" in names:
        results["fractions"] = np.empty((len(task.legend), *shape), np.uint8)
        kernels.measure_fractions(votes, pixels, results["fractions"])
    if "entropy" in names:
        numbers = np.arange(pixels + 1, dtype=np.float64)
        logs: NDArray[np.float64] = numbers * np.log(np.maximum(numbers, 1))
        kernels.measure_entropy(votes, logs, results["entropy"])
    if "valid" in names:
        kernels.measure_valid(votes, pixels, results["valid"])
    return results


class _Queue:
    """Numbers of windows for threads to take, until one of them stops."""

    def __init__(self, task: LabelTask, numbers: Sequence[int], before: float) -> None:
        self.task, self.before = task, before
        self.numbers: Iterator[int] = iter(numbers)
        self.lock, self.stop = threading.Lock(), threading.Event()

    def take(self) -> int | None:
        with self.lock:
            return None if self.stop.is_set() else next(self.numbers, None)


def _share_out(
    queue: _Queue, work: Callable[[int, ReferenceReader], int], workers: int, progress: Progress, name: str
) -> None:
    """Let threads work off a queue, each with its own reader; the first error of any stops the others.

    work  takes the number of a window and a reader, returns the fine pixels it got done
    """
    task = queue.task
    total = task.grid.width * task.grid.height * task.pixels

    def run(advance: Advance) -> None:
        try:
            with ReferenceReader(task.reference, task.grid, task.alignment, fill_code=task.fill_code) as reader:
                while (number := queue.take()) is not None:
                    done = work(number, reader)
                    with queue.lock:
                        advance(done / 1e6)
        except BaseException:
            queue.stop.set()
            raise

    with progress.bar(name, total / 1e6, "Mpx") as advance, ThreadPoolExecutor(workers) as pool:
        if queue.before:
            advance(queue.before / 1e6)
        futures = [pool.submit(run, advance) for _ in range(workers)]
        try:
            for future in futures:
                future.result()
        finally:
            queue.stop.set()
