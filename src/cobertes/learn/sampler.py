"""Sampler of training windows: which windows an epoch draws. `cobertes.learn.loader` reads them.

Every choice is a pure function of (seed, epoch, position in the epoch): there is no state in loaders or
threads, so a resumed run, another number of threads or another machine draws the same.

    epoch -> tiles, by sampling weight (rare classes more often) -> a window at a random position around each,
    in training blocks alone
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import NoTilesError
from cobertes.geo.windows import Window
from cobertes.settings import AugmentationSettings, TrainSettings
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.filters import BETWEEN, GUARD, POOR
from cobertes.tiles.label_io import count_bands
from cobertes.tiles.split import Part

CROP_TRIES = 8

SHIFTS = (0.0, -0.5, -0.25, 0.25, 0.5)
"""Shifts from a tile's middle, in tiles, at which windows are tested for a fit."""

BALANCE_ROUNDS = 50
MIN_FACTOR, MAX_FACTOR = 0.25, 20.0
"""Bounds of a balanced weight, relative to the tile's area: no tile is forgotten, none memorised."""


@dataclass(frozen=True)
class ExcludedGround:
    """Area of tiles that filters left out, less that of other tiles: ``excluded`` (rows, cols) between edges."""

    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]
    excluded: NDArray[np.bool_]

    @classmethod
    def of(cls, index: Any) -> "ExcludedGround":
        """Build it from the tiles of one area."""
        sides = index[["row", "col", "height", "width"]].to_numpy(np.int64)
        tops, lefts = sides[:, 0], sides[:, 1]
        bottoms, rights = tops + sides[:, 2], lefts + sides[:, 3]
        rows, cols = np.unique([tops, bottoms]), np.unique([lefts, rights])
        excluded = np.zeros((len(rows) - 1, len(cols) - 1), bool)
        poor = index["reason"].isin(POOR).to_numpy()
        for chosen, value in ((poor, True), (~poor, False)):  # a pixel of any good tile is good
            for top, bottom, left, right in zip(
                *(np.searchsorted(edges, ends[chosen]) for edges, ends in (
                    (rows, tops), (rows, bottoms), (cols, lefts), (cols, rights)
                )), strict=True,
            ):  # fmt: skip
                excluded[top:bottom, left:right] = value
        return cls(rows, cols, excluded)

    def intersects(self, window: Window) -> bool:
        """Test if a window has an excluded pixel."""
        top, bottom = np.searchsorted(self.row_edges, [window.row, window.row_stop - 1], "right") - 1
        left, right = np.searchsorted(self.col_edges, [window.col, window.col_stop - 1], "right") - 1
        return bool(self.excluded[max(top, 0) : bottom + 1, max(left, 0) : right + 1].any())


@dataclass(frozen=True)
class Sampler:
    """Draws the windows of an epoch from the training tiles.

    area             name of the area of every tile
    tiles            (n, 4) int: row, col, height, width
    shifts           (n, 2) from the tile's middle, at which the largest window fits
    weights          (n,) sampling weights; they sum to 1
    windows          sides in pixels
    excluded         by area, pixels that no window may contain
    training_pixels  of all training tiles
    share_bands      bands of class shares or purity that samples come with; 0 for none
    """

    dataset: LabelledDataset
    area: list[str]
    tiles: NDArray[np.int64]
    shifts: NDArray[np.int64]
    weights: NDArray[np.float64]
    settings: TrainSettings
    augmentation: AugmentationSettings
    windows: tuple[int, ...]
    excluded: Mapping[str, ExcludedGround]
    training_pixels: int
    share_bands: int = 0

    @classmethod
    def of(
        cls,
        index: Any,
        dataset: LabelledDataset,
        settings: TrainSettings,
        windows: tuple[int, ...],
        augmentation: AugmentationSettings | None = None,
    ) -> "Sampler":
        """Build it from the training tiles of an index; for random crops also from those cut by guard bands.

        Raises NoTilesError if no window fits.
        """
        complete = index["keep"] & (index["split"] == "train")
        edge = index["reason"].isin([GUARD, BETWEEN]) if settings.crops else ~complete & complete
        rows = index[complete | edge]
        excluded = {
            str(name): ExcludedGround.of(tiles)
            for name, tiles in index.groupby("area")
            if tiles["reason"].isin(POOR).any()
        }
        counts = np.array(rows["counts"].to_list(), float).reshape(len(rows), len(dataset.legend))
        counts[edge[rows.index]] = 0  # an unknown part of these pixels is held out
        n = len(rows)
        sampler = cls(
            dataset,
            area=rows["area"].tolist(),
            tiles=rows[["row", "col", "height", "width"]].to_numpy(np.int64),
            shifts=np.zeros((n, 2), np.int64),
            weights=np.full(n, 1 / max(n, 1)),
            settings=settings,
            augmentation=augmentation or AugmentationSettings(),
            windows=windows,
            excluded=excluded,
            training_pixels=int((index["height"] * index["width"])[complete].sum()),
            share_bands=max(map(count_bands, dataset.shares.values()), default=0),
        )
        return sampler._with_fitting_tiles(counts)

    def _with_fitting_tiles(self, counts: NDArray[np.float64]) -> "Sampler":
        """Keep tiles around which the largest window fits, weighted by the share of shifts at which it does."""
        shares, shifts = np.zeros(len(self.tiles)), np.zeros((len(self.tiles), 2), np.int64)
        steps = SHIFTS if self.settings.crops else (0.0,)
        for number, (name, tile) in enumerate(zip(self.area, self.tiles, strict=True)):
            tried = [(int(a * tile[2]), int(b * tile[3])) for a in steps for b in steps]
            good = [shift for shift in tried if self._is_allowed(name, self._window(number, self.extent, shift))]
            if good:
                shares[number], shifts[number] = len(good) / len(tried), good[0]
        fits = shares > 0
        if not fits.any():
            raise NoTilesError(
                f"no window of {self.extent} px fits the training blocks with a guard band of "
                f"{self.dataset.split.guard} px. Use a smaller train.window, or larger blocks (split.block)."
            )
        weights = shares[fits] / shares.sum()
        if self.settings.sampling == "balanced":
            weights = balanced(weights, counts[fits], self.settings.balance)
        if self.settings.sampling == "ins":
            weights = by_class_weights(weights, counts[fits])
        area = [name for name, fit in zip(self.area, fits, strict=True) if fit]
        return replace(self, area=area, tiles=self.tiles[fits], shifts=shifts[fits], weights=weights)

    @property
    def extent(self) -> int:
        """Side in pixels of the largest window that is read, zoom included."""
        return ceil(max(self.windows) * (1 + self.settings.zoom))

    def windows_to_read(self) -> dict[str, list[Window]]:
        """Parts of each area that samples may contain."""
        windows: dict[str, list[Window]] = {}
        margin = -(-self.extent // 2)
        for name, (row, col, height, width) in zip(self.area, self.tiles.tolist(), strict=True):
            around = Window(row, col, height, width).pad(margin)
            windows.setdefault(name, []).extend(self.dataset.split.areas[name].intersections(around, Part.TRAIN))
        return windows

    def __len__(self) -> int:
        """Windows per epoch, of the largest size."""
        return self.settings.samples or round(self.training_pixels / max(self.windows) ** 2) or len(self.tiles)

    def windows_per_largest(self, size: int) -> int:
        """Number of windows of a size that have the pixels of one of the largest."""
        return max(self.windows) ** 2 // size**2

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Draw the tiles of an epoch, in order: each by its weight, give or take one.

        If there are smaller windows, each position of a largest one is followed by those that may replace it.
        """
        per_largest, n = self.windows_per_largest(min(self.windows)), len(self.tiles)
        count = len(self) * per_largest
        if self.settings.sampling == "in-order":
            return np.arange(count) // per_largest % n
        rng = np.random.default_rng((self.settings.seed, epoch))
        shuffled = rng.permutation(n)
        ends = np.cumsum(self.weights[shuffled])
        drawn = np.searchsorted(ends / ends[-1], (np.arange(count) + rng.random()) / count)
        return rng.permutation(shuffled[drawn])

    def window_sizes(self, in_final_phase: bool) -> tuple[int, ...]:
        """Sides in pixels that the windows of an epoch may have."""
        largest = max(self.windows)
        smaller = tuple(size for size in self.windows if size < largest)
        if self.settings.window_order == "random" or not smaller:
            return self.windows
        return (largest,) if in_final_phase else smaller

    def window_size(self, epoch: int, batch: int, *, in_final_phase: bool) -> int:
        """Draw the side of a batch's windows."""
        sizes = self.window_sizes(in_final_phase)
        rng = np.random.default_rng((self.settings.seed, epoch, 0, 1 + batch))
        return sizes[int(rng.integers(len(sizes)))]

    def season_turn(self, position: int, size: int) -> int:
        """Number of samples before a position if all windows have this size: large ones skip positions."""
        per_largest = self.windows_per_largest(min(self.windows))
        return position // per_largest * self.windows_per_largest(size) + position % per_largest

    def window(self, rng: np.random.Generator, tile: int, size: int) -> Window:
        """Draw the window of a sample: around a tile, its side ``size`` pixels changed by the zoom."""
        side = size
        if self.settings.zoom:  # as often larger as smaller
            side = round(size * (1 + self.settings.zoom) ** rng.uniform(-1, 1))
        shape = self.tiles[tile, 2:]
        if self.settings.crops:
            for _ in range(CROP_TRIES):
                shift = rng.integers(-(shape // 2), shape // 2 + 1)
                window = self._window(tile, side, (int(shift[0]), int(shift[1])))
                if self._is_allowed(self.area[tile], window):
                    return window
        return self._window(tile, side, (int(self.shifts[tile, 0]), int(self.shifts[tile, 1])))

    def _window(self, tile: int, size: int, shift: tuple[int, int]) -> Window:
        """Window over a tile's middle, shifted, then moved inside the area; at 0 if the area is smaller."""
        bounds, shape = self.tiles[tile], self.dataset.areas[self.area[tile]].shape
        starts = [
            max(0, min(int(bounds[i] + bounds[i + 2] // 2 - size // 2 + shift[i]), shape[i] - size))
            for i in range(2)
        ]
        return Window(starts[0], starts[1], size, size)

    def _is_allowed(self, area: str, window: Window) -> bool:
        split = self.dataset.split
        if not split.areas[area].allows_training(window, split.guard):
            return False
        return area not in self.excluded or not self.excluded[area].intersects(window)


def balanced(weights: NDArray[np.float64], counts: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Sampling weights (n,) of tiles that bring class frequencies nearer to equal; they sum to 1.

    weights   (n,) of tiles by their area
    counts    (n, K) pixels per class; a row of zeros is unknown
    strength  the target frequency of a class is its own to the power of 1 - strength

    The weights are those of a mixture of tiles whose class shares come nearest to the target, found by expectation
    maximisation (Dempster et al. 1977), within `MIN_FACTOR` and `MAX_FACTOR` of ``weights``.
    """
    total = counts.sum(axis=1, keepdims=True)
    known = total[:, 0] > 0
    if not known.any():
        return weights
    shares = counts / np.maximum(total, 1)
    frequency = weights[known] @ shares[known] / weights[known].sum()
    shares[~known] = frequency  # unknown tiles neither help nor harm
    occurs = frequency > 0
    target = np.where(occurs, np.power(frequency, 1 - strength, where=occurs, out=np.zeros_like(frequency)), 0)
    target /= target.sum()
    mixture = weights.copy()
    for _ in range(BALANCE_ROUNDS):
        frequencies = mixture @ shares
        mixture = mixture * (
            shares @ np.divide(target, frequencies, out=np.zeros_like(target), where=frequencies > 0)
        )
        mixture = np.clip(mixture / mixture.sum(), MIN_FACTOR * weights, MAX_FACTOR * weights)
    return np.asarray(mixture / mixture.sum(), np.float64)


def by_class_weights(weights: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sampling weights (n,) of tiles times the mean inverse class frequency over their pixels; they sum to 1.

    weights, counts   as in `balanced`; unknown tiles take the mean factor of the others
    """
    frequency = weights @ counts
    inverse = np.divide(1.0, frequency, out=np.zeros_like(frequency), where=frequency > 0)
    total = counts.sum(axis=1)
    known = total > 0
    if not known.any():
        return weights
    factor = np.divide(counts @ inverse, total, out=np.zeros_like(total), where=known)
    factor[~known] = weights[known] @ factor[known] / weights[known].sum()
    weighted = weights * factor
    return np.asarray(weighted / weighted.sum(), np.float64)
