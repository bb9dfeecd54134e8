"""The loss, and the class weights in it."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cobertes.labels.legend import IGNORE_INDEX


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the pixels' cross-entropy, and the weight it is to be divided by.

    logits   (B, K, H, W); target (B, H, W) int64, IGNORE_INDEX where nothing is to be learnt
    weights  (K,) or None
    returns  (sum, weight), both scalars: sum / weight is the mean over valid pixels, also after adding up
             several batches; a batch without a valid pixel gives (0, 0)
    """
    total = F.cross_entropy(logits.float(), target, weight=weights, ignore_index=IGNORE_INDEX, reduction="sum")
    valid = target[target != IGNORE_INDEX]
    weight = (
        weights[valid].sum() if weights is not None else torch.tensor(float(valid.numel()), device=logits.device)
    )
    return total, weight


def ins_weights(class_counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inverse number of samples: (K,) float32, mean 1 over the classes that occur, 0 for the others."""
    occurs = class_counts > 0
    inverse = np.divide(1.0, class_counts, out=np.zeros(len(class_counts)), where=occurs)
    return np.asarray(inverse / inverse[occurs].mean() if occurs.any() else inverse, np.float32)
