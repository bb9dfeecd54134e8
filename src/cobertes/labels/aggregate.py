"""Labels on a scene's grid from a reference map: one pass, in bounded memory, on all cores.

    kernels, reference_map <-- label_job <-- memory_plan, label_pass <-- aggregate

One pass gives any subset of nearest, majority, weighted majority, purity, fractions, entropy and valid share
(weights by frequency need a count before it). This module checks the request, plans a `LabelJob` and writes the
outputs; `label_pass` computes them.
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

from cobertes.atomic_io import StrPath
from cobertes.errors import LegendError, SettingsError, UnknownCodesError, did_you_mean
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.cog_writer import RasterSpec, check_not_input, new_raster, partial_folder
from cobertes.geo.grid import crs_name, same_crs
from cobertes.geo.ledger import LEDGER, Ledger, Resume, discard, resume_or_start
from cobertes.labels.crosswalk import crosswalk_names, load_crosswalk
from cobertes.labels.kernels import NO_SHARE
from cobertes.labels.label_job import METHODS, NEAREST, WEIGHTED, AlignedMap, LabelJob
from cobertes.labels.label_pass import count_codes, count_unknown_codes, write_labels
from cobertes.labels.legend import CODES, Legend
from cobertes.labels.memory_plan import plan
from cobertes.labels.recode import RecodeTable, recode_map
from cobertes.labels.vote_weights import (
    VoteWeights,
    class_counts,
    describe_weights,
    gaussian_kernel,
    integer_weights,
)
from cobertes.progress import SILENT, Progress

log = logging.getLogger(__name__)

BLENDING = ("average", "bilinear", "cubic", "cubicspline", "gauss", "lanczos", "mean", "rms", "sum")
"""Resampling methods that average values, which class codes do not allow."""


@dataclass(frozen=True)
class LabelReport:
    """Result of a label pass.

    ``counts``         pixels of the labels per legend code, nodata included
    ``source_counts``  pixels of the reference map that were read, per source code (samples of a warped map, with
                       nodata for pixels outside of it)
    ``unknown``        source codes outside the table, with counts
    ``factor``         scene pixel / map pixel
    ``how``            description in one line: "majority of 10 x 10 px, aligned"
    ``weights``        weight of each class key in the weighted majority, empty for other methods
    """

    counts: dict[int, int]
    source_counts: dict[int, int]
    unknown: dict[int, int]
    factor: float
    how: str
    weights: dict[str, float]


def make_labels(
    reference: StrPath,
    grid: GeoBox,
    out: StrPath,
    *,
    legend: Legend,
    table: RecodeTable | None = None,
    method: str = "majority",
    weighting: VoteWeights | None = None,
    min_valid: float = 0.5,
    unknown: Literal["error", "nodata"] = "error",
    memory: int = 900,
    purity: StrPath | None = None,
    fractions: StrPath | None = None,
    entropy: StrPath | None = None,
    valid: StrPath | None = None,
    also: Mapping[str, StrPath] | None = None,
    resume: Resume = "no",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> LabelReport:
    """Aggregate a reference map to the scene's grid and write it as a COG with palette and class names.

    grid       the scene's; the map may have any CRS, resolution and origin, and may cover it partly
    out        file of the labels, uint8 legend codes
    table      from `recode_map`: legend code of each source code; by default the legend's own codes
    weighting  for the weighted majority; default: inverse square root of frequency, no smoothing
    min_valid  least valid share of a pixel, 0 to 1; below it the label is nodata (except for nearest, which reads
               one map pixel only)
    unknown    treatment of source codes outside the table: stop after the pass and list them, or nodata
    memory     peak memory of the process in MB, libraries included
    purity     file for the label's share of the valid part of each pixel
    fractions  file for the share of each class in each pixel, a band per class key, summing to ``valid``
    entropy    file for the mixture of the valid part: 0 one class, 100 all classes alike
    valid      file for the valid share of each pixel
    also       files of further methods' labels by name of the method, from the same pass
    resume     continue an interrupted pass: "yes" raises SettingsError if inputs or settings have changed,
               "if-same" starts anew then. The result is byte-identical.

    Shares are uint8 percent; purity, fractions and entropy are 255 for pixels without a valid part.
    Raises SettingsError, InputFileError, GridMismatchError, LegendError, UnknownCodesError,
    OutputExistsError, StorageError; older labels are then unchanged (if the disk fills up while the COGs are
    written, other outputs, which come first, may be new).
    """
    # the labels come first, so they are renamed last: where they exist, all outputs do
    shares = {"purity": purity, "fractions": fractions, "entropy": entropy, "valid": valid}
    reference, out = Path(reference), Path(out)
    others = {**(also or {}), **{name: path for name, path in shares.items() if path}}
    paths = {method: out, **{name: Path(path) for name, path in others.items()}}
    for name in (method, *(also or {})):
        _check_method(name)
    if also and method in also:
        raise SettingsError(f"the labels themselves are by {method}: name other methods beside it")
    weighting = weighting or VoteWeights()
    _check_settings([reference, *paths.values()], min_valid, unknown)
    check_not_input(paths.values(), [reference])
    table = table or recode_map(reference, legend)
    weighting.weights(legend)  # raises for unknown classes before anything is read
    job = LabelJob(AlignedMap.open(reference, grid), legend, table, method, min_valid)
    _check_table(legend, job.by_slot.table)
    if WEIGHTED in paths and weighting.smoothing and job.alignment.factor > 1:
        job = replace(job, gaussian_kernel=gaussian_kernel(weighting.smoothing, job.alignment.factor))
    job = plan(job, memory, paths)
    ledger = Ledger(
        partial_folder(out) / LEDGER, _fingerprint(job, weighting, paths), len(job.windows),
        {"seen": CODES, "written": CODES},
    )  # fmt: skip
    missing = resume_or_start(ledger, paths, resume, overwrite=overwrite)
    try:
        unknown_counts = _write(
            job, weighting, {name: paths[name] for name in missing}, ledger, overwrite, unknown, progress
        )
    except BaseException:
        if not ledger.path.exists():
            discard(paths)
        else:
            log.warning(
                "finished rows are kept in %s: the same command goes on from there (`cobertes labels`: --resume)",
                ledger.path.parent,
            )
        raise
    seen, written = ledger.sums["seen"], ledger.sums["written"]
    source_counts = job.by_slot.source_counts(seen)
    _warn_of_nodata(job, source_counts)
    return LabelReport(
        counts={int(code): int(written[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})},
        source_counts=source_counts,
        unknown=unknown_counts,
        factor=job.alignment.ratio,
        how=_how(job, weighting),
        weights=ledger.notes.get("weights", {}),
    )


def _fingerprint(job: LabelJob, weighting: VoteWeights, paths: Mapping[str, Path]) -> str:
    grid = job.grid
    return fingerprint_of(
        str(job.source.path.resolve()), stamp(job.source.path), list(grid.shape), list(grid.affine), str(grid.crs),
        job.legend.to_dict(), job.by_slot.fingerprint(), str(weighting), job.min_valid,
        {name: str(path.resolve()) for name, path in paths.items()}, len(job.windows), job.windows[0].shape,
    )  # fmt: skip


def _write(
    job: LabelJob,
    weighting: VoteWeights,
    paths: Mapping[str, Path],
    ledger: Ledger,
    overwrite: bool,
    unknown: str,
    progress: Progress,
) -> dict[int, int]:
    """Write the outputs, and count the source codes without a class; raise UnknownCodesError for these before any
    output gets its final name."""
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=job.cache))  # in bytes
        if WEIGHTED in paths:
            job = replace(job, weights=_weights(job, weighting, ledger, progress))
        outputs = {
            name: files.enter_context(
                new_raster(path, job.grid, _spec(name, job.legend), overwrite=overwrite, resumable=True)
            )
            for name, path in paths.items()
        }
        write_labels(job, outputs, ledger, progress)
        counts = _unknown_codes(job, ledger, progress)
        if counts and unknown == "error":
            raise UnknownCodesError(_unknown_message(job, counts, int(ledger.sums["seen"].sum())))
    return counts


def _unknown_codes(job: LabelJob, ledger: Ledger, progress: Progress) -> dict[int, int]:
    """Fine pixels of each source code outside the table."""
    seen, by_slot = ledger.sums["seen"], job.by_slot
    unknown = (by_slot.table < 0) & (seen > 0)
    if by_slot.slots is not None and unknown.any():
        return count_unknown_codes(job, progress)
    return {int(code): int(seen[code]) for code in np.flatnonzero(unknown)}


def _warn_of_nodata(job: LabelJob, source_counts: Mapping[int, int]) -> None:
    """Warn of pixels that are the legend's nodata in a map that declares another value for it."""
    values, nodata = job.source.values, job.legend.nodata
    pixels = source_counts.get(nodata, 0) if job.alignment.origin is not None else 0  # else filled, too
    if pixels and values.nodata is not None and values.nodata != nodata and not values.are_colours:
        log.warning(
            "%s declares %g as its nodata, but legend '%s' has %d for it too: %s px of %d are left out. If %d is "
            "a class of the map, give the legend another nodata.",
            *(values.name, values.nodata, job.legend.name, nodata, f"{pixels:,}", nodata, nodata),
        )


def _weights(job: LabelJob, weighting: VoteWeights, ledger: Ledger, progress: Progress) -> NDArray[np.int64]:
    """(K,) int64 weights. They are saved in the ledger: a resumed pass need not count again."""
    legend = job.legend
    if "weights" not in ledger.notes:
        counts = None
        if weighting.by_frequency:
            counts = class_counts(legend, job.by_slot, count_codes(job, progress))
        weights = weighting.weights(legend, counts)
        log.info("class weights: %s", describe_weights(legend, weights))
        ledger.notes["weights"] = dict(zip(legend.keys, weights.tolist(), strict=True))
    return integer_weights(np.array(list(ledger.notes["weights"].values())))


def _spec(name: str, legend: Legend) -> RasterSpec:
    """Specification of the raster of a method or share."""
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


def _how(job: LabelJob, weighting: VoteWeights) -> str:
    """Description of a pass in one line."""
    alignment, method = job.alignment, job.method
    factor, ratio = alignment.factor, alignment.ratio
    if factor == 1 and alignment.origin is not None:
        return "nearest: the map has the scene's pixels"
    other_crs = not same_crs(job.source.map_grid, job.grid)
    warped = f"map warped from {crs_name(job.source.map_grid)}" if other_crs else "map off the scene's grid"
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


def _unknown_message(job: LabelJob, counts: dict[int, int], total: int) -> str:
    reference, legend, values = job.source.path, job.legend, job.source.values
    rows = [f"{values.text(code)} ({count:,} px, {100 * count / total:.3g} %)" for code, count in counts.items()]
    listed = ", ".join(rows[:12]) + (f" and {len(rows) - 12} more" if len(rows) > 12 else "")
    if values.are_colours:
        return (
            f"{reference} holds colours that legend '{legend.name}' does not have: {listed}. Give the classes the "
            f"map's colours, in a legend of your own; or use the map of class codes that the colours were made of."
        )
    head = f"{reference} holds codes that legend '{legend.name}' and the crosswalk do not know: {listed}. "
    walks = [name for name in crosswalk_names(legend) if set(counts) <= set(load_crosswalk(name).codes)]
    if walks:
        return (
            f"{head}They are those of the packaged crosswalk {' or '.join(walks)}: `--crosswalk {walks[0]}`, or "
            f'in the project `crosswalk = "{walks[0]}"`.'
        )
    example = ", ".join(f'{code} = "CLASS"' for code in [*counts][:2])
    keys = ", ".join(legend.keys[:6]) + (" ..." if len(legend) > 6 else "")
    return (
        f"{head}Say what each is in the project, `[labels] codes = {{ {example} }}` (CLASS: {keys} or nodata), or "
        f'in a crosswalk; or let all of them count as nodata: `unknown = "nodata"`.'
    )
