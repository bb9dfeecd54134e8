"""Baselines for every model: the most frequent class, and a per-pixel random forest.

A network must beat them on the same pixels to be worth its cost. The forest (Breiman 2001) has 100 trees
with at least 5 samples a leaf; its features are the bands, normalised differences of them, and the 5 x 5
means of all of these; it is trained on at most 400,000 pixels of the training tiles.
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
from cobertes.geo.observation import Observation
from cobertes.geo.windows import Window, plan_strips
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.progress import SILENT, Progress
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import window_of
from cobertes.tiles.split import Part

TREES = 100
SAMPLES_PER_LEAF = 5
TRAINING_PIXELS = 400_000
NEIGHBOURHOOD = 5
MARGIN = NEIGHBOURHOOD // 2
CHUNK = 512
"""Side of the windows in which held-out blocks are predicted, in pixels."""

DIFFERENCES = (("nir", "red"), ("green", "nir"), ("swir1", "nir"))
"""NDVI (Rouse et al. 1974), NDWI (McFeeters 1996), NDBI (Zha et al. 2003), if the bands are known by name."""


def pixel_features(observed: Mapping[str, Observation], bands: Sequence[str]) -> NDArray[np.float32]:
    """Compute features (F, height, width) float32: bands, differences, and the 5 x 5 means of both, per season."""
    layers: list[NDArray[np.float32]] = []
    for season in observed.values():
        valid = season[1]
        exact = np.where(valid, season.converted(0), 0).astype(np.float32)
        shown = [*exact, *(_difference(exact[i], exact[j]) for i, j in _pairs(bands))]
        share = uniform_filter(valid.astype(np.float32), NEIGHBOURHOOD, mode="nearest")
        layers += shown + [_mean_of_observed(layer, share) for layer in shown]
    return np.stack(layers)


def _mean_of_observed(layer: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the observed pixels of each neighbourhood, a ``share`` of it; 0 without any."""
    mean = uniform_filter(layer, NEIGHBOURHOOD, mode="nearest")
    return np.divide(mean, share, out=np.zeros_like(mean), where=share > 0.5 / NEIGHBOURHOOD**2)


def _pairs(bands: Sequence[str]) -> list[tuple[int, int]]:
    position = colour_positions(bands)
    return [(position[a], position[b]) for a, b in DIFFERENCES if a in position and b in position]


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    total = a + b
    return np.divide(a - b, total, out=np.zeros_like(a), where=total != 0)


def train_forest(
    dataset: LabelledDataset, index: Any, *, seed: int = 0, progress: Progress = SILENT
) -> RandomForestClassifier:
    """Fit the forest to a uniform random sample of the training tiles in the tile index."""
    rows = index[index["keep"] & (index["split"] == "train")]
    labelled = rows["counts"].map(sum).to_numpy()
    share = min(1.0, TRAINING_PIXELS / labelled.sum())
    features, targets = [], []
    with progress.bar("forest: pixels", len(rows), "tiles") as advance:
        for number, row in enumerate(rows.itertuples()):
            window = window_of(row)
            # with a narrow guard band, the neighbourhood must not include held-out pixels
            x, y = read_features(dataset, row.area, window, min(MARGIN, dataset.split.guard))
            sampled = np.random.default_rng((seed, number)).random(y.shape) < share
            sampled &= y != IGNORE_INDEX
            features.append(x[:, sampled].T)
            targets.append(y[sampled])
            advance(1)
    forest = RandomForestClassifier(TREES, min_samples_leaf=SAMPLES_PER_LEAF, n_jobs=-1, random_state=seed)
    return forest.fit(np.concatenate(features), np.concatenate(targets))


def evaluate_forest(
    forest: RandomForestClassifier, dataset: LabelledDataset, part: Part, *, progress: Progress = SILENT
) -> BlockMatrices:
    """Evaluate the forest on the blocks of a held-out part: a confusion matrix per block."""
    blocks, classes = held_out_blocks(dataset, part), len(dataset.legend)
    counts = np.zeros((len(blocks), classes, classes), np.int64)
    windows = [
        (number, block.area, planned.interior)
        for number, block in enumerate(blocks)
        for strip in plan_strips(block.window, CHUNK, 0)
        for planned in strip
    ]
    with progress.bar("forest: held-out", len(windows), "windows") as advance:
        for number, name, window in windows:
            x, y = read_features(dataset, name, window, MARGIN)
            known = y != IGNORE_INDEX
            if known.any():
                predicted = np.zeros(y.shape, np.uint8)
                predicted[known] = forest.predict(x[:, known].T)
                counts[number] += ConfusionMatrix.of(y, predicted, classes).counts
            advance(1)
    return BlockMatrices(blocks, counts)


def most_frequent(matrices: BlockMatrices, class_counts: NDArray[np.int64]) -> BlockMatrices:
    """Matrices of a constant prediction of the most frequent training class, on the same pixels as ``matrices``.

    class_counts  (K,) labelled pixels of the training tiles
    """
    counts = np.zeros_like(matrices.counts)
    counts[:, :, int(class_counts.argmax())] = matrices.counts.sum(axis=2)
    return BlockMatrices(matrices.blocks, counts)


def read_features(
    dataset: LabelledDataset, area: str, window: Window, margin: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read features (F, h, w), computed with a margin around the window, and class indices (h, w)."""
    padded = window.pad(margin)
    observed, y = dataset.read_chw(area, padded)
    bands = next(iter(dataset.areas[area].scenes.values())).band_names
    inside = window.slices_in(padded)
    return pixel_features(observed, bands)[:, *inside], y[inside]
