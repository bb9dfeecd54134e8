"""Losses over labelled pixels, and the class weights in them.

    cross-entropy   -log p of the labelled class
    focal           the same times (1 - p)^gamma: well-classified pixels count less (Lin et al. 2017, ICCV)
    dice            1 - 2 sum(p q) / sum(p + q), mean over the classes present (Milletari et al. 2016, 3DV)
    lovasz          a convex surrogate of 1 - IoU, mean over the classes present (Berman et al. 2018, CVPR)

p are the probabilities of a pixel (K,), q its target: 1 for the labelled class, or the share of each class. Pixels
without a target are removed first, so they contribute neither to a loss nor to a gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cobertes.labels.legend import IGNORE_INDEX

EFFECTIVE_BETA = 0.9999
"""Beta of the effective number of samples: the largest value in Cui et al. (2019)."""


@dataclass(frozen=True)
class Loss:
    """Weighted sum of losses.

    ``terms`` weight by name, as in `TERMS`; ``class_weights`` (K,) or None, of cross-entropy and focal;
    ``gamma`` of the focal loss; ``smoothing`` share of the target that is spread over all classes.
    """

    terms: Mapping[str, float]
    class_weights: Tensor | None = None
    gamma: float = 2.0
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss times the weight of its pixels, and that weight.

        logits  (B, K, H, W)
        target  (B, H, W) int64, IGNORE_INDEX for pixels without a target; or class shares (B, K, H, W),
                0 throughout for pixels without a target
        weight  (B, H, W) of pixels, or None; lovasz ranks pixels and does not take it
        returns (sum, weight), both scalars: sum / weight is the loss, also after adding up several batches (of
                dice and lovasz, the mean over the batches); a batch without a valid pixel gives (0, 0)
        """
        valid = target != IGNORE_INDEX if target.dim() == 3 else target.sum(dim=1) > 0
        scores = logits.permute(0, 2, 3, 1)[valid].float()
        if target.dim() == 3:
            q = F.one_hot(target[valid], logits.shape[1]).to(scores)
        else:
            q = target.permute(0, 2, 3, 1)[valid].to(scores)
            q = q / q.sum(dim=1, keepdim=True)
        present = q.sum(dim=0) > 0
        pixel_weight = torch.ones_like(scores[:, 0]) if weight is None else weight[valid].to(scores)
        if self.smoothing:
            q = (1 - self.smoothing) * q + self.smoothing / q.shape[1]
        classes = scores.new_ones(logits.shape[1]) if self.class_weights is None else self.class_weights.to(scores)
        pixels = Pixels(scores.log_softmax(dim=1), q, pixel_weight, classes, present)
        total = pixels.weight()
        if not total:  # nothing to learn from, or classes of weight 0 alone
            return scores.sum() * 0, total
        value = sum(share * TERMS[name](pixels, self.gamma) for name, share in self.terms.items())
        return value * total, total


@dataclass(frozen=True)
class Pixels:
    """Valid pixels, flattened.

    ``logp`` and targets ``q`` (N, K), ``pixel_weight`` (N,), weights of ``classes`` (K,); ``present`` (K,) bool,
    before label smoothing
    """

    logp: Tensor
    q: Tensor
    pixel_weight: Tensor
    classes: Tensor
    present: Tensor

    def weight(self) -> Tensor:
        """Total weight of the pixels and their classes."""
        return (self.q @ self.classes) @ self.pixel_weight


def _cross_entropy(pixels: Pixels, gamma: float) -> Tensor:
    each = -(pixels.q * pixels.classes * pixels.logp).sum(dim=1)
    return each @ pixels.pixel_weight / pixels.weight()


def _focal(pixels: Pixels, gamma: float) -> Tensor:
    modulation = (1 - pixels.logp.exp()).clamp(min=0) ** gamma
    each = -(pixels.q * pixels.classes * modulation * pixels.logp).sum(dim=1)
    return each @ pixels.pixel_weight / pixels.weight()


def _dice(pixels: Pixels, gamma: float) -> Tensor:
    p, importance = pixels.logp.exp(), pixels.pixel_weight[:, None]
    both, either = (p * pixels.q * importance).sum(dim=0), ((p + pixels.q) * importance).sum(dim=0)
    return (1 - 2 * both[pixels.present] / either[pixels.present]).mean()


def _lovasz(pixels: Pixels, gamma: float) -> Tensor:
    labelled = F.one_hot(pixels.q.argmax(dim=1), pixels.q.shape[1])
    present = labelled.any(dim=0)
    truth = labelled[:, present].to(pixels.logp)
    errors, order = (truth - pixels.logp[:, present].exp()).abs().sort(dim=0, descending=True)
    truth = truth.gather(0, order)
    # 1 - IoU of a class if the first n pixels, by error, were wrong; its steps are the weights of the errors
    count = truth.sum(dim=0)
    loss = 1 - (count - truth.cumsum(dim=0)) / (count + (1 - truth).cumsum(dim=0))
    steps = torch.cat([loss[:1], loss[1:] - loss[:-1]])
    return (errors * steps).sum(dim=0).mean()


TERMS: Mapping[str, Callable[[Pixels, float], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "focal": _focal,
    "dice": _dice,
    "lovasz": _lovasz,
}


CROSS_ENTROPY = Loss({"cross-entropy": 1.0})
"""Loss of every validation, whatever the training's."""


def class_weights(
    kind: str | Mapping[int, float], class_counts: NDArray[np.int64], tile_counts: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Class weights (K,) float32, mean 1 over the classes that occur, 0 for the others; None for ``none``.

    kind          none; ins, inverse number of samples; sqrt-ins, its square root; median-frequency, inverse of a
                  class's share in the tiles that contain it (Eigen & Fergus 2015, ICCV); effective-number (Cui et
                  al. 2019, CVPR); or weights by class index, 1 for classes left out
    class_counts  (K,) pixels of the training tiles, each counted once
    tile_counts   (n, K) pixels of the training tiles
    """
    if kind == "none":
        return None
    occurs = class_counts > 0
    counts = np.where(occurs, class_counts, 1).astype(float)
    match kind:
        case "ins":
            weights = 1 / counts
        case "median-frequency":  # the median itself is a factor, which the mean of 1 cancels
            in_tiles = (tile_counts.sum(axis=1, keepdims=True) * (tile_counts > 0)).sum(axis=0)
            weights = in_tiles / counts
        case "sqrt-ins":
            weights = 1 / np.sqrt(counts)
        case "effective-number":
            weights = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**counts)
        case str():
            raise ValueError(f"no class weights '{kind}'")
        case _:
            weights = np.array([kind.get(k, 1.0) for k in range(len(counts))])
    weights = np.where(occurs, weights, 0.0)
    mean = weights[occurs].mean() if occurs.any() else 0.0
    return np.asarray(weights / mean if mean else weights, np.float32)
