"""Full-scene prediction: window by window, in memory that depends on the scene's width at most.

    plan (blend) ─> read, model, blend (mapping) ─> code, confidence ... (products) ─> raw files, ledger ─> COGs

The plan comes from the scene, the window, the overlap and the blending alone. A block is a rectangle that one
window finishes; the ledger keeps which blocks are written, so that a killed pass goes on, and what their zones
need is computed again. Pixels without an observation in any season are nodata, and windows without one are not
computed.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.apply.engine import Engine
from cobertes.apply.mapping import Place, Seen, blocks
from cobertes.apply.products import MAP, PRODUCTS, Products, kind_of
from cobertes.apply.stac import write_item
from cobertes.errors import CobertesError, SettingsError
from cobertes.fingerprint import fingerprint, stamp
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.blend import INTERIOR, WindowPlan
from cobertes.geo.clip import Clip, open_clip
from cobertes.geo.grid import bounds_window, crop, describe, pixel_hectares, require_same_grid, source_files, whole
from cobertes.geo.ledger import LEDGER, Ledger, Resume, discard, take_up
from cobertes.geo.pages import release
from cobertes.geo.raster import check_not_input, new_raster, partial_folder
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import CODES, Legend
from cobertes.learn.infer import READ_THREADS
from cobertes.progress import SILENT, Progress

log = logging.getLogger(__name__)

DEFAULT_BLEND = INTERIOR

LIBRARIES_MB = 850
"""Peak memory of the process with its libraries loaded."""

FORWARD_BYTES = 2700
"""Of a forward pass, for every pixel of a batch: a ResNet50 in fp32."""

CACHE_MB = (64, 1024)
"""Least and most that GDAL keeps of the scenes' storage blocks."""

LEAST_CARRIED_MB = 32
"""Of the lower zones of a strip, however little memory there is."""


@dataclass(frozen=True)
class MapReport:
    """What a prediction made.

    counts    pixels per legend code, nodata included
    hectares  the same as areas; empty where the CRS is not projected
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

    A season may be missing where the model was trained to do without (`Inputs.check`).
    """
    seasons = engine.header.inputs.seasons
    named = dict(scenes)
    if len(seasons) == 1 and len(named) == 1 and ONLY_SEASON in (*named, *seasons):
        named = {seasons[0]: next(iter(named.values()))}
    engine.check_scenes(named)
    missing = [season for season in seasons if season not in named]
    if missing:
        log.info("no scene of season %s: the map is made without it", ", ".join(missing))
    return {season: named[season] for season in seasons if season in named}


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
    Raises SettingsError, GridMismatchError, BandMismatchError, ModelFileError, InputFileError,
    OutputExistsError, StorageError; whatever happens, ``out`` is the old file or the whole new one.
    """
    given = dict(zip(PRODUCTS, (out, confidence, second, entropy, probabilities), strict=True))
    paths = {name: path for name, path in given.items() if path is not None}
    scenes = name_seasons(scenes, engine)
    inputs = [file for scene in scenes.values() for file in scene.files]
    _check_files([*paths.values(), *filter(None, [stac])], [*inputs, *filter(None, [clip])])
    require_same_grid((scene.files[0], scene.grid) for scene in scenes.values())
    grid = next(iter(scenes.values())).grid
    region, clipped = _wanted(grid, bounds, clip)
    size = window or engine.header.window
    overlap = default_overlap(size) if overlap is None else overlap
    plan = WindowPlan.of((grid.height, grid.width), size, overlap, blend)
    batch = min(batch_size, plan.count)
    budget = _Budget.of(memory, plan, batch, engine.header.inputs.channels, len(engine.header.legend))
    made_from = fingerprint(
        engine.how, engine.identity, engine.temperature, describe(grid),
        {season: [stamp(file) for path in scene.files for file in source_files(path)]
         for season, scene in scenes.items()},
        [str(region), stamp(clip) if clip else None, size, overlap, blend, batch],
        {name: str(path.resolve()) for name, path in paths.items()},
    )  # fmt: skip
    sums = {"written": CODES, "windows": 2}
    ledger = Ledger(partial_folder(out) / LEDGER, made_from, plan.count, sums, "inputs, settings or engine")
    begin = time.monotonic()
    missing = take_up(ledger, paths, resume, overwrite=overwrite)
    before = int(ledger.sums["written"].sum())
    part, legend = crop(grid, region), engine.header.legend
    kinds = {name: kind_of(name, legend) for name in missing}
    if engine.temperature != 1:  # says that probabilities are calibrated
        for kind in kinds.values():
            kind.tags["temperature"] = f"{engine.temperature:.6g}"
    try:
        with ExitStack() as files:
            files.enter_context(rasterio.Env(GDAL_CACHEMAX=budget.cache))
            rasters = {
                name: files.enter_context(
                    new_raster(paths[name], part, kinds[name], overwrite=overwrite, resumable=True)
                )
                for name in missing
            }
            if rasters:
                products = Products(rasters, legend, engine.temperature)
                _Pass(engine, scenes, region, clipped, plan, products, ledger).run(batch, budget, progress)
            counts = _per_code(legend, ledger.sums["written"])
            hectares = _hectares(counts, pixel_hectares(grid))
            if MAP in kinds:
                kinds[MAP].tags.update(
                    {"engine": engine.how} | {f"area_{c}": f"{v:.2f} ha" for c, v in hectares.items()}
                )
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
    if stac is not None:
        write_item(stac, part, legend, paths, hectares, engine.how, inputs)
    if not computed:
        log.warning("%s is empty: no valid pixel there. Check the scenes' place and nodata value.", out)
    mapped = sum(counts.values()) - before
    return MapReport(counts, hectares, computed, skipped, time.monotonic() - begin, mapped)


def _check_files(written: Sequence[Path], read: Sequence[Path | str]) -> None:
    if len({path.resolve() for path in written}) < len(written):
        raise SettingsError("the map, its confidence and all that is made beside it must be different files")
    check_not_input(written, read)


def _wanted(
    grid: GeoBox, bounds: tuple[float, float, float, float] | None, clip: Path | None
) -> tuple[Window, Clip | None]:
    """The rectangle to be mapped, and what of it."""
    if bounds is not None and clip is not None:
        raise SettingsError("--bounds and --clip exclude each other: give one of them")
    if clip is not None:
        found = open_clip(clip, grid)
        return found.region, found
    return (whole(grid) if bounds is None else bounds_window(grid, bounds)), None


def _per_code(legend: Legend, written: NDArray[np.int64]) -> dict[int, int]:
    return {int(code): int(written[code]) for code in sorted({legend.nodata, *legend.codes.tolist()})}


def _hectares(counts: Mapping[int, int], pixel: float | None) -> dict[int, float]:
    return {} if pixel is None else {code: count * pixel for code, count in counts.items()}


@dataclass(frozen=True)
class _Budget:
    """What the memory is used for: GDAL's ``cache`` in bytes, ``ahead`` windows, ``groups`` of columns."""

    cache: int
    ahead: int
    groups: int

    @classmethod
    def of(cls, memory: int, plan: WindowPlan, batch: int, channels: int, classes: int) -> "_Budget":
        """Of the whole process, after libraries, a forward pass, and the batches under way."""
        pixels = batch * plan.size**2
        under_way = 4 * pixels * (4 * channels + 3 * classes)  # float32: four batches in, three out
        room = memory - LIBRARIES_MB - (FORWARD_BYTES * pixels + under_way) // 2**20
        if room < CACHE_MB[0] + LEAST_CARRIED_MB:
            log.warning(
                "windows of %d px in batches of %d take about %d MB, more than the %d MB of --memory",
                plan.size, batch, memory - room + CACHE_MB[0], memory,
            )  # fmt: skip
        carried = 4 * classes * plan.carried() / 2**20
        groups = int(np.ceil(carried / max(room / 2, LEAST_CARRIED_MB)))
        cache = min(max((room - carried) / 2, CACHE_MB[0]), CACHE_MB[1])
        return cls(int(cache * 2**20), 2 * batch, max(groups, 1))


class _Pass:
    """One pass over the windows of a region."""

    def __init__(
        self,
        engine: Engine,
        scenes: Mapping[str, Scene],
        region: Window,
        clip: Clip | None,
        plan: WindowPlan,
        products: Products,
        ledger: Ledger,
    ) -> None:
        self.engine, self.scenes, self.region, self.clip = engine, scenes, region, clip
        self.plan, self.products, self.ledger = plan, products, ledger
        self.wanted = np.zeros((len(plan.rows), len(plan.cols)), bool)
        for row, col in np.ndindex(*self.wanted.shape):
            self.wanted[row, col] = plan.block(row, col).meet(region) is not None
        for number in range(plan.count):
            if not self.wanted.flat[number]:
                self.ledger.done.add(number)
        for number in self.ledger.done:
            self.wanted.flat[number] = False

    def run(self, batch: int, budget: _Budget, progress: Progress) -> None:
        """Compute and write all blocks that the ledger lacks."""
        pages, waiting = list(self.products.rasters.values()), self.wanted.copy()
        done = blocks(
            self.engine.logits,
            self.plan,
            self._places(budget.groups),
            self._read,
            batch_size=batch,
            threads=READ_THREADS,
            windows_ahead=budget.ahead,
        )
        total = self.region.height * self.region.width
        left = sum(part.height * part.width for part in self._parts())
        try:
            with progress.bar("map", total / 1e6, "Mpx") as advance, closing(done):  # type: ignore[type-var]
                if left < total:
                    advance((total - left) / 1e6)
                before = -1
                for block in done:
                    if block.place[0] != before:  # a new strip
                        before = block.place[0]
                        for pixels in pages:
                            release(pixels)
                        self.ledger.save_if_due(pages)
                    if waiting[block.place]:  # a window that only lends its zone finishes nothing
                        waiting[block.place] = False
                        advance(self._write(*block.place, block.logits, block.valid) / 1e6)
        except BaseException as error:
            self._keep(pages, error)
            raise
        self.ledger.save(pages)

    def _keep(self, pages: list[Any], error: BaseException) -> None:
        """Enter what is finished; a disk that fails now must not hide the error."""
        if isinstance(error, CobertesError) and not isinstance(error, OSError):
            return
        try:
            self.ledger.save(pages)
        except OSError as failed:
            log.debug("the ledger can't be written: %s", failed)

    def _parts(self) -> Iterable[Window]:
        for row, col in np.argwhere(self.wanted):
            yield from filter(None, [self.plan.block(row, col).meet(self.region)])

    def _places(self, groups: int) -> Iterator[Place]:
        """Windows that have a share in blocks to be written, by groups of columns."""
        cols = len(self.plan.cols)
        edges = sorted({cols * group // groups for group in range(groups + 1)})
        for first, stop in pairwise(edges):
            for row in range(len(self.plan.rows)):
                for col in range(max(first - 1, 0), stop):
                    fed = self.plan.feeds(row, col)
                    if any(self.wanted[i, j] for i, j in fed if first <= j < stop):
                        yield row, col

    def _read(self, place: Place) -> Seen | None:
        """Channels and validity of a window; None where none of the pixels that it has a share in is wanted."""
        window, reach = self.plan.window(*place), self.plan.reach(*place)
        inside = None
        if self.clip is not None:
            inside = self.clip.inside(window)
            if not inside[reach.within(window)].any():
                return None
        if not any(scene.is_stored(window.clip(scene.shape)) for scene in self.scenes.values()):
            return None
        x, valid = self.engine.read(self.scenes, window)
        if inside is not None:
            valid &= inside
        return (x, valid) if valid[reach.within(window)].any() else None

    def _write(
        self, row: int, col: int, logits: NDArray[np.float32] | None, valid: NDArray[np.bool_] | None
    ) -> int:
        """Write a block as far as it lies in the region; returns the number of pixels."""
        block = self.plan.block(row, col)
        part = block.meet(self.region)
        if part is None:  # it is not wanted
            return 0
        inside = part.within(block)
        mask = np.zeros(part.shape, bool) if valid is None else valid[inside]
        written = self.products.write(*part.within(self.region), None if logits is None else logits[inside], mask)
        number = self.plan.number(row, col)
        windows = np.array([logits is not None, logits is None], np.int64)
        self.ledger.enter(number, {"written": written, "windows": windows})
        return mask.size
