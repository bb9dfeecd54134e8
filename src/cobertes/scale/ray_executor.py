"""Ray executor: the blocks of a map as Ray tasks of many windows each, written by the calling process.

    PredictionJob, wanted blocks ─> pieces ─> tasks, a bounded number at once ─> PredictedBlocks ─> writer
                                              │ each worker opens the engine once
                                              └ lost with its worker or node: Ray retries it

No byte depends on pieces, workers or their order: a piece also computes the windows that overlap its blocks, as a
resumed pass does.
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
from cobertes.scale.cluster import RETRIES, connected, require_resources, result_of, slots
from cobertes.workflow.scene_paths import is_remote

PIECE_WINDOWS = 256
"""Maximum windows of a piece: minutes on one CPU, seconds on many."""

PIECE_BYTES = 48 * 2**20
"""Maximum result size of a piece, unless a single batch exceeds it."""

PIECES_PER_WORKER = 4
"""Minimum pieces per worker, if there are several, so that all end at about the same time. A piece costs about
half a batch: the model waits for the first windows."""

IN_FLIGHT = 2
"""Submitted pieces per worker: one is ready when another ends, and memory stays bounded."""

POLL_SECONDS = 1.0
"""Interval of the checks for a stop request and for new nodes while waiting for a piece."""

BlockNumbers = NDArray[np.int64]
"""Numbers of blocks in a window plan."""


@dataclass(frozen=True)
class PredictionTask:
    """Input shared by all pieces of a map.

    digest  of the files of the models (`model_digest`)
    memory  division of each worker's memory
    """

    specs: tuple[EngineSpec, ...]
    digest: str
    job: PredictionJob
    memory: PredictionMemory


@contextmanager
def ray_executor(address: str, threads: int | None = None, stop: Event | None = None) -> Iterator[Executor]:
    """Executor for `predict_map` on a Ray cluster; the address as in `cluster.connected`.

    threads  CPUs of a task; by default PyTorch's number in this process. The map is byte-identical to a local one
             with an engine of as many threads on the same kind of CPU.
    stop     event that cancels: maps being computed raise CancelledError within about `POLL_SECONDS`, and keep
             their finished rows
    Model and scenes must have the same paths on every node.
    """
    cpus, stop = threads or torch.get_num_threads(), stop or Event()
    with connected(address, cpus) as ray:

        def executor(
            engine: Engine, job: PredictionJob, wanted: NDArray[np.bool_], memory: int
        ) -> Generator[PredictedBlock, None, None]:
            specs = tuple(replace(spec, path=spec.path.resolve(), threads=cpus) for spec in engine.specs)
            if not specs:
                raise SettingsError("an engine made by hand can't be opened on other machines: use open_engine")
            parts = PredictionMemory.of(memory, job.plan, job.batch, engine)
            gpus = float(any(spec.device == "cuda" for spec in specs))
            needs = {"CPU": float(cpus), "GPU": gpus, "memory": memory * 2.0**20}
            require_resources(ray, needs, "Give fewer --threads or less --memory")
            task = ray.remote(_compute_piece).options(
                num_cpus=cpus, num_gpus=gpus, memory=memory * 2**20, max_retries=RETRIES
            )
            portable = replace(job, scenes={name: _absolute(scene) for name, scene in job.scenes.items()})
            shared = ray.put(PredictionTask(specs, model_digest(specs), portable, parts))
            pieces = iter(divide(job, wanted, max(slots(ray, needs), 1)))
            running: list[Any] = []
            try:
                while True:
                    room = IN_FLIGHT * max(slots(ray, needs), 1)  # nodes come and go
                    while len(running) < room and (piece := next(pieces, None)) is not None:
                        running.append(task.remote(shared, piece))
                    if not running:
                        return
                    ready, running = ray.wait(running, num_returns=1, timeout=POLL_SECONDS, fetch_local=False)
                    if stop.is_set():
                        raise CancelledError("another map failed, or all were interrupted")
                    if ready:
                        yield from result_of(ray, ready.pop())  # Ray frees a result without references
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

        yield executor


def divide(job: PredictionJob, wanted: NDArray[np.bool_], workers: int) -> Iterator[BlockNumbers]:
    """Divide the wanted blocks (rows, cols) into pieces, each block into one.

    If windows don't blend: full batches in row-major order. If they do: squares, since the windows along their
    upper and left sides are computed by two pieces.
    """
    plan, count = job.plan, int(wanted.sum())
    if not count:
        return
    per_pixel = sum(len(job.legend) if name == PROBABILITIES else 1 for name in job.products)
    fitting = PIECE_BYTES * count // max(job.pixels(wanted) * per_pixel, 1)
    fair = count // (PIECES_PER_WORKER * workers) if workers > 1 else count
    size = max(min(PIECE_WINDOWS, fitting, fair) // job.batch, 1) * job.batch
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


def model_digest(specs: Sequence[EngineSpec]) -> str:
    """Digest of the content of the model files, without their dates: a node may have copies."""
    digests = []
    for spec in specs:
        int8 = quantized_path(spec.path)
        more = [int8, int8.with_suffix(".bin")] if spec.precision == "int8" else []
        for path in (spec.path, spec.path.parent / CALIBRATION, *more):
            digests.append(sha256(path.read_bytes()).hexdigest() if path.exists() else None)
    return fingerprint_of(digests)


def _compute_piece(shared: PredictionTask, piece: BlockNumbers) -> list[PredictedBlock]:
    """Predict a piece on a worker."""
    plan = shared.job.plan
    wanted = np.zeros((len(plan.rows), len(plan.cols)), bool)
    wanted.flat[piece] = True
    with rasterio.Env(GDAL_CACHEMAX=shared.memory.cache):
        return list(shared.job.predict(_engine(shared.specs, shared.digest), wanted, shared.memory))


@lru_cache(maxsize=1)
def _engine(specs: tuple[EngineSpec, ...], digest: str) -> Engine:
    """Engine of this worker, cached across pieces and maps. Raises ClusterError if its model files differ."""
    engine = open_specs(specs)
    if model_digest(specs) != digest:
        paths = ", ".join(str(spec.path) for spec in specs)
        raise ClusterError(
            f"{paths} on {gethostname()} is not the model that this map is made with. All nodes must see the same "
            f"files there, calibration.json included; then --resume."
        )
    return engine


def _absolute(scene: Scene) -> Scene:
    """Scene with absolute paths, valid in any working directory."""

    def absolute(path: str) -> str:
        return path if is_remote(path) else str(Path(path).resolve())

    return replace(scene, bands=tuple(replace(band, path=absolute(band.path)) for band in scene.bands))
