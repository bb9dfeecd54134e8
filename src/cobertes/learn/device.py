"""Devices and precisions, by Lightning Fabric. All that is specific to a device is in this file."""

import copy
import logging
import time

import torch
from lightning_fabric import Fabric
from torch import nn

log = logging.getLogger(__name__)

TRIAL_STEPS = 3
WORTH_IT = 1.1
"""bf16 has to be this much faster than fp32 to be chosen."""

FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


def start(device: str, precision: str) -> Fabric:
    """A Fabric on ``auto``, ``cpu``, ``cuda`` or ``mps``, with ``fp32`` or ``bf16``.

    Raises the error of Fabric where the device is not there.
    """
    return Fabric(accelerator=device, devices=1, precision=FABRIC_PRECISION[precision])


def choose_precision(
    asked: str, device: str, model: nn.Module, shape: tuple[int, int, int, int], *, learning: bool
) -> tuple[str, str]:
    """``(precision, reason)``: as asked, or by a trial of a few steps on random input of ``shape``."""
    if asked != "auto":
        return asked, "as set"
    trial = copy.deepcopy(model)
    seconds = {name: _time_steps(trial, device, name, shape, learning) for name in FABRIC_PRECISION}
    gain = seconds["fp32"] / seconds["bf16"]
    chosen = "bf16" if gain >= WORTH_IT else "fp32"
    return chosen, f"bf16 runs at {gain:.2f} x fp32 here"


def _time_steps(
    model: nn.Module, device: str, precision: str, shape: tuple[int, int, int, int], learning: bool
) -> float:
    """Fastest of a few steps, in seconds, after one to warm up."""
    fabric = start(device, precision)
    model = fabric.setup_module(model.train(learning).to(memory_format=torch.channels_last))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(fabric.device, memory_format=torch.channels_last)
    times = []
    for _ in range(TRIAL_STEPS + 1):
        begin = time.perf_counter()
        with torch.set_grad_enabled(learning):
            y = model(x)
            if learning:
                fabric.backward(y.float().square().mean())
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
