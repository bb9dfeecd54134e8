"""Prediction job: the description of a map, and its predicted blocks, the same in any process on any machine.

    PredictionJob, Engine, wanted blocks ─> pipeline (read, model, blend) ─> layers ─> PredictedBlock

A block is a rectangle that one window finishes. Its pixels depend on the scenes, the model and the window plan,
never on which other blocks are computed with it: windows that overlap it are computed too.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import rasterio
from numpy.typing import NDArray

from cobertes.engines.engine import Engine
from cobertes.geo.blending import WindowPlan
from cobertes.geo.clip import AreaOfInterest
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import CODES, Legend
from cobertes.learn.inference import READ_THREADS
from cobertes.predict.map_layers import Layers, layers_from_logits
from cobertes.predict.pipeline import MapBlock, Position, WindowData, map_blocks

log = logging.getLogger(__name__)

LIBRARIES_MB = 850
"""Peak memory of the process with its libraries loaded."""

FORWARD_BYTES = 2700
"""Memory of a forward pass on the CPU per pixel of a batch, and per model of an ensemble: a ResNet50 in fp32."""

CACHE_MB = (64, 1024)
"""Minimum and maximum of GDAL's block cache."""

MIN_CARRIED_MB = 32
"""Minimum for the lower zones of a strip, which are carried over to the next one."""


@dataclass(frozen=True)
class PredictionMemory:
    """Division of the memory of a process.

    cache   bytes of GDAL's block cache
    ahead   windows to prefetch
    groups  groups of columns, computed one after the other: more groups carry over less
    """

    cache: int
    ahead: int
    groups: int

    @classmethod
    def of(cls, memory: int, plan: WindowPlan, batch: int, engine: Engine) -> "PredictionMemory":
        """Divide ``memory`` (MB, of the whole process) after libraries, forward passes and queued batches."""
        pixels, classes = batch * plan.size**2, len(engine.header.legend)
        models = [header.inputs for header in engine.members or (engine.header,)]
        channels = sum(len(inputs.seasons) * len(inputs.bands) for inputs in models)
        queued = 4 * pixels * (4 * channels + 3 * classes)  # float32: four batches in, three out
        on_cpu = all(spec.device == "cpu" for spec in engine.specs)
        forward = FORWARD_BYTES * pixels * len(models) if on_cpu else 0
        room = memory - LIBRARIES_MB - (forward + queued) // 2**20
        if room < CACHE_MB[0] + MIN_CARRIED_MB:
            log.warning(
                "windows of %d px in batches of %d take about %d MB, more than the %d MB of --memory",
                plan.size, batch, memory - room + CACHE_MB[0], memory,
            )  # fmt: skip
        carried = 4 * classes * plan.carry_over() / 2**20
        groups = int(np.ceil(carried / max(room / 2, MIN_CARRIED_MB)))
        cache = min(max((room - carried) / 2, CACHE_MB[0]), CACHE_MB[1])
        return cls(int(cache * 2**20), 2 * batch, max(groups, 1))


@dataclass(frozen=True)
class PredictedBlock:
    """Block of the map, clipped to the region.

    number      of the block in the window plan
    rows, cols  of the region
    layers      (bands, height, width) uint8 by product; None: nothing but nodata
    histogram   (256,) int64 pixels per code
    computed    False if the model was not run on its window
    """

    number: int
    rows: slice
    cols: slice
    layers: Layers | None
    histogram: NDArray[np.int64]
    computed: bool


@dataclass(frozen=True)
class PredictionJob:
    """Description of a map: scenes, pixels, windows and products. It can be pickled.

    region    rectangle of the scenes' grid that is mapped; ``clip`` the area of interest in it, None for all
    products  names of `map_layers.PRODUCTS`
    batch     windows per model call
    """

    scenes: Mapping[str, Scene]
    region: Window
    clip: AreaOfInterest | None
    plan: WindowPlan
    products: tuple[str, ...]
    legend: Legend
    temperature: float
    batch: int

    def outside(self) -> NDArray[np.bool_]:
        """Mask (rows, cols) of the plan's blocks without a pixel in the region."""
        out = np.zeros((len(self.plan.rows), len(self.plan.cols)), bool)
        for row, col in np.ndindex(*out.shape):
            out[row, col] = self.plan.block(row, col).intersection(self.region) is None
        return out

    def pixels(self, wanted: NDArray[np.bool_]) -> int:
        """Number of the region's pixels in the ``wanted`` blocks (rows, cols)."""
        parts = (self.plan.block(row, col).intersection(self.region) for row, col in np.argwhere(wanted))
        return sum(part.height * part.width for part in parts if part is not None)

    def predict(
        self, engine: Engine, wanted: NDArray[np.bool_], memory: PredictionMemory
    ) -> Generator[PredictedBlock, None, None]:
        """Predict the ``wanted`` blocks (rows, cols), each once."""
        missing = wanted.copy()
        blocks = map_blocks(
            engine.logits,
            self.plan,
            self._positions(wanted, memory.groups),
            lambda position: self._read(engine, position),
            batch_size=self.batch,
            threads=READ_THREADS,
            ahead=memory.ahead,
        )
        with closing(blocks):  # type: ignore[type-var]
            for block in blocks:
                if missing[block.position]:  # a window that only contributes to others finishes no wanted block
                    missing[block.position] = False
                    yield self._finish(block)

    def _positions(self, wanted: NDArray[np.bool_], groups: int) -> Iterator[Position]:
        """Windows that contribute to wanted blocks, by groups of columns."""
        rows, cols = wanted.shape
        edges = sorted({cols * group // groups for group in range(groups + 1)})
        for first, stop in pairwise(edges):
            for row in range(rows):
                for col in range(max(first - 1, 0), stop):
                    blocks = self.plan.contributes_to(row, col)
                    if any(wanted[i, j] for i, j in blocks if first <= j < stop):
                        yield row, col

    def _read(self, engine: Engine, position: Position) -> WindowData | None:
        """Channels and valid mask of a window; None if no pixel that it contributes to is wanted and observed."""
        window, extent = self.plan.window(*position), self.plan.extent(*position)
        inside = None
        if self.clip is not None:
            inside = self.clip.inside(window)
            if not inside[extent.slices_in(window)].any():
                return None
        if not any(scene.may_have_data(window.clip(scene.shape)) for scene in self.scenes.values()):
            return None
        x, valid = engine.read(self.scenes, window)
        if inside is not None:
            valid &= inside
        return (x, valid) if valid[extent.slices_in(window)].any() else None

    def _finish(self, block: MapBlock) -> PredictedBlock:
        """Clip a block to the region, which it intersects, and derive its layers."""
        outline = self.plan.block(*block.position)
        part = outline.intersection(self.region) or Window(0, 0, 0, 0)
        inside, (rows, cols) = part.slices_in(outline), part.slices_in(self.region)
        number = self.plan.number(*block.position)
        if block.logits is None or block.valid is None:
            histogram = np.zeros(CODES, np.int64)
            histogram[self.legend.nodata] = part.height * part.width
            return PredictedBlock(number, rows, cols, None, histogram, computed=False)
        layers, histogram = layers_from_logits(
            block.logits[inside], block.valid[inside], self.products, self.legend, self.temperature
        )
        return PredictedBlock(number, rows, cols, layers, histogram, computed=True)


Executor = Callable[[Engine, PredictionJob, NDArray[np.bool_], int], Generator[PredictedBlock, None, None]]
"""Computes the wanted blocks (rows, cols) of a job with an engine, in so many MB of memory per process: in any
order, each block once."""


def run_locally(
    engine: Engine, job: PredictionJob, wanted: NDArray[np.bool_], memory: int
) -> Generator[PredictedBlock, None, None]:
    """Executor in this process, strip by strip."""
    parts = PredictionMemory.of(memory, job.plan, job.batch, engine)
    with rasterio.Env(GDAL_CACHEMAX=parts.cache):
        yield from job.predict(engine, wanted, parts)
