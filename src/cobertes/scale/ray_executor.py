"""A map's blocks as Ray tasks: pieces of many windows, written as they come by the one who asked.

    Work, wanted blocks ─> pieces ─> tasks, a bounded number at once ─> Finished blocks ─> the plain run's writer
                                     │ each worker opens the engine once
                                     └ lost with its worker or node: Ray computes it again

No byte depends on pieces, workers or their order: a piece computes along what lends its blocks their zones, as a
pass that goes on after an interruption does.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from math import isqrt
from pathlib import Path
from socket import gethostname
from threading import Event
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from cobertes.engines.engine import CALIBRATION, Engine, EngineSpec, open_specs
from cobertes.engines.runtimes import quantized_path
from cobertes.errors import ClusterError, SettingsError
from cobertes.fingerprints import fingerprint_of
from cobertes.geo.scene import Scene
from cobertes.predict.map_layers import PROBABILITIES
from cobertes.predict.prediction_job import Executor, PredictedBlock, PredictionJob, PredictionMemory
from cobertes.scale.cluster import RETRIES, connected, require_room, result_of, slots
from cobertes.workflow.scene_paths import is_remote

PIECE_WINDOWS = 256
"""Of a piece at most: minutes of one processor, seconds of many."""

PIECE_BYTES = 48 * 2**20
"""Of what a piece sends back, at most, where a batch is not more."""

PIECES_PER_WORKER = 4
"""Of several, at least, where the scene has as many windows: so that all end at about the same time. A piece costs
half a batch: the model waits for the first windows, and the last ones for nothing."""

IN_FLIGHT = 2
"""Pieces of a map for each worker that are computed or wait: one is ready when another ends, and memory stays
bounded."""

LOOK_UP = 1.0
"""Seconds of waiting for a piece, then look whether all is to stop, and for new nodes."""

Numbers = NDArray[np.int64]
"""Of blocks in a window plan."""


@dataclass(frozen=True)
class PredictionTask:
    """What all pieces of a map share.

    models  what the recipes' files hold (`contents`)
    """

    recipes: tuple[EngineSpec, ...]
    models: str
    work: PredictionJob
    budget: PredictionMemory


@contextmanager
def ray_executor(address: str, threads: int | None = None, stop: Event | None = None) -> Iterator[Executor]:
    """What `predict_map` takes to compute a map on a Ray cluster; see `cluster.connected` for the address.

    threads  processors of a task; by default as many as PyTorch takes in this process. A map is that of
             `predict_map` here with an engine of as many threads, to the byte, on the same kind of processor.
    stop     once it is set, whatever is computed raises CancelledError within a second or two; finished rows stay
    Model and scenes must lie at the same paths on every node.
    """
    each, stop = threads or torch.get_num_threads(), stop or Event()
    with connected(address, each) as ray:

        def executor(
            engine: Engine, work: PredictionJob, wanted: NDArray[np.bool_], memory: int
        ) -> Generator[PredictedBlock, None, None]:
            recipes = tuple(replace(one, path=one.path.resolve(), threads=each) for one in engine.specs)
            if not recipes:
                raise SettingsError("an engine made by hand can't be opened on other machines: use open_engine")
            budget = PredictionMemory.of(memory, work.plan, work.batch, engine)
            gpus = float(any(one.device == "cuda" for one in recipes))
            needs = {"CPU": float(each), "GPU": gpus, "memory": memory * 2.0**20}
            require_room(ray, needs, "Give fewer --threads or less --memory")
            task = ray.remote(_compute_piece).options(
                num_cpus=each, num_gpus=gpus, memory=memory * 2**20, max_retries=RETRIES
            )
            elsewhere = replace(work, scenes={name: _absolute(scene) for name, scene in work.scenes.items()})
            shared = ray.put(PredictionTask(recipes, contents(recipes), elsewhere, budget))
            todo = iter(divide(work, wanted, max(slots(ray, needs), 1)))
            running: list[Any] = []
            try:
                while True:
                    room = IN_FLIGHT * max(slots(ray, needs), 1)  # nodes come and go
                    while len(running) < room and (piece := next(todo, None)) is not None:
                        running.append(task.remote(shared, piece))
                    if not running:
                        return
                    ready, running = ray.wait(running, num_returns=1, timeout=LOOK_UP, fetch_local=False)
                    if stop.is_set():
                        raise CancelledError("another map failed, or all were interrupted")
                    if ready:
                        yield from result_of(ray, ready.pop())  # pixels stay as long as somebody may ask for them
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

        yield executor


def divide(work: PredictionJob, wanted: NDArray[np.bool_], workers: int) -> Iterator[Numbers]:
    """The wanted blocks in pieces: numbers of blocks in the plan, each in one piece.

    Without zones between windows, whole batches in row-major order. With zones, squares: windows along their
    upper and left sides are computed twice, by two pieces.
    """
    plan, count = work.plan, int(wanted.sum())
    if not count:
        return
    per_pixel = sum(len(work.legend) if name == PROBABILITIES else 1 for name in work.products)
    fitting = PIECE_BYTES * count // max(work.pixels(wanted) * per_pixel, 1)
    fair = count // (PIECES_PER_WORKER * workers) if workers > 1 else count
    size = max(min(PIECE_WINDOWS, fitting, fair) // work.batch, 1) * work.batch
    if not any(span.stop > span.last for span in (*plan.rows, *plan.cols)):
        numbers = np.flatnonzero(wanted)
        yield from (numbers[first : first + size] for first in range(0, count, size))
        return
    side = max(isqrt(size), 1)
    for top in range(0, wanted.shape[0], side):
        for left in range(0, wanted.shape[1], side):
            piece = np.zeros_like(wanted)
            piece[top : top + side, left : left + side] = wanted[top : top + side, left : left + side]
            if piece.any():
                yield np.flatnonzero(piece)


def contents(recipes: Sequence[EngineSpec]) -> str:
    """Changes with what the files of the models hold, not with their dates: a node may have copies."""
    digests = []
    for one in recipes:
        int8 = quantized_path(one.path)
        more = [int8, int8.with_suffix(".bin")] if one.precision == "int8" else []
        for path in (one.path, one.path.parent / CALIBRATION, *more):
            digests.append(sha256(path.read_bytes()).hexdigest() if path.exists() else None)
    return fingerprint_of(digests)


def _compute_piece(shared: PredictionTask, piece: Numbers) -> list[PredictedBlock]:
    """What runs on a worker."""
    plan = shared.work.plan
    wanted = np.zeros((len(plan.rows), len(plan.cols)), bool)
    wanted.flat[piece] = True
    with rasterio.Env(GDAL_CACHEMAX=shared.budget.cache):
        return list(shared.work.predict(_engine(shared.recipes, shared.models), wanted, shared.budget))


@lru_cache(maxsize=1)
def _engine(recipes: tuple[EngineSpec, ...], models: str) -> Engine:
    """Of this worker: it outlives the piece, and the map. Raises ClusterError where its files are others."""
    engine = open_specs(recipes)
    if contents(recipes) != models:
        paths = ", ".join(str(one.path) for one in recipes)
        raise ClusterError(
            f"{paths} on {gethostname()} is not the model that this map is made with. All nodes must see the same "
            f"files there, calibration.json included; then --resume."
        )
    return engine


def _absolute(scene: Scene) -> Scene:
    """The same files by names that hold in every folder."""

    def place(path: str) -> str:
        return path if is_remote(path) else str(Path(path).resolve())

    return replace(scene, bands=tuple(replace(band, path=place(band.path)) for band in scene.bands))
