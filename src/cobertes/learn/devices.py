"""Devices and precisions, by Lightning Fabric. All that is specific to a device is in this file.

Fabric is imported where it is used: it takes seconds (torchmetrics, torchvision), and OpenVINO needs none of it.
"""

import copy
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cobertes.errors import SettingsError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

TRIAL_STEPS = 2
CPU_TRIAL_PIXELS = 2 * 256**2
"""Pixels of a trial's batch on CPU: the ratio is that of a full batch, which would take minutes."""
WORTH_IT = 1.1
"""bf16 has to be this much faster than fp32 to be chosen."""

MEMORY_LEFT = 0.1
"""Share of a GPU's free memory that a trial has to leave: for fragments, and for what else needs some."""

PATIENCE = timedelta(days=1)
"""Of processes that train together, for the one that makes the tile store, or judges."""

FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_fabric(device: str, precision: str) -> "Fabric":
    """A Fabric on ``auto``, ``cpu``, ``cuda`` or ``mps``, with ``fp32`` or ``bf16``.

    Raises SettingsError where the device is not there.
    """
    return _fabric(device, precision, devices=1)


def start_together(device: str, precision: str, *, some_idle: bool = False) -> "Fabric":
    """The same, joined with the other processes that ``torchrun`` has started, if there are any (DDP).

    some_idle  whether weights may get no gradient, as frozen ones
    """
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        return make_fabric(device, precision)
    from lightning_fabric.strategies import DDPStrategy

    strategy = DDPStrategy(timeout=PATIENCE, find_unused_parameters=some_idle)
    fabric = _fabric(device, precision, devices=local, num_nodes=world // local, strategy=strategy)
    fabric.launch()
    return fabric


def device_kind(device: str) -> str:
    """What ``device`` is: cpu, cuda or mps. Raises SettingsError where it is not there."""
    none = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return "cpu" if device == "cpu" or (device == "auto" and none) else make_fabric(device, "fp32").device.type


@contextmanager
def rank_zero_first(device: str) -> Iterator[None]:
    """Where several processes train together, the first does what is inside before the others."""
    fabric = start_together(device, "fp32")
    if fabric.global_rank:
        fabric.barrier()
    yield
    if not fabric.global_rank:
        fabric.barrier()


def part() -> None:
    """Leave the other processes, if there are any, for good: what follows is this one's alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def all_reduce_sum(fabric: "Fabric", values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes."""
    if fabric.world_size == 1:
        return values
    total = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    return cast("Tensor", total).to(values.device)


def as_the_leader(fabric: "Fabric", model: nn.Module) -> None:
    """Give all processes the first one's statistics of batch norm."""
    if fabric.world_size > 1:
        for values in model.buffers():
            torch.distributed.broadcast(values, src=0)  # in place: Fabric's would pickle it, by way of GPU 0


def _fabric(device: str, precision: str, **options: Any) -> "Fabric":
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells each precision that a trial tries
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32; who wants more speed takes bf16, as auto does
    try:
        return Fabric(accelerator=device, precision=FABRIC_PRECISION[precision], **options)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise SettingsError(f'can\'t use device \'{device}\': {error}. Use device "auto" or "cpu".') from error


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout that convolutions are fastest in: channels last, on CPUs with bf16 units and on CUDA alike.

    Not on MPS, where the gradient of batch norm is wrong in it (pytorch #175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most: on a GPU of CUDA, else of this process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device says that it has no room: CUDA by a class of its own, MPS by its words."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)


def is_cuda(device: str) -> bool:
    """Whether ``device`` is a GPU of CUDA here, which says what memory it has."""
    return make_fabric(device, "fp32").device.type == "cuda"


def fits_in_memory(work: Callable[[], None]) -> bool:
    """Whether ``work`` on the CUDA device leaves some of the memory that is free now; it holds none afterwards."""
    free, _ = torch.cuda.mem_get_info()  # this starts CUDA, which the next line needs
    torch.cuda.reset_peak_memory_stats()
    room = (1 - MEMORY_LEFT) * free + torch.cuda.memory_reserved()
    try:
        work()
        torch.cuda.synchronize()
        fits = torch.cuda.max_memory_reserved() <= room
    except torch.cuda.OutOfMemoryError:
        fits = False
    gc.collect()  # models and optimizers refer to themselves
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return fits


def choose_precision(
    asked: str, device: str, model: nn.Module, shape: tuple[int, int, int, int]
) -> tuple[str, str]:
    """``(precision, reason)``: as asked, or by a trial of a few steps on random input of ``shape``.

    shape  (B, C, H, W); a trial on CPU takes a smaller batch
    The model and the state of random numbers stay as they were. Raises RuntimeError where fp32 does not run.
    """
    if asked != "auto":
        return asked, "as set"
    with torch.random.fork_rng(devices=[]):
        try:
            fp32 = _time_steps(copy.deepcopy(model), device, "fp32", shape)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return "bf16", "fp32 does not fit in the memory"
        try:
            bf16 = _time_steps(copy.deepcopy(model), device, "bf16", shape)
        except (RuntimeError, TypeError) as error:  # an old GPU or macOS, or a layer without bf16
            return "fp32", f"bf16 does not run here: {error}"
    gain = fp32 / bf16
    chosen = "bf16" if gain >= WORTH_IT else "fp32"
    return chosen, f"bf16 runs at {gain:.2f} x fp32 here"


def _time_steps(model: nn.Module, device: str, precision: str, shape: tuple[int, int, int, int]) -> float:
    """Fastest of a few steps, in seconds, after one to warm up."""
    fabric = make_fabric(device, precision)
    model = fabric.setup_module(model.train().to(memory_format=memory_format(fabric.device)))
    count, channels, height, width = shape
    if fabric.device.type == "cpu":
        height, width = min(height, 256), min(width, 256)
        count = min(count, max(1, CPU_TRIAL_PIXELS // (height * width)))
    x = torch.randn(count, channels, height, width).to(fabric.device, memory_format=memory_format(fabric.device))
    times = []
    for _ in range(TRIAL_STEPS + 1):
        begin = time.perf_counter()
        fabric.backward(model(x).float().square().mean())
        synchronize(fabric.device.type)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def synchronize(kind: str) -> None:
    """Until the device has done what it was given."""
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()


def inference_precision(asked: str, device: str) -> tuple[str, str]:
    """``(precision, reason)`` for applying a model: as asked, or by what the hardware is, never by a timing.

    So the same model gives the same map again on the same kind of processor.
    """
    if asked != "auto":
        return asked, "as set"
    kind = device_kind(device)
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "the GPU has bf16 units"
    if kind == "cpu" and _has_bf16_units():
        return "bf16", "the processor has bf16 units"
    return "fp32", "no bf16 units"


def _has_bf16_units() -> bool:
    """Whether the processor multiplies bf16 itself; others emulate it, which is slower than fp32."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch since 2.4
    return any(getattr(torch.cpu, test, bool)() for test in tests)
