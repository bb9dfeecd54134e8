"""How a training steps, where the settings leave it open: windows per batch and precision, found by trying.

The batch is as large as the memory of a GPU allows. Real steps (forward, backward, optimizer with its state) are
made on random input:

    1, 2, 4, 8, 16 ... until one does not fit or is the most;   then halfway between, by multiples of 4

So no batch is tried that is over twice as large as one that fits.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import nn

from cobertes.errors import SettingsError
from cobertes.learn.architectures import Network
from cobertes.learn.devices import choose_precision, fits_in_memory, is_cuda, make_fabric, memory_format
from cobertes.learn.ema import EMA
from cobertes.learn.losses import Loss
from cobertes.learn.sampler import count_batches
from cobertes.settings import BATCH_SIZE, TrainSettings, default_batch

log = logging.getLogger(__name__)

MOST = 256
"""Windows of the largest batch that is tried."""
STEPS_OF_EPOCH = 8
"""An epoch keeps so many steps: larger batches are fewer steps, and learn less from the same samples."""
MULTIPLE = 4
POOLING = {"deeplabv3+"}
"""Architectures that pool a whole window to one pixel, whatever its size."""
TRIED_STEPS = 2
"""The optimizer makes its state in the first one, so the second takes the most memory."""


@dataclass(frozen=True)
class StepChoice:
    """``batch`` windows per step, of all processes together, and ``precision``, fp32 or bf16; why, in words."""

    batch: int
    why_batch: str
    precision: str
    why_precision: str


def choose_step(
    train: TrainSettings,
    network: Network,
    loss: Loss,
    *,
    sides: Sequence[int],
    samples: int,
    processes: int = 1,
) -> StepChoice:
    """As the settings say, or by trying on their device. The network and CPU's random numbers stay as they were.

    sides    of the training windows in pixels;  ``samples`` of them per epoch
    Raises SettingsError where the network can't learn from such batches, or not even one window fits in memory.
    """

    def find_batch(precision: str) -> tuple[int, str]:
        found = _choose_batch(train, network, loss, max(sides), samples, processes, precision)
        _require_spread(network, samples, found[0], sides, processes)
        return found

    try:
        batch, why = find_batch("fp32" if train.precision == "auto" else train.precision)
    except SettingsError:
        if train.precision != "auto":
            raise
        return StepChoice(*find_batch("bf16"), "bf16", "fp32 does not fit in the memory")
    shape = (max(1, batch // processes), network.settings.channels, max(sides), max(sides))
    precision, reason = choose_precision(train.precision, train.device, network, shape)
    if train.precision == "auto" and precision != "fp32" and train.batch_size == "auto":
        batch, why = find_batch(precision)  # which takes less memory
    return StepChoice(batch, why, precision, reason)


def _choose_batch(
    train: TrainSettings, network: Network, loss: Loss, side: int, samples: int, processes: int, precision: str
) -> tuple[int, str]:
    if train.batch_size is None:
        return min(default_batch(side), samples), "the default"
    if train.batch_size != "auto":
        return min(train.batch_size, samples), "as set"
    if not is_cuda(train.device):
        return min(default_batch(side), samples), "auto: the default, as there is no CUDA device"
    most = most_windows(samples, processes)

    def try_step(batch: int) -> bool:
        if batch == 1 and _is_one_pixel(network, side):
            return True  # it can't step; the next one tried takes more

        def steps() -> None:
            fabric = make_fabric(train.device, precision)
            model = copy.deepcopy(network).train()
            averaged = EMA(model, train.averaging)
            averaged.model.to(fabric.device)
            step = training_step(fabric, model, train, loss, batch, side)
            for _ in range(TRIED_STEPS):
                step()
                averaged.update()

        try:
            fits = fits_in_memory(steps)
        except RuntimeError as error:  # very large tensors have limits of their own
            if not fitting:
                raise
            log.info("batches of %d windows do not run here: %s", batch, error)
            return False
        if fits:
            fitting.append(batch)
        return fits

    fitting: list[int] = []
    with torch.random.fork_rng(devices=[]):
        found = largest_batch(try_step, most)
    if not found:
        raise SettingsError(
            f"not even one window of {side} px fits in the memory of the GPU with this network. Use a smaller "
            f'train.window or encoder, or train.device = "cpu".'
        )
    each = "" if processes == 1 else f" of each of {processes} GPUs"
    end = f"the most for {samples} windows per epoch" if found == most else "more do not"
    return min(found * processes, samples), f"auto: {found} windows fit in the memory{each}, {end}"


def most_windows(samples: int, processes: int = 1) -> int:
    """Windows per process that ``auto`` takes at most for an epoch of so many samples; the default is allowed."""
    return max(1, min(MOST, max(samples // STEPS_OF_EPOCH, BATCH_SIZE), samples) // processes)


def largest_batch(try_step: Callable[[int], bool], most: int) -> int:
    """The largest batch that fits: a power of two, a multiple of 4, or ``most`` itself; 0 where none does.

    try_step  whether a batch fits; where one does, all smaller ones are taken to
    """
    fits, batch = 0, 1
    while batch <= most and try_step(batch):
        fits, batch = batch, 2 * batch
    if batch > most:  # nothing has failed yet
        if fits == most or try_step(most):
            return most
        batch = most
    low, high = fits // MULTIPLE, -(-batch // MULTIPLE)  # the first fits, the second does not
    while fits and high - low > 1:
        middle = (low + high) // 2
        if try_step(middle * MULTIPLE):
            fits, low = middle * MULTIPLE, middle
        else:
            high = middle
    return fits


def set_up(fabric: Fabric, network: Network, train: TrainSettings) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network on the device, in its layout, and its optimizer."""
    network = network.to(memory_format=memory_format(fabric.device))
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    model, optimizer = fabric.setup(network, kind(network.parameters(), lr=train.rate))
    return model, optimizer


def training_step(
    fabric: Fabric, network: Network, train: TrainSettings, loss: Loss, batch: int, side: int
) -> Callable[[], None]:
    """A step of a training on random input, to be timed or to see what it takes; it changes the network."""
    model, optimizer = set_up(fabric, network, train)
    classes, channels = network.settings.classes, network.settings.channels
    shape = (batch, channels, side, side)
    x = torch.empty(shape, device=fabric.device, memory_format=memory_format(fabric.device)).normal_()
    y = torch.randint(classes, (batch, side, side), device=fabric.device)
    if train.targets == "fractions":
        y = torch.rand(batch, classes, side, side, device=fabric.device)

    def step() -> None:
        total, weight = loss(model(x), y)
        fabric.backward(total / weight)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _require_spread(network: Network, samples: int, batch: int, sides: Sequence[int], processes: int) -> None:
    """Raise SettingsError where batch norm would get one value per channel, which has no spread."""
    smallest = samples // count_batches(samples, batch) // processes
    if smallest < 1:
        raise SettingsError(
            f"{processes} processes can't share a batch of {batch} windows: use a train.batch-size (and "
            f"train.samples, now {samples}) of at least {processes}."
        )
    # of smaller windows a batch has as many as have the pixels of the largest
    largest = max(sides) ** 2
    alone = [side for side in sides if smallest * (largest // side**2) == 1 and _is_one_pixel(network, side)]
    if alone:
        side, architecture = alone[0], network.settings.architecture
        if architecture in POOLING:
            what, larger = f"{architecture} pools a whole window to one pixel", "Use"
        else:
            what = f"a window of {side} px is one pixel at the bottom of the network (1/{network.stride})"
            larger = f"Use a train.window over {network.stride} px, or"
        raise SettingsError(
            f"{what}, and a batch of one holds no other: batch norm can't learn from it. {larger} a larger "
            f"train.batch-size (now {batch}) and train.samples (now {samples})."
        )


def _is_one_pixel(network: Network, side: int) -> bool:
    """Whether a window becomes one pixel in the network, so that a batch of one has no spread for batch norm."""
    return side <= network.stride or network.settings.architecture in POOLING
