"""The exponential moving average of weights: its formula, and that resuming does not lose it."""

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
    ema = EMA(model, 0.9)
    weight, mean = model[0].weight.clone(), torch.zeros(2)
    for step in range(1, 120):
        changed(model, float(step))
        ema.update()
        keep = min(0.9, step / (step + 9))  # 0.1, 0.18 ... 0.9 from step 81 on
        weight, mean = keep * weight + (1 - keep) * step, keep * mean + (1 - keep) * step
        torch.testing.assert_close(ema.model[0].weight, weight)
        torch.testing.assert_close(ema.model[1].running_mean, mean)
        assert int(ema.model[1].num_batches_tracked) == step


def test_without_decay_it_is_the_model_itself():
    model = net()
    ema = EMA(model, 0.0)
    changed(model, 3.3)
    ema.update()
    for name, value in model.state_dict().items():
        assert torch.equal(ema.model.state_dict()[name], value), name


def test_it_goes_on_from_a_checkpoint_exactly():
    model = net()
    one, other = EMA(model, 0.99), EMA(net(), 0.99)
    for step in range(5):
        changed(model, float(step))
        one.update()
    other.load_state_dict(one.state_dict())
    other.source = model
    changed(model, 9.0)
    for ema in (one, other):
        ema.update()
    assert torch.equal(one.model[0].weight, other.model[0].weight)
    assert one.updates == other.updates == 6


def test_it_neither_learns_nor_uses_batch_statistics():
    ema = EMA(net(), 0.9)
    before = {name: value.clone() for name, value in ema.model.state_dict().items()}
    x = torch.linspace(-3, 9, 64).reshape(4, 1, 4, 4)
    both, alone = ema.model(x), ema.model(x[:1])
    assert not both.requires_grad
    torch.testing.assert_close(both[:1], alone)  # a sample does not depend on the others in its batch
    for name, value in ema.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    changed(ema.source, 7.0)
    for name, value in ema.model.state_dict().items():
        assert torch.equal(value, before[name]), name
