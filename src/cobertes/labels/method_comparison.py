"""Effect of each aggregation method on each class: areas, small objects, boundaries, agreement.

    reference map --+-- one pass --> nearest.tif, majority.tif, weighted-majority.tif
                    |                        |
                    +-- strips, top to bottom + the labels over them --> areas, objects kept or lost, boundaries

The fine map is the measure: what a method adds to a class or takes from it is its bias.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.atomic_io import write_json, write_text
from cobertes.geo.grid import pixel_hectares
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.windows import Window
from cobertes.labels.aggregate import make_labels
from cobertes.labels.connected_objects import ObjectCounter, ObjectCounts
from cobertes.labels.kernels import histogram
from cobertes.labels.label_job import METHODS, AlignedMap, LabelJob
from cobertes.labels.legend import CODES, Legend
from cobertes.labels.memory_plan import strip_cache
from cobertes.labels.recode import RecodeTable
from cobertes.labels.vote_weights import VoteWeights
from cobertes.numba_cache import compiled
from cobertes.progress import SILENT, Progress

STRIP_PIXELS = 16_000_000
"""Fine pixels that are compared together, at least one row of scene pixels."""

SMALL = (1, 10)
"""Objects under this many scene pixels are counted."""


@dataclass(frozen=True)
class Comparison:
    """Methods beside the fine map; class axes are in the order of the legend.

    hectares    area of a scene pixel, None where the grid has no CRS
    factor      fine pixels along a scene pixel
    fine        (K,) float64: class area in the fine map, in scene pixels
    labels      (M, K) int64: pixels of each class by method, in the order of `METHODS`
    objects     connected objects of the fine map under 1 and 10 scene pixels, and how many each method lost
    agreement   (M, M) float64: share of pixels labelled by both methods in which they agree
    boundary    (M + 1,) float64: length of boundaries between classes by method, then in the fine map, in the
                grid's units (pixels without CRS)
    weights     class weights of the weighted majority, by key
    """

    legend: Legend
    hectares: float | None
    factor: int
    fine: NDArray[np.float64]
    labels: NDArray[np.int64]
    objects: ObjectCounts
    agreement: NDArray[np.float64]
    boundary: NDArray[np.float64]
    weights: dict[str, float]

    @property
    def bias(self) -> NDArray[np.float64]:
        """(M, K): area of a class in the labels beside the fine map's, in percent; NaN for absent classes."""
        fine = np.where(self.fine > 0, self.fine, np.nan)
        result: NDArray[np.float64] = 100 * (self.labels - self.fine) / fine
        return result

    @property
    def moved(self) -> NDArray[np.float64]:
        """(M,): percent of the labelled area that would have to change its class to give the fine map's areas.

        Both are compared as shares, so that pixels with too little known ground do not count.
        """
        theirs = self.labels / np.maximum(self.labels.sum(1, keepdims=True), 1)
        result: NDArray[np.float64] = 50 * np.abs(theirs - self.fine / max(self.fine.sum(), 1)).sum(1)
        return result

    @property
    def lost(self) -> NDArray[np.float64]:
        """(M, 2, K): percent of the objects under 1 and 10 scene pixels that a method lost; NaN without any."""
        present = np.where(self.objects.objects > 0, self.objects.objects, np.nan)
        result: NDArray[np.float64] = 100 * self.objects.lost / present
        return result


def compare_labels(
    reference: Path,
    grid: GeoBox,
    folder: Path,
    *,
    legend: Legend,
    table: RecodeTable,
    weighting: VoteWeights | None = None,
    min_valid: float = 0.5,
    unknown: Literal["error", "nodata"] = "error",
    memory: int = 900,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Comparison:
    """Make labels by every method, and measure them against the fine map.

    folder  gets METHOD.tif for every method, comparison.csv and comparison.json
    Arguments and errors as in `make_labels`.
    """
    files = {method: folder / f"{method}.tif" for method in METHODS}
    first, *others = METHODS
    made = make_labels(
        reference, grid, files[first],
        legend=legend, table=table, method=first, also={method: files[method] for method in others},
        weighting=weighting, min_valid=min_valid, unknown=unknown, memory=memory, resume="if-same",
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    job = LabelJob(AlignedMap.open(reference, grid), legend, table, first)
    with rasterio.Env(GDAL_CACHEMAX=strip_cache(memory, job.source.layout)):
        comparison = _measure(job, list(files.values()), progress)
    comparison = replace(comparison, weights=made.weights)
    _write_csv(comparison, folder / "comparison.csv")
    write_json(folder / "comparison.json", as_dict(comparison))
    return comparison


def _measure(job: LabelJob, files: list[Path], progress: Progress) -> Comparison:
    grid, legend, factor = job.grid, job.legend, job.alignment.factor
    classes = len(legend)
    counter = ObjectCounter(grid.width, factor, classes, len(files), tuple(n * factor**2 for n in SMALL))
    index = legend.index_table()
    counts = np.zeros((len(files) + 1, CODES), np.int64)
    same = np.zeros((2, len(files), len(files)), np.int64)
    edges = np.zeros((len(files) + 1, 2), np.int64)
    nothing = np.full(grid.width * factor, CODES - 1, np.uint8)  # above the first row: nodata
    above = [nothing[: grid.width] for _ in files] + [nothing]
    total = grid.width * grid.height * factor**2 / 1e6
    with progress.bar("comparing", total, "Mpx") as advance:
        for fine, labels in _strips(job, files, index):
            counter.add(fine, labels)
            for i, codes in enumerate((*labels, fine)):
                histogram(codes, counts[i])
                _count_edges(codes, above[i], classes, edges[i])
                above[i] = codes[-1].copy()
            _count_agreement(labels, classes, same)
            advance(fine.size / 1e6)
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = same[0] / same[1]
    high, wide = abs(grid.affine.e) or 1.0, abs(grid.affine.a) or 1.0
    boundary = edges @ np.array([wide, high])
    boundary[-1] /= factor
    return Comparison(
        legend, pixel_hectares(grid), factor, counts[-1, :classes] / factor**2, counts[:-1, :classes],
        counter.finish(), agreement, boundary, {},
    )  # fmt: skip


def _strips(
    job: LabelJob, files: list[Path], index: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Class indexes of the fine map and of the labels over it, strip by strip; the next one is read meanwhile."""
    grid, factor = job.grid, job.alignment.factor
    height = max(1, STRIP_PIXELS // (grid.width * factor**2))
    tops = [*range(0, grid.height, height), grid.height]
    of_source = index[job.recode]
    with ExitStack() as stack:
        reader = stack.enter_context(job.open_reader())
        opened = [stack.enter_context(open_raster(file)) for file in files]
        pool = stack.enter_context(ThreadPoolExecutor(1))

        def read(top: int, bottom: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            window = Window(top, 0, bottom - top, grid.width)
            fine, _ = reader.read(window)
            labels = [index[read_window(file, window, 1)] for file in opened]
            return _look_up(fine, of_source), np.stack(labels)

        bounds = list(pairwise(tops))
        coming: Any = pool.submit(read, *bounds[0])
        for after in [*bounds[1:], None]:
            strip = coming.result()
            if after:
                coming = pool.submit(read, *after)
            yield strip


@compiled
def _look_up(codes: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``table[codes]``, ten times as fast as numpy."""
    found = np.empty_like(codes)
    for row in range(codes.shape[0]):
        for col in range(codes.shape[1]):
            found[row, col] = table[codes[row, col]]
    return found


@compiled
def _count_edges(
    codes: NDArray[np.uint8], above: NDArray[np.uint8], classes: int, edges: NDArray[np.int64]
) -> None:
    """Add the pixel sides between different classes.

    codes  (height, width) uint8 class indexes; from ``classes`` on they are nodata
    above  (width,) uint8: the row over the first one
    edges  (2,) int64, added to: horizontal and vertical sides
    """
    height, width = codes.shape
    for row in range(height):
        line = codes[row]
        horizontal, vertical = 0, 0
        for col in range(width):  # no branches: the compiler makes vector instructions of it
            horizontal += (line[col] != above[col]) & (line[col] < classes) & (above[col] < classes)
        for col in range(1, width):
            vertical += (line[col] != line[col - 1]) & (line[col] < classes) & (line[col - 1] < classes)
        edges[0] += horizontal
        edges[1] += vertical
        above = line


@compiled
def _count_agreement(labels: NDArray[np.uint8], classes: int, same: NDArray[np.int64]) -> None:
    """Add the pixels in which two methods agree, and in which both have a label.

    labels  (M, height, width) uint8 class indexes
    same    (2, M, M) int64, added to
    """
    methods, height, width = labels.shape
    for a in range(methods):
        for b in range(methods):
            for row in range(height):
                for col in range(width):
                    if labels[a, row, col] < classes and labels[b, row, col] < classes:
                        same[1, a, b] += 1
                        if labels[a, row, col] == labels[b, row, col]:
                            same[0, a, b] += 1


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Comparison as JSON values, by method and class key."""
    c = comparison

    def by_class(values: NDArray[Any]) -> dict[str, Any]:
        return dict(zip(c.legend.keys, values.tolist(), strict=True))

    return {
        "hectares_per_pixel": c.hectares,
        "class_weights": c.weights,
        "fine_map": {"pixels": by_class(c.fine), "boundary": c.boundary[-1]},
        "objects_under_1_px": by_class(c.objects.objects[0]),
        "objects_under_10_px": by_class(c.objects.objects[1]),
        "methods": {
            method: {
                "pixels": by_class(c.labels[m]),
                "bias_percent": by_class(c.bias[m]),
                "area_moved_percent": c.moved[m],
                "lost_under_1_px_percent": by_class(c.lost[m, 0]),
                "lost_under_10_px_percent": by_class(c.lost[m, 1]),
                "boundary": c.boundary[m],
                "agreement": dict(zip(METHODS, c.agreement[m].tolist(), strict=True)),
            }
            for m, method in enumerate(METHODS)
        },
    }


def _write_csv(comparison: Comparison, path: Path) -> None:
    """A row per class and method."""
    c = comparison
    hectares = c.hectares or np.nan
    lines = ["class,method,hectares,fine_hectares,bias_percent,lost_under_1_px_percent,lost_under_10_px_percent"]
    for k, key in enumerate(c.legend.keys):
        for m, method in enumerate(METHODS):
            values = (
                c.labels[m, k] * hectares, c.fine[k] * hectares, c.bias[m, k], c.lost[m, 0, k], c.lost[m, 1, k]
            )  # fmt: skip
            lines.append(",".join([key, method, *(f"{v:.6g}" if np.isfinite(v) else "" for v in values)]))
    write_text(path, "\n".join(lines) + "\n")
