"""Inference engine: a trained model as one function from channels to logits, independent of the runtime.

runtimes (torch, OpenVINO, ONNX Runtime) <-- engine (choice, seasons, TTA, ensembles) <-- predict, evaluate
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.accuracy.calibration import read_calibration
from cobertes.atomic_io import StrPath
from cobertes.engines.runtimes import RUNTIMES, choose_runtime, open_runtime, quantized_path
from cobertes.errors import ModelFileError, SettingsError, did_you_mean
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.radiometry import describe_conventions
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.learn.encoding import Inputs
from cobertes.learn.inference import Forward, each_season
from cobertes.learn.model_file import ModelHeader, model_path, read_header

log = logging.getLogger(__name__)

CALIBRATION = "calibration.json"

TTA = {"none": (0,), "flips": (0, 2, 4, 6), "turns": tuple(range(8))}
"""Test-time augmentation: mirror images (4), or all symmetries of the square (8), numbered as in
`learn.encoding.turned`."""


@dataclass(frozen=True)
class EngineSpec:
    """Arguments that open the same model again in another process, with every ``auto`` resolved.

    device, precision, engine, tta    as in `open_engine`
    threads                           CPU threads; None: the engine's default
    """

    path: Path
    device: str
    precision: str
    engine: str
    tta: str
    threads: int | None


Reader = Callable[[Mapping[str, Scene], Window], tuple[NDArray[np.float32], NDArray[np.bool_]]]


@dataclass(frozen=True)
class Engine:
    """Model ready for inference.

    logits       channels (B, C, H, W) float32 -> (B, K, H, W), on any device
    how          runtime, device, precision and the reason for them, as a text
    identity     fingerprint of the model file: an interrupted map resumes only with the same one
    temperature  divisor of the logits before the softmax; classes do not change
    tta          test-time augmentation, a key of `TTA`: probabilities are averaged over it
    reader       channels and validity of a window; None: read by the header's inputs
    members      headers of the models of an ensemble
    specs        arguments that reopen its models, one per model; empty if not opened from files
    """

    header: ModelHeader
    logits: Callable[[Tensor], Tensor]
    how: str
    identity: str = ""
    temperature: float = 1.0
    tta: str = "none"
    reader: Reader | None = None
    members: tuple[ModelHeader, ...] = ()
    specs: tuple[EngineSpec, ...] = ()

    def check_scenes(self, scenes: Mapping[str, Scene]) -> None:
        """Check the scenes against every model. Raises as `ModelHeader.check_scenes`."""
        for header in self.members or (self.header,):
            header.check_scenes(scenes)

    def read(self, scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Channels (C, H, W) of a window and its valid mask (H, W): observed in at least one season."""
        return (self.reader or self.header.inputs.read)(scenes, window)


def open_engine(
    path: StrPath,
    *,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    tta: str = "none",
    threads: int | None = None,
) -> Engine:
    """Load a ``model.safetensors``, or the model of a run folder.

    device     auto, cpu, cuda, mps
    precision  auto, fp32, bf16, int8
    engine     auto, or a key of `runtimes.RUNTIMES`
    tta        none, flips, turns: test-time augmentation, the mean over mirrored and rotated windows
    threads    CPU threads; by default the engine's own choice. PyTorch has one number per process.
    The temperature is read from a ``calibration.json`` beside the model, if fitted to it with this ``tta``.
    Raises InputFileError, ModelFileError, SettingsError.
    """
    if tta not in TTA:
        raise SettingsError(f"no views '{tta}'.{did_you_mean(tta, TTA)}")
    path = model_path(path)
    header = read_header(path)
    choice = choose_runtime(engine, device, precision)
    forward, description = open_runtime(choice, path, header, threads)
    logits = with_tta(each_season(forward, header.inputs), TTA[tta])
    how = f"{description} ({choice.reason})" + ("" if tta == "none" else f", mean of {len(TTA[tta])} views")
    identity = fingerprint_of(
        header.to_json(), stamp(path), 0 if RUNTIMES[choice.engine].thread_invariant else torch.get_num_threads(),
        stamp(quantized_path(path)) if choice.precision == "int8" else None,
    )  # fmt: skip
    calibration = path.parent / CALIBRATION
    temperature = read_calibration(calibration, header.training.get("fingerprint"), tta)
    if temperature is None and read_calibration(calibration, header.training.get("fingerprint")) is not None:
        log.warning(
            "%s is of other views than '%s': confidences are not calibrated. Set views in [predict] and evaluate "
            "again, or use those.",
            calibration, tta,
        )  # fmt: skip
    spec = EngineSpec(path, choice.device, choice.precision, choice.engine, tta, threads)
    return Engine(header, logits, how, identity, temperature or 1.0, tta, specs=(spec,))


def open_specs(specs: Sequence[EngineSpec]) -> Engine:
    """Reopen an engine, or an ensemble, from its specs. Raises as `open_engine` and `ensemble`."""
    return ensemble([open_engine(**vars(spec)) for spec in specs])


def with_tta(forward: Forward, symmetries: Sequence[int]) -> Forward:
    """Test-time augmentation: log of the mean probability over symmetries of square windows."""
    if len(symmetries) == 1:
        return forward

    def averaged(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for symmetry in symmetries:
            view = x.flip(3) if symmetry >= 4 else x
            view = torch.rot90(view, symmetry % 4, (2, 3)).contiguous(memory_format=torch.channels_last)
            probabilities = torch.rot90(forward(view).float().softmax(dim=1), -(symmetry % 4), (2, 3))
            probabilities = probabilities.flip(3) if symmetry >= 4 else probabilities
            total = total.to(probabilities) + probabilities
        return (total / len(symmetries)).clamp(min=1e-9).log()

    return averaged


def ensemble(engines: Sequence[Engine]) -> Engine:
    """Ensemble: mean of the models' probabilities, each with its own temperature and normalisation.

    Raises ModelFileError unless classes, bands, seasons, resolution and window agree.
    """
    first, *others = engines
    if not others:
        return first
    for other in others:
        for what, mine, theirs in (
            ("classes", first.header.legend.codes.tolist(), other.header.legend.codes.tolist()),
            ("seasons", list(first.header.inputs.seasons), list(other.header.inputs.seasons)),
            ("bands", list(first.header.inputs.bands), list(other.header.inputs.bands)),
            ("pixels of", first.header.resolution, other.header.resolution),
            ("windows of", first.header.window, other.header.window),
        ):
            if mine != theirs:
                raise ModelFileError(f"models of an ensemble must agree, but one has {what} {mine}, one {theirs}")
    inputs = [engine.header.inputs for engine in engines]
    _require_one_convention(inputs)
    width = len(inputs[0].seasons) * len(inputs[0].bands)

    def read(scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        observed = {season: scene.read_hwc(window) for season, scene in scenes.items()}
        valid = np.any([mask for _, mask in observed.values()], axis=0)
        channels = [member.encode(observed).transpose(1, 2, 0) for member in inputs]
        return np.concatenate(channels, axis=2).transpose(2, 0, 1), valid

    def logits(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for engine, part in zip(engines, torch.split(x, width, dim=1), strict=True):
            own = engine.logits(part.contiguous(memory_format=torch.channels_last)).float().cpu()
            total = total.to(own) + (own / engine.temperature).softmax(dim=1)
        return (total / len(engines)).clamp(min=1e-9).log()

    how = f"mean of {len(engines)} models: {'; '.join(dict.fromkeys(engine.how for engine in engines))}"
    return replace(
        first, logits=logits, how=how, temperature=1.0, reader=read,
        identity=fingerprint_of(*((engine.identity, engine.temperature) for engine in engines)),
        members=tuple(engine.header for engine in engines),
        specs=tuple(spec for engine in engines for spec in engine.specs),
    )  # fmt: skip


def _require_one_convention(inputs: Sequence[Inputs]) -> None:
    """Raise ModelFileError where models of an ensemble take the same numbers for other reflectances."""
    told = [one.conventions for one in inputs if one.conventions is not None]
    for other in told:
        if other != told[0]:
            mine, theirs = (describe_conventions(one, inputs[0].bands) for one in (told[0], other))
            raise ModelFileError(f"models of an ensemble must agree, but one takes {mine}, one {theirs}")
