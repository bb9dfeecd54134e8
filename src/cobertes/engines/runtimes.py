"""Runtimes of a network (PyTorch, OpenVINO, ONNX Runtime), each as a function from channels to logits.

A runtime is one entry of `RUNTIMES`, at the end. The choice never depends on a timing: the same model gives the
same map again on the same kind of machine. OpenVINO and ONNX Runtime are extras, imported only when used.
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

TORCH, OPENVINO, ONNX = "torch", "openvino", "onnx"

OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Type of the layers that are not quantised, by precision. OpenVINO's own default is bf16 if the CPU has units."""

OPSET = 17


@dataclass(frozen=True)
class Choice:
    """Runtime, kind of device and precision of a network, and the reason as a text."""

    engine: str
    device: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Runtime:
    """Library that runs a network.

    open              (model file, header, choice, CPU threads or None) -> forward function
    precisions        that it runs in; if only one, ``auto`` is that one
    extra             module and pip extra that it needs beside PyTorch; None if none
    cpu_only          False if it also runs on GPUs
    thread_invariant  same bits for any number of threads
    """

    open: Callable[[Path, ModelHeader, Choice, int | None], Forward]
    precisions: tuple[str, ...]
    extra: tuple[str, str] | None = None
    cpu_only: bool = True
    thread_invariant: bool = True


def choose_runtime(engine: str, device: str, precision: str) -> Choice:
    """Resolve ``auto``: OpenVINO on CPUs if installed, else PyTorch; bf16 if the hardware has units for it.

    Raises SettingsError for an unknown name, an impossible combination or a runtime that is not installed.
    """
    known = {name for runtime in RUNTIMES.values() for name in runtime.precisions} | {"auto"}
    if engine not in (*RUNTIMES, "auto"):
        raise SettingsError(f"no engine '{engine}'.{did_you_mean(engine, (*RUNTIMES, 'auto'))}")
    if precision not in known:
        raise SettingsError(f"no precision '{precision}'.{did_you_mean(precision, known)}")
    kind = device_kind(device)
    reasons = []
    if engine == "auto":
        engine, why = _default_engine(kind, precision)
        reasons.append(why)
    runtime = RUNTIMES[engine]
    if runtime.cpu_only and kind != "cpu":
        if device != "auto":
            raise SettingsError(f"engine '{engine}' runs on the processor, not on {kind}. Use --device cpu.")
        kind = "cpu"
    if precision == "auto":
        only = len(runtime.precisions) == 1
        precision, why = (
            (runtime.precisions[0], "its only precision") if only else inference_precision("auto", kind)
        )
        reasons.append(why)
    elif precision not in runtime.precisions:
        others = ", ".join(runtime.precisions)
        raise SettingsError(f"engine '{engine}' runs in {others}, not in {precision}. Use another --engine.")
    if runtime.extra is not None:
        require_extra(*runtime.extra)
    return Choice(engine, kind, precision, ", ".join(reasons) or "as set")


def _default_engine(kind: str, precision: str) -> tuple[str, str]:
    """Runtime for a kind of device, and the reason."""
    if precision == "int8":
        return OPENVINO, "int8 asked for"
    if kind != "cpu":
        return TORCH, f"there is a {kind} device"
    if find_spec("openvino") is not None:
        return OPENVINO, "fastest on processors"
    return TORCH, "OpenVINO is not installed"


def open_runtime(
    choice: Choice, path: Path, header: ModelHeader, threads: int | None = None
) -> tuple[Forward, str]:
    """Forward function of a model file on its own channels, and a text: runtime, device, precision.

    threads  CPU threads; by default the runtime's own choice
    Raises ModelFileError if the weights do not fit the header.
    """
    forward = RUNTIMES[choice.engine].open(path, header, choice, threads)
    return forward, f"{choice.engine} on {choice.device} in {choice.precision}"


def _open_torch(path: Path, header: ModelHeader, choice: Choice, threads: int | None) -> Forward:
    if threads is not None:
        torch.set_num_threads(threads)
    return _torch_forward(load_model(path)[0], choice.device, choice.precision)


def _open_openvino(path: Path, header: ModelHeader, choice: Choice, threads: int | None) -> Forward:
    if choice.precision == "int8":
        return openvino_forward(read_quantized(path, header), "int8", threads)
    network = cache(lambda: load_model(path)[0])
    if not is_cached(path, (header.inputs.channels, header.window, header.window)):
        network()  # a damaged model fails here, not in the middle of a map

    def convert(shape: Shape) -> Any:
        return get_or_convert(path, shape, lambda: to_openvino(network(), shape))

    return openvino_forward(convert, choice.precision, threads)


def _open_onnx(path: Path, header: ModelHeader, choice: Choice, threads: int | None) -> Forward:
    return _onnx_forward(load_model(path)[0], threads)


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
    """Convert a network for windows of one shape: (B, H, W, C) -> (B, H, W, K), any B."""
    ov = require_extra("openvino", "openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns that sizes become constants: intended
        with torch.inference_mode():  # torch would run it twice more to check the trace
            traced = torch.jit.trace(model, torch.zeros(1, *shape), check_trace=False)  # type: ignore[no-untyped-call]
        converted = ov.convert_model(traced, input=[-1, *shape])
    steps = ov.preprocess.PrePostProcessor(converted)
    for end in (steps.input(), steps.output()):
        end.tensor().set_layout(ov.Layout("NHWC"))
        end.model().set_layout(ov.Layout("NCHW"))
    return steps.build()


def openvino_forward(convert: Callable[[Shape], Any], precision: str, threads: int | None = None) -> Forward:
    """Forward function of an OpenVINO network, compiled once per window shape for its largest batch.

    convert  (C, H, W) of the windows -> network
    """
    ov = require_extra("openvino", "openvino")
    core = ov.Core()
    compiled: dict[Shape, tuple[int, Any]] = {}
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision], "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # pinned, the first threads of all processes share one core
    }  # fmt: skip
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads

    def forward(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        shape = channels, height, width
        size, request = compiled.get(shape, (0, None))
        if size < count:
            network = convert(shape)
            network.reshape([count, height, width, channels])
            size, request = count, core.compile_model(network, "CPU", settings).create_infer_request()
            compiled[shape] = size, request
        pixels = x.permute(0, 2, 3, 1).contiguous().numpy()
        if count < size:
            pixels = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.float32)])
        result = request.infer([pixels], share_inputs=True)[0]
        # copied: the next call overwrites the request's own memory
        return torch.from_numpy(result[:count].copy()).permute(0, 3, 1, 2)

    return forward


def quantized_path(model: Path) -> Path:
    """Path of the int8 network of a model file."""
    return model.with_name(f"{model.stem}.int8.xml")


def quantized_identity(model: Path, header: ModelHeader) -> str:
    """Fingerprint of the model file that an int8 network is made from."""
    return fingerprint_of(header.to_json(), stamp(model))


def is_quantized(path: Path) -> bool:
    """Up-to-date int8 version beside a model file, or beside the model of a run folder."""
    path = model_path(path)
    try:
        noted = json.loads(quantized_path(path).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(
        noted.get("model") == quantized_identity(path, read_header(path)) and quantized_path(path).exists()
    )


def read_quantized(path: Path, header: ModelHeader) -> Callable[[Shape], Any]:
    """Reader of the int8 network by window shape.

    Raises SettingsError if there is none for the model as it is now; the reader does for another shape.
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
    """ONNX file for windows of one shape: input (B, C, H, W) -> output (B, K, H, W), any B, by ``names``."""
    require_extra("onnx", "export")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing, as above
        torch.onnx.export(
            model,
            (torch.zeros(1, *shape),),
            file,  # type: ignore[arg-type]  # a file object works too
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
    options.intra_op_num_threads = threads or 0  # 0: its own choice

    def forward(x: Tensor) -> Tensor:
        shape = (x.shape[1], x.shape[2], x.shape[3])
        if shape not in sessions:
            sessions[shape] = runtime.InferenceSession(
                to_onnx(model, shape), options, providers=["CPUExecutionProvider"]
            )
        return torch.from_numpy(sessions[shape].run(None, {"channels": x.contiguous().numpy()})[0])

    return forward


RUNTIMES = {
    TORCH: Runtime(_open_torch, ("fp32", "bf16"), cpu_only=False, thread_invariant=False),
    OPENVINO: Runtime(_open_openvino, ("fp32", "bf16", "int8"), extra=("openvino", "openvino")),
    ONNX: Runtime(_open_onnx, ("fp32",), extra=("onnxruntime", "export")),
}
"""All runtimes by name. A new one needs an entry here, and its name in `settings.EngineName`."""
