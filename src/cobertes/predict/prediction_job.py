"""What is to be computed of a map, and the finished blocks of it: the same here, in another process, elsewhere.

    Work, engine, blocks that are wanted ─> read, model, blend (mapping) ─> products ─> Finished blocks

A block is a rectangle that one window finishes. Its pixels depend on the scenes, the model and the window plan,
never on which other blocks are computed with it: windows that lend it their zones are computed along.
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
from cobertes.predict.map_layers import Made, layers_from_logits
from cobertes.predict.pipeline import Place, Seen, blocks

log = logging.getLogger(__name__)

LIBRARIES_MB = 850
"""Peak memory of the process with its libraries loaded."""

FORWARD_BYTES = 2700
"""Of a forward pass of a model on the processor, for every pixel of a batch: a ResNet50 in fp32. Each model of an
ensemble keeps its own; on a GPU it is the GPU's."""

CACHE_MB = (64, 1024)
"""Least and most that GDAL keeps of the scenes' storage blocks."""

LEAST_CARRIED_MB = 32
"""Of the lower zones of a strip, however little memory there is."""


@dataclass(frozen=True)
class PredictionMemory:
    """What the memory is used for: GDAL's ``cache`` in bytes, ``ahead`` windows, ``groups`` of columns."""

    cache: int
    ahead: int
    groups: int

    @classmethod
    def of(cls, memory: int, plan: WindowPlan, batch: int, engine: Engine) -> "PredictionMemory":
        """Of the whole process, after libraries, forward passes, and the batches under way; ``memory`` in MB."""
        pixels, classes = batch * plan.size**2, len(engine.header.legend)
        models = [one.inputs for one in engine.members or (engine.header,)]
        channels = sum(len(inputs.seasons) * len(inputs.bands) for inputs in models)
        under_way = 4 * pixels * (4 * channels + 3 * classes)  # float32: four batches in, three out
        on_processor = not any(recipe.device != "cpu" for recipe in engine.recipes)
        forward = FORWARD_BYTES * pixels * len(models) if on_processor else 0
        room = memory - LIBRARIES_MB - (forward + under_way) // 2**20
        if room < CACHE_MB[0] + LEAST_CARRIED_MB:
            log.warning(
                "windows of %d px in batches of %d take about %d MB, more than the %d MB of --memory",
                plan.size, batch, memory - room + CACHE_MB[0], memory,
            )  # fmt: skip
        carried = 4 * classes * plan.carry_over() / 2**20
        groups = int(np.ceil(carried / max(room / 2, LEAST_CARRIED_MB)))
        cache = min(max((room - carried) / 2, CACHE_MB[0]), CACHE_MB[1])
        return cls(int(cache * 2**20), 2 * batch, max(groups, 1))


@dataclass(frozen=True)
class PredictedBlock:
    """A block of the map.

    number   in the window plan
    rows     of the region, and ``cols``: as far as the block lies in it
    made     (bands, height, width) uint8 by product; None where there is nothing but nodata
    written  (256,) int64 pixels per code
    computed whether the model was run on its window
    """

    number: int
    rows: slice
    cols: slice
    made: Made | None
    written: NDArray[np.int64]
    computed: bool


@dataclass(frozen=True)
class PredictionJob:
    """What is to be computed of a map: of which pixels, from what, in which windows. It can be pickled.

    products  names, of `products.PRODUCTS`
    batch     windows computed together
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
        """(rows, cols) of the plan: blocks without a pixel in the region."""
        out = np.zeros((len(self.plan.rows), len(self.plan.cols)), bool)
        for row, col in np.ndindex(*out.shape):
            out[row, col] = self.plan.block(row, col).intersection(self.region) is None
        return out

    def pixels(self, wanted: NDArray[np.bool_]) -> int:
        """Of the region, in the blocks that are ``wanted``."""
        parts = (self.plan.block(row, col).intersection(self.region) for row, col in np.argwhere(wanted))
        return sum(part.height * part.width for part in parts if part is not None)

    def finished(
        self, engine: Engine, wanted: NDArray[np.bool_], budget: PredictionMemory
    ) -> Generator[PredictedBlock, None, None]:
        """The blocks that are ``wanted`` (rows, cols), each once."""
        waiting = wanted.copy()
        done = blocks(
            engine.logits,
            self.plan,
            self._places(wanted, budget.groups),
            lambda place: self._read(engine, place),
            batch_size=self.batch,
            threads=READ_THREADS,
            windows_ahead=budget.ahead,
        )
        with closing(done):  # type: ignore[type-var]
            for block in done:
                if waiting[block.place]:  # a window that only lends its zone finishes nothing
                    waiting[block.place] = False
                    yield self._finish(*block.place, block.logits, block.valid)

    def _places(self, wanted: NDArray[np.bool_], groups: int) -> Iterator[Place]:
        """Windows that have a share in blocks to be written, by groups of columns."""
        rows, cols = wanted.shape
        edges = sorted({cols * group // groups for group in range(groups + 1)})
        for first, stop in pairwise(edges):
            for row in range(rows):
                for col in range(max(first - 1, 0), stop):
                    fed = self.plan.contributes_to(row, col)
                    if any(wanted[i, j] for i, j in fed if first <= j < stop):
                        yield row, col

    def _read(self, engine: Engine, place: Place) -> Seen | None:
        """Channels and validity of a window; None where none of the pixels that it has a share in is wanted."""
        window, reach = self.plan.window(*place), self.plan.extent(*place)
        inside = None
        if self.clip is not None:
            inside = self.clip.inside(window)
            if not inside[reach.slices_in(window)].any():
                return None
        if not any(scene.may_have_data(window.clip(scene.shape)) for scene in self.scenes.values()):
            return None
        x, valid = engine.read(self.scenes, window)
        if inside is not None:
            valid &= inside
        return (x, valid) if valid[reach.slices_in(window)].any() else None

    def _finish(
        self, row: int, col: int, logits: NDArray[np.float32] | None, valid: NDArray[np.bool_] | None
    ) -> PredictedBlock:
        """A block as far as it lies in the region, which it does."""
        block = self.plan.block(row, col)
        part = block.intersection(self.region) or Window(0, 0, 0, 0)
        inside, (rows, cols) = part.slices_in(block), part.slices_in(self.region)
        number = self.plan.number(row, col)
        if logits is None or valid is None:
            written = np.zeros(CODES, np.int64)
            written[self.legend.nodata] = part.height * part.width
            return PredictedBlock(number, rows, cols, None, written, computed=False)
        made, written = layers_from_logits(
            logits[inside], valid[inside], self.products, self.legend, self.temperature
        )
        return PredictedBlock(number, rows, cols, made, written, computed=True)


Executor = Callable[[Engine, PredictionJob, NDArray[np.bool_], int], Generator[PredictedBlock, None, None]]
"""How the wanted blocks (rows, cols) of a work are computed with an engine, in a memory of so many MB a process:
in any order, each block once."""


def run_locally(
    engine: Engine, work: PredictionJob, wanted: NDArray[np.bool_], memory: int
) -> Generator[PredictedBlock, None, None]:
    """In this process, strip by strip."""
    budget = PredictionMemory.of(memory, work.plan, work.batch, engine)
    with rasterio.Env(GDAL_CACHEMAX=budget.cache):
        yield from work.finished(engine, wanted, budget)
