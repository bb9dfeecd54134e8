"""Training samples: which windows an epoch draws, how each is read and varied, and feeding them in time.

Every choice is a pure function of (seed, epoch, position in the epoch): there is no state in loaders or
threads, so a resumed run, another number of threads or another machine draws the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import NoTilesError
from cobertes.geo.windows import Window
from cobertes.learn.infer import read_groups_ahead
from cobertes.learn.inputs import Inputs
from cobertes.settings import TrainSettings
from cobertes.tiles.ground import Ground

CROP_TRIES = 8
BALANCED_SHARE = 0.5
"""Share of an epoch's windows drawn by class frequency when sampling is balanced."""


@dataclass(frozen=True)
class Sampler:
    """Draws the windows of an epoch from the training tiles.

    ``area`` names, ``tiles`` (n, 4) int: row, col, height, width; ``weights`` (n,) sums to 1.
    """

    ground: Ground
    area: list[str]
    tiles: NDArray[np.int64]
    weights: NDArray[np.float64]
    settings: TrainSettings
    window: int

    @classmethod
    def of(cls, frame: Any, ground: Ground, settings: TrainSettings, window: int) -> "Sampler":
        """From the index: tiles of the training split that are kept and around which a window fits."""
        rows = frame[frame["keep"] & (frame["split"] == "train")]
        tiles = rows[["row", "col", "height", "width"]].to_numpy(np.int64)
        counts = np.array(rows["counts"].to_list(), float).reshape(len(rows), len(ground.legend))
        area = rows["area"].tolist()
        fits = np.array(
            [
                ground.split.areas[name].allows_training(
                    _centred(tile, window, ground.areas[name].shape, (0, 0)), ground.split.guard
                )
                for name, tile in zip(area, tiles, strict=True)
            ],
            bool,
        )
        if not fits.any():
            raise NoTilesError(
                f"no window of {window} px fits the training blocks with a guard band of {ground.split.guard} px. "
                f"Use a smaller train.window, or larger blocks (split.block)."
            )
        area = [name for name, fit in zip(area, fits, strict=True) if fit]
        return cls(ground, area, tiles[fits], _balance(counts[fits]), settings, window)

    def __len__(self) -> int:
        """Windows per epoch."""
        return self.settings.samples or len(self.tiles)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The tiles of an epoch, in order."""
        rng = np.random.default_rng((self.settings.seed, epoch))
        count, n = len(self), len(self.tiles)
        rounds = -(-count // n)
        order = np.concatenate([rng.permutation(n) for _ in range(rounds)])[:count]
        if self.settings.sampling == "balanced":
            drawn = rng.choice(n, count, p=self.weights)
            order = np.where(rng.random(count) < BALANCED_SHARE, drawn, order)
        return order

    def sample(
        self, inputs: Inputs, epoch: int, position: int, tile: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read and vary one sample: x (C, window, window) float32, y (window, window) uint8."""
        rng = np.random.default_rng((self.settings.seed, epoch, 1 + position))  # 0 is the draw of the epoch
        window = self._place(rng, tile)
        observed, y = self.ground.read(self.area[tile], window)
        return augment(rng, inputs.encode(observed), y, self.settings)

    def _place(self, rng: np.random.Generator, tile: int) -> Window:
        name, where = self.area[tile], self.tiles[tile]
        shape, split = self.ground.areas[name].shape, self.ground.split
        if self.settings.crops:
            for _ in range(CROP_TRIES):
                shift = rng.integers(-(where[2:] // 2), where[2:] // 2 + 1)
                window = _centred(where, self.window, shape, (int(shift[0]), int(shift[1])))
                if split.areas[name].allows_training(window, split.guard):
                    return window
        return _centred(where, self.window, shape, (0, 0))


def _centred(tile: NDArray[np.int64], size: int, shape: tuple[int, int], shift: tuple[int, int]) -> Window:
    """The window over a tile's middle, shifted, then moved inside the area; at 0 where the area is smaller."""
    starts = [
        max(0, min(int(tile[i] + tile[i + 2] // 2 - size // 2 + shift[i]), shape[i] - size)) for i in range(2)
    ]
    return Window(starts[0], starts[1], size, size)


def _balance(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of each tile: the mean over its pixels of 1 / sqrt(frequency of their class); sums to 1."""
    frequency = counts.sum(axis=0) / counts.sum()
    rarity = np.divide(1, np.sqrt(frequency), out=np.zeros_like(frequency), where=frequency > 0)
    weights = (counts / counts.sum(axis=1, keepdims=True)) @ rarity
    return np.asarray(weights / weights.sum(), np.float64)


def augment(
    rng: np.random.Generator, x: NDArray[np.float32], y: NDArray[np.uint8], settings: TrainSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Flips, quarter turns, and a random gain and offset per channel; labels move along.

    Channels that were not observed at a pixel stay 0. ``x`` may be changed in place.
    """
    if settings.flips and rng.random() < 0.5:
        x, y = x[:, :, ::-1], y[:, ::-1]
    if settings.turns:
        turns = int(rng.integers(4))
        x, y = np.rot90(x, turns, axes=(1, 2)), np.rot90(y, turns)
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    if settings.jitter:
        gains = rng.normal(1, settings.jitter, len(x)).astype(np.float32)
        offsets = rng.normal(0, settings.jitter, len(x)).astype(np.float32)
        for channel, gain, offset in zip(x, gains, offsets, strict=True):
            observed = channel != 0
            np.multiply(channel, gain, out=channel)
            np.add(channel, offset, out=channel, where=observed)
    return x, y


def batches(
    sampler: Sampler, inputs: Inputs, epoch: int, batch_size: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """The batches of an epoch: x (B, C, window, window), y (B, window, window), read ahead by threads."""
    order = sampler.epoch(epoch)
    # near-equal batches: a last batch of one small window would be too little for batch norm
    groups = [g.tolist() for g in np.array_split(np.arange(len(order)), -(-len(order) // batch_size))]

    def read(position: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        return sampler.sample(inputs, epoch, position, int(order[position]))

    for batch in read_groups_ahead(groups, read):
        yield np.stack([x for _, (x, _) in batch]), np.stack([y for _, (_, y) in batch])
