"""Post-training quantisation to int8: calibrated on training windows, refused if it costs accuracy.

training windows ─> NNCF ─> int8 network ─> evaluated on the validation blocks, beside the fp32 one
                                └─ model.int8.xml, .bin, .json beside the model, if it loses at most 0.005 mIoU
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.atomic_io import write_json
from cobertes.engines.runtimes import (
    Shape,
    openvino_forward,
    quantized_identity,
    quantized_path,
    to_openvino,
)
from cobertes.errors import ModelFileError, SettingsError
from cobertes.extras import require_extra
from cobertes.learn.inference import each_season, evaluate_windows, plan_blocks
from cobertes.learn.model_file import ModelHeader, load_model, model_path
from cobertes.progress import SILENT, Progress
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part

log = logging.getLogger(__name__)

MAX_LOSS = 0.005
"""Greatest accepted loss of mIoU on the validation blocks."""

CALIBRATION_WINDOWS = 128

BATCH_WINDOWS = 8


def quantize_model(path: Path, dataset: LabelledDataset, *, progress: Progress = SILENT) -> dict[str, float]:
    """Quantise a model to int8 on its training data; returns both mIoUs, by precision.

    Raises ModelFileError if it loses more than 0.005 of mIoU, and writes nothing then.
    """
    nncf, ov = require_extra("nncf", "openvino"), require_extra("openvino", "openvino")
    path = model_path(path)
    model, header = load_model(path)
    shape = (header.inputs.channels, header.window, header.window)
    network = to_openvino(model, shape)
    network.reshape([1, header.window, header.window, header.inputs.channels])
    windows = list(_training_windows(dataset, header))
    if not windows:
        raise SettingsError("no training window to calibrate int8 on")
    with redirect_stdout(sys.stderr):  # NNCF's progress bars would mix with the output of --json
        quantized = nncf.quantize(network, nncf.Dataset(windows), subset_size=len(windows))
    scores = {}
    plan = plan_blocks(dataset, Part.VALIDATION, header.window, header.window // 4)
    for name, candidate in (("fp32", network), ("int8", quantized)):
        forward = each_season(openvino_forward(partial(_for_any_shape, candidate), name), header.inputs)
        with progress.bar(f"judging {name}", len(plan), "windows") as advance:
            matrix, _ = evaluate_windows(forward, header.inputs, dataset, plan, BATCH_WINDOWS, advance)
        scores[name] = float(matrix.miou)
    if not scores["fp32"] - scores["int8"] <= MAX_LOSS:
        raise ModelFileError(
            f"int8 would lose too much: mIoU {scores['int8']:.4f} on the validation blocks, {scores['fp32']:.4f} "
            f"in fp32, and {MAX_LOSS} is the most that may be lost. Use precision bf16 or fp32."
        )
    xml = quantized_path(path)
    ov.save_model(quantized, xml, compress_to_fp16=False)
    write_json(xml.with_suffix(".json"), {"model": quantized_identity(path, header), "miou": scores})
    log.info("int8: mIoU %.4f on the validation blocks, %.4f in fp32", scores["int8"], scores["fp32"])
    return scores


def _for_any_shape(network: Any, shape: Shape) -> Any:
    return network


def _training_windows(dataset: LabelledDataset, header: ModelHeader) -> Iterator[NDArray[np.float32]]:
    """Windows (1, H, W, C) of training blocks, evenly spread over all areas."""
    plan = plan_blocks(dataset, Part.TRAIN, header.window, 0)
    step = max(1, len(plan) // CALIBRATION_WINDOWS)
    for name, planned in plan[::step][:CALIBRATION_WINDOWS]:
        observed, _ = dataset.read_hwc(name, planned.window)
        x = header.inputs.encode(observed).transpose(1, 2, 0)
        for part in np.split(x, x.shape[2] // header.inputs.channels, axis=2):
            yield np.ascontiguousarray(part[None])
