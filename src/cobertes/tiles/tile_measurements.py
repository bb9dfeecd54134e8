"""What the scenes show in each tile: measured once and kept, so that rules and split can change without reading.

Only tiles that the labels alone do not rule out are read: the open sea and what lies outside the mapped land never
are. `TileMeasurements` hold everything that rules, split and statistics ask for; a later run with the same scenes,
labels and tiles takes them from the file and reads no more than the tiles it lacks.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cobertes.atomic_io import replacing
from cobertes.errors import InputFileError
from cobertes.geo.area import Area
from cobertes.geo.scene import Scene, open_mask
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.numba_cache import compiled
from cobertes.progress import SILENT, Progress
from cobertes.settings import TileSettings
from cobertes.tiles.clouds import CLOUD, SNOW, BandTests, cover_of_codes
from cobertes.tiles.label_counts import read_labels

log = logging.getLogger(__name__)

READ_THREADS = 2
SAVE_SECONDS = 60.0

SAMPLED_PIXELS = 200_000
"""Pixels of all tiles together from which percentiles are taken."""


@dataclass(frozen=True)
class Place:
    """A tile: its ``area``, its ``window``, and the ``interior`` that is its own; interiors partition an area."""

    area: str
    window: Window
    interior: Window


@dataclass
class TileMeasurements:
    """Measured per tile (n), season (S), band (B) and class (K).

    read, unreadable  (n,) bool: whether the tile's scenes were read; whether one of them could not be
    valid, cloud, snow  (n, S) float32: share of the tile's pixels observed, and of these under clouds or snow;
                      NaN where not read, or where nothing tells clouds from ground
    counts, own_counts  (n, K) int64: labelled and observed pixels per class, in the tile and in its interior
    pixels, mean, squares  (n, S), (n, S, B), (n, S, B): moments of the observed pixels of the interior
    sample            (n, m, S, B) float32: pixels drawn from the interior, NaN where not observed
    """

    read: NDArray[np.bool_]
    unreadable: NDArray[np.bool_]
    valid: NDArray[np.float32]
    cloud: NDArray[np.float32]
    snow: NDArray[np.float32]
    counts: NDArray[np.int64]
    own_counts: NDArray[np.int64]
    pixels: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    sample: NDArray[np.float32]

    @classmethod
    def empty(
        cls, counts: NDArray[np.int64], own_counts: NDArray[np.int64], seasons: int, bands: int
    ) -> "TileMeasurements":
        """Of tiles that nothing has been read of; ``counts`` and ``own_counts`` are those of the labels."""
        n = len(counts)
        drawn = max(16, min(1024, SAMPLED_PIXELS // max(n, 1)))
        unknown = np.full((n, seasons), np.nan, np.float32)
        return cls(
            read=np.zeros(n, bool),
            unreadable=np.zeros(n, bool),
            valid=unknown,
            cloud=unknown.copy(),
            snow=unknown.copy(),
            counts=counts.copy(),
            own_counts=own_counts.copy(),
            pixels=np.zeros((n, seasons), np.int64),
            mean=np.zeros((n, seasons, bands)),
            squares=np.zeros((n, seasons, bands)),
            sample=np.full((n, drawn, seasons, bands), np.nan, np.float32),
        )

    def save(self, path: Path, fingerprint: str) -> None:
        """Write all arrays; ``fingerprint`` is that of scenes, masks, labels and how they are measured."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, made_from=np.array(fingerprint), **vars(self))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "TileMeasurements | None":
        """What an earlier run measured of the same; None where there is nothing, or it can't be read."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["made_from"]) != fingerprint:
                    return None
                found = cls(**{name: file[name] for name in cls.__dataclass_fields__})
                found.read &= ~found.unreadable  # they are tried again
                found.unreadable[:] = False
                return found
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            log.warning("%s can't be used (%s): the scenes are read again", path, error)
            return None


@compiled
def _add_up(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    inside: tuple[int, int, int, int],
    shift: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> int:
    """Sums of (value - shift) and its square over the valid pixels of a part; returns how many there are."""
    count = 0
    bands = len(shift)
    for row in range(inside[0], inside[1]):
        for col in range(inside[2], inside[3]):
            if valid[row, col]:
                count += 1
                for band in range(bands):
                    value = pixels[row, col, band] - shift[band]
                    sums[band] += value
                    squares[band] += value * value
    return count


@dataclass(frozen=True)
class TileReader:
    """Reads the scenes of tiles, with the masks of clouds and snow where an area has some."""

    areas: Mapping[str, Area]
    labels: Mapping[str, Path]
    legend: Legend
    settings: TileSettings
    masks: Mapping[str, Mapping[str, Scene]]
    tests: BandTests | None

    @classmethod
    def of(
        cls, areas: Sequence[Area], labels: Mapping[str, Path], legend: Legend, settings: TileSettings
    ) -> "TileReader":
        """Open the masks. Raises InputFileError, GridMismatchError."""
        masks = {
            area.name: {season: open_mask(str(path), area.grid) for season, path in area.masks.items()}
            for area in areas
        }
        bands = next(iter(areas[0].scenes.values())).band_names
        return cls(
            {area.name: area for area in areas}, labels, legend, settings, masks, BandTests.of(bands, settings)
        )

    def measure(self, place: Place, number: int, into: TileMeasurements) -> None:
        """Fill row ``number``. Raises InputFileError, unless the settings say to skip what can't be read."""
        try:
            self._measure(place, number, into)
        except InputFileError as error:
            if self.settings.unreadable == "error":
                raise
            log.warning("left out: %s", error)
            into.unreadable[number] = True
        into.read[number] = True

    def _measure(self, place: Place, number: int, into: TileMeasurements) -> None:
        window, inside = place.window, place.interior.slices_in(place.window)
        part = (inside[0].start, inside[0].stop, inside[1].start, inside[1].stop)
        seen = np.zeros(window.shape, bool)
        drawn = self._draw(place, into.sample.shape[1])
        for s, (season, scene) in enumerate(self.areas[place.area].scenes.items()):
            pixels, valid = scene.read_hwc(window)
            seen |= valid
            into.valid[number, s] = valid.mean()
            cover = self._cover(place, season, pixels)
            if cover is not None:
                observed = max(1, int(valid.sum()))
                into.cloud[number, s] = ((cover == CLOUD) & valid).sum() / observed
                into.snow[number, s] = ((cover == SNOW) & valid).sum() / observed
            # sums about a typical value lose nothing to rounding (Chan et al. 1983)
            shift = pixels[valid][0].astype(float) if valid.any() else np.zeros(pixels.shape[2])
            sums, squares = np.zeros(pixels.shape[2]), np.zeros(pixels.shape[2])
            count = _add_up(pixels, valid, part, shift, sums, squares)
            into.pixels[number, s] = count
            if count:
                into.mean[number, s] = shift + sums / count
                into.squares[number, s] = np.maximum(squares - sums**2 / count, 0)
            into.sample[number, : len(drawn[0]), s] = np.where(valid[drawn][:, None], pixels[drawn], np.nan)
        if not seen.all():  # a label counts only where a season was observed
            codes = read_labels(self.labels[place.area], window)
            index = np.where(seen, self.legend.index_table()[codes], IGNORE_INDEX)
            into.counts[number] = _class_counts(index, len(self.legend))
            into.own_counts[number] = _class_counts(index[inside], len(self.legend))

    def _draw(self, place: Place, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns, in the window, of pixels of the interior: the same ones every time."""
        rng = np.random.default_rng((place.window.row, place.window.col))
        rows, cols = place.interior.slices_in(place.window)
        count = min(count, (rows.stop - rows.start) * (cols.stop - cols.start))
        return rng.integers(rows.start, rows.stop, count), rng.integers(cols.start, cols.stop, count)

    def _cover(self, place: Place, season: str, pixels: NDArray[Any]) -> NDArray[np.uint8] | None:
        mask = self.masks[place.area].get(season)
        if mask is not None:
            return cover_of_codes(mask.read_chw(place.window)[0][0], self.settings)
        return self.tests.cover(pixels) if self.tests is not None else None


def _class_counts(index: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    return np.bincount(index.ravel(), minlength=IGNORE_INDEX + 1)[:classes]


def observe(
    observer: TileReader,
    places: Sequence[Place],
    wanted: NDArray[np.bool_],
    into: TileMeasurements,
    *,
    save: Callable[[], None] = lambda: None,
    progress: Progress = SILENT,
) -> None:
    """Measure the ``wanted`` tiles that ``into`` lacks; ``save`` is called every minute and at the end."""
    todo = np.flatnonzero(wanted & ~into.read).tolist()
    if not todo:
        return
    saved = time.monotonic()
    with (
        progress.bar("scenes of tiles", len(todo), "tiles") as advance,
        ThreadPoolExecutor(READ_THREADS) as pool,
    ):
        try:
            for _ in pool.map(lambda number: observer.measure(places[number], number, into), todo):
                advance(1)
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            save()
