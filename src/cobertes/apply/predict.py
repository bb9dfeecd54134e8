"""Full-scene prediction: window by window, in memory that depends on the scene's width at most.

    read ahead (threads) -> channels -> model -> class index, confidence -> interiors into the raw file

A strip of windows is finished before the next begins; its pages are then let go. Each pixel of the map comes
from the one window in whose interior it lies. Pixels without an observation in any season are nodata, and
windows without one are not computed.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from cobertes.apply.engine import Engine
from cobertes.errors import SettingsError
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.grid import bounds_window, crop, require_same_grid, whole
from cobertes.geo.pages import release
from cobertes.geo.raster import RasterKind, check_not_input, new_raster
from cobertes.geo.scene import Scene
from cobertes.geo.windows import PlannedWindow, Window, plan_strips, stitch
from cobertes.learn.infer import read_ahead
from cobertes.progress import SILENT, Advance, Progress

log = logging.getLogger(__name__)

NO_CONFIDENCE = 255
"""Nodata of a confidence raster, whose values are percent."""

LIBRARIES_MB, FORWARD_MB = 850, 1400
"""Peak memory of the process with torch loaded, and of a forward pass at the default batch, roughly."""

CACHE_MB = (64, 1024)
"""Least and most that GDAL keeps of the scenes' storage blocks."""


@dataclass(frozen=True)
class MapReport:
    """What a prediction made: pixels per legend code (nodata included), windows computed, seconds."""

    counts: dict[int, int]
    windows: int
    skipped: int
    seconds: float

    @property
    def mpx_per_second(self) -> float:
        """Net speed in millions of map pixels per second."""
        return sum(self.counts.values()) / 1e6 / max(self.seconds, 1e-9)


def default_overlap(window: int) -> int:
    """Pixels that neighbouring windows share where nothing else is asked: a quarter."""
    return window // 4


def name_seasons(scenes: Mapping[str, Scene], engine: Engine) -> dict[str, Scene]:
    """The scenes in the model's order; a single scene without a season is that of a one-season model."""
    seasons = engine.header.inputs.seasons
    named = dict(scenes)
    if len(seasons) == 1 and len(named) == 1 and ONLY_SEASON in (*named, *seasons):
        named = {seasons[0]: next(iter(named.values()))}
    engine.header.check_scenes(named)
    return {season: named[season] for season in seasons}


def predict_map(
    engine: Engine,
    scenes: Mapping[str, Scene],
    out: Path,
    *,
    confidence: Path | None = None,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 8,
    memory: int = 3500,
    bounds: tuple[float, float, float, float] | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> MapReport:
    """Map a scene: a COG of legend codes with palette and names, and optionally one of confidence.

    scenes      season -> scene, all on one grid, with the bands of the model
    out         uint8 legend codes, the legend's nodata where no season has an observation
    confidence  uint8 percent: probability of the mapped class; 255 where there is no map
    window      side of a prediction window in pixels; by default that of training
    overlap     pixels that neighbouring windows share; by default a quarter of the window
    memory      peak memory of the process in MB that GDAL's cache is fitted to
    bounds      (west, south, east, north) in the scene's CRS: map that part only, on the same pixels
    Raises SettingsError, GridMismatchError, BandMismatchError, ModelFileError, InputFileError,
    OutputExistsError, StorageError; whatever happens, ``out`` is the old file or the whole new one.
    """
    if confidence is not None and confidence.resolve() == out.resolve():
        raise SettingsError("the map and its confidence must be different files")
    scenes = name_seasons(scenes, engine)
    check_not_input((out, confidence), (file for scene in scenes.values() for file in scene.files))
    require_same_grid((scene.files[0], scene.grid) for scene in scenes.values())
    grid = next(iter(scenes.values())).grid
    region = whole(grid) if bounds is None else bounds_window(grid, bounds)
    size = window or engine.header.window
    strips = plan_strips(whole(grid), size, default_overlap(size) if overlap is None else overlap)
    legend = engine.header.legend
    cache = min(max((memory - LIBRARIES_MB - FORWARD_MB) // 2, CACHE_MB[0]), CACHE_MB[1]) * 2**20
    begin = time.monotonic()
    with ExitStack() as files:
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=cache))
        part = crop(grid, region)
        kind = RasterKind("uint8", ("class",), legend.nodata, legend.categories())
        codes = files.enter_context(new_raster(out, part, kind, overwrite=overwrite))
        percent = None
        if confidence:
            kind = RasterKind("uint8", ("confidence",), NO_CONFIDENCE, tags={"units": "percent"})
            percent = files.enter_context(new_raster(confidence, part, kind, overwrite=overwrite))
        work = _Prediction(engine, scenes, region, codes, percent, batch_size)
        with progress.bar("map", region.height * region.width / 1e6, "Mpx") as advance:
            for strip in strips:
                work.run(strip, advance)
        counts = {int(code): int(work.counts[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})}
    if not work.computed:
        log.warning("%s is empty: no valid pixel there. Check the scenes' place and nodata value.", out)
    return MapReport(counts, work.computed, work.skipped, time.monotonic() - begin)


class _Prediction:
    """What the strips of one map share: outputs, tables, counters."""

    def __init__(
        self,
        engine: Engine,
        scenes: Mapping[str, Scene],
        region: Window,
        codes: NDArray[np.uint8],
        percent: NDArray[np.uint8] | None,
        batch_size: int,
    ) -> None:
        self.engine, self.scenes, self.region, self.batch_size = engine, scenes, region, batch_size
        self.codes, self.percent = codes, percent
        self.code_of = engine.header.legend.code_table()
        self.counts = np.zeros(256, np.int64)
        self.computed = self.skipped = 0

    def run(self, strip: list[PlannedWindow], advance: Advance) -> None:
        """Compute a strip of windows and write their interiors, as far as they lie in the region."""
        parts = {one: part for one in strip if (part := one.interior.meet(self.region))}
        if not parts:
            return
        first = next(iter(parts.values()))
        rows = slice(first.row - self.region.row, first.row_stop - self.region.row)
        self.codes[0, rows] = self.engine.header.legend.nodata
        if self.percent is not None:
            self.percent[0, rows] = NO_CONFIDENCE
        inputs = self.engine.header.inputs
        for batch in read_ahead([*parts], lambda one: inputs.read(self.scenes, one.window), self.batch_size):
            seen = [(one, x, valid) for one, (x, valid) in batch if valid.any()]
            self.skipped += len(batch) - len(seen)
            self.computed += len(seen)
            if seen:
                index, confidence = self.engine.classify(np.stack([x for _, x, _ in seen]))
                for (one, _, valid), k, p in zip(seen, index, confidence, strict=True):
                    self._write(PlannedWindow(one.window, parts[one]), valid, k, p)
            advance(sum(parts[one].height * parts[one].width for one, _ in batch) / 1e6)
        self.counts += np.bincount(self.codes[0, rows].ravel(), minlength=256)
        for pixels in (self.codes, self.percent):
            if pixels is not None:
                release(pixels)

    def _write(
        self,
        part: PlannedWindow,
        valid: NDArray[np.bool_],
        index: NDArray[np.uint8],
        confidence: NDArray[np.uint8],
    ) -> None:
        codes = np.where(valid, self.code_of[index], self.engine.header.legend.nodata)
        stitch(self.codes[0], self.region, part, codes)
        if self.percent is not None:
            stitch(self.percent[0], self.region, part, np.where(valid, confidence, NO_CONFIDENCE))
