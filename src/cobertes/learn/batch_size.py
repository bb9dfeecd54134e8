"""Search for batch size and precision, if the settings leave them open, by trial steps.

The largest batch is sought that fits in the memory of a GPU. Real steps (forward, backward, optimizer with its
state) run on random input:

    1, 2, 4, 8, 16 ... until one does not fit or is the maximum;   then bisection by multiples of 4

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
from cobertes.learn.loader import count_batches
from cobertes.learn.losses import Loss
from cobertes.settings import BATCH_SIZE, TrainSettings, default_batch

log = logging.getLogger(__name__)

MAX_BATCH = 256
"""Windows of the largest batch that is tried."""
MIN_STEPS = 8
"""Steps that an epoch keeps: larger batches are fewer steps, and learn less from the same samples."""
MULTIPLE = 4
POOLING = {"deeplabv3+"}
"""Architectures that pool a whole window to one pixel, whatever its size."""
TRIED_STEPS = 2
"""The optimizer allocates its state in the first step, so the second has the peak memory."""


@dataclass(frozen=True)
class StepChoice:
    """``batch`` windows per step, of all processes together, and ``precision``, fp32 or bf16, with reasons."""

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
    """Choose batch size and precision: from the settings, or by trials on their device.

    sides    of the training windows in pixels;  ``samples`` of them per epoch
    The network and the CPU's random generator stay as they were. Raises SettingsError if the network can't learn
    from such batches, or not even one window fits in memory.
    """

    def find_batch(precision: str) -> tuple[int, str]:
        choice = _choose_batch(train, network, loss, max(sides), samples, processes, precision)
        _require_batch_norm_spread(network, samples, choice[0], sides, processes)
        return choice

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
    maximum = max_windows(samples, processes)

    def try_step(batch: int) -> bool:
        if batch == 1 and _is_one_pixel(network, side):
            return True  # it can't step, and the next batch takes more memory

        def steps() -> None:
            fabric = make_fabric(train.device, precision)
            model = copy.deepcopy(network).train()
            ema = EMA(model, train.averaging)
            ema.model.to(fabric.device)
            step = training_step(fabric, model, train, loss, batch, side)
            for _ in range(TRIED_STEPS):
                step()
                ema.update()

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
        largest = largest_batch(try_step, maximum)
    if not largest:
        raise SettingsError(
            f"not even one window of {side} px fits in the memory of the GPU with this network. Use a smaller "
            f'train.window or encoder, or train.device = "cpu".'
        )
    each = "" if processes == 1 else f" of each of {processes} GPUs"
    end = f"the most for {samples} windows per epoch" if largest == maximum else "more do not"
    return min(largest * processes, samples), f"auto: {largest} windows fit in the memory{each}, {end}"


def max_windows(samples: int, processes: int = 1) -> int:
    """Upper limit of ``auto`` in windows per process, at least the default batch, for ``samples`` per epoch."""
    return max(1, min(MAX_BATCH, max(samples // MIN_STEPS, BATCH_SIZE), samples) // processes)


def largest_batch(try_step: Callable[[int], bool], maximum: int) -> int:
    """Largest batch that fits: a power of two, a multiple of 4, or ``maximum`` itself; 0 if none does.

    try_step  tests if a batch fits; every smaller one is taken to fit then
    """
    fits, batch = 0, 1
    while batch <= maximum and try_step(batch):
        fits, batch = batch, 2 * batch
    if batch > maximum:  # nothing has failed yet
        if fits == maximum or try_step(maximum):
            return maximum
        batch = maximum
    low, high = fits // MULTIPLE, -(-batch // MULTIPLE)  # the first fits, the second does not
    while fits and high - low > 1:
        middle = (low + high) // 2
        if try_step(middle * MULTIPLE):
            fits, low = middle * MULTIPLE, middle
        else:
            high = middle
    return fits


def setup_model(fabric: Fabric, network: Network, train: TrainSettings) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Move the network to the device, in its memory format, and build its optimizer."""
    network = network.to(memory_format=memory_format(fabric.device))
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    model, optimizer = fabric.setup(network, kind(network.parameters(), lr=train.rate))
    return model, optimizer


def training_step(
    fabric: Fabric, network: Network, train: TrainSettings, loss: Loss, batch: int, side: int
) -> Callable[[], None]:
    """Training step on random input, to measure its time or memory; it changes the network."""
    model, optimizer = setup_model(fabric, network, train)
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


def _require_batch_norm_spread(
    network: Network, samples: int, batch: int, sides: Sequence[int], processes: int
) -> None:
    """Raise SettingsError if batch norm would get one value per channel, which has no variance."""
    smallest = samples // count_batches(samples, batch) // processes
    if smallest < 1:
        raise SettingsError(
            f"{processes} processes can't share a batch of {batch} windows: use a train.batch-size (and "
            f"train.samples, now {samples}) of at least {processes}."
        )
    # a batch of smaller windows has as many pixels as one of the largest
    largest = max(sides) ** 2
    single = [side for side in sides if smallest * (largest // side**2) == 1 and _is_one_pixel(network, side)]
    if single:
        side, architecture = single[0], network.settings.architecture
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
    """Test if a window becomes one pixel in the network: batch norm of a single one has no variance."""
    return side <= network.stride or network.settings.architecture in POOLING
