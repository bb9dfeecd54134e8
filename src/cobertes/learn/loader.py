"""Loader of training batches: reads the sampler's windows, augments and encodes them, ahead of the training loop.

window -> its seasons, read by pixel -> normalised, augmented and rotated in one pass into the batch
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.observation import Observation
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.augment import SampleAugmentation, resample_nearest, rescale, sample_augmentation
from cobertes.learn.encoding import Inputs, turned
from cobertes.learn.inference import prefetch
from cobertes.learn.sampler import Sampler


class Batch(NamedTuple):
    """Samples, or one of them without the first axis.

    x       (B, C, size, size) float32, channels last in memory
    y       (B, size, size) uint8 class indices
    shares  (B, size, size, n) uint8 percent of each class, or the purity; None if the loss does not use them
    """

    x: NDArray[np.float32]
    y: NDArray[np.uint8]
    shares: NDArray[np.uint8] | None = None


def allocate(sampler: Sampler, shape: tuple[int, ...], size: int, channels: int) -> Batch:
    """Allocate samples of a side of ``size``, channels last: x (*shape, size, size, channels) and so on."""
    sides = (*shape, size, size)
    shares = np.empty((*sides, sampler.share_bands), np.uint8) if sampler.share_bands else None
    return Batch(np.empty((*sides, channels), np.float32), np.empty(sides, np.uint8), shares)


def read_sample(
    sampler: Sampler, inputs: Inputs, epoch: int, position: int, tile: int, size: int, out: Batch | None = None
) -> Batch:
    """Read and augment one sample.

    out   arrays to write into: x (size, size, C), y (size, size), shares (size, size, n); new ones if None
    Raises InputFileError if a scene can't be read, unless the dataset skips such windows.
    """
    x, y, shares = out or allocate(sampler, (), size, inputs.channels)
    dataset, area = sampler.dataset, sampler.area[tile]
    rng = np.random.default_rng((sampler.settings.seed, epoch, 1 + position))  # 0 is the draw of the epoch
    window = sampler.window(rng, tile, size)
    seasons = _seasons(sampler, rng, inputs, epoch + sampler.season_turn(position, size))
    augmentation = sample_augmentation(
        rng, sampler.augmentation, inputs.channels // len(inputs.bands), len(inputs.bands), size
    )
    observed, labels = dataset.read_hwc(area, window, seasons)
    percent = None if shares is None else dataset.read_shares(area, window)
    if window.height != size:
        observed, labels = rescale(observed, labels, size)
        percent = None if percent is None else resample_nearest(percent, size)
    _apply(augmentation, inputs, observed, labels, rng, x, y)
    if shares is not None and percent is not None:
        shares[:] = turned(percent, augmentation.turn)
        shares[y == IGNORE_INDEX] = 0
    return Batch(x.transpose(2, 0, 1), y, shares)


def _seasons(sampler: Sampler, rng: np.random.Generator, inputs: Inputs, turn: int) -> tuple[str, ...]:
    """Seasons of a sample: all, or one."""
    if inputs.mode != "separate":
        return inputs.seasons
    number = turn if sampler.settings.season_order == "in-turn" else int(rng.integers(len(inputs.seasons)))
    return (inputs.seasons[number % len(inputs.seasons)],)


def _apply(
    augmentation: SampleAugmentation,
    inputs: Inputs,
    observed: Mapping[str, Observation],
    labels: NDArray[np.uint8],
    rng: np.random.Generator,
    x: NDArray[np.float32],
    y: NDArray[np.uint8],
) -> None:
    """Write the augmented sample into ``x`` (H, W, channels) and ``y`` (H, W)."""
    turn, bands = augmentation.turn, len(inputs.bands)
    y[:] = turned(labels, turn)
    visible: list[NDArray[np.bool_]] = []  # by season
    for number, (season, change) in enumerate(zip(observed, augmentation.seasons, strict=True)):
        pixels, valid = observed[season]
        if change.dropped:
            valid = np.zeros_like(valid)
        channels = slice(number * bands, (number + 1) * bands)
        inputs.write_season(
            x, inputs.seasons.index(season), channels.start,
            Observation(pixels, valid, observed[season].conversion),
            turn=turn, gain=change.gain, offset=change.offset,
        )  # fmt: skip
        if change.noise:
            noise = rng.standard_normal((*y.shape, bands), np.float32)
            noise *= np.float32(change.noise) * turned(valid, turn)[..., None] * (change.gain != 0)
            x[..., channels] += noise
        if change.cutout is not None:
            row, col, side = change.cutout
            x[row : row + side, col : col + side, channels] = 0
        if augmentation.hides:
            shown = turned(valid, turn).copy()
            if change.cutout is not None:
                shown[row : row + side, col : col + side] = False
            visible.append(shown)
    if visible:  # a pixel that no season shows any more can't be learnt
        y[~np.any(visible, axis=0)] = IGNORE_INDEX


def count_batches(samples: int, batch_size: int) -> int:
    """Number of batches of an epoch."""
    return -(-samples // batch_size)


def batches(
    sampler: Sampler,
    inputs: Inputs,
    epoch: int,
    batch_size: int,
    rank: tuple[int, int] = (0, 1),
    *,
    in_final_phase: bool = False,
    reuse: bool = False,
) -> Iterator[Batch]:
    """Batches of an epoch, prefetched by threads.

    rank            (rank, world size): this process's part of each batch
    in_final_phase  of the training, see `Sampler.window_sizes`
    reuse           write later batches into the memory of earlier ones: a batch is valid until the next is taken
    """
    order = sampler.epoch(epoch)
    # near-equal batches: a last batch of one small window would be too little for batch norm
    groups = np.array_split(np.arange(len(sampler)), count_batches(len(sampler), batch_size))
    groups = [group[rank[0] :: rank[1]] for group in groups]
    per_largest = len(order) // len(sampler)
    free: list[Batch] = []

    def take_memory(count: int, size: int) -> Batch:
        for number, batch in enumerate(free):
            if batch.x.shape[:2] == (count, size):
                return free.pop(number)
        return allocate(sampler, (count,), size, inputs.channels)

    def samples() -> Iterator[list[tuple[Batch, int, int]]]:
        for number, group in enumerate(groups):
            size = sampler.window_size(epoch, number, in_final_phase=in_final_phase)
            positions = (group[:, None] * per_largest + np.arange(sampler.windows_per_largest(size))).ravel()
            batch = take_memory(len(positions), size)
            yield [(batch, slot, int(position)) for slot, position in enumerate(positions)]

    def read(sample: tuple[Batch, int, int]) -> None:
        (x, y, shares), slot, position = sample
        out = Batch(x[slot], y[slot], None if shares is None else shares[slot])
        read_sample(sampler, inputs, epoch, position, int(order[position]), x.shape[1], out)

    for done in prefetch(samples(), read):
        batch, _, _ = done[0][0]
        yield Batch(batch.x.transpose(0, 3, 1, 2), batch.y, batch.shares)
        if reuse:
            free.append(batch)
