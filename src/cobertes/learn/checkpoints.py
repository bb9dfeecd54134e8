"""Checkpoints, from which an interrupted training resumes: the last one, and the one before it as a spare.

last.ckpt                 after every epoch: weights, average, optimizer, schedule, history
previous.ckpt             the one before
best.safetensors          the weights of the best epoch so far
not-finite.safetensors    the batch whose loss was not a number, if that happened
"""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cobertes.atomic_io import replacing
from cobertes.errors import TrainingError

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST, NOT_FINITE = "last.ckpt", "previous.ckpt", "best.safetensors", "not-finite.safetensors"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write ``last.ckpt``; the one before becomes ``previous.ckpt``. Raises StorageError."""
    last = folder / LAST
    with replacing(last) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # its error on a full disk
            raise OSError(str(error)) from error
        if last.exists():
            last.replace(folder / PREVIOUS)


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read the last checkpoint with this fingerprint, or the one before if it is damaged; None without one.

    Raises TrainingError if there are checkpoints, but none can be read.
    """
    existing = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in existing:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            found = state["fingerprint"]
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
            log.warning("checkpoints/%s is damaged or foreign", path.name)
            continue
        if found != fingerprint:
            log.info("checkpoints/%s is of other settings or data: training from the start", path.name)
            return None
        return state
    if existing:
        names = " and ".join(path.name for path in existing)
        raise TrainingError(f"{folder}: {names} can't be read. Delete the folder to train from the start.")
    return None


def save_batch(folder: Path, x: Tensor, y: Tensor, process: int = 0) -> Path:
    """Save the batch at which a training stopped, for inspection: channels ``x`` and class indices ``y``."""
    path = folder / (f"{process}-{NOT_FINITE}" if process else NOT_FINITE)
    with replacing(path) as temporary:
        try:
            save_file({"x": x.cpu().contiguous(), "y": y.cpu().contiguous()}, temporary)
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error
    return path
