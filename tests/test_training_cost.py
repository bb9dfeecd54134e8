"""What a training will take: measured steps, and the sums that follow from them."""

from dataclasses import replace

import pytest
import torch

from cobertes.learn.architectures import build_network, count_parameters
from cobertes.learn.training_cost import TrainingCost, estimate_training
from cobertes.learn.unet import UNetSettings
from cobertes.settings import TrainSettings

NETWORK = UNetSettings(4, 3, "scratch", 4, 2)

KNOWN = TrainingCost(
    "unet", "resnet50", 32_500_000, "cpu", "bf16", "bf16 runs at 2.10 x fp32 here", 300, 12,
    "as set", 2900, 242, 700, 1.0, 100, None,
    step_seconds=2.0, validation_seconds=0.5, memory_bytes=6_400_000_000, disk_bytes=1_300_000_000,
)  # fmt: skip


@pytest.mark.parametrize("minutes", [None, 1.0])
def test_steps_are_measured_on_the_network_itself(minutes):
    torch.set_num_threads(1)
    train = TrainSettings(epochs=7, batch_size=4, minutes=minutes, precision="fp32", device="cpu")
    found = estimate_training(NETWORK, train, window=16, windows=30, held_out=9)
    assert (found.batch, found.steps, found.epochs, found.precision) == (4, 8, 7, "fp32")
    assert found.parameters == count_parameters(build_network(NETWORK))
    assert 0 < found.validation_seconds < found.step_seconds < 5
    assert found.epoch_seconds == pytest.approx(8 * found.step_seconds + 3 * found.validation_seconds)
    assert found.seconds == pytest.approx(min(7 * found.epoch_seconds, 60 if minutes else 1e9))
    assert found.memory_bytes > 100e6
    assert found.to_dict()["seconds"] == found.seconds


def test_validation_counts_as_often_as_it_is_done():
    one = replace(KNOWN, validations=2 / 5)  # two seasons by themselves, every five epochs
    assert one.epoch_seconds == pytest.approx(242 * 2.0 + 0.4 * 59 * 0.5)
    train = TrainSettings(validate_every=5, batch_size=4, precision="fp32", device="cpu")
    assert estimate_training(NETWORK, train, window=16, windows=8, held_out=4, passes=2).validations == 0.4


def test_it_is_told_in_the_units_people_use():
    text = "\n".join(KNOWN.lines())
    for part in (
        "U-Net, encoder resnet50, 32.5 million", "12 windows of 300 px: 2.00 s (0.54 Mpx/s) on cpu in bf16",
        "6.4 GB of memory", "2,900 windows in 242 steps, then 700 held-out ones: 9 min", "100 epochs at most: 14.3 h",
        "1.30 GB for checkpoints",
    ):  # fmt: skip
        assert part in text
    assert "or the 20 minutes that are set" in "\n".join(replace(KNOWN, minutes=20).lines())
