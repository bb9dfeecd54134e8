"""The tile store: labelled ground copied once into chunks that are read without decoding.

Worth its disk where a scene is slow to read window by window: compressed, in many files, remote, a VRT. Scenes
that a memory map can read as they are (`geo.mapped`) are left where they are; labels are compressed, and copied.

    pixels.bin    [april: chunk chunk ...][august: chunk ...][labels: chunk ...][shares]    chunks that are wanted
    ledger.json   which runs of chunks are written (a killed copy goes on), and from what

A window that the store does not hold whole is read from the scene, so nothing depends on what is stored.
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
from cobertes.tiles.label_counts import count_bands, read_labels, read_shares

log = logging.getLogger(__name__)

CHUNK = 256
"""Side of a chunk in pixels, at most: a window of 300 px touches four to nine."""

RUN = 8
"""Neighbouring chunks of a row that are read together."""

COPY_THREADS = 2

SCENE, LABELS, SHARES = "scene", "labels", "shares"

Key = tuple[str, str, str]
"""Of what is stored: area, kind, and the season of a scene."""


@dataclass(frozen=True)
class Store:
    """What is stored of each area: its seasons, its labels, and shares of classes where they are learnt from."""

    held: Mapping[Key, MappedChunks]

    def read(self, area: str, kind: str, season: str, window: Window) -> NDArray[Any] | None:
        """Values (height, width, bands) of a window inside the area; None where not all of it is stored."""
        mapped = self.held.get((area, kind, season))
        if mapped is None or not mapped.all_stored(window):
            return None
        return mapped.read(window, np.arange(mapped.chunk[2]))


@dataclass(frozen=True)
class _Segment:
    """The chunks of one area and season: ``wanted`` (rows, cols) bool, from byte ``start`` of the file on."""

    key: Key
    area: Area
    chunk: tuple[int, int, int]
    dtype: str
    wanted: NDArray[np.bool_]
    start: int

    @property
    def bytes(self) -> int:
        return int(self.wanted.sum()) * prod(self.chunk) * np.dtype(self.dtype).itemsize

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First value of each chunk in the file, in units of its type."""
        first = self.start // np.dtype(self.dtype).itemsize
        order = np.cumsum(self.wanted).reshape(self.wanted.shape) - 1
        return np.where(self.wanted, first + order * prod(self.chunk), NOT_STORED)

    def runs(self) -> list[tuple[int, int, int]]:
        """Chunk row, first and last + 1 chunk column of what is copied together."""
        found = []
        for row, line in enumerate(self.wanted):
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
    budget: float = 20.0,
    unreadable: Literal["error", "skip"] = "error",
    progress: Progress = SILENT,
) -> Store | None:
    """Copy the ground under ``windows`` (by area), or take up what is there; None where it is over the budget.

    shares       shares of classes by area, as `census.read_shares` reads them, to be copied too
    fingerprint  that of scenes and labels: a store of others is made anew
    every_scene  also scenes that can be read as they are
    budget       disk in GB, at most
    unreadable   "skip" leaves out, with a warning, what a scene can't give
    Raises StorageError where the disk lacks room, InputFileError where a scene can't be read.
    """
    shares = shares or {}
    segments, size = _plan(areas, windows, every_scene, {name: count_bands(path) for name, path in shares.items()})
    if size > budget * 1e9:
        log.warning(
            "the tile store would take %.1f GB, tiles.store-gb allows %g: scenes are read where they are, "
            "which may be slow",
            size / 1e9,
            budget,
        )
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pixels.bin"
    tasks = [(segment, run) for segment in segments for run in segment.runs()]
    plan = [[*segment.key, segment.chunk, segment.dtype, segment.wanted.tobytes().hex()] for segment in segments]
    ledger = Ledger(folder / "ledger.json", fingerprint_of(fingerprint, plan), len(tasks), {})
    if ledger.path.exists() and path.exists() and path.stat().st_size == size:
        try:
            ledger.load()
        except (SettingsError, InputFileError):  # of another index or other scenes, or damaged: made anew
            ledger.clear()
    if not ledger.complete:
        if not ledger.done:  # what an older ledger says of the file ends here
            ledger.path.unlink(missing_ok=True)
        _allocate(path, size)
        _copy(path, tasks, ledger, {LABELS: labels, SHARES: shares}, unreadable, progress)
    return Store(_open(path, segments, [task for i, task in enumerate(tasks) if i not in ledger.done]))


def _plan(
    areas: Mapping[str, Area],
    windows: Mapping[str, Sequence[Window]],
    every_scene: bool,
    shares: Mapping[str, int],
) -> tuple[list[_Segment], int]:
    """The segments of the file, and its size in bytes."""
    segments: list[_Segment] = []
    start = 0
    for name, area in areas.items():
        side = tuple(min(CHUNK, length) for length in area.shape)
        wanted = np.zeros([-(-length // s) for length, s in zip(area.shape, side, strict=True)], bool)
        for window in windows.get(name, ()):
            inside = window.clip(area.shape)
            if 0 not in inside.shape:
                rows = slice(inside.row // side[0], (inside.row_stop - 1) // side[0] + 1)
                cols = slice(inside.col // side[1], (inside.col_stop - 1) // side[1] + 1)
                wanted[rows, cols] = True
        kinds: list[tuple[Key, int, str]] = [
            ((name, SCENE, season), len(scene.bands), scene.dtype)
            for season, scene in area.scenes.items()
            if every_scene or scene.memory_map is None
        ]
        kinds.append(((name, LABELS, ""), 1, "uint8"))
        if name in shares:
            kinds.append(((name, SHARES, ""), shares[name], "uint8"))
        for key, bands, dtype in kinds:
            segment = _Segment(key, area, (side[0], side[1], bands), dtype, wanted, start)
            segments.append(segment)
            start += -(-segment.bytes // 8) * 8  # values of every type begin at a multiple of their size
    return segments, start


def _allocate(path: Path, size: int) -> None:
    """A file of this size. Raises StorageError where the disk lacks room."""
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
        whole = Window(row * height, first * width, height, (stop - first) * width)
        name, kind, season = segment.key
        values = np.zeros((*whole.shape, bands), segment.dtype)
        inside = whole.clip(segment.area.shape)
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

    held = len(ledger.done)
    todo = [number for number in range(len(tasks)) if number not in ledger.done]
    with progress.bar("tile store", len(todo), "pieces") as advance, ThreadPoolExecutor(COPY_THREADS) as pool:
        try:
            for _ in pool.map(copy, todo):
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            ledger.save([raw])
            raise
    if len(ledger.done) > held:  # trials of a search find the same pieces unreadable, all at the same time
        ledger.save([raw])


def _open(
    path: Path, segments: Sequence[_Segment], missing: Sequence[tuple[_Segment, tuple[int, int, int]]]
) -> dict[Key, MappedChunks]:
    """One mapping of the file for each type of value; ``missing`` runs of chunks were not copied."""
    values: dict[str, Values] = {}
    held = {}
    for segment in segments:
        if not segment.wanted.any():
            continue
        if segment.dtype not in values:
            values[segment.dtype] = Values(path, segment.dtype)
        offsets = segment.offsets.copy()
        for owner, (row, first, stop) in missing:
            if owner is segment:
                offsets[row, first:stop] = NOT_STORED
        held[segment.key] = MappedChunks(
            path, segment.area.shape, segment.chunk, segment.dtype, offsets, values[segment.dtype]
        )
    return held
