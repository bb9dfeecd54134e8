"""Measurements of the scenes by tile, cached: filters and split can change without reading the scenes again.

Only tiles that the filters on labels pass are read: never the open sea or the outside of the reference map.
`TileMeasurements` hold everything that filters, split and statistics use; a later run with the same scenes, labels
and tiles loads them and reads only the missing tiles.
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
from cobertes.geo.observation import Observation
from cobertes.geo.quality_mask import QualityMask, quality_mask
from cobertes.geo.scene import Scene, open_mask
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.numba_cache import compiled
from cobertes.progress import SILENT, Progress
from cobertes.settings import TileSettings
from cobertes.tiles.clouds import CLOUD, SNOW, SpectralTests, classify_codes, impossible_scale
from cobertes.tiles.label_io import read_labels

log = logging.getLogger(__name__)

READ_THREADS = 2
SAVE_SECONDS = 60.0

SCALE_TILES = 64
"""Tiles of a scene from whose sampled pixels it is told whether their values can be reflectances."""

SAMPLED_PIXELS = 200_000
"""Pixels, of all tiles together, from which percentiles are computed."""


@dataclass(frozen=True)
class Tile:
    """Tile of an area: its ``window``, and its ``interior``; interiors partition an area."""

    area: str
    window: Window
    interior: Window


@dataclass
class TileMeasurements:
    """Measurements per tile (n), season (S), band (B) and class (K).

    read, unreadable  (n,) bool: tiles whose scenes were read; those with a scene that could not be
    valid, cloud, snow  (n, S) float32: share of the tile's pixels observed, and of these under clouds or snow;
                      NaN if not read, or without a mask and usable bands
    counts, own_counts  (n, K) int64: labelled and observed pixels per class, in the tile and in its interior
    pixels, mean, squares  (n, S), (n, S, B), (n, S, B): moments of the observed pixels of the interior
    sample            (n, m, S, B) float32: random pixels of the interior, NaN if not observed
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
        """Create measurements of unread tiles; ``counts`` and ``own_counts`` (n, K) are those of the labels."""
        n = len(counts)
        sampled = max(16, min(1024, SAMPLED_PIXELS // max(n, 1)))
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
            sample=np.full((n, sampled, seasons, bands), np.nan, np.float32),
        )

    def save(self, path: Path, fingerprint: str) -> None:
        """Write all arrays; ``fingerprint`` of scenes, masks, labels and tile settings. Raises OSError."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, made_from=np.array(fingerprint), **vars(self))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "TileMeasurements | None":
        """Load the measurements of an earlier run; None if absent, damaged or of another fingerprint."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["made_from"]) != fingerprint:
                    return None
                found = cls(**{name: file[name] for name in cls.__dataclass_fields__})
                found.read &= ~found.unreadable  # read again
                found.unreadable[:] = False
                return found
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            log.warning("%s can't be used (%s): the scenes are read again", path, error)
            return None


@compiled
def _add_moments(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    inside: tuple[int, int, int, int],
    shift: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> int:
    """Add (value - shift) and its square over the valid pixels ``inside``; returns their number."""
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
    """Reader of the scenes of tiles, with cloud and snow masks if an area has them."""

    areas: Mapping[str, Area]
    labels: Mapping[str, Path]
    legend: Legend
    settings: TileSettings
    masks: Mapping[str, Mapping[str, Scene]]
    quality: Mapping[tuple[str, str], QualityMask]
    """Cloud masks that came with products, by area and season."""
    tests: Mapping[tuple[str, str], SpectralTests]
    """Spectral tests by area and season, if the bands are known."""

    @classmethod
    def for_areas(
        cls, areas: Sequence[Area], labels: Mapping[str, Path], legend: Legend, settings: TileSettings
    ) -> "TileReader":
        """Open the masks. Raises InputFileError, GridMismatchError."""
        masks = {
            area.name: {season: open_mask(str(path), area.grid) for season, path in area.masks.items()}
            for area in areas
        }
        scenes = {(area.name, season): scene for area in areas for season, scene in area.scenes.items()}
        quality = {key: mask for key, scene in scenes.items() if (mask := quality_mask(scene)) is not None}
        tests = {
            key: found
            for key, scene in scenes.items()
            if (found := SpectralTests.for_bands(scene.band_names, settings, scene.conventions)) is not None
        }
        return cls({area.name: area for area in areas}, labels, legend, settings, masks, quality, tests)

    def impossible_scales(self, tiles: Sequence[Tile], measured: TileMeasurements) -> list[str]:
        """A line for each scene whose values can't be the reflectances that the settings take them for."""
        seasons = list(next(iter(self.areas.values())).scenes)
        lines = []
        for (area, season), tests in self.tests.items():
            own = [number for number, tile in enumerate(tiles) if tile.area == area and measured.read[number]]
            if not tests.assumed or not own or self.areas[area].scenes[season].conversion is not None:
                continue
            values = measured.sample[own[:SCALE_TILES], :, seasons.index(season)].reshape(
                -1, measured.mean.shape[2]
            )
            found = impossible_scale(tests.reflectances(values))
            if found is not None:
                lines.append(
                    f"area '{area}', season {season}: reflectances would be {found}, so clouds and snow are not "
                    f"found. Say what the values mean: scale and offset of the [[area]], or reflectance-scale and "
                    f"reflectance-offset of [tiles]"
                )
        return lines

    def measure(self, tile: Tile, number: int, out: TileMeasurements) -> None:
        """Fill row ``number`` of ``out``. Raises InputFileError, unless the settings skip unreadable tiles."""
        try:
            self._measure(tile, number, out)
        except InputFileError as error:
            if self.settings.unreadable == "error":
                raise
            log.warning("left out: %s", error)
            out.unreadable[number] = True
        out.read[number] = True

    def _measure(self, tile: Tile, number: int, out: TileMeasurements) -> None:
        window, inside = tile.window, tile.interior.slices_in(tile.window)
        part = (inside[0].start, inside[0].stop, inside[1].start, inside[1].stop)
        observed = np.zeros(window.shape, bool)
        sampled = self._sample_pixels(tile, out.sample.shape[1])
        for s, (season, scene) in enumerate(self.areas[tile.area].scenes.items()):
            shown = scene.read_hwc(window)
            pixels, valid = shown
            observed |= valid
            out.valid[number, s] = valid.mean()
            mask = self._classify(tile, season, pixels)
            if mask is not None:
                count = max(1, int(valid.sum()))
                out.cloud[number, s] = ((mask == CLOUD) & valid).sum() / count
                out.snow[number, s] = ((mask == SNOW) & valid).sum() / count
            # sums about a typical value lose nothing to rounding (Chan et al. 1983)
            shift = pixels[valid][0].astype(float) if valid.any() else np.zeros(pixels.shape[2])
            sums, squares = np.zeros(pixels.shape[2]), np.zeros(pixels.shape[2])
            count = _add_moments(pixels, valid, part, shift, sums, squares)
            out.pixels[number, s] = count
            gain, bias = _factors(shown)
            if count:
                out.mean[number, s] = (shift + sums / count) * gain + bias
                out.squares[number, s] = np.maximum(squares - sums**2 / count, 0) * gain**2
            sample = np.where(valid[sampled][:, None], pixels[sampled], np.nan)
            out.sample[number, : len(sampled[0]), s] = sample * gain + bias
        if not observed.all():  # a label counts only if a season was observed
            codes = read_labels(self.labels[tile.area], window)
            index = np.where(observed, self.legend.index_table()[codes], IGNORE_INDEX)
            out.counts[number] = _class_counts(index, len(self.legend))
            out.own_counts[number] = _class_counts(index[inside], len(self.legend))

    def _sample_pixels(self, tile: Tile, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns (n,), in the window, of random pixels of the interior; seeded by the window."""
        rng = np.random.default_rng((tile.window.row, tile.window.col))
        rows, cols = tile.interior.slices_in(tile.window)
        count = min(count, (rows.stop - rows.start) * (cols.stop - cols.start))
        return rng.integers(rows.start, rows.stop, count), rng.integers(cols.start, cols.stop, count)

    def _classify(self, tile: Tile, season: str, pixels: NDArray[Any]) -> NDArray[np.uint8] | None:
        mask = self.masks[tile.area].get(season)
        if mask is not None:
            return classify_codes(mask.read_chw(tile.window)[0][0], self.settings)
        key = tile.area, season
        if key in self.quality:
            return self.quality[key].read(tile.window)
        return self.tests[key].classify(pixels) if key in self.tests else None


def _factors(shown: Observation) -> tuple[Any, Any]:
    """Gain and bias (bands,) into the project's convention; 1 and 0 if the values are in it."""
    if shown.conversion is None:
        return 1.0, 0.0
    return np.array(shown.conversion.gain), np.array(shown.conversion.bias)


def _class_counts(index: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    return np.bincount(index.ravel(), minlength=IGNORE_INDEX + 1)[:classes]


def measure_tiles(
    reader: TileReader,
    tiles: Sequence[Tile],
    needed: NDArray[np.bool_],
    out: TileMeasurements,
    *,
    save: Callable[[], None] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Measure the ``needed`` (n,) tiles that ``out`` lacks; calls ``save`` every minute and at the end."""
    todo = np.flatnonzero(needed & ~out.read).tolist()
    if not todo:
        return
    saved = time.monotonic()
    with (
        progress.bar("scenes of tiles", len(todo), "tiles") as advance,
        ThreadPoolExecutor(READ_THREADS) as pool,
    ):
        try:
            for _ in pool.map(lambda number: reader.measure(tiles[number], number, out), todo):
                advance(1)
                if save and time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            if save:
                save()
