"""The training loop, in reading order."""

import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from cobertes.errors import SettingsError, TrainingError
from cobertes.files import replacing, write_text
from cobertes.geo.grid import resolution
from cobertes.geo.windows import Window
from cobertes.learn.averaging import Averaged
from cobertes.learn.device import choose_precision, start
from cobertes.learn.infer import HeldOut, each_season, judge, plan_blocks
from cobertes.learn.inputs import Inputs
from cobertes.learn.losses import cross_entropy, ins_weights
from cobertes.learn.modelfile import MODEL_FILE, ModelHeader, save_model
from cobertes.learn.samples import Sampler, batches
from cobertes.learn.unet import UNet, UNetSettings, count_parameters
from cobertes.progress import SILENT, Progress
from cobertes.settings import AugmentationSettings, ModelSettings, TrainSettings
from cobertes.tiles.ground import Ground
from cobertes.tiles.split import VALIDATION
from cobertes.tiles.statistics import Statistics
from cobertes.tiles.store import Store

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.safetensors"

Epoch = dict[str, float]
"""A record of metrics.jsonl."""


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained on what: network, ground, how, and the fingerprint of all of it."""

    ground: Ground
    sampler: Sampler
    inputs: Inputs
    network: UNetSettings
    settings: TrainSettings
    class_weights: Tensor | None
    fingerprint: str
    pretrained: bool = False

    @property
    def window(self) -> int:
        """Side of the largest training window in pixels, which validation and prediction take too."""
        return max(self.sampler.windows)

    def held_out(self) -> list[HeldOut]:
        """The windows over the validation blocks."""
        return plan_blocks(self.ground, VALIDATION, self.window, overlap=0)

    def feeding_windows(self) -> dict[str, list[Window]]:
        """By area, the ground that training and validation read."""
        windows = self.sampler.ground_windows()
        for name, planned in self.held_out():
            windows.setdefault(name, []).append(planned.window)
        return windows

    def reading(self, store: Store | None) -> "TrainingPlan":
        """The same plan, fed from a store."""
        ground = replace(self.ground, store=store)
        return replace(self, ground=ground, sampler=replace(self.sampler, ground=ground))


def training_windows(train: TrainSettings, tile_size: int) -> tuple[int, ...]:
    """Sides of the training windows, in pixels."""
    if isinstance(train.window, list):
        return tuple(train.window)
    return (train.window or tile_size,)


def plan_training(
    frame: Any,
    ground: Ground,
    statistics: Statistics,
    *,
    model: ModelSettings,
    train: TrainSettings,
    augmentation: AugmentationSettings,
    tile_size: int,
    fingerprint: str,
) -> TrainingPlan:
    """Bring index, statistics and settings together. Raises NoTilesError."""
    inputs = Inputs.of(statistics, model.seasons)
    network = UNetSettings(
        inputs.channels, len(ground.legend), model.encoder, model.width, model.depth, tuple(model.decoder)
    )
    weights = torch.from_numpy(ins_weights(statistics.class_counts)) if train.class_weights == "ins" else None
    sampler = Sampler.of(frame, ground, train, training_windows(train, tile_size), augmentation)
    return TrainingPlan(ground, sampler, inputs, network, train, weights, fingerprint, model.weights == "imagenet")


def train_model(
    plan: TrainingPlan,
    out: Path,
    *,
    progress: Progress = SILENT,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> ModelHeader:
    """Train, or go on where an interrupted training stopped; the model of the best epoch is the result.

    out     the run's folder: writes checkpoints/, metrics.jsonl, tensorboard/ and, at the end, the model file
    report  called with the record of each epoch
    Raises TrainingError where the loss is not finite or the checkpoint is damaged, SettingsError where a batch
    is too small to learn from.
    """
    settings, window = plan.settings, plan.window
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)

    state = _resume(checkpoints / LAST, plan.fingerprint)
    # The seed decides the first weights; all later choices are functions of (seed, epoch, position).
    torch.manual_seed(settings.seed)
    unet = UNet(plan.network, pretrained=plan.pretrained and state is None)
    batch_size = min(settings.batch_size, len(plan.sampler))
    _require_spread(unet, len(plan.sampler), batch_size, min(plan.sampler.windows))
    # A trial may end otherwise the second time, so a resumed training keeps the precision it had.
    asked = state["precision"] if state is not None and settings.precision == "auto" else settings.precision
    shape = (batch_size, plan.network.channels, window, window)
    precision, reason = choose_precision(asked, settings.device, unet, shape, learning=True)
    fabric = start(settings.device, precision)
    log.info(
        "U-Net with encoder %s, %.1f million parameters, on %s in %s (%s); %d windows of %s px per epoch",
        plan.network.encoder, count_parameters(unet) / 1e6, fabric.device.type, precision, reason,
        len(plan.sampler), " or ".join(map(str, plan.sampler.windows)),
    )  # fmt: skip

    # Channels last is the layout that convolutions are fastest in, on CPUs with bf16 units and on CUDA alike.
    unet = unet.to(memory_format=torch.channels_last)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    averaged = Averaged(unet, settings.averaging)
    judged = fabric.setup_module(averaged.model)
    model, optimizer = fabric.setup(unet, kind(unet.parameters(), lr=settings.learning_rate))
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
    )
    weights = None if plan.class_weights is None else plan.class_weights.to(fabric.device)
    held_out = plan.held_out()

    history: list[Epoch] = []
    if state is not None:
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
        log.info("going on after epoch %d of checkpoints/%s", len(history), LAST)
    elapsed = history[-1]["elapsed"] if history else 0.0
    _write_history(out / "metrics.jsonl", history)
    begin = time.monotonic() - elapsed

    with SummaryWriter(str(out / "tensorboard"), purge_step=len(history) + 1) as board:
        for epoch in range(len(history) + 1, settings.epochs + 1):
            if _time_is_up(history, settings, time.monotonic() - begin):
                break
            record = _train_epoch(fabric, model, optimizer, averaged, plan, weights, epoch, batch_size, progress)
            matrix, record["validation_loss"] = _validate(fabric, judged, plan, held_out, batch_size, progress)
            record |= {
                "miou": matrix.miou,
                "mean_dice": matrix.mean_dice,
                "overall_accuracy": matrix.overall_accuracy,
            }
            if math.isfinite(record["validation_loss"]):  # it is not where nothing held out is labelled
                schedule.step(record["validation_loss"])
            record["elapsed"] = time.monotonic() - begin
            history.append(record)
            if _best(history) is record:
                header = _header(plan, precision, history, finished=False)
                save_model(checkpoints / BEST, averaged.model.state_dict(), header)
            # The checkpoint is written last: whatever it says has happened is on disk.
            _save_checkpoint(checkpoints / LAST, {
                "fingerprint": plan.fingerprint,
                "precision": precision,
                "model": _state(model),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "history": history,
            })  # fmt: skip
            _write_history(out / "metrics.jsonl", history)
            for name, value in record.items():
                board.add_scalar(name, value, epoch)
            report(record)
    return _finish(plan, out, precision, history)


def _train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: Averaged,
    plan: TrainingPlan,
    weights: Tensor | None,
    epoch: int,
    batch_size: int,
    progress: Progress,
) -> Epoch:
    """One pass over the epoch's windows; returns its part of the record."""
    model.train()
    torch.manual_seed(plan.settings.seed + 1_000_003 * epoch)  # for dropout, where an encoder has it
    begin, waited, total, weight = time.monotonic(), 0.0, 0.0, 0.0
    with progress.bar(f"epoch {epoch}", len(plan.sampler), "tiles") as advance:
        feed = batches(plan.sampler, plan.inputs, epoch, batch_size)
        while True:
            asked = time.monotonic()
            batch = next(feed, None)
            waited += time.monotonic() - asked
            if batch is None:
                break
            x = torch.from_numpy(batch[0]).to(fabric.device, memory_format=torch.channels_last)
            y = torch.from_numpy(batch[1]).to(fabric.device).long()
            loss, count = cross_entropy(model(x), y, weights)
            advance(len(x))
            if count == 0:
                continue
            fabric.backward(loss / count)
            optimizer.step()
            optimizer.zero_grad()
            averaged.update()
            total, weight = total + float(loss.detach()), weight + float(count)
            if not math.isfinite(total):
                raise TrainingError(
                    f"the loss is not finite in epoch {epoch}: lower train.learning-rate (now "
                    f'{plan.settings.learning_rate:g}), set train.precision = "fp32", or look for damaged pixels '
                    f"in the scenes."
                )
    seconds = time.monotonic() - begin
    return {
        "epoch": epoch,
        "loss": total / weight if weight else float("nan"),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "tiles_per_second": len(plan.sampler) / seconds,
        "waiting_share": waited / seconds,
    }


def _validate(
    fabric: Fabric, model: nn.Module, plan: TrainingPlan, held_out: Any, batch_size: int, progress: Progress
) -> tuple[Any, float]:
    def forward(x: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(x.to(fabric.device, memory_format=torch.channels_last))
            return logits

    with progress.bar("validation", len(held_out), "windows") as advance:
        return judge(each_season(forward, plan.inputs), plan.inputs, plan.ground, held_out, batch_size, advance)


def _require_spread(unet: UNet, samples: int, batch_size: int, window: int) -> None:
    """Raise SettingsError where batch norm would get one value per channel, which has no spread."""
    smallest = samples // -(-samples // batch_size)
    if smallest == 1 and window <= unet.stride:
        raise SettingsError(
            f"a window of {window} px is one pixel at the bottom of the network (1/{unet.stride}) and a batch of "
            f"one holds no other: batch norm can't learn from it. Use a train.window over {unet.stride} px, or a "
            f"larger train.batch-size (now {batch_size}) and train.samples (now {samples})."
        )


def _best(history: list[Epoch]) -> Epoch:
    """The first epoch of the highest mIoU; the last of all where none has one."""
    scored = [record for record in history if not math.isnan(record["miou"])]
    return max(scored, key=lambda record: record["miou"]) if scored else history[-1]


def _time_is_up(history: list[Epoch], settings: TrainSettings, elapsed: float) -> bool:
    """Whether another epoch like the last would end after the minutes that were given."""
    if settings.minutes is None or not history:
        return False
    last = history[-1]["elapsed"] - (history[-2]["elapsed"] if len(history) > 1 else 0.0)
    return elapsed + last > settings.minutes * 60


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, without Fabric's wrapping."""
    inner = getattr(model, "module", model)
    return dict(inner.state_dict())


def _header(plan: TrainingPlan, precision: str, history: list[Epoch], *, finished: bool) -> ModelHeader:
    best = _best(history)
    scene = next(iter(next(iter(plan.ground.areas.values())).scenes.values()))
    nodata = None if scene.nodata is None else _number(scene.nodata)  # NaN is never an observation anyway
    training = {
        "settings": plan.settings.model_dump(by_alias=True),
        "augmentation": plan.sampler.augmentation.model_dump(by_alias=True),
        "fingerprint": plan.fingerprint,
        "precision": precision,
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "validation_miou": _number(best["miou"]),
        "finished": finished,
    }
    scale = None if scene.grid.crs is None else resolution(scene.grid)
    legend, window = plan.ground.legend, plan.window
    return ModelHeader(plan.network, plan.inputs, legend, scale, window, training, nodata)


def _finish(plan: TrainingPlan, out: Path, precision: str, history: list[Epoch]) -> ModelHeader:
    """Give the best epoch's weights their final name."""
    path = out / "checkpoints" / BEST
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"can't read the best epoch's weights in {path}: {error}. Delete {path.parent} to start anew."
        ) from error
    header = _header(plan, precision, history, finished=True)
    save_model(out / MODEL_FILE, weights, header)
    return header


def _save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def _resume(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The last checkpoint, if there is one of this very training."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["fingerprint"]
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is damaged or foreign. Delete it to train from the start.") from error
    if known != fingerprint:
        log.info("checkpoints/%s is of other settings or data: training from the start", LAST)
        return None
    return state


def _write_history(path: Path, history: list[Epoch]) -> None:
    lines = [json.dumps({name: _number(value) for name, value in record.items()}) + "\n" for record in history]
    write_text(path, "".join(lines))


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def read_history(path: Path) -> list[Epoch]:
    """The records of metrics.jsonl, NaN where a value is null; empty where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [
        {name: math.nan if value is None else value for name, value in json.loads(line).items()} for line in lines
    ]
