"""Full-scene prediction: window by window, in memory that depends at most on the width of the scene.

    predict_map: scenes, windows, region ─> job ─> write_map: blocks (run_locally, or on Ray) ─> COGs

The window plan depends on the scene, the window, the overlap and the blending alone. Pixels without an observation
in any season are nodata; windows without one are not computed.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from cobertes.atomic_io import StrPath
from cobertes.engines.engine import Engine
from cobertes.errors import SettingsError
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.blending import INTERIOR, WindowPlan
from cobertes.geo.clip import AreaOfInterest, open_clip
from cobertes.geo.grid import bounds_window, describe, full_window, require_same_grid
from cobertes.geo.io import source_files
from cobertes.geo.ledger import Resume
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.predict.map_layers import PRODUCTS
from cobertes.predict.map_writer import MapOutputs, MapReport, write_map
from cobertes.predict.model_values import in_model_values
from cobertes.predict.prediction_job import Executor, PredictionJob, run_locally
from cobertes.progress import SILENT, Progress

log = logging.getLogger(__name__)

DEFAULT_BLEND = INTERIOR


def default_overlap(window: int) -> int:
    """Default overlap of neighbouring windows in pixels: a quarter of the window."""
    return window // 4


def name_seasons(scenes: Mapping[str, Scene], engine: Engine) -> dict[str, Scene]:
    """Scenes by season, in the model's order; a single unnamed scene goes to a one-season model.

    A season may be missing if the model was trained for that (`Inputs.check`). A scene without a nodata value gets
    that of the training scenes. Raises as `Engine.check_scenes`.
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
    out: StrPath,
    *,
    confidence: StrPath | None = None,
    probabilities: StrPath | None = None,
    entropy: StrPath | None = None,
    second: StrPath | None = None,
    stac: StrPath | None = None,
    window: int | None = None,
    overlap: int | None = None,
    blend: str = DEFAULT_BLEND,
    batch_size: int = 8,
    memory: int = 3500,
    bounds: tuple[float, float, float, float] | None = None,
    clip: StrPath | None = None,
    resume: Resume = "no",
    overwrite: bool = False,
    progress: Progress = SILENT,
    executor: Executor = run_locally,
) -> MapReport:
    """Map a scene: a COG of legend codes with palette, names and areas, and further layers on request.

    scenes         scene by season, all on one grid, with the bands of the model
    out            uint8 legend codes; the legend's nodata where no season has an observation
    confidence     uint8 percent: probability of the mapped class; 255 nodata
    probabilities  uint8 percent, a band per class
    entropy        uint8 percent of the maximum
    second         uint8 legend codes of the second most probable class
    stac           STAC item (JSON) that describes all of them
    window         side of a window in pixels; by default that of training
    overlap        pixels shared by neighbouring windows; by default a quarter of the window
    blend          interior, cosine or gaussian (`geo.blending`)
    memory         peak memory of the process in MB: sets GDAL's cache and groups of columns, never a pixel
    bounds         (west, south, east, north) in the scene's CRS: map only this part, on the same pixels
    clip           polygons, or a raster: map only inside, or where it is not nodata
    resume         continue an interrupted pass, to the same bytes: "yes" raises SettingsError if inputs or
                   settings differ, "if-same" starts anew then
    executor       `run_locally` or `scale.ray_executor`: the map is the same to the byte
    Raises SettingsError, GridMismatchError, BandMismatchError, ModelFileError, InputFileError, OutputExistsError,
    StorageError, DeviceMemoryError. On any error ``out`` stays the old file, if there was one.
    """
    products = dict(zip(PRODUCTS, (out, confidence, second, entropy, probabilities), strict=True))
    paths = {name: Path(path) for name, path in products.items() if path is not None}
    outputs = MapOutputs(paths, None if stac is None else Path(stac), resume, overwrite)
    windows = _windows(engine, window, overlap, blend, batch_size)
    job, fingerprint = _plan(
        engine, scenes, outputs, windows, _Region(bounds, None if clip is None else Path(clip))
    )
    return write_map(engine, job, outputs, fingerprint, memory, executor, progress)


@dataclass(frozen=True)
class _Windows:
    """Windows of a map: side and overlap in pixels, blending, and windows per model call."""

    size: int
    overlap: int
    blend: str
    batch: int


def _windows(engine: Engine, size: int | None, overlap: int | None, blend: str, batch: int) -> _Windows:
    size = size or engine.header.window
    return _Windows(size, default_overlap(size) if overlap is None else overlap, blend, batch)


@dataclass(frozen=True)
class _Region:
    """Part of the scene that is mapped: bounds in its CRS, or a file that clips; all of it without both."""

    bounds: tuple[float, float, float, float] | None
    clip: Path | None

    def on(self, grid: GeoBox) -> tuple[Window, AreaOfInterest | None]:
        """Rectangle of the grid, and the area of interest in it."""
        if self.bounds is not None and self.clip is not None:
            raise SettingsError("--bounds and --clip exclude each other: give one of them")
        if self.clip is not None:
            area = open_clip(self.clip, grid)
            return area.region, area
        return (full_window(grid) if self.bounds is None else bounds_window(grid, self.bounds)), None


def _plan(
    engine: Engine, scenes: Mapping[str, Scene], outputs: MapOutputs, windows: _Windows, region: _Region
) -> tuple[PredictionJob, str]:
    """Job of a map, and the fingerprint of all that its pixels depend on; all inputs are checked."""
    named, clip = name_seasons(scenes, engine), region.clip
    scenes = {season: in_model_values(scene, season, engine.header.inputs) for season, scene in named.items()}
    inputs = [file for scene in scenes.values() for file in (*scene.inputs, *scene.files)]
    outputs.check([*inputs, *filter(None, [clip])])
    require_same_grid((scene.files[0], scene.grid) for scene in scenes.values())
    grid = next(iter(scenes.values())).grid
    rectangle, area = region.on(grid)
    plan = WindowPlan.of((grid.height, grid.width), windows.size, windows.overlap, windows.blend)
    batch = min(windows.batch, plan.count)
    fingerprint = fingerprint_of(
        engine.how, engine.identity, engine.temperature, describe(grid),
        {season: [stamp(file) for path in scene.files for file in source_files(path)]
         for season, scene in scenes.items()},
        [[scene.nodata, [[band.name, band.index] for band in scene.bands], *_converted(scene)]
         for scene in scenes.values()],
        [stamp(file) for file in source_files(str(clip))] if clip else None,
        [str(rectangle), windows.size, windows.overlap, windows.blend, batch],
        {name: str(path.resolve()) for name, path in outputs.paths.items()},
    )  # fmt: skip
    legend, temperature = engine.header.legend, engine.temperature
    job = PredictionJob(scenes, rectangle, area, plan, tuple(outputs.paths), legend, temperature, batch)
    return job, fingerprint


def _converted(scene: Scene) -> list[Any]:
    """Conversion of a scene's values, for a fingerprint; nothing if they are read as stored."""
    ways = [part.conversion for part in (scene, *scene.parts)]
    return [[[list(way.gain), list(way.bias)] if way else None for way in ways]] if any(ways) else []
