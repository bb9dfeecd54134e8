"""What is to be trained on what: index, ground, statistics and settings brought together."""

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
class TrainingPlan:
    """What is trained on what: network, ground, how, and the fingerprint of all of it."""

    ground: LabelledDataset
    sampler: Sampler
    inputs: Inputs
    network: UNetSettings
    settings: TrainSettings
    loss: Loss
    fingerprint: str
    weights: str = RANDOM

    @property
    def window(self) -> int:
        """Side of the largest training window in pixels, which validation and prediction take too."""
        return max(self.sampler.windows)

    def held_out(self) -> list[HeldOut]:
        """The windows over the validation blocks."""
        return plan_blocks(self.ground, Part.VALIDATION, self.window, overlap=0)

    def feeding_windows(self) -> dict[str, list[Window]]:
        """By area, the ground that training and validation read."""
        windows = self.sampler.ground_windows()
        for name, planned in self.held_out():
            windows.setdefault(name, []).append(planned.window)
        return windows

    def reading(self, store: Store | None) -> "TrainingPlan":
        """The same plan, fed from a store."""
        ground = replace(self.ground, store=store)
        return replace(self, ground=ground, sampler=replace(self.sampler, ground=ground))


def network_settings(
    model: ModelSettings, bands: Sequence[str], seasons: Sequence[str], classes: int
) -> UNetSettings:
    """The network of these settings for scenes of some bands and seasons."""
    channels = len(bands) * (1 if model.seasons == "separate" else len(seasons))
    return UNetSettings(
        channels, classes, model.encoder, model.width, model.depth, tuple(model.decoder), model.upsampling,
        len(seasons) if model.seasons == "shared" else 1, model.architecture,
    )  # fmt: skip


def plan_training(
    index: Any,
    ground: LabelledDataset,
    statistics: Statistics,
    *,
    model: ModelSettings,
    train: TrainSettings,
    augmentation: AugmentationSettings,
    tile_size: int,
    fingerprint: str,
) -> TrainingPlan:
    """Bring index, statistics and settings together.

    ground   with the shares of classes, or the purity, where the settings ask to learn from them
    Raises NoTilesError, LegendError, SettingsError.
    """
    if (train.targets == "fractions" or train.purity_weight) and not ground.shares:
        raise SettingsError(
            'train.targets = "fractions" and train.purity-weight need files of shares: '
            "LabelledDataset(..., shares=...)"
        )
    train = with_defaults(train, model.encoder, tile_size)
    inputs = Inputs.of(statistics, model.seasons)
    network = network_settings(model, inputs.bands, inputs.seasons, len(ground.legend))
    sampler = Sampler.of(index, ground, train, train.windows, augmentation)
    tiles = index[index["keep"] & (index["split"] == "train")]
    loss = _loss(train, ground.legend, statistics, np.array(tiles["counts"].to_list(), np.int64))
    return TrainingPlan(ground, sampler, inputs, network, train, loss, fingerprint, model.weights)


def _loss(train: TrainSettings, legend: Legend, statistics: Statistics, tile_counts: NDArray[np.int64]) -> Loss:
    """What is learnt by; class weights are told."""
    asked = train.class_weights
    if isinstance(asked, str):
        weights = class_weights(asked, statistics.class_counts, tile_counts)
    else:
        by_index = {legend.keys.index(legend.find(name).key): weight for name, weight in asked.items()}
        weights = class_weights(by_index, statistics.class_counts, tile_counts)
    if weights is not None:
        told = ", ".join(f"{key} {weight:.2g}" for key, weight in zip(legend.keys, weights, strict=True))
        log.info("class weights (%s): %s", asked if isinstance(asked, str) else "by hand", told)
    return loss_of(train, None if weights is None else torch.from_numpy(weights))


def loss_of(train: TrainSettings, class_weights: Tensor | None = None) -> Loss:
    """The loss of these settings; ``class_weights`` (K,) or None."""
    terms = {train.loss: 1.0} if isinstance(train.loss, str) else train.loss
    named = {str(name): weight for name, weight in terms.items()}
    return Loss(named, class_weights, train.focal_gamma, train.label_smoothing)
