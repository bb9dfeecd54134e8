"""From a reference map to labels on the scene's grid: one pass, in bounded memory, on all cores.

    kernels <-- reference <-- plan <-- streaming <-- aggregate

Any subset of nearest, majority, weighted majority, purity, fractions, entropy and valid share comes out of one
pass (weights by frequency need a count before it). What is made of which map, and what can be asked for, is
settled here; `streaming` does it.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.errors import LegendError, SettingsError, UnknownCodesError, did_you_mean
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.cog_writer import RasterSpec, new_raster, partial_folder
from cobertes.geo.grid import crs_name, grid_of, same_crs
from cobertes.geo.io import open_raster
from cobertes.geo.ledger import LEDGER, Ledger, Resume, discard, resume_or_start
from cobertes.geo.windows import Window
from cobertes.labels.kernels import NO_SHARE
from cobertes.labels.label_pass import METHODS, NEAREST, WEIGHTED, LabelTask, count_codes, make_products
from cobertes.labels.legend import CODES, Legend
from cobertes.labels.memory_plan import LabelMemory, Layout, plan_windows
from cobertes.labels.reference_map import Alignment, align
from cobertes.labels.vote_weights import VoteWeights, class_counts, describe_weights, gaussian_kernel, whole
from cobertes.progress import SILENT, Progress

log = logging.getLogger(__name__)

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
    ``weights``        weight of each class key in the weighted majority, empty for other methods
    """

    counts: dict[int, int]
    source_counts: dict[int, int]
    unknown: dict[int, int]
    factor: float
    how: str
    weights: dict[str, float]


def make_labels(
    reference: Path,
    grid: GeoBox,
    out: Path,
    *,
    legend: Legend,
    table: NDArray[np.int16],
    method: str = "majority",
    weighting: VoteWeights | None = None,
    min_valid: float = 0.5,
    unknown: Literal["error", "nodata"] = "error",
    memory: int = 900,
    purity: Path | None = None,
    fractions: Path | None = None,
    entropy: Path | None = None,
    valid: Path | None = None,
    also: Mapping[str, Path] | None = None,
    resume: Resume = "no",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> LabelReport:
    """Bring a reference map onto the scene's grid and write it as a COG with palette and class names.

    grid       the scene's; the map may have any CRS, resolution and origin, and may cover it partly
    out        uint8 legend codes
    table      (256,) int16 from `recode_table`: what each source code becomes, -1 for unknown codes
    weighting  of the weighted majority; default: inverse square root of frequency, no smoothing
    min_valid  share of a pixel, 0 to 1, that the map must know; below it the label is nodata (nearest looks at
               one map pixel only)
    unknown    what to do with source codes outside the table: stop after the pass and list them, or nodata
    memory     peak memory of the process in MB, libraries included
    purity     also write the label's share of each pixel's known part
    fractions  also write the share of each class in each pixel, a band per class key, summing to ``valid``
    entropy    also write how mixed the known part is: 0 one class, 100 all classes alike
    valid      also write the known share of each pixel
    also       further methods, from the same pass, by name: where their labels go
    resume     go on from what an interrupted pass left: "yes" raises SettingsError where inputs or settings
               were others, "if-same" starts anew then. The result is the same to the byte.

    Shares are uint8 percent; purity, fractions and entropy are 255 where nothing is known.
    Raises SettingsError, InputFileError, GridMismatchError, LegendError, UnknownCodesError,
    OutputExistsError, StorageError; the labels are then as they were (a disk that fills up while the COGs are
    made can leave new files of the others, which are made first).
    """
    # the labels come first, so they are renamed last: where they exist, all outputs do
    shares = {"purity": purity, "fractions": fractions, "entropy": entropy, "valid": valid}
    paths = {method: out, **(also or {}), **{name: path for name, path in shares.items() if path}}
    for name in (method, *(also or {})):
        _check_method(name)
    if also and method in also:
        raise SettingsError(f"the labels themselves are by {method}: name other methods beside it")
    weighting = weighting or VoteWeights()
    _check_settings([reference, *paths.values()], min_valid, unknown)
    _check_table(legend, table)
    weighting.weights(legend)  # unknown classes are told before anything is read
    with open_raster(reference) as dataset:
        alignment = align(reference, dataset, grid)
        how = _how(method, alignment, grid_of(dataset), grid, weighting)
        layout = Layout.of(dataset, alignment, grid)
    task = LabelTask(reference, grid, alignment, legend, table, method, min_valid)
    if WEIGHTED in paths and weighting.smoothing and alignment.factor > 1:
        task = replace(task, gaussian_kernel=gaussian_kernel(weighting.smoothing, alignment.factor))
    budget = LabelMemory.of(memory, layout, task, paths)
    windows = plan_windows(grid, alignment, layout, budget.window)
    fingerprint = fingerprint_of(
        str(reference.resolve()), stamp(reference), list(grid.shape), list(grid.affine), str(grid.crs),
        legend.to_dict(), table.tolist(), str(weighting), min_valid,
        {name: str(path.resolve()) for name, path in paths.items()}, len(windows), windows[0].shape,
    )  # fmt: skip
    ledger = Ledger(partial_folder(out) / LEDGER, fingerprint, len(windows), {"seen": CODES, "written": CODES})
    missing = resume_or_start(ledger, paths, resume, overwrite=overwrite)
    try:
        with ExitStack() as files:
            files.enter_context(rasterio.Env(GDAL_CACHEMAX=budget.cache))  # in bytes
            if WEIGHTED in paths:
                task = replace(task, weights=_weights(task, weighting, ledger, windows, budget.workers, progress))
            outputs = {
                name: files.enter_context(
                    new_raster(paths[name], grid, _kind(name, legend), overwrite=overwrite, resumable=True)
                )
                for name in missing
            }
            make_products(task, windows, outputs, ledger, budget.workers, progress)
            seen, written = ledger.sums["seen"], ledger.sums["written"]
            unknown_counts = {int(c): int(seen[c]) for c in np.flatnonzero((table < 0) & (seen > 0))}
            if unknown_counts and unknown == "error":
                raise UnknownCodesError(_unknown_message(reference, unknown_counts, int(seen.sum()), legend))
    except BaseException:
        if not ledger.path.exists():
            discard(paths)
        else:
            log.warning(
                "finished rows are kept in %s: the same command goes on from there (`cobertes labels`: --resume)",
                ledger.path.parent,
            )
        raise
    counts = {int(code): int(written[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})}
    source_counts = {int(code): int(seen[code]) for code in np.flatnonzero(seen)}
    return LabelReport(
        counts, source_counts, unknown_counts, alignment.ratio, how, ledger.notes.get("weights", {})
    )


def _weights(
    task: LabelTask,
    weighting: VoteWeights,
    ledger: Ledger,
    windows: list[Window],
    workers: int,
    progress: Progress,
) -> NDArray[np.int64]:
    """(K,) int64 weights, which the ledger keeps: an interrupted pass need not count again."""
    legend = task.legend
    if "weights" not in ledger.notes:
        counts = None
        if weighting.by_frequency:
            counts = class_counts(legend, task.table, count_codes(task, windows, workers, progress))
        weights = weighting.weights(legend, counts)
        log.info("class weights: %s", describe_weights(legend, weights))
        ledger.notes["weights"] = dict(zip(legend.keys, weights.tolist(), strict=True))
    return whole(np.array(list(ledger.notes["weights"].values())))


def _kind(name: str, legend: Legend) -> RasterSpec:
    """What the raster of a method or share holds."""
    if name in METHODS:
        return RasterSpec("uint8", ("class",), legend.nodata, legend.categories())
    bands = tuple(legend.keys) if name == "fractions" else (name,)
    nodata = None if name == "valid" else NO_SHARE
    return RasterSpec("uint8", bands, nodata, tags={"units": "percent"})


def _check_method(method: str) -> None:
    plain = method.lower().replace("_", "").replace("-", "")
    if plain in BLENDING:
        raise SettingsError(
            f"'{method}' computes with class codes, but the mean of class 1 and class 3 is not class 2. "
            f"Use 'majority' (the most frequent class), or 'nearest'."
        )
    if method not in METHODS:
        hint = " GDAL's 'mode' is 'majority' here." if plain == "mode" else did_you_mean(method, METHODS)
        raise SettingsError(f"no aggregation method '{method}'.{hint}")


def _check_settings(files: list[Path], min_valid: float, unknown: str) -> None:
    if not 0 <= min_valid <= 1:
        raise SettingsError(f"the valid share must be from 0 to 1, not {min_valid:g} (0.5: half of the pixel)")
    if unknown not in ("error", "nodata"):
        raise SettingsError(f"unknown codes can be an 'error' or 'nodata', not '{unknown}'")
    if len({path.absolute() for path in files}) < len(files):
        raise SettingsError("the map, the labels and all that is made beside them must be different files")


def _check_table(legend: Legend, table: NDArray[np.int16]) -> None:
    strange = sorted({int(code) for code in table if code >= 0} - {legend.nodata, *legend.codes.tolist()})
    if strange:
        raise LegendError(f"the table of codes leads to {strange}, which legend '{legend.name}' does not have")
    if legend.nodata not in table:
        raise LegendError(
            "every code has a class, so none is left for ground that the map does not cover. Say which one means "
            'nodata: `[labels] codes = { 255 = "nodata" }`, or any other that the map does not hold.'
        )


def _how(method: str, alignment: Alignment, theirs: GeoBox, grid: GeoBox, weighting: VoteWeights) -> str:
    factor, ratio = alignment.factor, alignment.ratio
    if factor == 1 and alignment.origin is not None:
        return "nearest: the map has the scene's pixels"
    warped = f"map warped from {crs_name(theirs)}" if not same_crs(theirs, grid) else "map off the scene's grid"
    ending = "aligned" if alignment.origin is not None else warped
    if factor == 1:
        why = "coarser than" if ratio < 0.99 else "about as fine as"
        return f"nearest: the map is {why} the scene ({ratio:.2f} map pixels per scene pixel), {ending}"
    if method == NEAREST:
        return f"nearest: centre of {factor} x {factor} px, {ending}"
    if method == WEIGHTED:
        classes = weighting.classes if isinstance(weighting.classes, str) else "given"
        smooth = f", smoothing {weighting.smoothing:g} px" if weighting.smoothing else ""
        return f"weighted majority of {factor} x {factor} px, class weights {classes}{smooth}, {ending}"
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
