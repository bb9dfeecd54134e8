"""The loss: a sum and the weight it is divided by, beside the formula written out in numpy."""

import numpy as np
import pytest
import torch

from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.losses import cross_entropy, ins_weights

CLASSES = 4


def example(seed=0, ignored=0.3, shape=(2, 5, 7)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(shape[0], CLASSES, *shape[1:])).astype(np.float32)
    target = rng.integers(0, CLASSES, shape)
    target[rng.random(shape) < ignored] = IGNORE_INDEX
    return torch.from_numpy(logits), torch.from_numpy(target)


def brute(logits, target, weights=None):
    """Sum of weight * -log softmax, and sum of weights, pixel by pixel."""
    weights = np.ones(CLASSES) if weights is None else weights.numpy()
    total = weight = 0.0
    for b, row, col in np.argwhere(target.numpy() != IGNORE_INDEX):
        scores, k = logits[b, :, row, col].double().numpy(), int(target[b, row, col])
        total += weights[k] * (np.log(np.exp(scores).sum()) - scores[k])
        weight += weights[k]
    return total, weight


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 0.0, 1.5])])
def test_the_loss_is_the_sum_over_labelled_pixels_and_their_weight(weights):
    logits, target = example()
    total, weight = cross_entropy(logits, target, weights)
    expected = brute(logits, target, weights)
    assert (float(total), float(weight)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 0.1, 1.5])])
def test_batches_add_up_to_the_mean_of_all_their_pixels(weights):
    logits, target = example(ignored=0.0, shape=(6, 4, 4))
    target[:2] = IGNORE_INDEX  # so that the mean of the batches' means would be another number
    target[2, :3] = IGNORE_INDEX
    parts = [cross_entropy(logits[i : i + 2], target[i : i + 2], weights) for i in (0, 2, 4)]
    whole, weight = cross_entropy(logits, target, weights)
    assert float(sum(t for t, _ in parts) / sum(w for _, w in parts)) == pytest.approx(float(whole / weight))


def test_pixels_without_label_change_neither_loss_nor_gradient():
    logits, target = example()
    other = torch.where((target == IGNORE_INDEX)[:, None], 1e4, logits)
    found = []
    for x in (logits.clone().requires_grad_(), other.clone().requires_grad_()):
        total, weight = cross_entropy(x, target)
        (total / weight).backward()
        found.append((float(total.detach()), float(weight), x.grad))
    assert found[0][:2] == found[1][:2]
    labelled = (target != IGNORE_INDEX)[:, None].expand_as(logits)
    assert torch.equal(found[0][2][labelled], found[1][2][labelled])
    assert not found[0][2][~labelled].any()
    assert found[0][2][labelled].all()


@pytest.mark.parametrize("weights", [None, torch.ones(CLASSES)])
def test_a_batch_without_labels_is_zero_of_zero(weights):
    logits, target = example(ignored=1.1)
    logits.requires_grad_()
    total, weight = cross_entropy(logits, target, weights)
    total.backward()
    assert (float(total.detach()), float(weight)) == (0, 0)
    assert not logits.grad.any()


def test_half_precision_logits_are_summed_in_full_precision():
    logits, target = example(ignored=0.0, shape=(4, 64, 64))
    total, _ = cross_entropy(logits.bfloat16(), target)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(brute(logits.bfloat16(), target)[0], rel=1e-5)


def test_ins_weights_are_inverse_counts_with_mean_1_over_classes_that_occur():
    weights = ins_weights(np.array([1000, 10, 0, 100]))
    assert weights.dtype == np.float32
    assert weights[2] == 0
    assert weights[[0, 1, 3]].mean() == pytest.approx(1)
    np.testing.assert_allclose(weights[[0, 1, 3]] * [1000, 10, 100], weights[0] * 1000, rtol=1e-6)


def test_ins_weights_of_nothing_are_zero():
    assert ins_weights(np.zeros(3, np.int64)).tolist() == [0, 0, 0]
