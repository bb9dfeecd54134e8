"""Training samples: which windows an epoch draws, how each is read and varied, and feeding them in time.

Every choice is a pure function of (seed, epoch, position in the epoch): there is no state in loaders or
threads, so a resumed run, another number of threads or another machine draws the same.

    epoch -> tiles, as often as they weigh (rare classes more often) -> a window anywhere around each, in training
    ground alone -> its seasons, read by pixel -> normalised, varied and turned in one pass into the batch
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import NoTilesError
from cobertes.geo.scene import Observation
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.augment import Variation, draw_variation, nearest, zoomed
from cobertes.learn.encoding import Inputs, turned
from cobertes.learn.inference import read_groups_ahead
from cobertes.settings import AugmentationSettings, TrainSettings
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.filters import BETWEEN, GUARD, POOR
from cobertes.tiles.label_io import count_bands
from cobertes.tiles.split import Part

CROP_TRIES = 8

SHIFTS = (0.0, -0.5, -0.25, 0.25, 0.5)
"""Places around a tile's middle, in tiles, where it is tried whether a window fits."""

BALANCE_ROUNDS = 50
RAREST, OFTENEST = 0.25, 20.0
"""How much rarer or more often than by area a tile may be drawn: none is forgotten, none learnt by heart."""


class Batch(NamedTuple):
    """Of samples, or one without the first axis.

    ``x`` (B, C, size, size) float32, channels last in memory; ``y`` (B, size, size) uint8 class indices;
    ``shares`` (B, size, size, n) uint8 percent of each class, or the purity, where they are learnt from.
    """

    x: NDArray[np.float32]
    y: NDArray[np.uint8]
    shares: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class ExcludedGround:
    """Ground of tiles left out for what they show, that no other shares: ``bad`` (rows, cols) between edges."""

    row_edges: NDArray[np.int64]
    col_edges: NDArray[np.int64]
    bad: NDArray[np.bool_]

    @staticmethod
    def in_(index: Any) -> bool:
        """Whether an area has such tiles."""
        return bool(index["reason"].isin(POOR).any())

    @classmethod
    def of(cls, index: Any) -> "ExcludedGround":
        """From the tiles of one area."""
        sides = index[["row", "col", "height", "width"]].to_numpy(np.int64)
        tops, lefts = sides[:, 0], sides[:, 1]
        bottoms, rights = tops + sides[:, 2], lefts + sides[:, 3]
        rows, cols = np.unique([tops, bottoms]), np.unique([lefts, rights])
        bad = np.zeros((len(rows) - 1, len(cols) - 1), bool)
        poor = index["reason"].isin(POOR).to_numpy()
        for chosen, value in ((poor, True), (~poor, False)):  # what a good tile shares is good
            for top, bottom, left, right in zip(
                *(np.searchsorted(edges, ends[chosen]) for edges, ends in (
                    (rows, tops), (rows, bottoms), (cols, lefts), (cols, rights)
                )), strict=True,
            ):  # fmt: skip
                bad[top:bottom, left:right] = value
        return cls(rows, cols, bad)

    def touches(self, window: Window) -> bool:
        """Whether a window holds a pixel of it."""
        top, bottom = np.searchsorted(self.row_edges, [window.row, window.row_stop - 1], "right") - 1
        left, right = np.searchsorted(self.col_edges, [window.col, window.col_stop - 1], "right") - 1
        return bool(self.bad[max(top, 0) : bottom + 1, max(left, 0) : right + 1].any())


@dataclass(frozen=True)
class Sampler:
    """Draws the windows of an epoch from the training tiles.

    ``area`` names and ``tiles`` (n, 4) int: row, col, height, width, around which a window fits, at least at the
    shift ``fits`` (n, 2) from the middle; ``weights`` (n,) sum to 1; ``windows`` sides in pixels; ``poor`` ground
    by area that no window may touch; ``kept`` pixels of whole training tiles; ``shares`` bands of shares of
    classes that samples bring along.
    """

    ground: LabelledDataset
    area: list[str]
    tiles: NDArray[np.int64]
    fits: NDArray[np.int64]
    weights: NDArray[np.float64]
    settings: TrainSettings
    augmentation: AugmentationSettings
    windows: tuple[int, ...]
    poor: Mapping[str, ExcludedGround]
    kept: int
    shares: int = 0

    @classmethod
    def of(
        cls,
        index: Any,
        ground: LabelledDataset,
        settings: TrainSettings,
        windows: tuple[int, ...],
        augmentation: AugmentationSettings | None = None,
    ) -> "Sampler":
        """From the index: training tiles that are kept; for random crops also those partly in guard bands."""
        kept = index["keep"] & (index["split"] == "train")
        edge = index["reason"].isin([GUARD, BETWEEN]) if settings.crops else ~kept & kept
        rows = index[kept | edge]
        poor = {
            str(name): ExcludedGround.of(part) for name, part in index.groupby("area") if ExcludedGround.in_(part)
        }
        tiles, area = rows[["row", "col", "height", "width"]].to_numpy(np.int64), rows["area"].tolist()
        counts = np.array(rows["counts"].to_list(), float).reshape(len(rows), len(ground.legend))
        counts[edge[rows.index]] = 0  # part of what they count is held out
        n, pixels = len(rows), int((index["height"] * index["width"])[kept].sum())
        sampler = cls(
            ground, area, tiles, np.zeros((n, 2), np.int64), np.full(n, 1 / max(n, 1)), settings,
            augmentation or AugmentationSettings(), windows, poor, pixels,
            max(map(count_bands, ground.shares.values()), default=0),
        )  # fmt: skip
        return sampler._where_windows_fit(counts)

    def _where_windows_fit(self, counts: NDArray[np.float64]) -> "Sampler":
        """The same with the tiles alone around which the largest window fits, weighted by how much of them."""
        shares, fits = np.zeros(len(self.tiles)), np.zeros((len(self.tiles), 2), np.int64)
        shifts = SHIFTS if self.settings.crops else (0.0,)
        for number, (name, tile) in enumerate(zip(self.area, self.tiles, strict=True)):
            tried = [(int(a * tile[2]), int(b * tile[3])) for a in shifts for b in shifts]
            good = [shift for shift in tried if self._allows(name, self._window(number, self.reach, shift))]
            if good:
                shares[number], fits[number] = len(good) / len(tried), good[0]
        some = shares > 0
        if not some.any():
            raise NoTilesError(
                f"no window of {self.reach} px fits the training blocks with a guard band of "
                f"{self.ground.split.guard} px. Use a smaller train.window, or larger blocks (split.block)."
            )
        weights = shares[some] / shares.sum()
        if self.settings.sampling == "balanced":
            weights = balanced(weights, counts[some], self.settings.balance)
        if self.settings.sampling == "ins":
            weights = by_class_weights(weights, counts[some])
        area = [name for name, fit in zip(self.area, some, strict=True) if fit]
        return replace(self, area=area, tiles=self.tiles[some], fits=fits[some], weights=weights)

    @property
    def reach(self) -> int:
        """Side of the largest piece of ground that a sample may show, in pixels."""
        return ceil(max(self.windows) * (1 + self.settings.zoom))

    def ground_windows(self) -> dict[str, list[Window]]:
        """By area, the ground that samples may show."""
        windows: dict[str, list[Window]] = {}
        margin = -(-self.reach // 2)
        for name, (row, col, height, width) in zip(self.area, self.tiles.tolist(), strict=True):
            around = Window(row, col, height, width).pad(margin)
            windows.setdefault(name, []).extend(self.ground.split.areas[name].intersections(around, Part.TRAIN))
        return windows

    def __len__(self) -> int:
        """Windows per epoch, of the largest size."""
        return self.settings.samples or round(self.kept / max(self.windows) ** 2) or len(self.tiles)

    def instead(self, size: int) -> int:
        """Windows of a smaller size that stand for one of the largest: as many as have its pixels."""
        return max(self.windows) ** 2 // size**2

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The tiles of an epoch, in order: each as often as it weighs, give or take one.

        Where there are smaller windows, as many stand in a row as would take the place of one of the largest.
        """
        most, n = self.instead(min(self.windows)), len(self.tiles)
        count = len(self) * most
        if self.settings.sampling == "in-order":
            return np.arange(count) // most % n
        rng = np.random.default_rng((self.settings.seed, epoch))
        some = rng.permutation(n)
        ends = np.cumsum(self.weights[some])
        drawn = np.searchsorted(ends / ends[-1], (np.arange(count) + rng.random()) / count)
        return rng.permutation(some[drawn])

    def sizes(self, in_last_part: bool) -> tuple[int, ...]:
        """Sides that the windows of an epoch may have, in pixels; whether it is in the last part of a training."""
        largest = max(self.windows)
        smaller = tuple(size for size in self.windows if size < largest)
        if self.settings.window_order == "random" or not smaller:
            return self.windows
        return (largest,) if in_last_part else smaller

    def size(self, epoch: int, batch: int, *, in_last_part: bool) -> int:
        """Side of the windows of a batch."""
        sizes = self.sizes(in_last_part)
        rng = np.random.default_rng((self.settings.seed, epoch, 0, 1 + batch))
        return sizes[int(rng.integers(len(sizes)))]

    def sample(
        self, inputs: Inputs, epoch: int, position: int, tile: int, size: int, into: Batch | None = None
    ) -> Batch:
        """Read and vary one sample.

        into   where it is written: x (size, size, C), y (size, size), shares (size, size, n)
        Raises InputFileError where a scene can't be read, unless the ground says to skip that.
        """
        x, y, q = into or self.memory((), size, inputs.channels)
        rng = np.random.default_rng((self.settings.seed, epoch, 1 + position))  # 0 is the draw of the epoch
        window = self._place(rng, tile, size)
        season = self._season(rng, inputs, epoch + self._turn(position, size))
        variation = draw_variation(
            rng, self.augmentation, inputs.channels // len(inputs.bands), len(inputs.bands), size
        )
        observed, labels = self.ground.read_hwc(self.area[tile], window, season)
        shares = None if q is None else self.ground.read_shares(self.area[tile], window)
        if window.height != size:
            observed, labels = zoomed(observed, labels, size)
            shares = None if shares is None else nearest(shares, size)
        _apply(variation, inputs, observed, labels, rng, x, y)
        if q is not None and shares is not None:
            q[:] = turned(shares, variation.turn)
            q[y == IGNORE_INDEX] = 0
        return Batch(x.transpose(2, 0, 1), y, q)

    def memory(self, shape: tuple[int, ...], size: int, channels: int) -> Batch:
        """Room for samples of a side of ``size``, channels last."""
        sides = (*shape, size, size)
        shares = np.empty((*sides, self.shares), np.uint8) if self.shares else None
        return Batch(np.empty((*sides, channels), np.float32), np.empty(sides, np.uint8), shares)

    def _turn(self, position: int, size: int) -> int:
        """How many samples come before a position, where all windows have this size: large ones skip positions."""
        most = self.instead(min(self.windows))
        return position // most * self.instead(size) + position % most

    def _season(self, rng: np.random.Generator, inputs: Inputs, turn: int) -> tuple[str, ...]:
        """The seasons that a sample shows: all, or one."""
        if inputs.mode != "separate":
            return inputs.seasons
        number = turn if self.settings.season_order == "in-turn" else int(rng.integers(len(inputs.seasons)))
        return (inputs.seasons[number % len(inputs.seasons)],)

    def _place(self, rng: np.random.Generator, tile: int, size: int) -> Window:
        side = size
        if self.settings.zoom:  # as often larger as smaller
            side = round(size * (1 + self.settings.zoom) ** rng.uniform(-1, 1))
        where = self.tiles[tile]
        if self.settings.crops:
            for _ in range(CROP_TRIES):
                shift = rng.integers(-(where[2:] // 2), where[2:] // 2 + 1)
                window = self._window(tile, side, (int(shift[0]), int(shift[1])))
                if self._allows(self.area[tile], window):
                    return window
        return self._window(tile, side, (int(self.fits[tile, 0]), int(self.fits[tile, 1])))

    def _window(self, tile: int, size: int, shift: tuple[int, int]) -> Window:
        """The window over a tile's middle, shifted, then moved inside the area; at 0 where the area is smaller."""
        where, shape = self.tiles[tile], self.ground.areas[self.area[tile]].shape
        starts = [
            max(0, min(int(where[i] + where[i + 2] // 2 - size // 2 + shift[i]), shape[i] - size))
            for i in range(2)
        ]
        return Window(starts[0], starts[1], size, size)

    def _allows(self, area: str, window: Window) -> bool:
        split = self.ground.split
        if not split.areas[area].allows_training(window, split.guard):
            return False
        poor = self.poor.get(area)
        return poor is None or not poor.touches(window)


def balanced(weights: NDArray[np.float64], counts: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Weights (n,) of tiles by which classes are met nearer to equally often; sums to 1.

    weights   (n,) what tiles weigh by their ground
    counts    (n, K) pixels per class; a row of zeros says nothing
    strength  classes are aimed at by their frequency to the power of 1 - strength

    The weights are those of a mixture of tiles whose class shares come nearest to the aim, found by expectation
    maximisation (Dempster et al. 1977), within `RAREST` and `OFTENEST` of what tiles weigh.
    """
    total = counts.sum(axis=1, keepdims=True)
    known = total[:, 0] > 0
    if not known.any():
        return weights
    shares = counts / np.maximum(total, 1)
    frequency = weights[known] @ shares[known] / weights[known].sum()
    shares[~known] = frequency  # nothing is known of them: they neither help nor harm
    occurs = frequency > 0
    aim = np.where(occurs, np.power(frequency, 1 - strength, where=occurs, out=np.zeros_like(frequency)), 0)
    aim /= aim.sum()
    found = weights.copy()
    for _ in range(BALANCE_ROUNDS):
        met = found @ shares
        found = found * (shares @ np.divide(aim, met, out=np.zeros_like(aim), where=met > 0))
        found = np.clip(found / found.sum(), RAREST * weights, OFTENEST * weights)
    return np.asarray(found / found.sum(), np.float64)


def by_class_weights(weights: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (n,) of tiles times the mean, over their pixels, of the inverse number of samples of the classes.

    weights, counts   as in `balanced`; tiles of which nothing is known weigh as the others do on average
    """
    frequency = weights @ counts
    inverse = np.divide(1.0, frequency, out=np.zeros_like(frequency), where=frequency > 0)
    total = counts.sum(axis=1)
    known = total > 0
    if not known.any():
        return weights
    factor = np.divide(counts @ inverse, total, out=np.zeros_like(total), where=known)
    factor[~known] = weights[known] @ factor[known] / weights[known].sum()
    found = weights * factor
    return np.asarray(found / found.sum(), np.float64)


def _apply(
    variation: Variation,
    inputs: Inputs,
    observed: Mapping[str, Observation],
    labels: NDArray[np.uint8],
    rng: np.random.Generator,
    x: NDArray[np.float32],
    y: NDArray[np.uint8],
) -> None:
    """Write the varied sample into ``x`` (H, W, channels) and ``y`` (H, W)."""
    y[:] = turned(labels, variation.turn)
    bands = len(inputs.bands)
    left: list[NDArray[np.bool_]] = []  # what each season still shows
    for number, (season, change) in enumerate(zip(observed, variation.seasons, strict=True)):
        pixels, valid = observed[season]
        if not change.seen:
            valid = np.zeros_like(valid)
        part = slice(number * bands, (number + 1) * bands)
        inputs.fill(
            x, inputs.seasons.index(season), part.start, (pixels, valid), turn=variation.turn,
            gain=change.gain, offset=change.offset,
        )  # fmt: skip
        if change.noise:
            noise = rng.standard_normal((*y.shape, bands), np.float32)
            noise *= np.float32(change.noise) * turned(valid, variation.turn)[..., None] * (change.gain != 0)
            x[..., part] += noise
        if change.cutout is not None:
            row, col, side = change.cutout
            x[row : row + side, col : col + side, part] = 0
        if variation.hides:
            shown = turned(valid, variation.turn).copy()
            if change.cutout is not None:
                shown[row : row + side, col : col + side] = False
            left.append(shown)
    if left:  # what no season shows any more is not asked for
        y[~np.any(left, axis=0)] = IGNORE_INDEX


def count_batches(samples: int, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-samples // batch_size)


def batches(
    sampler: Sampler,
    inputs: Inputs,
    epoch: int,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
    *,
    in_last_part: bool = False,
) -> Iterator[Batch]:
    """The batches of an epoch, read ahead by threads; the next batch may take the memory of this one.

    part          of each batch: one of how many
    in_last_part  whether the epoch is in the last part of a training, see `Sampler.sizes`
    """
    order = sampler.epoch(epoch)
    # near-equal batches: a last batch of one small window would be too little for batch norm
    groups = np.array_split(np.arange(len(sampler)), count_batches(len(sampler), batch_size))
    groups = [group[part[0] :: part[1]] for group in groups]
    most = len(order) // len(sampler)
    free: list[Batch] = []

    def memory(count: int, size: int) -> Batch:
        for number, batch in enumerate(free):
            if batch.x.shape[:2] == (count, size):
                return free.pop(number)
        return sampler.memory((count,), size, inputs.channels)

    def tasks() -> Iterator[list[tuple[Batch, int, int]]]:
        for number, group in enumerate(groups):
            size = sampler.size(epoch, number, in_last_part=in_last_part)
            positions = (group[:, None] * most + np.arange(sampler.instead(size))).ravel()
            batch = memory(len(positions), size)
            yield [(batch, slot, int(position)) for slot, position in enumerate(positions)]

    def read(task: tuple[Batch, int, int]) -> None:
        (x, y, q), slot, position = task
        into = Batch(x[slot], y[slot], None if q is None else q[slot])
        sampler.sample(inputs, epoch, position, int(order[position]), x.shape[1], into)

    for done in read_groups_ahead(tasks(), read):
        batch, _, _ = done[0][0]
        yield Batch(batch.x.transpose(0, 3, 1, 2), batch.y, batch.shares)
        free.append(batch)
