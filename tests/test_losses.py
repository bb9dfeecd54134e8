"""The losses beside their formulas written out in numpy, and what must never reach them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.losses import CROSS_ENTROPY, TERMS, Loss, class_weights

CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.5])
LOSSES = {
    **{name: Loss({name: 1.0}) for name in TERMS},
    "weighted": Loss({"cross-entropy": 1.0}, WEIGHTS),
    "smooth": Loss({"cross-entropy": 1.0}, smoothing=0.1),
    "sum": Loss({"cross-entropy": 1.0, "dice": 0.5, "lovasz": 2.0}, WEIGHTS, smoothing=0.1),
}


def example(seed=0, ignored=0.3, shape=(2, 5, 7)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(shape[0], CLASSES, *shape[1:])).astype(np.float32)
    target = rng.integers(0, CLASSES, shape)
    target[rng.random(shape) < ignored] = IGNORE_INDEX
    return torch.from_numpy(logits), torch.from_numpy(target)


def shares(seed=0, ignored=0.3, shape=(2, 5, 7)):
    """Targets as the share of each class in a pixel, 0 throughout where nothing is known."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.full(CLASSES, 0.5), shape)
    q[rng.random(shape) < ignored] = 0
    return torch.from_numpy(np.moveaxis(q, -1, 1).astype(np.float32))


def pixels_of(logits, target):
    """Probabilities and targets (N, K) of the valid pixels, in float64."""
    p = logits.double().softmax(dim=1).permute(0, 2, 3, 1).numpy()
    if target.dim() == 3:
        valid = target.numpy() != IGNORE_INDEX
        return p[valid], np.eye(CLASSES)[target.numpy()[valid]]
    q = target.permute(0, 2, 3, 1).double().numpy()
    valid = q.sum(-1) > 0
    return p[valid], q[valid] / q[valid].sum(-1, keepdims=True)


def iou_losses(wrong, truth):
    """1 - IoU of a class if the pixels ``wrong`` were predicted otherwise than they are."""
    predicted = truth ^ wrong
    return 1 - (truth & predicted).sum() / max(1, (truth | predicted).sum())


def brute(name, p, q, weights, gamma=2.0):
    """The loss of valid pixels, formula by formula."""
    weights = np.ones(CLASSES) if weights is None else weights.double().numpy()
    if name in ("cross-entropy", "focal"):
        unknown = (1 - p) ** gamma if name == "focal" else 1
        return -(q * weights * unknown * np.log(p)).sum() / (q * weights).sum()
    there = q.sum(0) > 0
    if name == "dice":
        return np.mean(
            [1 - 2 * (p[:, k] * q[:, k]).sum() / (p[:, k] + q[:, k]).sum() for k in np.flatnonzero(there)]
        )
    found = []
    labelled = np.eye(CLASSES)[q.argmax(1)]
    for k in np.flatnonzero(labelled.any(0)):
        truth = labelled[:, k].astype(bool)
        errors = abs(labelled[:, k] - p[:, k])
        order = np.argsort(-errors)
        total = 0.0  # the Lovász extension: errors in falling order, each with the step it adds
        sets = [np.isin(np.arange(len(p)), order[:n]) for n in range(len(p) + 1)]
        steps = [iou_losses(after, truth) - iou_losses(before, truth) for before, after in pairwise(sets)]
        total = (errors[order] * steps).sum()
        found.append(total)
    return np.mean(found)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", [example, shares])
def test_a_loss_is_its_formula_over_the_labelled_pixels(name, weights, kind):
    logits, _ = example()
    target = kind(seed=1) if kind is shares else kind()[1]
    total, weight = Loss({name: 1.0}, weights)(logits, target)
    p, q = pixels_of(logits, target)
    expected = (q * (1 if weights is None else weights.numpy())).sum()
    assert float(weight) == pytest.approx(expected, rel=1e-5)
    assert float(total / weight) == pytest.approx(brute(name, p, q, weights), rel=1e-4)


def test_several_losses_are_added_with_their_weights():
    logits, target = example()
    p, q = pixels_of(logits, target)
    total, weight = Loss({"cross-entropy": 0.7, "dice": 0.2, "lovasz": 3.0})(logits, target)
    expected = 0.7 * brute("cross-entropy", p, q, None) + 0.2 * brute("dice", p, q, None)
    assert float(total / weight) == pytest.approx(expected + 3 * brute("lovasz", p, q, None), rel=1e-4)


def test_a_focal_loss_without_gamma_is_the_cross_entropy():
    logits, target = example()
    one, other = (Loss({name: 1.0}, WEIGHTS, gamma=0.0)(logits, target)[0] for name in ("focal", "cross-entropy"))
    assert float(one) == pytest.approx(float(other), rel=1e-6)


def test_smoothing_brings_no_absent_class_into_the_dice_loss():
    logits = torch.zeros(1, CLASSES, 4, 4)
    target = torch.ones(1, 4, 4, dtype=torch.int64)
    found = []
    for smoothing in (0.0, 0.2):
        total, weight = Loss({"dice": 1.0}, smoothing=smoothing)(logits, target)
        q = (1 - smoothing) + smoothing / CLASSES
        found.append(float(total / weight))
        assert found[-1] == pytest.approx(1 - 2 * 0.25 * q / (0.25 + q), rel=1e-5)
    assert found[0] != found[1]


def test_smoothing_spreads_a_share_of_every_label():
    logits, target = example()
    p, q = pixels_of(logits, target)
    total, weight = Loss({"cross-entropy": 1.0}, smoothing=0.2)(logits, target)
    assert float(total / weight) == pytest.approx(brute("cross-entropy", p, 0.8 * q + 0.05, None), rel=1e-5)


@pytest.mark.parametrize("name", ["cross-entropy", "focal", "dice"])
def test_a_pixel_of_weight_two_counts_as_two(name):
    logits, target = example(shape=(1, 4, 6))
    weight = torch.ones(1, 4, 6)
    weight[:, :2] = 2
    twice = torch.cat([logits, logits[:, :, :2]], dim=2), torch.cat([target, target[:, :2]], dim=1)
    one, other = Loss({name: 1.0})(logits, target, weight), Loss({name: 1.0})(*twice)
    for a, b in zip(one, other, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-5)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 0.1, 1.5])])
def test_batches_add_up_to_the_mean_of_all_their_pixels(weights):
    loss = Loss({"cross-entropy": 1.0}, weights)
    logits, target = example(ignored=0.0, shape=(6, 4, 4))
    target[:2] = IGNORE_INDEX  # so that the mean of the batches' means would be another number
    target[2, :3] = IGNORE_INDEX
    parts = [loss(logits[i : i + 2], target[i : i + 2]) for i in (0, 2, 4)]
    whole, weight = loss(logits, target)
    assert float(sum(t for t, _ in parts) / sum(w for _, w in parts)) == pytest.approx(float(whole / weight))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("kind", ["labels", "shares"])
def test_pixels_without_label_change_neither_loss_nor_gradient(loss, kind):
    logits, target = example()
    ignored = target == IGNORE_INDEX
    if kind == "shares":
        target = shares()
        ignored = target.sum(dim=1) == 0
    other = torch.where(ignored[:, None], 1e4, logits)
    found = []
    for x in (logits.clone().requires_grad_(), other.clone().requires_grad_()):
        total, weight = loss(x, target)
        (total / weight).backward()
        found.append((float(total.detach()), float(weight), x.grad))
    assert found[0][:2] == found[1][:2]
    labelled = (~ignored)[:, None].expand_as(logits)
    assert torch.equal(found[0][2][labelled], found[1][2][labelled])
    assert not found[0][2][~labelled].any()
    assert found[0][2][labelled].any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_batch_without_labels_is_zero_of_zero(loss):
    logits, target = example(ignored=1.1)
    logits.requires_grad_()
    total, weight = loss(logits, target)
    total.backward()
    assert (float(total.detach()), float(weight)) == (0, 0)
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_every_loss_falls_along_its_own_gradient(loss):
    logits, target = example()
    x = logits.clone().requires_grad_()
    total, weight = loss(x, target)
    (total / weight).backward()
    after, _ = loss(logits - 1e-2 * x.grad / x.grad.norm(), target)
    assert float(after) < float(total.detach())


def test_half_precision_logits_are_summed_in_full_precision():
    logits, target = example(ignored=0.0, shape=(4, 64, 64))
    total, weight = CROSS_ENTROPY(logits.bfloat16(), target)
    assert total.dtype == torch.float32
    expected = brute("cross-entropy", *pixels_of(logits.bfloat16(), target), None)
    assert float(total / weight) == pytest.approx(expected, rel=1e-5)


# --- class weights -----------------------------------------------------------------------------------------

COUNTS = np.array([1000, 10, 0, 100])
TILES = np.array([[500, 10, 0, 0], [500, 0, 0, 100]])


@pytest.mark.parametrize(
    ("kind", "ratios"),
    [
        ("ins", [1 / 1000, 1 / 10, 1 / 100]),
        ("sqrt-ins", [1000**-0.5, 10**-0.5, 100**-0.5]),
        # each class's share in the tiles that hold it
        ("median-frequency", [1110 / 1000, 510 / 10, 600 / 100]),
        ("effective-number", [1 / (1 - 0.9999**n) for n in (1000, 10, 100)]),
        ({1: 3.0}, [1, 3, 1]),
    ],
)
def test_class_weights_have_mean_1_over_the_classes_that_occur(kind, ratios):
    weights = class_weights(kind, COUNTS, TILES)
    assert weights.dtype == np.float32
    assert weights[2] == 0
    assert weights[[0, 1, 3]].mean() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(weights[[0, 1, 3]] / weights[0], np.array(ratios) / ratios[0], rtol=1e-5)


def test_no_weights_are_none_and_of_nothing_zero():
    assert class_weights("none", COUNTS, TILES) is None
    assert class_weights("ins", np.zeros(3, np.int64), np.zeros((1, 3), np.int64)).tolist() == [0, 0, 0]
    assert class_weights({0: 0.0}, np.array([5]), np.array([[5]])).tolist() == [0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
def test_rarer_classes_never_weigh_less(counts):
    counts = np.array(counts)
    for kind in ("ins", "sqrt-ins", "effective-number"):
        weights = class_weights(kind, counts, counts[None])
        assert np.isfinite(weights).all()
        order = np.argsort(counts[counts > 0])
        assert (np.diff(weights[counts > 0][order]) <= 1e-6 * weights.max()).all()
