"""Training on several devices at once, by DDP: process groups, rank zero, sums over all processes.

``torchrun`` starts one process per device and sets WORLD_SIZE, RANK and LOCAL_WORLD_SIZE. Without it there is one
process, which every function here accepts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cobertes.learn.devices import fabric_warnings_only, make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BARRIER_TIMEOUT = timedelta(days=1)
"""Time that processes wait for rank zero, which makes the tile store or evaluates a model."""


def make_distributed_fabric(device: str, precision: str, *, find_unused: bool = False) -> "Fabric":
    """Fabric of this process in its process group (DDP); of one device if there is no other process.

    find_unused  search for weights without a gradient, such as frozen ones
    Raises SettingsError if the device is not there.
    """
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        return make_fabric(device, precision)
    from lightning_fabric.strategies import DDPStrategy

    strategy = DDPStrategy(timeout=BARRIER_TIMEOUT, find_unused_parameters=find_unused)
    fabric = make_fabric(device, precision, devices=local, num_nodes=world // local, strategy=strategy)
    with fabric_warnings_only():
        fabric.launch()
    return fabric


@contextmanager
def rank_zero_first(device: str) -> Iterator[None]:
    """Context that rank zero runs first, the other processes after it."""
    fabric = make_distributed_fabric(device, "fp32")
    if fabric.global_rank:
        fabric.barrier()
    yield
    if not fabric.global_rank:
        fabric.barrier()


def leave_process_group() -> None:
    """Leave the process group, if there is one, for good: what follows runs in one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def all_reduce_sum(fabric: "Fabric", values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes."""
    if fabric.world_size == 1:
        return values
    total = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    return cast("Tensor", total).to(values.device)


def broadcast_buffers(fabric: "Fabric", model: nn.Module) -> None:
    """Copy rank zero's batch-norm statistics to all processes."""
    if fabric.world_size > 1:
        for values in model.buffers():
            torch.distributed.broadcast(values, src=0)  # in place: Fabric's would pickle it, by way of GPU 0
