"""Label pass over a reference map: threads take windows, count votes, and write the outputs.

    window of the scene -> codes on the fine grid -> votes per scene pixel -> nearest, majority, purity, ...
                           ReferenceReader.read      kernels.count_votes      memory-mapped outputs

Each thread takes the next window, reads it through its own handle and writes its own pixels, so one reads and
decodes while another counts. Windows share no pixels and all sums are of integers, so the result does not depend
on windows, threads or memory.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.ledger import Ledger
from cobertes.geo.mmap_tiff import release
from cobertes.geo.windows import Window
from cobertes.labels import kernels
from cobertes.labels.label_job import MAJORITY, METHODS, NEAREST, SHARES, WEIGHTED, LabelJob
from cobertes.labels.legend import CODES
from cobertes.labels.reference_map import ReferenceReader
from cobertes.progress import SILENT, Advance, Progress


def count_unknown_codes(job: LabelJob, progress: Progress = SILENT) -> dict[int, int]:
    """Count the map pixels of each code without a class, of a map that is not of bytes: it is read once more."""
    total: Counter[int] = Counter()
    lock = threading.Lock()

    def count(number: int, reader: ReferenceReader) -> int:
        window = job.windows[number]
        counts = reader.unknown_codes(window)
        with lock:
            total.update(counts)
        return window.height * window.width * job.pixels

    _run_workers(_WindowQueue(job, range(len(job.windows)), 0), count, progress, "unknown codes")
    return dict(sorted(total.items()))


def count_codes(job: LabelJob, progress: Progress = SILENT) -> NDArray[np.int64]:
    """Count the map pixels of each source code under the scene: (256,) int64."""
    total, lock = np.zeros(CODES, np.int64), threading.Lock()

    def count(number: int, reader: ReferenceReader) -> int:
        fine, outside = reader.read(job.windows[number])
        counts = np.zeros(CODES, np.int64)
        kernels.histogram(fine, counts)
        counts[reader.fill_code] -= outside
        with lock:
            total[:] += counts
        return fine.size

    _run_workers(_WindowQueue(job, range(len(job.windows)), 0), count, progress, "counting")
    return total


def write_labels(job: LabelJob, outputs: Mapping[str, Any], ledger: Ledger, progress: Progress = SILENT) -> None:
    """Write all windows that are not in the ledger.

    outputs  by name of `METHODS` and `SHARES`: memory-mapped (bands, height, width)
    ledger   with sums ``seen`` and ``written`` of 256 codes each: fine pixels, and pixels of the main labels
    """
    pages = list(outputs.values())

    def write(number: int, reader: ReferenceReader) -> int:
        window = job.windows[number]
        results, source_counts = label_window(job, window, reader, frozenset(outputs))
        for name, values in results.items():
            outputs[name][(slice(None), *window.slices)] = values
            release(outputs[name])
        written = np.zeros(CODES, np.int64)
        kernels.histogram(results[job.method], written)
        ledger.mark_done(number, {"seen": source_counts, "written": written})
        ledger.save_if_due(pages)
        return window.height * window.width * job.pixels

    left = [number for number in range(len(job.windows)) if number not in ledger.done]
    before = sum(job.windows[number].height * job.windows[number].width for number in ledger.done) * job.pixels
    try:
        _run_workers(_WindowQueue(job, left, before), write, progress, "labels")
    except KeyboardInterrupt:
        ledger.save(pages)
        raise
    ledger.save_if_due(pages)


def label_window(
    job: LabelJob, window: Window, reader: ReferenceReader, names: frozenset[str]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Compute the outputs of one window.

    returns  outputs by name, (height, width) or (K, height, width) uint8; (256,) fine pixels of each source code
    """
    factor, radius, classes = job.alignment.factor, job.radius, len(job.legend)
    padded, outside = reader.read(window.pad(radius) if radius else window)
    edge = radius * factor
    fine = padded[edge : padded.shape[0] - edge, edge : padded.shape[1] - edge]
    if radius:
        outside = reader.count_outside(window)
    source_counts = np.zeros(CODES, np.int64)
    results: dict[str, NDArray[Any]] = {}
    methods = names & set(METHODS)
    sampled = methods if factor == 1 else methods & {NEAREST}
    middle = factor // 2  # 10 -> 5, 4 -> 2, as in GDAL
    for name in sampled:
        results[name] = job.recode[fine[middle::factor, middle::factor]]
    if names == sampled:
        kernels.histogram(fine, source_counts)
        source_counts[reader.fill_code] -= outside
        return results, source_counts

    votes = np.empty((padded.shape[0] // factor, padded.shape[1] // factor, classes + 1), np.int32)
    index = job.class_index[job.recode]
    kernels.count_votes(padded, factor, index, radius, votes, source_counts)
    source_counts[reader.fill_code] -= outside
    own = votes[radius : votes.shape[0] - radius, radius : votes.shape[1] - radius]
    required = max(1, ceil(job.min_valid * job.pixels - 1e-9))
    rule = (job.order, job.legend.codes, job.legend.nodata, required)
    if MAJORITY in methods - sampled:
        label = results[MAJORITY] = np.empty(window.shape, np.uint8)
        kernels.majority(own, np.ones(classes, np.int64), *rule, label)
    if WEIGHTED in methods - sampled:
        label = results[WEIGHTED] = np.empty(window.shape, np.uint8)
        if job.gaussian_kernel.size:
            kernels.majority_smooth(padded, factor, index, votes, job.gaussian_kernel, job.weights, *rule, label)
        else:
            kernels.majority(own, job.weights, *rule, label)
    results |= _shares(job, own, results[job.method], names)
    return results, source_counts


def _shares(
    job: LabelJob, votes: NDArray[np.int32], label: NDArray[np.uint8], names: frozenset[str]
) -> dict[str, NDArray[np.uint8]]:
    shape, pixels = label.shape, job.pixels
    results = {name: np.empty(shape, np.uint8) for name in SHARES if name in names}
    if "purity" in names:
        kernels.measure_purity(votes, label, job.class_index, results["purity"])
    if "fractions" in names:
        results["fractions"] = np.empty((len(job.legend), *shape), np.uint8)
        kernels.measure_fractions(votes, pixels, results["fractions"])
    if "entropy" in names:
        numbers = np.arange(pixels + 1, dtype=np.float64)
        logs: NDArray[np.float64] = numbers * np.log(np.maximum(numbers, 1))
        kernels.measure_entropy(votes, logs, results["entropy"])
    if "valid" in names:
        kernels.measure_valid(votes, pixels, results["valid"])
    return results


class _WindowQueue:
    """Numbers of windows for threads to take, until one of them fails."""

    def __init__(self, job: LabelJob, numbers: Sequence[int], before: float) -> None:
        self.job, self.before = job, before
        self.numbers: Iterator[int] = iter(numbers)
        self.lock, self.stop = threading.Lock(), threading.Event()

    def take(self) -> int | None:
        with self.lock:
            return None if self.stop.is_set() else next(self.numbers, None)


def _run_workers(
    queue: _WindowQueue, work: Callable[[int, ReferenceReader], int], progress: Progress, name: str
) -> None:
    """Let the job's threads empty a queue, each with its own reader; the first error of any stops the others.

    work  takes the number of a window and a reader, returns the fine pixels of the window
    """
    job = queue.job
    total = job.grid.width * job.grid.height * job.pixels

    def run(advance: Advance) -> None:
        try:
            with job.open_reader() as reader:
                while (number := queue.take()) is not None:
                    pixels = work(number, reader)
                    with queue.lock:
                        advance(pixels / 1e6)
        except BaseException:
            queue.stop.set()
            raise

    with progress.bar(name, total / 1e6, "Mpx") as advance, ThreadPoolExecutor(job.workers) as pool:
        if queue.before:
            advance(queue.before / 1e6)
        futures = [pool.submit(run, advance) for _ in range(job.workers)]
        try:
            for future in futures:
                future.result()
        finally:
            queue.stop.set()
