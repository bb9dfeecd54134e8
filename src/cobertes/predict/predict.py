"""Full-scene prediction: window by window, in memory that depends on the scene's width at most.

    plan (blend) ─> finished blocks (work: here, or on Ray) ─> raw files, ledger ─> COGs

The plan comes from the scene, the window, the overlap and the blending alone. A block is a rectangle that one
window finishes; the ledger keeps which blocks are written, so that a killed pass goes on, and what their zones
need is computed again. Pixels without an observation in any season are nodata, and windows without one are not
computed.
"""

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.engines.engine import Engine
from cobertes.errors import CobertesError, SettingsError
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.blending import INTERIOR, WindowPlan
from cobertes.geo.clip import AreaOfInterest, open_clip
from cobertes.geo.cog_writer import check_not_input, check_writable, new_raster, partial_folder
from cobertes.geo.grid import bounds_window, crop, describe, full_window, pixel_hectares, require_same_grid
from cobertes.geo.io import source_files
from cobertes.geo.ledger import LEDGER, Ledger, Resume, discard, resume_or_start
from cobertes.geo.mmap_tiff import release
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import CODES, Legend
from cobertes.predict.map_layers import MAP, PRODUCTS, kind_of
from cobertes.predict.prediction_job import Executor, PredictedBlock, PredictionJob, run_locally
from cobertes.predict.stac import write_item
from cobertes.progress import SILENT, Progress

log = logging.getLogger(__name__)

DEFAULT_BLEND = INTERIOR


@dataclass(frozen=True)
class MapReport:
    """What a prediction made.

    counts    pixels per legend code, nodata included
    hectares  the same as areas; empty where the CRS has none that are true (`pixel_hectares`)
    windows   computed, ``skipped`` those without an observation
    seconds   this time, an interrupted pass before it not counted; ``mapped`` pixels in that time
    """

    counts: dict[int, int]
    hectares: dict[int, float]
    windows: int
    skipped: int
    seconds: float
    mapped: int

    @property
    def mpx_per_second(self) -> float:
        """Net speed in millions of map pixels per second."""
        return self.mapped / 1e6 / max(self.seconds, 1e-9)


def default_overlap(window: int) -> int:
    """Pixels that neighbouring windows share where nothing else is asked: a quarter."""
    return window // 4


def name_seasons(scenes: Mapping[str, Scene], engine: Engine) -> dict[str, Scene]:
    """The scenes in the model's order; a single scene without a season is that of a one-season model.

    A season may be missing where the model was trained to do without (`Inputs.check`). Where nothing says which
    value empty pixels have, it is that of the model's scenes.
    """
    seasons = engine.header.inputs.seasons
    named = dict(scenes)
    if len(seasons) == 1 and len(named) == 1 and ONLY_SEASON in (*named, *seasons):
        named = {seasons[0]: next(iter(named.values()))}
    engine.check_scenes(named)
    missing = [season for season in seasons if season not in named]
    if missing:
        log.info("no scene of season %s: the map is made without it", ", ".join(missing))
    nodata = engine.header.scene_nodata
    return {
        season: named[season] if named[season].nodata is not None else replace(named[season], nodata=nodata)
        for season in seasons
        if season in named
    }


def predict_map(
    engine: Engine,
    scenes: Mapping[str, Scene],
    out: Path,
    *,
    confidence: Path | None = None,
    probabilities: Path | None = None,
    entropy: Path | None = None,
    second: Path | None = None,
    stac: Path | None = None,
    window: int | None = None,
    overlap: int | None = None,
    blend: str = DEFAULT_BLEND,
    batch_size: int = 8,
    memory: int = 3500,
    bounds: tuple[float, float, float, float] | None = None,
    clip: Path | None = None,
    resume: Resume = "no",
    overwrite: bool = False,
    progress: Progress = SILENT,
    executor: Executor = run_locally,
) -> MapReport:
    """Map a scene: a COG of legend codes with palette, names and areas, and whatever else is asked for.

    scenes         season -> scene, all on one grid, with the bands of the model
    out            uint8 legend codes, the legend's nodata where no season has an observation
    confidence     uint8 percent: probability of the mapped class; 255 where there is no map
    probabilities  uint8 percent, a band per class
    entropy        uint8 percent of the greatest possible
    second         uint8 legend codes of the second most probable class
    stac           a STAC item (JSON) that describes all of them
    window         side of a prediction window in pixels; by default that of training
    overlap        pixels that neighbouring windows share; by default a quarter of the window
    blend          interior, cosine or gaussian: how neighbouring windows share pixels (`geo.blend`)
    memory         peak memory of the process in MB: decides on GDAL's cache and on columns, never on a pixel
    bounds         (west, south, east, north) in the scene's CRS: map that part only, on the same pixels
    clip           polygons, or a raster that is not nodata there: map that part only
    resume         go on from what an interrupted pass left: "yes" raises SettingsError where inputs or settings
                   were others, "if-same" starts anew then. The result is the same to the byte.
    compute        who computes the blocks, `run_locally` or `scale.prediction`: no byte depends on it
    Raises SettingsError, GridMismatchError, BandMismatchError, ModelFileError, InputFileError,
    OutputExistsError, StorageError, DeviceMemoryError; whatever happens, ``out`` is the old file or the whole
    new one.
    """
    given = dict(zip(PRODUCTS, (out, confidence, second, entropy, probabilities), strict=True))
    paths = {name: path for name, path in given.items() if path is not None}
    scenes = name_seasons(scenes, engine)
    inputs = [file for scene in scenes.values() for file in scene.files]
    _check_files([*paths.values(), *filter(None, [stac])], [*inputs, *filter(None, [clip])])
    if stac is not None:  # an interrupted pass has none yet: it is written last
        check_writable(stac, overwrite=overwrite)
    require_same_grid((scene.files[0], scene.grid) for scene in scenes.values())
    grid = next(iter(scenes.values())).grid
    region, clipped = _wanted(grid, bounds, clip)
    size = window or engine.header.window
    overlap = default_overlap(size) if overlap is None else overlap
    plan = WindowPlan.of((grid.height, grid.width), size, overlap, blend)
    batch = min(batch_size, plan.count)
    fingerprint = fingerprint_of(
        engine.how, engine.identity, engine.temperature, describe(grid),
        {season: [stamp(file) for path in scene.files for file in source_files(path)]
         for season, scene in scenes.items()},
        [[scene.nodata, [[band.name, band.index] for band in scene.bands]] for scene in scenes.values()],
        [stamp(file) for file in source_files(str(clip))] if clip else None,
        [str(region), size, overlap, blend, batch],
        {name: str(path.resolve()) for name, path in paths.items()},
    )  # fmt: skip
    sums = {"written": CODES, "windows": 2}
    ledger = Ledger(partial_folder(out) / LEDGER, fingerprint, plan.count, sums, "inputs, settings or engine")
    begin = time.monotonic()
    missing = resume_or_start(ledger, paths, resume, overwrite=overwrite)
    before = int(ledger.sums["written"].sum())
    part, legend = crop(grid, region), engine.header.legend
    # the tag marks calibrated probabilities
    calibrated = {} if engine.temperature == 1 else {"temperature": f"{engine.temperature:.6g}"}
    specs = {name: kind_of(name, legend) for name in missing}
    specs = {name: replace(spec, tags={**spec.tags, **calibrated}) for name, spec in specs.items()}

    def hectares() -> dict[int, float]:
        return _hectares(_per_code(legend, ledger.sums["written"]), pixel_hectares(grid))

    def map_tags() -> dict[str, str]:
        return {"engine": engine.how} | {f"area_{code}": f"{area:.2f} ha" for code, area in hectares().items()}

    try:
        with ExitStack() as files:
            rasters = {
                name: files.enter_context(
                    new_raster(
                        paths[name],
                        part,
                        specs[name],
                        overwrite=overwrite,
                        resumable=True,
                        final_tags=map_tags if name == MAP else dict,
                    )
                )
                for name in missing
            }
            if rasters:
                work = PredictionJob(
                    scenes, region, clipped, plan, tuple(rasters), legend, engine.temperature, batch
                )
                _write(work, rasters, ledger, lambda wanted: executor(engine, work, wanted, memory), progress)
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
    computed, skipped = ledger.sums["windows"].tolist()
    counts = _per_code(legend, ledger.sums["written"])
    if stac is not None:
        write_item(stac, part, legend, paths, hectares(), engine.how, inputs)
    if not computed:
        log.warning("%s is empty: no valid pixel there. Check the scenes' place and nodata value.", out)
    mapped = sum(counts.values()) - before
    return MapReport(counts, hectares(), computed, skipped, time.monotonic() - begin, mapped)


def _check_files(written: Sequence[Path], read: Sequence[Path | str]) -> None:
    if len({path.resolve() for path in written}) < len(written):
        raise SettingsError("the map, its confidence and all that is made beside it must be different files")
    check_not_input(written, read)


def _wanted(
    grid: GeoBox, bounds: tuple[float, float, float, float] | None, clip: Path | None
) -> tuple[Window, AreaOfInterest | None]:
    """The rectangle to be mapped, and what of it."""
    if bounds is not None and clip is not None:
        raise SettingsError("--bounds and --clip exclude each other: give one of them")
    if clip is not None:
        found = open_clip(clip, grid)
        return found.region, found
    return (full_window(grid) if bounds is None else bounds_window(grid, bounds)), None


def _per_code(legend: Legend, written: NDArray[np.int64]) -> dict[int, int]:
    return {int(code): int(written[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})}


def _hectares(counts: Mapping[int, int], pixel: float | None) -> dict[int, float]:
    return {} if pixel is None else {code: count * pixel for code, count in counts.items()}


def _write(
    work: PredictionJob,
    rasters: Mapping[str, Any],
    ledger: Ledger,
    executor: Callable[[NDArray[np.bool_]], Generator[PredictedBlock, None, None]],
    progress: Progress,
) -> None:
    """Write all blocks that the ledger lacks, as they come; ``rasters`` (bands, height, width) by product."""
    pages = list(rasters.values())
    nodata = {name: kind_of(name, work.legend).nodata for name in rasters}
    wanted = ~work.outside()
    ledger.done.update(np.flatnonzero(~wanted).tolist())
    wanted.flat[list(ledger.done)] = False
    total, left = work.region.height * work.region.width, work.pixels(wanted)
    try:
        with progress.bar("map", total / 1e6, "Mpx") as advance, closing(executor(wanted)) as found:
            if left < total:
                advance((total - left) / 1e6)
            row = -1
            for block in found:
                if block.rows.start != row:  # a new strip
                    row = block.rows.start
                    for pixels in pages:
                        release(pixels)
                    ledger.save_if_due(pages)
                for name, raster in rasters.items():
                    raster[:, block.rows, block.cols] = nodata[name] if block.made is None else block.made[name]
                windows = np.array([block.computed, not block.computed], np.int64)
                ledger.mark_done(block.number, {"written": block.written, "windows": windows})
                advance(int(block.written.sum()) / 1e6)
    except BaseException as error:
        _keep(ledger, pages, error)
        raise
    ledger.save(pages)


def _keep(ledger: Ledger, pages: list[Any], error: BaseException) -> None:
    """Enter what is finished; a disk that fails now must not hide the error."""
    if isinstance(error, CobertesError) and not isinstance(error, OSError | MemoryError):
        return
    try:
        ledger.save(pages)
    except OSError as failed:
        log.debug("the ledger can't be written: %s", failed)
