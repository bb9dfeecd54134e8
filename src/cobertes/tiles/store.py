"""Tile store: pixels of the labelled windows, copied once into chunks that need no decoding.

It pays for scenes that are slow to read window by window: compressed, in many files, remote, a VRT. Scenes that
can be memory-mapped (`geo.mmap_tiff`) are not copied; labels are compressed, and copied.

    pixels.bin    [april: chunk chunk ...][august: chunk ...][labels: chunk ...][shares]    needed chunks only
    ledger.json   runs of chunks already written (a killed copy resumes), and the fingerprint of their source

A window that the store holds only in part is read from the scene, so results do not depend on the store.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError, SettingsError, StorageError
from cobertes.fingerprints import fingerprint_of
from cobertes.geo.area import Area
from cobertes.geo.ledger import Ledger
from cobertes.geo.mmap_tiff import NOT_STORED, MappedChunks, Values
from cobertes.geo.windows import Window, runs
from cobertes.progress import SILENT, Progress
from cobertes.tiles.label_io import count_bands, read_labels, read_shares

log = logging.getLogger(__name__)

CHUNK = 256
"""Maximum side of a chunk in pixels: a window of 300 px touches four to nine."""

RUN = 8
"""Neighbouring chunks of a row that are copied together."""

COPY_THREADS = 2

SCENE, LABELS, SHARES = "scene", "labels", "shares"

Key = tuple[str, str, str]
"""Key of a stored layer: area, kind, and the season of a scene ("" for others)."""


@dataclass(frozen=True)
class Store:
    """Stored chunks by layer: seasons and labels of each area, and class shares if they are training targets."""

    chunks: Mapping[Key, MappedChunks]

    def read(self, area: str, kind: str, season: str, window: Window) -> NDArray[Any] | None:
        """Read (height, width, bands) of a window inside the area; None if any of it is not stored."""
        chunks = self.chunks.get((area, kind, season))
        if chunks is None or not chunks.all_stored(window):
            return None
        return chunks.read(window, np.arange(chunks.chunk[2]))


@dataclass(frozen=True)
class _Segment:
    """Chunks of one layer: ``needed`` (rows, cols) bool, from byte ``start`` of the file on."""

    key: Key
    area: Area
    chunk: tuple[int, int, int]
    dtype: str
    needed: NDArray[np.bool_]
    start: int

    @property
    def bytes(self) -> int:
        return int(self.needed.sum()) * prod(self.chunk) * np.dtype(self.dtype).itemsize

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Offset of each chunk in the file (rows, cols), in items of its dtype."""
        first = self.start // np.dtype(self.dtype).itemsize
        order = np.cumsum(self.needed).reshape(self.needed.shape) - 1
        return np.where(self.needed, first + order * prod(self.chunk), NOT_STORED)

    def runs(self) -> list[tuple[int, int, int]]:
        """Runs of chunks that are copied together: chunk row, first and stop chunk column."""
        found = []
        for row, line in enumerate(self.needed):
            for start, stop in runs(line):
                found += [(row, col, min(col + RUN, stop)) for col in range(start, stop, RUN)]
        return found


def make_store(
    folder: Path,
    areas: Mapping[str, Area],
    labels: Mapping[str, Path],
    windows: Mapping[str, Sequence[Window]],
    *,
    shares: Mapping[str, Path] | None = None,
    fingerprint: str,
    every_scene: bool = False,
    max_gb: float = 20.0,
    unreadable: Literal["error", "skip"] = "error",
    progress: Progress = SILENT,
) -> Store | None:
    """Copy the chunks under ``windows`` (by area), or resume an existing store; None if larger than ``max_gb``.

    shares       area -> raster of class shares to copy too (see `label_io.read_shares`)
    fingerprint  of scenes and labels; a store with another fingerprint is replaced
    every_scene  copy scenes that can be memory-mapped too
    max_gb       maximum disk space in GB
    unreadable   "skip" leaves chunks out, with a warning, if a scene can't be read
    Raises StorageError for lack of disk space, InputFileError for an unreadable scene.
    """
    shares = shares or {}
    segments, size = _lay_out(
        areas, windows, every_scene, {name: count_bands(path) for name, path in shares.items()}
    )
    if size > max_gb * 1e9:
        log.warning(
            "the tile store would take %.1f GB, tiles.store-gb allows %g: scenes are read where they are, "
            "which may be slow",
            size / 1e9,
            max_gb,
        )
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pixels.bin"
    tasks = [(segment, run) for segment in segments for run in segment.runs()]
    layout = [[*segment.key, segment.chunk, segment.dtype, segment.needed.tobytes().hex()] for segment in segments]
    ledger = Ledger(folder / "ledger.json", fingerprint_of(fingerprint, layout), len(tasks), {})
    if ledger.path.exists() and path.exists() and path.stat().st_size == size:
        try:
            ledger.load()
        except (SettingsError, InputFileError):  # of another index or other scenes, or damaged: replaced
            ledger.clear()
    if not ledger.complete:
        if not ledger.done:  # an older ledger describes another file
            ledger.path.unlink(missing_ok=True)
        _allocate(path, size)
        _copy(path, tasks, ledger, {LABELS: labels, SHARES: shares}, unreadable, progress)
    return Store(_open(path, segments, [task for i, task in enumerate(tasks) if i not in ledger.done]))


def _lay_out(
    areas: Mapping[str, Area],
    windows: Mapping[str, Sequence[Window]],
    every_scene: bool,
    shares: Mapping[str, int],
) -> tuple[list[_Segment], int]:
    """Segments of the file, and its size in bytes."""
    segments: list[_Segment] = []
    start = 0
    for name, area in areas.items():
        side = tuple(min(CHUNK, length) for length in area.shape)
        needed = np.zeros([-(-length // s) for length, s in zip(area.shape, side, strict=True)], bool)
        for window in windows.get(name, ()):
            inside = window.clip(area.shape)
            if 0 not in inside.shape:
                rows = slice(inside.row // side[0], (inside.row_stop - 1) // side[0] + 1)
                cols = slice(inside.col // side[1], (inside.col_stop - 1) // side[1] + 1)
                needed[rows, cols] = True
        kinds: list[tuple[Key, int, str]] = [
            ((name, SCENE, season), len(scene.bands), scene.dtype)
            for season, scene in area.scenes.items()
            if every_scene or scene.memory_map is None
        ]
        kinds.append(((name, LABELS, ""), 1, "uint8"))
        if name in shares:
            kinds.append(((name, SHARES, ""), shares[name], "uint8"))
        for key, bands, dtype in kinds:
            segment = _Segment(key, area, (side[0], side[1], bands), dtype, needed, start)
            segments.append(segment)
            start += -(-segment.bytes // 8) * 8  # values of every type begin at a multiple of their size
    return segments, start


def _allocate(path: Path, size: int) -> None:
    """Create a file of ``size`` bytes. Raises StorageError for lack of disk space."""
    if path.exists() and path.stat().st_size == size:
        return
    path.unlink(missing_ok=True)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise StorageError(
            f"{path.parent} has {free / 1e6:,.0f} MB free, the tile store needs {size / 1e6:,.0f} MB. Free some "
            f'space, or set tiles.store = "never".'
        )
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash later
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(f"can't write {path}: {error.strerror}. Free some space.") from error


def _copy(
    path: Path,
    tasks: Sequence[tuple[_Segment, tuple[int, int, int]]],
    ledger: Ledger,
    maps: Mapping[str, Mapping[str, Path]],
    unreadable: Literal["error", "skip"],
    progress: Progress,
) -> None:
    if not tasks:
        return
    raw = np.memmap(path, np.uint8, "r+")

    def copy(number: int) -> None:
        segment, (row, first, stop) = tasks[number]
        height, width, bands = segment.chunk
        span = Window(row * height, first * width, height, (stop - first) * width)
        name, kind, season = segment.key
        values = np.zeros((*span.shape, bands), segment.dtype)
        inside = span.clip(segment.area.shape)
        if kind == LABELS:
            values[: inside.height, : inside.width, 0] = read_labels(maps[kind][name], inside)
        elif kind == SHARES:
            values[: inside.height, : inside.width] = read_shares(maps[kind][name], inside)
        else:
            try:
                values[: inside.height, : inside.width] = segment.area.scenes[season].read_hwc(inside)[0]
            except InputFileError as error:
                if unreadable == "error":
                    raise
                log.warning("not in the tile store: %s", error)
                return
        itemsize, offsets = values.itemsize, segment.offsets
        for col in range(first, stop):
            chunk = np.ascontiguousarray(values[:, (col - first) * width : (col - first + 1) * width])
            begin = int(offsets[row, col]) * itemsize
            raw[begin : begin + chunk.nbytes] = chunk.view(np.uint8).ravel()
        ledger.mark_done(number, {})
        ledger.save_if_due([raw])

    done_before = len(ledger.done)
    todo = [number for number in range(len(tasks)) if number not in ledger.done]
    with progress.bar("tile store", len(todo), "pieces") as advance, ThreadPoolExecutor(COPY_THREADS) as pool:
        try:
            for _ in pool.map(copy, todo):
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            ledger.save([raw])
            raise
    if len(ledger.done) > done_before:  # concurrent trials of a search find the same pieces unreadable
        ledger.save([raw])


def _open(
    path: Path, segments: Sequence[_Segment], missing: Sequence[tuple[_Segment, tuple[int, int, int]]]
) -> dict[Key, MappedChunks]:
    """Memory-map the file once per dtype; ``missing`` runs of chunks were not copied."""
    values: dict[str, Values] = {}
    chunks = {}
    for segment in segments:
        if not segment.needed.any():
            continue
        if segment.dtype not in values:
            values[segment.dtype] = Values(path, segment.dtype)
        offsets = segment.offsets.copy()
        for owner, (row, first, stop) in missing:
            if owner is segment:
                offsets[row, first:stop] = NOT_STORED
        chunks[segment.key] = MappedChunks(
            path, segment.area.shape, segment.chunk, segment.dtype, offsets, values[segment.dtype]
        )
    return chunks
