"""Training steps: Mpx/s of forward, loss, backward and Adam, on random input of 10 channels and 12 classes.

    python benchmarks/training.py                     about ten minutes on two cores
    python benchmarks/training.py --batch 16 --device cuda

First the loop that most people write: segmentation-models-pytorch's Unet on a ResNet50, fp32, channels first. Then
ours, in fp32 and bf16, channels last as training has it, and compiled. Prints a Markdown table for LOG.md.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from torch import nn

from cobertes.learn.architectures import build_network, count_parameters
from cobertes.learn.devices import make_fabric
from cobertes.learn.losses import CROSS_ENTROPY
from cobertes.learn.unet import UNetSettings
from cobertes.settings import SCRATCH

CHANNELS, CLASSES = 10, 12
NETWORKS = {"scratch, width 32, depth 2": SCRATCH, "ResNet18": "resnet18", "ResNet50": "resnet50"}


def time_steps(step: Callable[[], None], steps: int, device: str) -> float:
    """Seconds of the fastest of some steps, after one to warm up."""
    times = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def plain(batch: int, size: int, device: str) -> Callable[[], None]:
    """The plain loop: fp32, channels first."""
    model = smp.Unet("resnet50", encoder_weights=None, in_channels=CHANNELS, classes=CLASSES).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = random_batch(batch, size)
    x, y = x.to(device), y.to(device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def ours(
    encoder: str, precision: str, compiled: bool, batch: int, size: int, device: str
) -> tuple[Callable[[], None], float]:
    """A step as `cobertes run` makes it, and the millions of parameters."""
    fabric = make_fabric(device, precision)
    model = build_network(UNetSettings(CHANNELS, CLASSES, encoder)).to(memory_format=torch.channels_last)
    parameters = count_parameters(model) / 1e6
    if compiled:
        model.compile()
    learner, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters()))
    x, y = random_batch(batch, size)
    x, y = x.to(fabric.device, memory_format=torch.channels_last), y.to(fabric.device)

    def step() -> None:
        loss, weight = CROSS_ENTROPY(learner(x), y)
        fabric.backward(loss / weight)
        optimizer.step()
        optimizer.zero_grad()

    return step, parameters


def random_batch(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels and class indices."""
    return torch.randn(batch, CHANNELS, size, size), torch.randint(0, CLASSES, (batch, size, size))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also compiled: minutes more")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    mpx = arguments.batch * arguments.size**2 / 1e6
    shape = arguments.batch, arguments.size, arguments.device
    base = mpx / time_steps(plain(*shape), arguments.steps, arguments.device)
    print(
        f"batches of {arguments.batch} x {arguments.size} x {arguments.size} x {CHANNELS} on {arguments.device}\n"
    )
    print("| network | million parameters | how | Mpx/s | beside the plain loop |\n|---|---|---|---|---|")
    print(f"| smp Unet, ResNet50 | | fp32, channels first | {base:.3f} | 1.0 |", flush=True)
    for name, encoder in NETWORKS.items():
        for precision in ("fp32", "bf16"):
            for compiled in (False, True) if arguments.compiled else (False,):
                torch._dynamo.reset()
                step, parameters = ours(encoder, precision, compiled, *shape)
                speed = mpx / time_steps(step, arguments.steps, arguments.device)
                how = f"{precision}, channels last{', compiled' if compiled else ''}"
                print(f"| {name} | {parameters:.1f} | {how} | {speed:.3f} | {speed / base:.1f} |", flush=True)


if __name__ == "__main__":
    main()
