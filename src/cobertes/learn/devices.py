"""Devices and precisions, by Lightning Fabric. All that is specific to one kind of device is in this file.

Fabric is imported where it is used: it takes seconds (torchmetrics, torchvision), and OpenVINO needs none of it.
"""

import copy
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cobertes.errors import SettingsError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

TRIAL_STEPS = 2
CPU_TRIAL_PIXELS = 2 * 256**2
"""Pixels of a trial's batch on CPU: the ratio is that of a full batch, which would take minutes."""
MIN_SPEEDUP = 1.1
"""Least speed of bf16, relative to fp32, at which it is chosen."""

MEMORY_RESERVE = 0.1
"""Share of a GPU's free memory that a trial has to leave: for fragmentation and other processes."""

FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_fabric(device: str, precision: str, **options: Any) -> "Fabric":
    """Fabric on ``auto``, ``cpu``, ``cuda`` or ``mps``, in ``fp32`` or ``bf16``.

    options  of Fabric; one device by default
    Raises SettingsError if the device is not there.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        with fabric_warnings_only():
            return Fabric(accelerator=device, precision=FABRIC_PRECISION[precision], **{"devices": 1} | options)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise SettingsError(f'can\'t use device \'{device}\': {error}. Use device "auto" or "cpu".') from error


@contextmanager
def fabric_warnings_only() -> Iterator[None]:
    """Silence Fabric's announcements: a trial of precisions makes one per precision."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context in which fp32 convolutions on CUDA run in fp32: PyTorch rounds them to TF32 by default.

    For more speed there is bf16, which ``auto`` takes. The flag is PyTorch's own and process-wide.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def torch_state(threads: int | None = None) -> Iterator[None]:
    """Context of a training: fp32 without TF32, ``threads`` CPU threads; random numbers on the CPU of its own.

    threads  of PyTorch's operators; as many as before if None
    PyTorch's thread count, TF32 flag and CPU generator are process-wide: at the end they are as they were.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with without_tf32(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def device_kind(device: str) -> str:
    """Kind of a device: cpu, cuda or mps. Raises SettingsError if it is not there."""
    none = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return "cpu" if device == "cpu" or (device == "auto" and none) else make_fabric(device, "fp32").device.type


def memory_format(device: torch.device) -> torch.memory_format:
    """Fastest memory format of convolutions: channels last, on CPUs with bf16 units and on CUDA alike.

    Not on MPS, where the gradient of batch norm is wrong in it (pytorch #175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of a CUDA GPU, else of this process; 0 if the system does not measure it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def is_out_of_memory(error: RuntimeError) -> bool:
    """Test an error for out of memory: CUDA has a class of its own, MPS a text."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)


def is_cuda(device: str) -> bool:
    """Test if ``device`` is a CUDA GPU on this machine: those alone report their memory."""
    return make_fabric(device, "fp32").device.type == "cuda"


def fits_in_memory(function: Callable[[], None]) -> bool:
    """Run a function on the CUDA device; True if its peak leaves `MEMORY_RESERVE` of the memory that is free now.

    Its memory is released afterwards.
    """
    free, _ = torch.cuda.mem_get_info()  # this starts CUDA, which the next line needs
    torch.cuda.reset_peak_memory_stats()
    room = (1 - MEMORY_RESERVE) * free + torch.cuda.memory_reserved()
    try:
        function()
        torch.cuda.synchronize()
        fits = torch.cuda.max_memory_reserved() <= room
    except torch.cuda.OutOfMemoryError:
        fits = False
    gc.collect()  # models and optimizers refer to themselves
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return fits


def choose_precision(
    requested: str, device: str, model: nn.Module, shape: tuple[int, int, int, int]
) -> tuple[str, str]:
    """Choose ``(precision, reason)``: as requested, or by a trial of a few steps on random input of ``shape``.

    shape  (B, C, H, W); a trial on CPU takes a smaller batch
    The model and the CPU's random generator stay as they were. Raises RuntimeError if fp32 does not run.
    """
    if requested != "auto":
        return requested, "as set"
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
    speedup = fp32 / bf16
    chosen = "bf16" if speedup >= MIN_SPEEDUP else "fp32"
    return chosen, f"bf16 runs at {speedup:.2f} x fp32 here"


def _time_steps(model: nn.Module, device: str, precision: str, shape: tuple[int, int, int, int]) -> float:
    """Seconds of the fastest of a few steps, after one to warm up."""
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
    """Wait until the device has run all queued operations."""
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()


def inference_precision(requested: str, device: str) -> tuple[str, str]:
    """Choose ``(precision, reason)`` of inference: as requested, or by the kind of hardware, never by a timing.

    So the same model gives the same map again on the same kind of processor.
    """
    if requested != "auto":
        return requested, "as set"
    kind = device_kind(device)
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "the GPU has bf16 units"
    if kind == "cpu" and _has_bf16_units():
        return "bf16", "the processor has bf16 units"
    return "fp32", "no bf16 units"


def _has_bf16_units() -> bool:
    """Test for bf16 instructions; other processors emulate them, which is slower than fp32."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch since 2.4
    return any(getattr(torch.cpu, test, bool)() for test in tests)
