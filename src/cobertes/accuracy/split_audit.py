"""Optimism of a random split: two simple classifiers, evaluated under random tiles and under held-out blocks.

    forest            the per-pixel forest of `accuracy.baselines`
    nearest in space  the class of the nearest training pixel: it uses no image at all, so any score above the most
                      frequent class is due to the location (Kattenborn et al. 2022; Ploton et al. 2020)

Both are evaluated on the same pixels, those of the held-out blocks, and trained on as many tiles and pixels. Under
``blocks`` these are training tiles outside the guard bands. Under ``random`` it is a five-fold cross-validation:
the held-out tiles are divided into five folds, and each is predicted after training on random tiles of the rest,
so four fifths of a tile's neighbours may be among them, as in a random split.
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
from cobertes.tiles.filters import BETWEEN, GUARD, locate_in_split
from cobertes.tiles.index import window_of
from cobertes.tiles.label_counts import count_labels
from cobertes.tiles.split import AreaSplit, Part, Split, block_edges

PIXELS = 100_000
"""Pixels sampled from all labelled tiles."""

TRAINING_PIXELS = 20_000
"""Maximum number of training pixels."""

FOLDS = 5
"""Folds of the held-out tiles, as in a random split of 80 and 20 %."""

METHODS = ("random_forest", "nearest_in_space")
SPLITS = ("random", "blocks")


@dataclass(frozen=True)
class Audit:
    """Confusion matrices by split and method, one per seed; scores are means over the seeds."""

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
    """Sampled pixels (n): features (n, F), class, position of the tile in the index, row and col (n, 2), area."""

    features: NDArray[np.float32]
    y: NDArray[np.uint8]
    tile: NDArray[np.int64]
    position: NDArray[np.float64]
    area: NDArray[np.int64]


def audit_split(
    dataset: LabelledDataset,
    index: Any,
    settings: SplitSettings,
    tile_settings: TileSettings,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress = SILENT,
) -> Audit:
    """Evaluate both classifiers under random splits and block splits of several seeds.

    dataset   labelled dataset of the run; its own split is used if given by polygons
    index     the tile index
    settings, tile_settings  of the run: blocks are assigned anew for every seed
    Raises NoTilesError for too few labelled tiles.
    """
    usable = (index["keep"] | index["reason"].isin([GUARD, BETWEEN])).to_numpy()
    tiles = np.flatnonzero(usable)
    if len(tiles) < 4:
        raise NoTilesError(f"{len(tiles)} labelled tiles are too few to be split at random")
    pixels = _sample_pixels(dataset, index, tiles, progress)
    if settings.method == "random":  # the run's own blocks are single tiles
        dataset = _with_blocks(dataset, settings, tile_settings)
    matrices: dict[str, dict[str, list[ConfusionMatrix]]] = {s: {m: [] for m in METHODS} for s in SPLITS}
    counts = _block_counts(dataset) if settings.by != "polygons" else {}
    training_tiles = 0
    with progress.bar("audit", 2 * len(seeds), "splits") as advance:
        for seed in seeds:
            split = dataset.split if settings.by == "polygons" else _reassigned(dataset, counts, settings, seed)
            training, held = _by_blocks(dataset, index, tiles, split, pixels)
            training_tiles = len(np.unique(pixels.tile[training]))
            if not training_tiles or not held.any():
                raise NoTilesError("no training or no validation tile is left under the block split")
            folds = _random_folds(tiles, training_tiles, held, pixels, seed)
            for name, rounds in (("random", folds), ("blocks", [(training, held)])):
                for method in METHODS:
                    total = ConfusionMatrix.empty(len(dataset.legend))
                    for trained, evaluated in rounds:
                        total += _evaluate(method, pixels, trained, evaluated, len(dataset.legend), seed)
                    matrices[name][method].append(total)
                advance(1)
    return Audit(matrices, training_tiles)


def _sample_pixels(dataset: LabelledDataset, index: Any, tiles: NDArray[np.int64], progress: Progress) -> _Pixels:
    names = {name: number for number, name in enumerate(dataset.areas)}
    share = min(1.0, PIXELS / max(1, int(index["counts"].iloc[tiles].map(sum).sum())))
    found: list[tuple[Any, ...]] = []
    with progress.bar("audit: pixels", len(tiles), "tiles") as advance:
        for number in tiles.tolist():
            row = index.iloc[number]
            window = window_of(row)
            x, y = read_features(dataset, row["area"], window, MARGIN)
            sampled = np.random.default_rng(number).random(y.shape) < share
            sampled &= y != IGNORE_INDEX
            rows, cols = np.nonzero(sampled)
            position = np.stack([rows + window.row, cols + window.col], axis=1).astype(float)
            found.append((
                x[:, sampled].T, y[sampled], np.full(len(rows), number), position,
                np.full(len(rows), names[row["area"]]),
            ))  # fmt: skip
            advance(1)
    return _Pixels(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _block_counts(dataset: LabelledDataset) -> dict[str, NDArray[np.int64]]:
    found = {}
    for name, area in dataset.areas.items():
        split = dataset.split.areas[name]
        histogram = count_labels(
            dataset.labels[name], area.shape, split.row_edges.tolist(), split.col_edges.tolist(), dataset.legend
        )
        found[name] = histogram.grid(split.row_edges, split.col_edges)
    return found


def _with_blocks(dataset: LabelledDataset, settings: SplitSettings, tiles: TileSettings) -> LabelledDataset:
    """Dataset with the blocks and guard band of a block split, not yet assigned to parts."""
    by_block = settings.model_copy(update={"method": "block"})
    block = choose_block([area.shape for area in dataset.areas.values()], tiles.size, by_block)
    areas = {}
    for name, area in dataset.areas.items():
        rows, cols = block_edges(area.shape[0], block), block_edges(area.shape[1], block)
        areas[name] = AreaSplit(np.full((len(rows) - 1, len(cols) - 1), Part.NONE), rows, cols)
    return replace(dataset, split=Split(areas, block, guard_band(tiles.size, by_block)))


def _reassigned(
    dataset: LabelledDataset, counts: Mapping[str, NDArray[np.int64]], settings: SplitSettings, seed: int
) -> Split:
    """Assign the same blocks with another seed."""
    areas: list[Area] = [dataset.areas[name] for name in sorted(dataset.areas)]
    edges = {name: (split.row_edges, split.col_edges) for name, split in dataset.split.areas.items()}
    return make_split(
        areas, counts, edges, block=dataset.split.block, guard=dataset.split.guard, classes=dataset.legend.keys,
        settings=settings.model_copy(update={"seed": seed, "method": "block"}), quiet=True,
    )  # fmt: skip


def _by_blocks(
    dataset: LabelledDataset, index: Any, tiles: NDArray[np.int64], split: Split, pixels: _Pixels
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (n,) of the training pixels (tiles outside guard bands) and of the pixels in validation blocks."""
    training = set()
    for number in tiles.tolist():
        row = index.iloc[number]
        window = window_of(row)
        location = locate_in_split(window, split.areas[row["area"]], split.guard)
        if not location.reason and location.split == "train":
            training.add(number)
    held = np.zeros(len(pixels.y), bool)
    for number, name in enumerate(dataset.areas):
        inside, blocks = pixels.area == number, split.areas[name]
        row = np.searchsorted(blocks.row_edges, pixels.position[inside, 0], "right") - 1
        col = np.searchsorted(blocks.col_edges, pixels.position[inside, 1], "right") - 1
        held[inside] = blocks.parts[row, col] == Part.VALIDATION
    return np.isin(pixels.tile, list(training)), held


def _random_folds(
    tiles: NDArray[np.int64], training_tiles: int, held: NDArray[np.bool_], pixels: _Pixels, seed: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Folds of a cross-validation: masks (n,) of the pixels of random training tiles, and of the fold."""
    rng = np.random.default_rng(seed)
    folds = np.array_split(rng.permutation(np.unique(pixels.tile[held])), FOLDS)
    masks = []
    for fold in filter(len, folds):
        others = rng.permutation(np.setdiff1d(tiles, fold))[:training_tiles]
        masks.append((np.isin(pixels.tile, others), held & np.isin(pixels.tile, fold)))
    return masks


def _evaluate(
    method: str,
    pixels: _Pixels,
    training: NDArray[np.bool_],
    held: NDArray[np.bool_],
    classes: int,
    seed: int,
) -> ConfusionMatrix:
    rng = np.random.default_rng(seed)
    learnt = np.flatnonzero(training)
    if len(learnt) > TRAINING_PIXELS:
        learnt = rng.choice(learnt, TRAINING_PIXELS, replace=False)
    if method == "random_forest":
        forest = RandomForestClassifier(TREES, min_samples_leaf=SAMPLES_PER_LEAF, n_jobs=-1, random_state=seed)
        forest.fit(pixels.features[learnt], pixels.y[learnt])
        predicted = forest.predict(pixels.features[held])
    else:  # an offset per area, so that pixels of different areas are no neighbours
        offset = pixels.position.max() * 10 + 1
        position = np.column_stack([pixels.position, pixels.area * offset])
        _, nearest = cKDTree(position[learnt]).query(position[held])
        predicted = pixels.y[learnt][nearest]
    return ConfusionMatrix.of(pixels.y[held], predicted, classes)


def describe_audit(audit: Audit, seeds: Sequence[int]) -> str:
    """Format the audit as a table with a line of conclusion."""
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
