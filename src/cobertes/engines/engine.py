"""Inference engines: a trained model behind one function, whatever runs it.

runtimes (torch, OpenVINO, ONNX Runtime) <-- engine (choice, seasons, views, ensembles) <-- predict, evaluate
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
from cobertes.engines.runtimes import TORCH, choose_runtime, open_runtime, quantized_path
from cobertes.errors import ModelFileError, SettingsError, did_you_mean
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.learn.inference import Forward, each_season
from cobertes.learn.model_file import ModelHeader, model_path, read_header

log = logging.getLogger(__name__)

CALIBRATION = "calibration.json"

VIEWS = {"none": (0,), "flips": (0, 2, 4, 6), "turns": tuple(range(8))}
"""Test-time augmentation: mirror images (4 views), and all of the square's symmetries (8), as turns of
`learn.inputs.turned`."""


@dataclass(frozen=True)
class EngineSpec:
    """How to open the same model again, in another process: nothing is left to be chosen there.

    device, precision, engine, tta    as in `open_engine`, ``auto`` decided
    threads                           processor threads; None as many as the engine takes
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
    """A model ready to run.

    logits       channels (B, C, H, W) float32 -> (B, K, H, W), on whatever device
    how          what runs it and why, in words
    identity     changes with the model's file: an interrupted map goes on with the same model only
    temperature  logits are divided by it before they become probabilities; classes do not change
    """

    header: ModelHeader
    logits: Callable[[Tensor], Tensor]
    how: str
    identity: str = ""
    temperature: float = 1.0
    tta: str = "none"
    """Of every window, whose probabilities are averaged: a key of `VIEWS`."""
    reads: Reader | None = None
    """How it reads a window, where not as its header's inputs do."""
    members: tuple[ModelHeader, ...] = ()
    """Of the models of an ensemble."""
    recipes: tuple[EngineSpec, ...] = ()
    """By which it was opened, one for each of its models; none where it was made by hand."""

    def check_scenes(self, scenes: Mapping[str, Scene]) -> None:
        """Raise as `ModelHeader.check_scenes` does, for every model."""
        for header in self.members or (self.header,):
            header.check_scenes(scenes)

    def read(self, scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Channels (C, H, W) of a window, and where at least one season was observed (H, W)."""
        return (self.reads or self.header.inputs.read)(scenes, window)


def open_engine(
    path: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    tta: str = "none",
    threads: int | None = None,
) -> Engine:
    """Load a ``model.safetensors``, or that of a run's folder.

    device, precision  as in the settings: auto, cpu, cuda, mps; auto, fp32, bf16, int8
    engine             auto, torch, openvino, onnx
    tta                none, flips, turns: the mean over mirrored and turned versions of each window
    threads            processor threads; by default as many as the engine takes. PyTorch has one number for all
                       of the process
    A ``calibration.json`` beside the model, made for it and for these views, gives the temperature.
    Raises InputFileError, ModelFileError, SettingsError.
    """
    if tta not in VIEWS:
        raise SettingsError(f"no views '{tta}'.{did_you_mean(tta, VIEWS)}")
    path = model_path(path)
    header = read_header(path)
    choice = choose_runtime(engine, device, precision)
    forward, where = open_runtime(choice, path, header, threads)
    logits = several_views(each_season(forward, header.inputs), VIEWS[tta])
    how = f"{where} ({choice.reason})" + ("" if tta == "none" else f", mean of {len(VIEWS[tta])} views")
    # in another number of threads, torch may differ in the last digit
    identity = fingerprint_of(
        header.to_json(), stamp(path), torch.get_num_threads() if choice.engine == TORCH else 0,
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
    recipe = EngineSpec(path, choice.device, choice.precision, choice.engine, tta, threads)
    return Engine(header, logits, how, identity, temperature or 1.0, tta, recipes=(recipe,))


def open_recipes(recipes: Sequence[EngineSpec]) -> Engine:
    """The engine that was opened by them. Raises as `open_engine` and `ensemble` do."""
    return ensemble([open_engine(**vars(one)) for one in recipes])


def several_views(forward: Forward, turns: Sequence[int]) -> Forward:
    """The logarithm of the mean probability over turned versions of square windows."""
    if len(turns) == 1:
        return forward

    def averaged(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for turn in turns:
            seen = x.flip(3) if turn >= 4 else x
            seen = torch.rot90(seen, turn % 4, (2, 3)).contiguous(memory_format=torch.channels_last)
            share = torch.rot90(forward(seen).float().softmax(dim=1), -(turn % 4), (2, 3))
            share = share.flip(3) if turn >= 4 else share
            total = total.to(share) + share
        return (total / len(turns)).clamp(min=1e-9).log()

    return averaged


def ensemble(engines: Sequence[Engine]) -> Engine:
    """Several models as one: the mean of their probabilities, each with its own temperature.

    They must agree on classes, bands, seasons, resolution and window; each brings its own normalisation.
    Raises ModelFileError where they do not.
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
    inputs = [one.header.inputs for one in engines]
    width = len(inputs[0].seasons) * len(inputs[0].bands)

    def read(scenes: Mapping[str, Scene], window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        observed = {season: scene.read_hwc(window) for season, scene in scenes.items()}
        valid = np.any([seen for _, seen in observed.values()], axis=0)
        channels = [one.encode(observed).transpose(1, 2, 0) for one in inputs]
        return np.concatenate(channels, axis=2).transpose(2, 0, 1), valid

    def logits(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for one, part in zip(engines, torch.split(x, width, dim=1), strict=True):
            answer = one.logits(part.contiguous(memory_format=torch.channels_last)).float().cpu()
            total = total.to(answer) + (answer / one.temperature).softmax(dim=1)
        return (total / len(engines)).clamp(min=1e-9).log()

    how = f"mean of {len(engines)} models: {'; '.join(dict.fromkeys(one.how for one in engines))}"
    return replace(
        first, logits=logits, how=how, temperature=1.0, reads=read,
        identity=fingerprint_of(*((one.identity, one.temperature) for one in engines)),
        members=tuple(one.header for one in engines),
        recipes=tuple(recipe for one in engines for recipe in one.recipes),
    )  # fmt: skip
