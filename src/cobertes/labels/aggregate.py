"""From a reference map to labels on the scene's grid: one pass, in bounded memory, on all cores.

    kernels <-- reference <-- plan <-- aggregate

    window of the scene -> codes on the fine grid -> histogram per scene pixel -> label, purity, fractions
                           ReferenceReader.read      kernels.aggregate            memory-mapped outputs

Each thread takes the next window, reads it through its own handle and writes its own pixels. Windows share no
pixels and sums are of integers, so the result does not depend on windows, threads or memory.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.errors import LegendError, SettingsError, UnknownCodesError, did_you_mean
from cobertes.geo.grid import crs_name, grid_of, open_raster, same_crs
from cobertes.geo.raster import RasterKind, new_raster, release
from cobertes.geo.windows import Window
from cobertes.labels import kernels
from cobertes.labels.legend import CODES, Legend
from cobertes.labels.plan import Budget, Layout, plan_windows
from cobertes.labels.reference import Placement, ReferenceReader, place
from cobertes.progress import SILENT, Advance, Progress

METHODS = ("nearest", "majority")

BLENDING = ("average", "bilinear", "cubic", "cubicspline", "gauss", "lanczos", "mean", "rms", "sum")
"""Resampling methods that compute with values; codes are names, not values."""


@dataclass(frozen=True)
class LabelReport:
    """What a pass found.

    ``counts``         pixels of the labels per legend code, nodata included
    ``source_counts``  pixels of the reference map that were read, per source code (where the map had to be
                       warped: samples, and ground outside of it counts as its nodata)
    ``unknown``        source codes outside the table, with counts
    ``factor``         scene pixel / map pixel
    ``how``            one line for people: "majority of 10 x 10 px, aligned"
    """

    counts: dict[int, int]
    source_counts: dict[int, int]
    unknown: dict[int, int]
    factor: float
    how: str


def make_labels(
    reference: Path,
    grid: GeoBox,
    out: Path,
    *,
    legend: Legend,
    table: NDArray[np.int16],
    method: str = "majority",
    min_valid: float = 0.5,
    unknown: Literal["error", "nodata"] = "error",
    memory: int = 900,
    purity: Path | None = None,
    fractions: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> LabelReport:
    """Bring a reference map onto the scene's grid and write it as a COG with palette and class names.

    grid       the scene's; the map may have any CRS, resolution and origin, and may cover it partly
    out        uint8 legend codes
    table      (256,) int16 from `translation`: what each source code becomes, -1 for unknown codes
    min_valid  share of a pixel, 0 to 1, that the map must know; below it the label is nodata (majority only)
    unknown    what to do with source codes outside the table: stop after the pass and list them, or nodata
    memory     peak memory of the process in MB, libraries included
    purity     also write the label's share of each pixel's known part: uint8 percent, nodata 255
    fractions  also write the share of each class in each pixel: uint16 in 1/10000, a band per class key,
               summing to the known share; nodata 65535 where nothing is known
    Raises SettingsError, InputFileError, GridMismatchError, LegendError, UnknownCodesError,
    OutputExistsError, StorageError; the labels are then as they were (a disk that fills up while the COGs are
    made can leave new purity or fractions, which are made first).
    """
    _check_method(method, with_votes=purity is not None or fractions is not None)
    _check_settings([reference, out, purity, fractions], min_valid, unknown)
    _check_table(legend, table)
    with open_raster(reference) as dataset:
        placement = place(reference, dataset, grid)
        how = _how(method, placement, grid_of(dataset), grid)
        layout = Layout.of(dataset, placement, grid)
    budget = Budget.of(memory, layout, placement, grid, len(legend) if fractions else 0)
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=budget.cache))  # in bytes
        # the labels come first, so they are renamed last: where they exist, all outputs do
        kind = RasterKind("uint8", ("class",), legend.nodata, legend.categories())
        outputs = {"label": files.enter_context(new_raster(out, grid, kind, overwrite=overwrite))}
        if purity:
            kind = RasterKind("uint8", ("purity",), kernels.NO_PURITY)
            outputs["purity"] = files.enter_context(new_raster(purity, grid, kind, overwrite=overwrite))
        if fractions:
            kind = RasterKind("uint16", tuple(legend.keys), kernels.NO_FRACTION, tags={"units": "1/10000"})
            outputs["fractions"] = files.enter_context(new_raster(fractions, grid, kind, overwrite=overwrite))
        work = _Pass(reference, grid, placement, legend, table, method, min_valid, outputs)
        work.run(plan_windows(grid, placement, layout, budget.window), budget.workers, progress)
        unknown_counts = {int(c): int(work.seen[c]) for c in np.flatnonzero((table < 0) & (work.seen > 0))}
        if unknown_counts and unknown == "error":
            raise UnknownCodesError(_unknown_message(reference, unknown_counts, int(work.seen.sum()), legend))
    counts = {int(code): int(work.written[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})}
    source_counts = {int(code): int(work.seen[code]) for code in np.flatnonzero(work.seen)}
    return LabelReport(counts, source_counts, unknown_counts, placement.ratio, how)


def _check_method(method: str, *, with_votes: bool) -> None:
    plain = method.lower().replace("_", "").replace("-", "")
    if plain in BLENDING:
        raise SettingsError(
            f"'{method}' computes with class codes, but the mean of class 1 and class 3 is not class 2. "
            f"Use 'majority' (the most frequent class), or 'nearest'."
        )
    if method not in METHODS:
        hint = " GDAL's 'mode' is 'majority' here." if plain == "mode" else did_you_mean(method, METHODS)
        raise SettingsError(f"no aggregation method '{method}'.{hint}")
    if with_votes and method == "nearest":
        raise SettingsError(
            "nearest looks at one map pixel, but purity and fractions describe all of them. Use method 'majority'."
        )


def _check_settings(files: list[Path | None], min_valid: float, unknown: str) -> None:
    if not 0 <= min_valid <= 1:
        raise SettingsError(f"the valid share must be from 0 to 1, not {min_valid:g} (0.5: half of the pixel)")
    if unknown not in ("error", "nodata"):
        raise SettingsError(f"unknown codes can be an 'error' or 'nodata', not '{unknown}'")
    paths = [path.absolute() for path in files if path is not None]
    if len(set(paths)) < len(paths):
        raise SettingsError("the map, the labels, purity and fractions must be different files")


def _check_table(legend: Legend, table: NDArray[np.int16]) -> None:
    strange = sorted({int(code) for code in table if code >= 0} - {legend.nodata, *legend.codes.tolist()})
    if strange:
        raise LegendError(f"the table of codes leads to {strange}, which legend '{legend.name}' does not have")
    if legend.nodata not in table:
        raise LegendError(
            "every code has a class, so none is left for ground that the map does not cover. Say which one means "
            'nodata: `[labels] codes = { 255 = "nodata" }`, or any other that the map does not hold.'
        )


def _how(method: str, placement: Placement, theirs: GeoBox, grid: GeoBox) -> str:
    factor, ratio = placement.factor, placement.ratio
    if factor == 1 and placement.origin is not None:
        return "nearest: the map has the scene's pixels"
    warped = f"map warped from {crs_name(theirs)}" if not same_crs(theirs, grid) else "map off the scene's grid"
    ending = "aligned" if placement.origin is not None else warped
    if factor == 1:
        why = "coarser than" if ratio < 0.99 else "about as fine as"
        return f"nearest: the map is {why} the scene ({ratio:.2f} map pixels per scene pixel), {ending}"
    if method == "nearest":
        return f"nearest: centre of {factor} x {factor} px, {ending}"
    return f"majority of {factor} x {factor} px, {ending}"


def _unknown_message(reference: Path, counts: dict[int, int], total: int, legend: Legend) -> str:
    rows = [f"{code} ({count:,} px, {100 * count / total:.2g} %)" for code, count in counts.items()]
    listed = ", ".join(rows[:12]) + (f" and {len(rows) - 12} more" if len(rows) > 12 else "")
    example = ", ".join(
        f'{code} = "{what}"' for code, what in zip(counts, (legend.classes[0].key, "nodata"), strict=False)
    )
    return (
        f"{reference} holds codes that legend '{legend.name}' and the crosswalk do not know: {listed}. "
        f"Say what they are in the project, for example `[labels] codes = {{ {example} }}`, or in a crosswalk; "
        f'or let all of them count as nodata: `unknown = "nodata"`.'
    )


@dataclass
class _Pass:
    """One pass over the map: what threads share. ``seen`` and ``written`` count codes read and labels written."""

    reference: Path
    grid: GeoBox
    placement: Placement
    legend: Legend
    table: NDArray[np.int16]
    method: str
    min_valid: float
    outputs: dict[str, NDArray[Any]]
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CODES, np.int64))
    written: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CODES, np.int64))
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        known = self.table >= 0
        self.translate = np.where(known, self.table, self.legend.nodata).astype(np.uint8)
        classes = self.legend.index_table()
        self.index = np.minimum(classes[self.translate], len(self.legend)).astype(np.uint8)

    def run(self, windows: list[Window], workers: int, progress: Progress) -> None:
        """Work through all windows; the first error of any thread stops the others at their next window."""
        pixels = self.grid.width * self.grid.height * self.placement.factor**2
        queue = iter(windows)
        with progress.bar("labels", pixels / 1e6, "Mpx") as advance, ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._work, queue, advance) for _ in range(workers)]
            try:
                for future in futures:
                    future.result()
            finally:
                self.stop.set()

    def _work(self, queue: Iterator[Window], advance: Advance) -> None:
        try:
            filler = int(np.flatnonzero(self.table == self.legend.nodata)[0])
            with ReferenceReader(self.reference, self.grid, self.placement, filler=filler) as reader:
                while not self.stop.is_set():
                    with self.lock:
                        window = next(queue, None)
                    if window is None:
                        return
                    self._window(window, reader, advance)
        except BaseException:
            self.stop.set()
            raise

    def _window(self, window: Window, reader: ReferenceReader, advance: Advance) -> None:
        fine, outside = reader.read(window)
        factor, classes = self.placement.factor, len(self.legend)
        seen, written = np.zeros(CODES, np.int64), np.zeros(CODES, np.int64)
        results: dict[str, NDArray[Any]] = {"label": np.empty(window.shape, np.uint8)}
        if len(self.outputs) == 1 and (factor == 1 or self.method == "nearest"):
            kernels.tally(fine, seen)
            middle = factor // 2  # 10 -> 5, 4 -> 2, as GDAL takes it
            results["label"] = self.translate[fine[middle::factor, middle::factor]]
        else:
            shape = window.shape if "purity" in self.outputs else (0, 0)
            results["purity"] = np.empty(shape, np.uint8)
            shape = window.shape if "fractions" in self.outputs else (0, 0)
            results["fractions"] = np.empty((classes, *shape), np.uint16)
            kernels.aggregate(
                fine, factor, self.index, self.legend.codes, np.argsort(self.legend.codes), self.legend.nodata,
                max(1, ceil(self.min_valid * factor**2 - 1e-9)),
                results["label"], results["purity"], results["fractions"], seen,
            )  # fmt: skip
        for name, pixels in self.outputs.items():
            pixels[(slice(None), *window.slices)] = results[name]
            release(pixels)
        kernels.tally(results["label"], written)
        seen[reader.filler] -= outside
        with self.lock:
            self.seen += seen
            self.written += written
            advance(fine.size / 1e6)
