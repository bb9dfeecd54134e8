"""The running average of weights: what it is, and that resuming does not lose it."""

import pytest
import torch
from torch import nn

from cobertes.learn.ema import EMA


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def changed(model, value):
    with torch.no_grad():
        model[0].weight.fill_(value)
        model[1].running_mean.fill_(value)
        model[1].num_batches_tracked += 1


def test_the_average_follows_its_formula():
    model = net()
    average = EMA(model, 0.9)
    expected = model[0].weight.clone()
    for step in range(1, 200):
        changed(model, float(step))
        average.update()
        keep = min(0.9, step / (step + 9))
        expected = keep * expected + (1 - keep) * step
    torch.testing.assert_close(average.model[0].weight, expected)
    torch.testing.assert_close(average.model[1].running_mean, expected.ravel()[:2])
    assert int(average.model[1].num_batches_tracked) == 199


def test_without_decay_it_is_the_model_itself():
    model = net()
    average = EMA(model, 0.0)
    changed(model, 3.3)
    average.update()
    for name, value in model.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], value), name


def test_it_goes_on_from_a_checkpoint_exactly():
    model = net()
    one, other = EMA(model, 0.99), EMA(net(), 0.99)
    for step in range(5):
        changed(model, float(step))
        one.update()
    other.load_state_dict(one.state_dict())
    other.source = model
    changed(model, 9.0)
    for average in (one, other):
        average.update()
    assert torch.equal(one.model[0].weight, other.model[0].weight)
    assert one.updates == other.updates == 6


def test_it_neither_learns_nor_uses_batch_statistics():
    average = EMA(net(), 0.9)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert average.model[0].weight.data_ptr() != average.source[0].weight.data_ptr()
    assert float(average.model[1].running_var.mean()) == pytest.approx(1.0)
