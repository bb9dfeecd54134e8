"""Every network with every loss learns a tile by heart, from gradients that reach all of it, in any window."""

from itertools import product

import numpy as np
import pytest
import torch

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.errors import SettingsError
from cobertes.learn.architectures import build_network
from cobertes.learn.batch_size import POOLING, choose_step, training_step
from cobertes.learn.devices import make_fabric
from cobertes.learn.losses import CROSS_ENTROPY, Loss
from cobertes.learn.unet import UNetSettings
from cobertes.settings import TrainSettings

NETWORKS = {
    "scratch": ("unet", "scratch"),
    "resnet18": ("unet", "resnet18"),
    "resnet50": ("unet", "resnet50"),
    "efficientnet_b0": ("unet", "efficientnet_b0"),
    "unet++": ("unet++", "resnet18"),
    "deeplabv3+": ("deeplabv3+", "resnet18"),
    "segformer": ("segformer", "resnet18"),
}
LOSSES = {
    "cross-entropy": Loss({"cross-entropy": 1.0}),
    "focal": Loss({"focal": 1.0}),
    "dice": Loss({"dice": 1.0}),
    "lovasz": Loss({"lovasz": 1.0}),
    "smooth": Loss({"cross-entropy": 1.0}, smoothing=0.1),
    "weighted": Loss({"cross-entropy": 1.0}, torch.tensor([0.5, 2.0, 0.5])),
    "sum": Loss({"cross-entropy": 1.0, "dice": 1.0}),
}
SIDE, CLASSES = 64, 3
CPU = TrainSettings(precision="fp32", device="cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def network(name, channels=3):
    architecture, encoder = NETWORKS[name]
    return build_network(UNetSettings(channels, CLASSES, encoder, 8, 2, architecture=architecture))


def fast(name, loss):
    """Pairs of under 8 s on one thread that together show every network and every loss."""
    return name == "scratch" or (loss == "cross-entropy" and name != "resnet50")


PAIRS = [
    pytest.param(name, loss, marks=() if fast(name, loss) else pytest.mark.slow)
    for name, loss in product(NETWORKS, LOSSES)
]


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_a_tile_is_learnt_by_heart(name, loss):
    rng = np.random.default_rng(0)
    target = torch.from_numpy(np.kron(rng.integers(0, CLASSES, (4, 4)), np.ones((16, 16), int))[None])
    x = torch.nn.functional.one_hot(target, CLASSES).movedim(-1, 1).float() + 0.7 * torch.randn(1, 3, SIDE, SIDE)
    if name in POOLING:  # the same tile twice
        x, target = x.repeat(2, 1, 1, 1), target.repeat(2, 1, 1)
    model = network(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    iou = []
    while len(iou) < 200 and not (iou and iou[-1] > 0.99):
        logits = model(x)
        total, weight = LOSSES[loss](logits, target)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        iou.append(ConfusionMatrix.of(target.numpy(), logits.argmax(dim=1).numpy(), CLASSES).iou.min())
    assert iou[0] < 0.9
    assert iou[-1] > 0.99, f"{iou[-1]:.3f} after {len(iou)} steps"


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_weight(name):
    model = network(name)
    x, target = torch.randn(2, 3, SIDE, SIDE), torch.randint(CLASSES, (2, SIDE, SIDE))
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(
        2
    ):  # timm's residual branches begin with a factor of 0: behind it gradients come from step 2 on
        optimizer.zero_grad()
        total, weight = CROSS_ENTROPY(model(x), target)
        (total / weight).backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in model.parameters())
        if step:
            assert [key for key, p in model.named_parameters() if not p.grad.any()] == []
        optimizer.step()


@pytest.mark.parametrize("side", [1, 31, 300, 513])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_window_comes_back_in_its_size(name, side):
    model = network(name, channels=20).eval()
    with torch.inference_mode():
        logits = model(torch.randn(1, 20, side, side))
    assert logits.shape == (1, CLASSES, side, side)
    assert logits.isfinite().all()


@pytest.mark.parametrize("side", [1, 31, 65])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_window_is_learnt_from_in_a_batch_of_two(name, side):
    model = network(name)
    assert choose_step(CPU, model, CROSS_ENTROPY, sides=[side], samples=2).batch == 2
    training_step(make_fabric("cpu", "fp32"), model, CPU, CROSS_ENTROPY, 2, side)()


@pytest.mark.parametrize("side", [1, 31, 65])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_one_is_learnt_from_or_refused_with_the_way_out(name, side):
    model = network(name)
    if name in POOLING:
        message = (
            rf"{name.replace('+', '[+]')} pools a whole window to one pixel, .* Use a larger train.batch-size"
        )
    elif side <= model.stride:
        message = rf"window of {side} px is one pixel .*1/{model.stride}.*train.window over {model.stride} px"
    else:
        training_step(make_fabric("cpu", "fp32"), model, CPU, CROSS_ENTROPY, 1, side)()
        return
    with pytest.raises(SettingsError, match=message):
        choose_step(CPU, model, CROSS_ENTROPY, sides=[side], samples=1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # so it is refused for a reason
        training_step(make_fabric("cpu", "fp32"), model, CPU, CROSS_ENTROPY, 1, side)()
