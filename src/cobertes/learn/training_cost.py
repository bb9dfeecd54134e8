"""Estimate of a training's time, memory and disk: a few real steps are timed on random input."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cobertes.learn.architectures import build_network, count_parameters
from cobertes.learn.batch_size import choose_step, training_step
from cobertes.learn.devices import make_fabric, memory_format, peak_memory, synchronize, torch_state
from cobertes.learn.training_setup import build_loss
from cobertes.learn.unet import UNetSettings
from cobertes.settings import TrainSettings

STEPS = 2
"""Timed steps, after one to warm up."""

STATES = 4
"""Values stored per parameter: the weight, its average, and the two moments of Adam."""


@dataclass(frozen=True)
class TrainingCost:
    """Cost of a training, measured on this machine.

    window              side of a training window in pixels
    windows, steps      per epoch; a step has ``batch`` windows
    held_out            windows per validation
    validations         per epoch
    step_seconds, validation_seconds    per batch
    memory_bytes        peak of the process, or of the GPU
    disk_bytes          of checkpoints and model
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
        validation = -(-self.held_out // self.batch) * self.validation_seconds
        return self.steps * self.step_seconds + self.validations * validation

    @property
    def seconds(self) -> float:
        """Time of all epochs; no more than the minutes that are set."""
        total = self.epochs * self.epoch_seconds
        return total if self.minutes is None else min(total, 60 * self.minutes)

    def to_dict(self) -> Mapping[str, Any]:
        """Dictionary for JSON."""
        return asdict(self) | {"epoch_seconds": self.epoch_seconds, "seconds": self.seconds}

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
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
    """Estimate the cost of a training from a few steps on random input.

    window             side of the largest training window in pixels
    windows, held_out  per epoch and per validation
    passes             of a held-out window through the network: one per season if they are separate
    Raises SettingsError if no batch fits.
    """
    with torch_state(train.threads):
        return _estimate(network, train, window, windows, held_out, passes)


def _estimate(
    network: UNetSettings, train: TrainSettings, window: int, windows: int, held_out: int, passes: int
) -> TrainingCost:
    torch.manual_seed(train.seed)
    model, loss = build_network(network), build_loss(train)
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


def _fastest(function: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    times = []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        function()
        synchronize(device.type)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _clock(seconds: float) -> str:
    """Duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
