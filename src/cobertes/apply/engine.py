"""Inference engines: a trained model behind one function, whatever runs it.

There is one so far, PyTorch on CPU, CUDA or MPS through Fabric.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.errors import SettingsError, did_you_mean
from cobertes.learn.device import inference_precision, start
from cobertes.learn.infer import each_season
from cobertes.learn.modelfile import ModelHeader, load_model, model_path

PERCENT = 100
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Engine:
    """A model ready to run: its ``header``, its ``logits`` function, and how it runs in words."""

    header: ModelHeader
    logits: Callable[[Tensor], Tensor]
    how: str

    def classify(self, x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class index and confidence in percent, both (B, H, W) uint8, of channels (B, C, H, W)."""
        probabilities = self.logits(torch.from_numpy(x)).float().softmax(dim=1)
        confidence, index = probabilities.max(dim=1)
        percent = (confidence * PERCENT).round().to(torch.uint8)
        return index.to(torch.uint8).cpu().numpy(), percent.cpu().numpy()


def open_engine(path: Path, *, device: str = "auto", precision: str = "auto") -> Engine:
    """Load a ``model.safetensors``, or that of a run's folder.

    device, precision  as in the settings: auto, cpu, cuda, mps; auto, fp32, bf16
    Raises InputFileError, ModelFileError, SettingsError.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"no precision '{precision}'.{did_you_mean(precision, PRECISIONS)}")
    model, header = load_model(model_path(path))
    chosen, reason = inference_precision(precision, device)
    fabric = start(device, chosen)
    # channels last is the fastest layout of convolutions, on CPUs with bf16 units and on CUDA alike
    model = fabric.setup_module(model.to(memory_format=torch.channels_last)).eval()

    def logits(x: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(x.to(fabric.device, memory_format=torch.channels_last))
            return result

    return Engine(
        header, each_season(logits, header.inputs), f"torch on {fabric.device.type} in {chosen} ({reason})"
    )
