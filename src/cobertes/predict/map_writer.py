"""Output of a map: predicted blocks into raw rasters, noted in a ledger, and from there to COGs.

    executor ─> predicted blocks ─> raw rasters, ledger of the blocks written ─> COGs, STAC item

A killed pass resumes: blocks in the ledger stay, and windows that overlap the missing ones are computed again.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.engines.engine import Engine
from cobertes.errors import CobertesError, SettingsError
from cobertes.geo.cog_writer import RasterSpec, check_not_input, check_writable, new_raster, partial_folder
from cobertes.geo.grid import crop, pixel_hectares
from cobertes.geo.ledger import LEDGER, Ledger, Resume, discard, resume_or_start
from cobertes.geo.mmap_tiff import release
from cobertes.labels.legend import CODES, Legend
from cobertes.predict.map_layers import MAP, raster_spec
from cobertes.predict.prediction_job import Executor, PredictedBlock, PredictionJob
from cobertes.predict.stac import write_item
from cobertes.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapReport:
    """Summary of a prediction.

    counts    pixels per legend code, nodata included
    hectares  areas per legend code; empty if the CRS has no true areas (`pixel_hectares`)
    windows   computed windows; ``skipped`` those without an observation
    seconds   of this call, without an interrupted one before it; ``pixels`` written in that time
    """

    counts: dict[int, int]
    hectares: dict[int, float]
    windows: int
    skipped: int
    seconds: float
    pixels: int

    @property
    def mpx_per_second(self) -> float:
        """Net speed in millions of map pixels per second."""
        return self.pixels / 1e6 / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class MapOutputs:
    """Files of a map.

    paths   rasters by product; the map itself is one of them
    stac    STAC item (JSON) that describes them; None without
    resume  continue an interrupted pass: no, yes, if-same (`predict_map`)
    """

    paths: Mapping[str, Path]
    stac: Path | None
    resume: Resume
    overwrite: bool

    def check(self, inputs: Sequence[Path | str]) -> None:
        """Raise SettingsError, OutputExistsError or StorageError before any work is spent."""
        files = [*self.paths.values(), *filter(None, [self.stac])]
        if len({path.resolve() for path in files}) < len(files):
            raise SettingsError("the map, its confidence and all that is made beside it must be different files")
        check_not_input(files, inputs)
        if self.stac is not None:  # written last: an interrupted pass has left none
            check_writable(self.stac, overwrite=self.overwrite)


def write_map(
    engine: Engine,
    job: PredictionJob,
    outputs: MapOutputs,
    fingerprint: str,
    memory: int,
    executor: Executor,
    progress: Progress,
) -> MapReport:
    """Compute the blocks of a job that are missing and write all outputs.

    fingerprint  of inputs and settings: an interrupted pass resumes only with the same one
    memory       in MB, of each process of the ``executor``
    Raises as `predict_map`.
    """
    begin, out = time.monotonic(), outputs.paths[MAP]
    sums = {"written": CODES, "windows": 2}
    ledger = Ledger(partial_folder(out) / LEDGER, fingerprint, job.plan.count, sums, "inputs, settings or engine")
    missing = resume_or_start(ledger, outputs.paths, outputs.resume, overwrite=outputs.overwrite)
    written_before = int(ledger.sums["written"].sum())
    grid = next(iter(job.scenes.values())).grid
    region = crop(grid, job.region)

    def hectares() -> dict[int, float]:
        return _hectares(_histogram_by_code(job.legend, ledger.sums["written"]), pixel_hectares(grid))

    def map_tags() -> dict[str, str]:
        return {"engine": engine.how} | {f"area_{code}": f"{area:.2f} ha" for code, area in hectares().items()}

    with _keeping_progress(ledger, outputs.paths), ExitStack() as stack:
        rasters = {
            name: stack.enter_context(
                new_raster(
                    outputs.paths[name],
                    region,
                    _spec(name, job),
                    overwrite=outputs.overwrite,
                    resumable=True,
                    final_tags=map_tags if name == MAP else dict,
                )
            )
            for name in missing
        }
        if rasters:
            remaining = replace(job, products=tuple(rasters))
            _write_blocks(
                remaining, rasters, ledger, lambda wanted: executor(engine, remaining, wanted, memory), progress
            )
    if outputs.stac is not None:
        sources = [file for scene in job.scenes.values() for file in scene.inputs]
        write_item(outputs.stac, region, job.legend, outputs.paths, hectares(), engine.how, sources)
    computed, skipped = ledger.sums["windows"].tolist()
    counts = _histogram_by_code(job.legend, ledger.sums["written"])
    if not computed:
        log.warning("%s is empty: no valid pixel there. Check the scenes' place and nodata value.", out)
    pixels = sum(counts.values()) - written_before
    return MapReport(counts, hectares(), computed, skipped, time.monotonic() - begin, pixels)


def _spec(product: str, job: PredictionJob) -> RasterSpec:
    """Specification of a product; the tag ``temperature`` marks calibrated probabilities."""
    spec = raster_spec(product, job.legend)
    calibrated = {} if job.temperature == 1 else {"temperature": f"{job.temperature:.6g}"}
    return replace(spec, tags={**spec.tags, **calibrated})


@contextmanager
def _keeping_progress(ledger: Ledger, paths: Mapping[str, Path]) -> Iterator[None]:
    """On an error, discard partial files that can't be resumed, and announce those that can."""
    try:
        yield
    except BaseException:
        if not ledger.path.exists():
            discard(paths)
        else:
            log.warning(
                "finished rows are kept in %s: the same command with --resume goes on from there "
                "(`cobertes run` does so by itself)",
                ledger.path.parent,
            )
        raise


def _histogram_by_code(legend: Legend, written: NDArray[np.int64]) -> dict[int, int]:
    return {int(code): int(written[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})}


def _hectares(counts: Mapping[int, int], pixel: float | None) -> dict[int, float]:
    return {} if pixel is None else {code: count * pixel for code, count in counts.items()}


def _write_blocks(
    job: PredictionJob,
    rasters: Mapping[str, Any],
    ledger: Ledger,
    predict: Callable[[NDArray[np.bool_]], Generator[PredictedBlock, None, None]],
    progress: Progress,
) -> None:
    """Write the blocks that the ledger lacks, as they come; ``rasters`` (bands, height, width) by product."""
    memmaps = list(rasters.values())
    nodata = {name: raster_spec(name, job.legend).nodata for name in rasters}
    wanted = ~job.outside()
    ledger.done.update(np.flatnonzero(~wanted).tolist())
    wanted.flat[list(ledger.done)] = False
    total, remaining = job.region.height * job.region.width, job.pixels(wanted)
    try:
        with progress.bar("map", total / 1e6, "Mpx") as advance, closing(predict(wanted)) as blocks:
            if remaining < total:
                advance((total - remaining) / 1e6)
            row = -1
            for block in blocks:
                if block.rows.start != row:  # a new strip
                    row = block.rows.start
                    for memmap in memmaps:
                        release(memmap)
                    ledger.save_if_due(memmaps)
                for name, raster in rasters.items():
                    layer = nodata[name] if block.layers is None else block.layers[name]
                    raster[:, block.rows, block.cols] = layer
                windows = np.array([block.computed, not block.computed], np.int64)
                ledger.mark_done(block.number, {"written": block.histogram, "windows": windows})
                advance(int(block.histogram.sum()) / 1e6)
    except BaseException as error:
        _save_after_error(ledger, memmaps, error)
        raise
    ledger.save(memmaps)


def _save_after_error(ledger: Ledger, memmaps: list[Any], error: BaseException) -> None:
    """Save finished blocks, unless the user has to mend something; a failing disk must not hide the error."""
    if isinstance(error, CobertesError) and not isinstance(error, OSError | MemoryError):
        return
    try:
        ledger.save(memmaps)
    except OSError as failed:
        log.debug("the ledger can't be written: %s", failed)
