"""The baselines beside every model: the most frequent class, and a per-pixel random forest.

A network has to beat them on the same ground to be worth its cost. The forest (Breiman 2001) has 100 trees
with at least 5 samples a leaf; its features are the bands, normalised differences of them, and the 5 x 5
means of all of these; it learns from at most 400,000 pixels of the training tiles.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from sklearn.ensemble import RandomForestClassifier

from cobertes.accuracy.block_confusion import BlockMatrices, held_out_blocks
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.geo.bands import colour_positions
from cobertes.geo.scene import Observation
from cobertes.geo.windows import Window, plan_strips
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.progress import SILENT, Progress
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import window_of

TREES = 100
SAMPLES_PER_LEAF = 5
TRAINING_PIXELS = 400_000
NEIGHBOURHOOD = 5
MARGIN = NEIGHBOURHOOD // 2
CHUNK = 512
"""Side of the windows in which held-out blocks are predicted, in pixels."""

DIFFERENCES = (("nir", "red"), ("green", "nir"), ("swir1", "nir"))
"""NDVI (Rouse et al. 1974), NDWI (McFeeters 1996), NDBI (Zha et al. 2003), where the bands are known by name."""


def pixel_features(observed: Mapping[str, Observation], bands: Sequence[str]) -> NDArray[np.float32]:
    """Features (F, height, width) float32: per season bands, differences, and the 5 x 5 means of both."""
    layers: list[NDArray[np.float32]] = []
    for values, valid in observed.values():
        exact = np.where(valid, values, 0).astype(np.float32)
        season = [*exact, *(_difference(exact[i], exact[j]) for i, j in _pairs(bands))]
        share = uniform_filter(valid.astype(np.float32), NEIGHBOURHOOD, mode="nearest")
        layers += season + [_mean_of_observed(layer, share) for layer in season]
    return np.stack(layers)


def _mean_of_observed(layer: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the observed pixels of each neighbourhood, which hold ``share`` of it; others are 0."""
    mean = uniform_filter(layer, NEIGHBOURHOOD, mode="nearest")
    return np.divide(mean, share, out=np.zeros_like(mean), where=share > 0.5 / NEIGHBOURHOOD**2)


def _pairs(bands: Sequence[str]) -> list[tuple[int, int]]:
    position = colour_positions(bands)
    return [(position[a], position[b]) for a, b in DIFFERENCES if a in position and b in position]


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    total = a + b
    return np.divide(a - b, total, out=np.zeros_like(a), where=total != 0)


def train_forest(
    ground: LabelledDataset, index: Any, *, seed: int = 0, progress: Progress = SILENT
) -> RandomForestClassifier:
    """Fit the forest on pixels drawn evenly from the kept training tiles of the tile index."""
    rows = index[index["keep"] & (index["split"] == "train")]
    labelled = rows["counts"].map(sum).to_numpy()
    share = min(1.0, TRAINING_PIXELS / labelled.sum())
    features, targets = [], []
    with progress.bar("forest: pixels", len(rows), "tiles") as advance:
        for number, row in enumerate(rows.itertuples()):
            window = window_of(row)
            # with a narrow guard band, the neighbourhood must not reach out for held-out ground
            x, y = read_features(ground, row.area, window, min(MARGIN, ground.split.guard))
            chosen = np.random.default_rng((seed, number)).random(y.shape) < share
            chosen &= y != IGNORE_INDEX
            features.append(x[:, chosen].T)
            targets.append(y[chosen])
            advance(1)
    forest = RandomForestClassifier(TREES, min_samples_leaf=SAMPLES_PER_LEAF, n_jobs=-1, random_state=seed)
    return forest.fit(np.concatenate(features), np.concatenate(targets))


def judge_forest(
    forest: RandomForestClassifier, ground: LabelledDataset, letter: str, *, progress: Progress = SILENT
) -> BlockMatrices:
    """The forest's confusion matrices over the held-out blocks of a split."""
    blocks, classes = held_out_blocks(ground, letter), len(ground.legend)
    counts = np.zeros((len(blocks), classes, classes), np.int64)
    parts = [
        (number, block.area, planned.interior)
        for number, block in enumerate(blocks)
        for strip in plan_strips(block.window, CHUNK, 0)
        for planned in strip
    ]
    with progress.bar("forest: held-out", len(parts), "windows") as advance:
        for number, name, window in parts:
            x, y = read_features(ground, name, window, MARGIN)
            known = y != IGNORE_INDEX
            if known.any():
                predicted = np.zeros(y.shape, np.uint8)
                predicted[known] = forest.predict(x[:, known].T)
                counts[number] += ConfusionMatrix.of(y, predicted, classes).counts
            advance(1)
    return BlockMatrices(blocks, counts)


def most_frequent(matrices: BlockMatrices, class_counts: NDArray[np.int64]) -> BlockMatrices:
    """What always saying the most frequent training class would score on the same pixels as ``matrices``."""
    counts = np.zeros_like(matrices.counts)
    counts[:, :, int(class_counts.argmax())] = matrices.counts.sum(axis=2)
    return BlockMatrices(matrices.blocks, counts)


def read_features(
    ground: LabelledDataset, area: str, window: Window, margin: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Features (F, h, w), with a margin of their neighbourhood read along, and labels (h, w)."""
    grown = window.pad(margin)
    observed, y = ground.read_chw(area, grown)
    bands = next(iter(ground.areas[area].scenes.values())).band_names
    inside = window.slices_in(grown)
    return pixel_features(observed, bands)[:, *inside], y[inside]
