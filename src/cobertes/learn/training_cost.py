"""What a training will take, before it starts: a few real steps are made and timed, on random input."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cobertes.learn.architectures import build_network, count_parameters
from cobertes.learn.batch_size import choose_step, training_step
from cobertes.learn.devices import make_fabric, memory_format, peak_memory, synchronize
from cobertes.learn.training_setup import loss_of
from cobertes.learn.unet import UNetSettings
from cobertes.settings import TrainSettings

STEPS = 2
"""Timed, after one to warm up."""

STATES = 4
"""Values kept per parameter: the weight, its average, and the two moments of Adam."""


@dataclass(frozen=True)
class TrainingCost:
    """Of a training: measured on this machine, but for ``windows``, ``held_out`` and ``validations`` per epoch.

    ``windows`` per epoch in ``steps`` of ``batch``, of a side of ``window`` px; ``held_out`` windows per
    validation; ``step_seconds``, ``validation_seconds`` per batch; ``memory_bytes`` of the process at its peak, of
    the GPU where there is one; ``disk_bytes`` of checkpoints and model
    """

    architecture: str
    encoder: str
    parameters: int
    device: str
    precision: str
    reason: str
    window: int
    batch: int
    why_batch: str
    windows: int
    steps: int
    held_out: int
    validations: float
    epochs: int
    minutes: float | None
    step_seconds: float
    validation_seconds: float
    memory_bytes: int
    disk_bytes: int

    @property
    def epoch_seconds(self) -> float:
        """Time of an epoch with its validation."""
        judging = -(-self.held_out // self.batch) * self.validation_seconds
        return self.steps * self.step_seconds + self.validations * judging

    @property
    def seconds(self) -> float:
        """Time of all epochs; no more than the minutes that are set."""
        whole = self.epochs * self.epoch_seconds
        return whole if self.minutes is None else min(whole, 60 * self.minutes)

    def to_dict(self) -> Mapping[str, Any]:
        """For JSON."""
        return asdict(self) | {"epoch_seconds": self.epoch_seconds, "seconds": self.seconds}

    def lines(self) -> list[str]:
        """For people."""
        speed = self.batch * self.window**2 / self.step_seconds / 1e6
        size = "" if self.why_batch == "as set" else f" ({self.why_batch})"
        ends = "" if self.minutes is None else f", or the {self.minutes:g} minutes that are set"
        return [
            f"network   {self.architecture.replace('unet', 'U-Net')}, encoder {self.encoder}, "
            f"{self.parameters / 1e6:.1f} million parameters",
            f"step      {self.batch} windows of {self.window} px{size}: {self.step_seconds:.2f} s "
            f"({speed:.2f} Mpx/s) on {self.device} in {self.precision} ({self.reason}); "
            f"{self.memory_bytes / 1e9:.1f} GB of memory",
            f"epoch     {self.windows:,} windows in {self.steps:,} steps, then {self.held_out:,} held-out ones: "
            f"{_clock(self.epoch_seconds)}",
            f"training  {self.epochs} epochs at most: {_clock(self.epochs * self.epoch_seconds)}{ends}",
            f"disk      {self.disk_bytes / 1e9:.2f} GB for checkpoints and model",
        ]


def estimate_training(
    network: UNetSettings, train: TrainSettings, *, window: int, windows: int, held_out: int, passes: int = 1
) -> TrainingCost:
    """Make some steps of a training on random input, and say what all of it will take.

    window             side of the largest training window in pixels
    windows, held_out  per epoch and per validation
    passes             through the network that a held-out window takes: one per season where they are separate
    """
    torch.manual_seed(train.seed)
    model, loss = build_network(network), loss_of(train)
    chosen = choose_step(train, model, loss, sides=[window], samples=windows)
    fabric, batch = make_fabric(train.device, chosen.precision), chosen.batch
    step = training_step(fabric, model, train, loss, batch, window)
    x = torch.randn(batch, network.channels, window, window, device=fabric.device)
    x = x.to(memory_format=memory_format(fabric.device))

    def validate() -> None:
        with torch.inference_mode(), fabric.autocast():
            float(model(x).float().mean())

    step_seconds = _fastest(step, fabric.device)
    model.eval()
    validation_seconds = _fastest(validate, fabric.device)
    parameters = count_parameters(model)
    return TrainingCost(
        network.architecture, network.encoder, parameters, fabric.device.type, chosen.precision,
        chosen.why_precision, window, batch, chosen.why_batch, windows, -(-windows // batch), held_out,
        passes / train.validate_every, train.epochs, train.minutes,
        step_seconds, validation_seconds, peak_memory(fabric.device),
        4 * parameters * (2 * STATES + 2),
    )  # fmt: skip


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        work()
        synchronize(device.type)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _clock(seconds: float) -> str:
    """In the unit that people would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
