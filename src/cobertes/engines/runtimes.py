"""What runs a network: PyTorch, OpenVINO or ONNX Runtime, each as a function of channels to logits.

The choice never depends on a timing: the same model gives the same map again on the same kind of machine.
OpenVINO and ONNX Runtime are extras, imported where they are used.
"""

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cobertes.engines.openvino_cache import get_or_convert, is_cached
from cobertes.errors import DeviceMemoryError, SettingsError, did_you_mean
from cobertes.extras import require_extra
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.learn.devices import (
    device_kind,
    inference_precision,
    is_out_of_memory,
    make_fabric,
    memory_format,
    without_tf32,
)
from cobertes.learn.inference import Forward
from cobertes.learn.model_file import ModelHeader, load_model, model_path, read_header

TORCH, OPENVINO, ONNX = RUNTIMES = ("torch", "openvino", "onnx")

PRECISIONS = {TORCH: ("fp32", "bf16"), OPENVINO: ("fp32", "bf16", "int8"), ONNX: ("fp32",)}
EXTRAS = {OPENVINO: ("openvino", "openvino"), ONNX: ("onnxruntime", "export")}
"""Module and extra that an engine needs beside PyTorch."""

OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""The type that is not quantised, of an int8 network too. OpenVINO's own default is bf16 where there are units."""

OPSET = 17


@dataclass(frozen=True)
class Choice:
    """What runs a network, where, in which precision, and why."""

    engine: str
    device: str
    precision: str
    reason: str


def choose_runtime(engine: str, device: str, precision: str) -> Choice:
    """As asked; ``auto`` is OpenVINO on processors where it is installed, else PyTorch, with bf16 where there are
    units for it.

    Raises SettingsError for what does not exist, does not go together or is not installed.
    """
    known = {name for names in PRECISIONS.values() for name in names} | {"auto"}
    if engine not in (*RUNTIMES, "auto"):
        raise SettingsError(f"no engine '{engine}'.{did_you_mean(engine, (*RUNTIMES, 'auto'))}")
    if precision not in known:
        raise SettingsError(f"no precision '{precision}'.{did_you_mean(precision, known)}")
    kind = device_kind(device)
    reasons = []
    if engine == "auto":
        if precision == "int8":
            engine, why = OPENVINO, "int8 asked for"
        elif kind != "cpu":
            engine, why = TORCH, f"there is a {kind} device"
        elif find_spec("openvino") is not None:
            engine, why = OPENVINO, "fastest on processors"
        else:
            engine, why = TORCH, "OpenVINO is not installed"
        reasons.append(why)
    if engine != TORCH and kind != "cpu":
        if device != "auto":
            raise SettingsError(f"engine '{engine}' runs on the processor, not on {kind}. Use --device cpu.")
        kind = "cpu"
    if precision == "auto":
        precision, why = inference_precision("auto", kind) if engine != ONNX else ("fp32", "its only precision")
        reasons.append(why)
    elif precision not in PRECISIONS[engine]:
        others = ", ".join(PRECISIONS[engine])
        raise SettingsError(f"engine '{engine}' runs in {others}, not in {precision}. Use another --engine.")
    if engine in EXTRAS:
        require_extra(*EXTRAS[engine])
    return Choice(engine, kind, precision, ", ".join(reasons) or "as set")


def open_runtime(
    choice: Choice, path: Path, header: ModelHeader, threads: int | None = None
) -> tuple[Forward, str]:
    """The network of a model file as a function of its own channels, and where it runs in words.

    threads  of the processor; by default as many as the engine takes
    Raises ModelFileError where its weights do not fit its header.
    """
    where = f"{choice.engine} on {choice.device} in {choice.precision}"
    if choice.precision == "int8":
        return openvino_forward(read_quantized(path, header), "int8", threads), where
    network = cache(lambda: load_model(path)[0])
    if choice.engine == OPENVINO:
        if not is_cached(path, (header.inputs.channels, header.window, header.window)):
            network()  # else what is wrong with it would come out in the middle of a map
        return openvino_forward(
            lambda shape: get_or_convert(path, shape, lambda: to_openvino(network(), shape)),
            choice.precision,
            threads,
        ), where
    if choice.engine == ONNX:
        return _onnx_forward(network(), threads), where
    if threads is not None:
        torch.set_num_threads(threads)
    return _torch_forward(network(), choice.device, choice.precision), where


def _torch_forward(model: nn.Module, device: str, precision: str) -> Forward:
    fabric = make_fabric(device, precision)
    form = memory_format(fabric.device)
    model = fabric.setup_module(model.to(memory_format=form)).eval()

    def forward(x: Tensor) -> Tensor:
        try:
            with torch.inference_mode(), without_tf32():
                result: Tensor = model(x.to(fabric.device, memory_format=form))
                return result
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            count, _, height, width = x.shape
            raise DeviceMemoryError(
                f"{count} windows of {height} x {width} px do not fit into the memory that {device} has left. Use "
                f"a smaller --batch or --window (batch-size, window in [predict]), or free some and go on."
            ) from error

    return forward


Shape = tuple[int, int, int]
"""(C, H, W) of a network's input."""


def to_openvino(model: nn.Module, shape: Shape) -> Any:
    """The network for windows of a shape: (B, H, W, C) -> (B, H, W, K), any B."""
    ov = require_extra("openvino", "openvino")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: sizes become constants, which is meant
        with torch.inference_mode():  # torch would run it twice more to check the trace
            traced = torch.jit.trace(model, torch.zeros(1, *shape), check_trace=False)  # type: ignore[no-untyped-call]
        found = ov.convert_model(traced, input=[-1, *shape])
    steps = ov.preprocess.PrePostProcessor(found)
    for end in (steps.input(), steps.output()):
        end.tensor().set_layout(ov.Layout("NHWC"))
        end.model().set_layout(ov.Layout("NCHW"))
    return steps.build()


def openvino_forward(convert: Callable[[Shape], Any], precision: str, threads: int | None = None) -> Forward:
    """Run what ``convert`` makes for a shape of windows; compiled once for the largest batch of each shape."""
    ov = require_extra("openvino", "openvino")
    core = ov.Core()
    ready: dict[Shape, tuple[int, Any]] = {}
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision], "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # else the first threads of every process on a machine share one processor
    }  # fmt: skip
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads

    def forward(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        shape = channels, height, width
        size, request = ready.get(shape, (0, None))
        if size < count:
            network = convert(shape)
            network.reshape([count, height, width, channels])
            size, request = count, core.compile_model(network, "CPU", settings).create_infer_request()
            ready[shape] = size, request
        pixels = x.permute(0, 2, 3, 1).contiguous().numpy()
        if count < size:
            pixels = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.float32)])
        answer = request.infer([pixels], share_inputs=True)[0]
        # the request's own memory is written again by the next call
        return torch.from_numpy(answer[:count].copy()).permute(0, 3, 1, 2)

    return forward


def quantized_path(model: Path) -> Path:
    """Where the int8 network of a model file lies."""
    return model.with_name(f"{model.stem}.int8.xml")


def quantized_identity(model: Path, header: ModelHeader) -> str:
    """Of the model that an int8 network was made from."""
    return fingerprint_of(header.to_json(), stamp(model))


def is_quantized(path: Path) -> bool:
    """Whether a model, or that of a run, has an int8 version that was made from it as it is now."""
    path = model_path(path)
    try:
        noted = json.loads(quantized_path(path).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(
        noted.get("model") == quantized_identity(path, read_header(path)) and quantized_path(path).exists()
    )


def read_quantized(path: Path, header: ModelHeader) -> Callable[[Shape], Any]:
    """The int8 network for a shape of windows.

    Raises SettingsError where it was not made yet, or for another shape.
    """
    if not is_quantized(path):
        raise SettingsError(
            f"{path} has no int8 version: it is made from a run's training tiles. Name the run's folder as MODEL."
        )
    ov = require_extra("openvino", "openvino")

    def read(shape: Shape) -> Any:
        if shape[1:] != (header.window, header.window):
            raise SettingsError(
                f"the int8 version is for windows of {header.window} px, not {shape[1]}. Leave --window out."
            )
        return ov.Core().read_model(quantized_path(path))

    return read


def to_onnx(model: nn.Module, shape: Shape, names: tuple[str, str] = ("channels", "logits")) -> bytes:
    """An ONNX file for windows of a shape: input (B, C, H, W) -> output (B, K, H, W), any B, by their names."""
    require_extra("onnx", "export")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, as above
        torch.onnx.export(
            model,
            (torch.zeros(1, *shape),),
            file,  # type: ignore[arg-type]  # any file will do
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    return file.getvalue()


def _onnx_forward(model: nn.Module, threads: int | None) -> Forward:
    runtime = require_extra("onnxruntime", "export")
    sessions: dict[Shape, Any] = {}
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: as many as it takes

    def forward(x: Tensor) -> Tensor:
        shape = (x.shape[1], x.shape[2], x.shape[3])
        if shape not in sessions:
            sessions[shape] = runtime.InferenceSession(
                to_onnx(model, shape), options, providers=["CPUExecutionProvider"]
            )
        return torch.from_numpy(sessions[shape].run(None, {"channels": x.contiguous().numpy()})[0])

    return forward
