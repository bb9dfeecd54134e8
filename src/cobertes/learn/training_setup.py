"""Setup of a training: dataset, sampler, network, loss and settings brought together from a run's files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.errors import SettingsError
from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend
from cobertes.learn.encoding import Inputs
from cobertes.learn.inference import HeldOut, plan_blocks
from cobertes.learn.losses import Loss, class_weights
from cobertes.learn.pretrained import RANDOM
from cobertes.learn.sampler import Sampler
from cobertes.learn.unet import UNetSettings
from cobertes.settings import AugmentationSettings, ModelSettings, TrainSettings, with_defaults
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part
from cobertes.tiles.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that determines a training, and the fingerprint of it; ``weights`` a backbone starts from."""

    dataset: LabelledDataset
    sampler: Sampler
    inputs: Inputs
    network: UNetSettings
    settings: TrainSettings
    loss: Loss
    fingerprint: str
    weights: str = RANDOM

    @property
    def window(self) -> int:
        """Side in pixels of the largest training window, which is that of validation and prediction too."""
        return max(self.sampler.windows)

    def held_out(self) -> list[HeldOut]:
        """Windows over the validation blocks."""
        return plan_blocks(self.dataset, Part.VALIDATION, self.window, overlap=0)

    def windows_to_read(self) -> dict[str, list[Window]]:
        """Parts of each area that training and validation read."""
        windows = self.sampler.windows_to_read()
        for name, planned in self.held_out():
            windows.setdefault(name, []).append(planned.window)
        return windows

    def with_store(self, store: Store | None) -> "TrainingSetup":
        """Copy of the setup that reads from a tile store."""
        dataset = replace(self.dataset, store=store)
        return replace(self, dataset=dataset, sampler=replace(self.sampler, dataset=dataset))


def network_settings(
    model: ModelSettings, bands: Sequence[str], seasons: Sequence[str], classes: int
) -> UNetSettings:
    """Network settings of a model for scenes of some bands and seasons."""
    channels = len(bands) * (1 if model.seasons == "separate" else len(seasons))
    return UNetSettings(
        channels, classes, model.encoder, model.width, model.depth, tuple(model.decoder), model.upsampling,
        len(seasons) if model.seasons == "shared" else 1, model.architecture,
    )  # fmt: skip


def prepare_training(
    index: Any,
    dataset: LabelledDataset,
    statistics: Statistics,
    *,
    model: ModelSettings,
    train: TrainSettings,
    augmentation: AugmentationSettings,
    tile_size: int,
    fingerprint: str,
) -> TrainingSetup:
    """Build the setup of a training from index, statistics and settings.

    dataset  with the class shares, or the purity, if the settings learn from them
    Raises NoTilesError, LegendError, SettingsError.
    """
    if (train.targets == "fractions" or train.purity_weight) and not dataset.shares:
        raise SettingsError(
            'train.targets = "fractions" and train.purity-weight need files of shares: '
            "LabelledDataset(..., shares=...)"
        )
    train = with_defaults(train, model.encoder, tile_size)
    scene = next(iter(next(iter(dataset.areas.values())).scenes.values()))
    inputs = Inputs.of(statistics, model.seasons, scene)
    network = network_settings(model, inputs.bands, inputs.seasons, len(dataset.legend))
    sampler = Sampler.of(index, dataset, train, train.windows, augmentation)
    tiles = index[index["keep"] & (index["split"] == "train")]
    loss = _loss(train, dataset.legend, statistics, np.array(tiles["counts"].to_list(), np.int64))
    return TrainingSetup(dataset, sampler, inputs, network, train, loss, fingerprint, model.weights)


def _loss(train: TrainSettings, legend: Legend, statistics: Statistics, tile_counts: NDArray[np.int64]) -> Loss:
    """Loss with its class weights, which are logged."""
    kind = train.class_weights
    if isinstance(kind, str):
        weights = class_weights(kind, statistics.class_counts, tile_counts)
    else:
        by_index = {legend.keys.index(legend.find(name).key): weight for name, weight in kind.items()}
        weights = class_weights(by_index, statistics.class_counts, tile_counts)
    if weights is not None:
        listed = ", ".join(f"{key} {weight:.2g}" for key, weight in zip(legend.keys, weights, strict=True))
        log.info("class weights (%s): %s", kind if isinstance(kind, str) else "by hand", listed)
    return build_loss(train, None if weights is None else torch.from_numpy(weights))


def build_loss(train: TrainSettings, class_weights: Tensor | None = None) -> Loss:
    """Loss of these settings; ``class_weights`` (K,) or None."""
    terms = {train.loss: 1.0} if isinstance(train.loss, str) else train.loss
    named = {str(name): weight for name, weight in terms.items()}
    return Loss(named, class_weights, train.focal_gamma, train.label_smoothing)
