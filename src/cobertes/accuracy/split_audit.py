"""By how much a random split flatters: two simple classifiers, judged on random tiles and on held-out blocks.

    forest            the per-pixel forest of `accuracy.forest`
    nearest in space  the class of the nearest training pixel: it sees no image at all, so whatever it scores above
                      the most frequent class, it owes to the place (Kattenborn et al. 2022; Ploton et al. 2020)

Both are judged on the same pixels, those of the held-out blocks, and learn from as many tiles and pixels. Under
``blocks`` these are training tiles outside the guard bands. Under ``random`` they are drawn from all other ground:
the held-out tiles are dealt into five parts, and each is judged by what was learnt from random tiles of the rest,
so four fifths of a tile's neighbours may be among them, as where tiles are split at random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier

from cobertes.accuracy.baselines import MARGIN, SAMPLES_PER_LEAF, TREES, read_features
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.errors import NoTilesError
from cobertes.geo.area import Area
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.progress import SILENT, Progress
from cobertes.settings import SplitSettings, TileSettings
from cobertes.tiles.block_split import choose_block, guard_band, make_split
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.filters import BETWEEN, GUARD, judge_place
from cobertes.tiles.index import window_of
from cobertes.tiles.label_counts import take_census
from cobertes.tiles.split import EMPTY, VALIDATION, AreaSplit, Split, block_edges

PIXELS = 100_000
"""Drawn from all labelled tiles."""

LEARNT = 20_000
"""Pixels to learn from, at most."""

PARTS = 5
"""Parts that held-out tiles are dealt into, as a random split of 80 and 20 % does."""

METHODS = ("random_forest", "nearest_in_space")
SPLITS = ("random", "blocks")


@dataclass(frozen=True)
class Audit:
    """Matrices by split and method, one per seed; scores are means over the seeds."""

    matrices: Mapping[str, Mapping[str, Sequence[ConfusionMatrix]]]
    training_tiles: int

    def scores(self) -> dict[str, Any]:
        """Overall accuracy and mIoU by split and method: mean and standard deviation over the seeds.

        mIoU is over the classes that have at least 100 pixels in every matrix.
        """
        every = [m for by_method in self.matrices.values() for found in by_method.values() for m in found]
        common = np.all([m.support >= 100 for m in every], axis=0)
        scores: dict[str, Any] = {}
        for split, by_method in self.matrices.items():
            scores[split] = {}
            for method, found in by_method.items():
                accuracy = [m.overall_accuracy for m in found]
                miou = [float(m.iou[common].mean()) if common.any() else float("nan") for m in found]
                scores[split][method] = {
                    "overall_accuracy": float(np.mean(accuracy)), "overall_accuracy_sd": _sd(accuracy),
                    "miou": float(np.mean(miou)), "miou_sd": _sd(miou),
                }  # fmt: skip
        return scores


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class _Pixels:
    """Drawn pixels: features (n, F), class (n,), tile (n,) position in the index, place (n, 2), area (n,)."""

    features: NDArray[np.float32]
    y: NDArray[np.uint8]
    tile: NDArray[np.int64]
    place: NDArray[np.float64]
    area: NDArray[np.int64]


def audit_split(
    ground: LabelledDataset,
    index: Any,
    settings: SplitSettings,
    tiles_settings: TileSettings,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress = SILENT,
) -> Audit:
    """Judge both classifiers under random splits and block splits of several seeds.

    ground    as the tiles stage left it; its split is that of the first seed where polygons decide
    index     the tile index
    settings, tiles_settings  of the run: blocks are drawn again for every seed
    Raises NoTilesError where there is too little to split.
    """
    usable = (index["keep"] | index["reason"].isin([GUARD, BETWEEN])).to_numpy()
    tiles = np.flatnonzero(usable)
    if len(tiles) < 4:
        raise NoTilesError(f"{len(tiles)} labelled tiles are too few to be split at random")
    pixels = _draw(ground, index, tiles, progress)
    if settings.method == "random":  # the run's own blocks are single tiles
        ground = _blocked(ground, settings, tiles_settings)
    matrices: dict[str, dict[str, list[ConfusionMatrix]]] = {s: {m: [] for m in METHODS} for s in SPLITS}
    counts = _block_counts(ground) if settings.by != "polygons" else {}
    learnt = 0
    with progress.bar("audit", 2 * len(seeds), "splits") as advance:
        for seed in seeds:
            split = ground.split if settings.by == "polygons" else _redrawn(ground, counts, settings, seed)
            training, held = _by_blocks(ground, index, tiles, split, pixels)
            learnt = len(np.unique(pixels.tile[training]))
            if not learnt or not held.any():
                raise NoTilesError("no training or no validation tile is left under the block split")
            dealt = _at_random(tiles, learnt, held, pixels, seed)
            for name, sides in (("random", dealt), ("blocks", [(training, held)])):
                for method in METHODS:
                    total = ConfusionMatrix.empty(len(ground.legend))
                    for learning, judged in sides:
                        total += _judge(method, pixels, learning, judged, len(ground.legend), seed)
                    matrices[name][method].append(total)
                advance(1)
    return Audit(matrices, learnt)


def _draw(ground: LabelledDataset, index: Any, tiles: NDArray[np.int64], progress: Progress) -> _Pixels:
    names = {name: number for number, name in enumerate(ground.areas)}
    share = min(1.0, PIXELS / max(1, int(index["counts"].iloc[tiles].map(sum).sum())))
    found: list[tuple[Any, ...]] = []
    with progress.bar("audit: pixels", len(tiles), "tiles") as advance:
        for number in tiles.tolist():
            row = index.iloc[number]
            window = window_of(row)
            x, y = read_features(ground, row["area"], window, MARGIN)
            chosen = np.random.default_rng(number).random(y.shape) < share
            chosen &= y != IGNORE_INDEX
            rows, cols = np.nonzero(chosen)
            place = np.stack([rows + window.row, cols + window.col], axis=1).astype(float)
            found.append((
                x[:, chosen].T, y[chosen], np.full(len(rows), number), place,
                np.full(len(rows), names[row["area"]]),
            ))  # fmt: skip
            advance(1)
    return _Pixels(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _block_counts(ground: LabelledDataset) -> dict[str, NDArray[np.int64]]:
    found = {}
    for name, area in ground.areas.items():
        split = ground.split.areas[name]
        census = take_census(
            ground.labels[name], area.shape, split.row_edges.tolist(), split.col_edges.tolist(), ground.legend
        )
        found[name] = census.grid(split.row_edges, split.col_edges)
    return found


def _blocked(ground: LabelledDataset, settings: SplitSettings, tiles: TileSettings) -> LabelledDataset:
    """The ground with the blocks and the guard band that it would have if it were not split at random."""
    by_block = settings.model_copy(update={"method": "block"})
    block = choose_block([area.shape for area in ground.areas.values()], tiles.size, by_block)
    areas = {}
    for name, area in ground.areas.items():
        rows, cols = block_edges(area.shape[0], block), block_edges(area.shape[1], block)
        areas[name] = AreaSplit(np.full((len(rows) - 1, len(cols) - 1), EMPTY), rows, cols)
    return replace(ground, split=Split(areas, block, guard_band(tiles.size, by_block)))


def _redrawn(
    ground: LabelledDataset, counts: Mapping[str, NDArray[np.int64]], settings: SplitSettings, seed: int
) -> Split:
    """The block split of another seed, over the same blocks."""
    areas: list[Area] = [ground.areas[name] for name in sorted(ground.areas)]
    edges = {name: (split.row_edges, split.col_edges) for name, split in ground.split.areas.items()}
    return make_split(
        areas, counts, edges, block=ground.split.block, guard=ground.split.guard, classes=ground.legend.keys,
        settings=settings.model_copy(update={"seed": seed, "method": "block"}), quiet=True,
    )  # fmt: skip


def _by_blocks(
    ground: LabelledDataset, index: Any, tiles: NDArray[np.int64], split: Split, pixels: _Pixels
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels to learn from, of training tiles outside guard bands; pixels that judge, in validation blocks."""
    training = set()
    for number in tiles.tolist():
        row = index.iloc[number]
        window = window_of(row)
        situation = judge_place(window, split.areas[row["area"]], split.guard)
        if not situation.reason and situation.split == "train":
            training.add(number)
    held = np.zeros(len(pixels.y), bool)
    for number, name in enumerate(ground.areas):
        inside, blocks = pixels.area == number, split.areas[name]
        row = np.searchsorted(blocks.row_edges, pixels.place[inside, 0], "right") - 1
        col = np.searchsorted(blocks.col_edges, pixels.place[inside, 1], "right") - 1
        held[inside] = blocks.letters[row, col] == VALIDATION
    return np.isin(pixels.tile, list(training)), held


def _at_random(
    tiles: NDArray[np.int64], learnt: int, held: NDArray[np.bool_], pixels: _Pixels, seed: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Held-out pixels in parts, each with the pixels of as many random tiles of all the rest."""
    rng = np.random.default_rng(seed)
    parts = np.array_split(rng.permutation(np.unique(pixels.tile[held])), PARTS)
    sides = []
    for part in filter(len, parts):
        others = rng.permutation(np.setdiff1d(tiles, part))[:learnt]
        sides.append((np.isin(pixels.tile, others), held & np.isin(pixels.tile, part)))
    return sides


def _judge(
    method: str,
    pixels: _Pixels,
    training: NDArray[np.bool_],
    held: NDArray[np.bool_],
    classes: int,
    seed: int,
) -> ConfusionMatrix:
    rng = np.random.default_rng(seed)
    learnt = np.flatnonzero(training)
    if len(learnt) > LEARNT:
        learnt = rng.choice(learnt, LEARNT, replace=False)
    if method == "random_forest":
        forest = RandomForestClassifier(TREES, min_samples_leaf=SAMPLES_PER_LEAF, n_jobs=-1, random_state=seed)
        forest.fit(pixels.features[learnt], pixels.y[learnt])
        predicted = forest.predict(pixels.features[held])
    else:  # areas lie too far apart to be neighbours
        apart = pixels.place.max() * 10 + 1
        place = np.column_stack([pixels.place, pixels.area * apart])
        _, nearest = cKDTree(place[learnt]).query(place[held])
        predicted = pixels.y[learnt][nearest]
    return ConfusionMatrix.of(pixels.y[held], predicted, classes)


def describe_audit(audit: Audit, seeds: Sequence[int]) -> str:
    """The audit as a table, and what it means in a line."""
    scores = audit.scores()
    lines = [f"{'':<18}{'':<18}{'random tiles':>16}{'held-out blocks':>18}{'flattered by':>14}"]
    for method in METHODS:
        for key, name in (("overall_accuracy", "overall accuracy"), ("miou", "mIoU")):
            cells = [_cell(scores[split][method], key) for split in SPLITS]
            gap = scores["random"][method][key] - scores["blocks"][method][key]
            title = method.replace("_", " ") if key == "overall_accuracy" else ""
            lines.append(f"{title:<18}{name:<18}{cells[0]:>16}{cells[1]:>18}{gap:>+14.3f}")
    at_random, on_blocks = (scores[split]["random_forest"]["overall_accuracy"] for split in SPLITS)
    spread = scores["blocks"]["random_forest"]["overall_accuracy_sd"] or 0.0
    if at_random - on_blocks > spread:
        meaning = f"A random split would show {at_random:.3f} overall accuracy, new ground gives {on_blocks:.3f}"
    else:
        meaning = "A random split hardly flatters a classifier of single pixels here"
    lines.append(f"{meaning} (forest; {len(seeds)} seeds, {audit.training_tiles} training tiles).")
    return "\n".join(lines)


def _cell(scores: Mapping[str, Any], key: str) -> str:
    spread = scores[f"{key}_sd"]
    return f"{scores[key]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
