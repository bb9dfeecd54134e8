"""ONNX export: one self-contained file (normalisation, network, softmax, metadata) for other programs."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from cobertes.atomic_io import replacing
from cobertes.engines.runtimes import to_onnx
from cobertes.extras import require_extra
from cobertes.learn.encoding import CLIP, Inputs
from cobertes.learn.inference import each_season
from cobertes.learn.model_file import load_model


class _FromPixels(nn.Module):
    """Normalisation, network and softmax: pixel values (B, seasons * bands, H, W) -> probabilities.

    A pixel whose bands are all 0, or one of them not finite, counts as unobserved in that season.
    """

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.bands = network, len(inputs.bands)
        self.forward_all = each_season(network, inputs)
        self.mean = torch.tensor(inputs.mean, dtype=torch.float32).reshape(1, -1, 1, 1)
        self.scale = torch.tensor(1 / inputs.std, dtype=torch.float32).reshape(1, -1, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities (B, K, H, W) from pixel values (B, C, H, W) float32."""
        normal = ((pixels - self.mean) * self.scale).clamp(-CLIP, CLIP)
        parts = []
        for values, x in zip(torch.split(pixels, self.bands, 1), torch.split(normal, self.bands, 1), strict=True):
            observed = (values != 0).any(dim=1, keepdim=True) & torch.isfinite(values).all(dim=1, keepdim=True)
            parts.append(torch.where(observed, x, torch.zeros_like(x)))
        return self.forward_all(torch.cat(parts, dim=1)).softmax(dim=1)


def export_onnx(model: Path, out: Path, window: int | None = None) -> int:
    """Export a model as ONNX: ``pixels`` (B, seasons * bands, S, S) float32 -> ``probabilities`` (B, K, S, S).

    Returns S. Metadata: bands (season:band), conventions of their values, classes (code, key, name, colour) and
    resolution, as JSON.
    Raises SettingsError if onnx is not installed, ModelFileError, InputFileError, StorageError.
    """
    onnx = require_extra("onnx", "export")
    network, header = load_model(model)
    size = window or header.window
    inputs = header.inputs
    graph = _FromPixels(network, inputs).eval()
    shape = (len(inputs.seasons) * len(inputs.bands), size, size)
    exported = onnx.load_from_string(to_onnx(graph, shape, ("pixels", "probabilities")))
    onnx.helper.set_model_props(
        exported,
        {
            "bands": json.dumps([f"{season}:{band}" for season in inputs.seasons for band in inputs.bands]),
            "classes": json.dumps(header.legend.to_dict()["class"], ensure_ascii=False),
            "resolution": json.dumps(header.resolution),
            "conventions": json.dumps([one.to_dict() for one in inputs.conventions or ()]),
            "producer": "cobertes",
        },
    )
    with replacing(out) as temporary:
        temporary.write_bytes(exported.SerializeToString())
    return size
