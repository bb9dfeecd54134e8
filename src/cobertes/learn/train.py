"""The training loop, in reading order."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.errors import TrainingError
from cobertes.geo.grid import resolution
from cobertes.learn.architectures import Network, build_network, count_parameters, freeze, hold_batch_norm
from cobertes.learn.batch_size import StepChoice, choose_step, set_up
from cobertes.learn.checkpoints import BEST, load_checkpoint, save_batch, save_checkpoint
from cobertes.learn.devices import all_reduce_sum, as_the_leader, is_out_of_memory, memory_format, start_together
from cobertes.learn.ema import EMA
from cobertes.learn.inference import Forward, HeldOut, each_season, judge
from cobertes.learn.lr_schedule import Schedule
from cobertes.learn.metrics_log import (
    Epoch,
    best_epoch,
    finite,
    next_is_last,
    should_stop_early,
    time_is_up,
    write_history,
)
from cobertes.learn.model_file import MODEL_FILE, ModelHeader, read_header, save_model
from cobertes.learn.pretrained import RANDOM, load_pretrained
from cobertes.learn.sampler import Batch, batches, count_batches
from cobertes.learn.tensorboard_log import TensorBoardLogger
from cobertes.learn.training_setup import TrainingPlan
from cobertes.progress import SILENT, Progress
from cobertes.settings import LAST_PART, TrainSettings

log = logging.getLogger(__name__)


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
    loop = _begin(plan, out / "checkpoints", progress)
    settings, history, held_out = plan.settings, loop.history, plan.held_out()
    with (
        _enough_memory(loop),
        TensorBoardLogger(out / "tensorboard", purge=len(history) + 1)
        if loop.is_rank_zero
        else nullcontext() as board,
    ):
        if loop.is_rank_zero:
            write_history(out / "metrics.jsonl", history)
        last = loop.agree(time_is_up(history, settings, loop.elapsed()))
        for epoch in range(len(history) + 1, settings.epochs + 1):
            if last or should_stop_early(history, settings):
                break
            record = _train_epoch(loop, epoch) | UNKNOWN
            matrix = None
            last = epoch == settings.epochs or loop.agree(
                time_is_up([*history, record | {"elapsed": loop.elapsed()}], settings, loop.elapsed())
            )
            if epoch % settings.validate_every == 0 or last:
                matrix, validation_loss = _validate(loop, held_out)
                loop.schedule.validated(validation_loss)
                record |= _scores(matrix, validation_loss)
            record["elapsed"] = loop.elapsed()
            history.append(record)
            if board is None:  # another process writes
                continue
            if best_epoch(history) is record:
                header = _header(loop, finished=False)
                save_model(loop.checkpoints / BEST, loop.averaged.model.state_dict(), header)
            # The checkpoint is written last: whatever it says has happened is on disk.
            save_checkpoint(loop.checkpoints, loop.state_dict())
            write_history(out / "metrics.jsonl", history)
            board.epoch(record)
            if matrix is not None:
                board.classes(matrix, plan.ground.legend, epoch)
                board.places(loop.forward, plan.inputs, plan.ground, held_out, epoch)
            report(record)
    header = _header(loop, finished=True)
    if loop.is_rank_zero:
        header = _finish(out, header)
    loop.fabric.barrier()
    return header


def _begin(plan: TrainingPlan, checkpoints: Path, progress: Progress) -> "_Loop":
    """Network, optimizer and all that goes with them: new, or as the last checkpoint has them."""
    settings = plan.settings
    checkpoints.mkdir(parents=True, exist_ok=True)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    state = load_checkpoint(checkpoints, plan.fingerprint)
    # The seed decides the first weights; all later choices are functions of (seed, epoch, position).
    torch.manual_seed(settings.seed)
    network = build_network(plan.network)
    if plan.weights != RANDOM and state is None:
        log.info("%s", load_pretrained(network, plan.weights, plan.inputs.bands))
    # A trial may end otherwise the second time, so a resumed training keeps what it had.
    open_ones = [name for name in ("batch_size", "precision") if getattr(settings, name) == "auto"]
    kept: dict[str, Any] = {} if state is None else {name: state[name] for name in open_ones if name in state}
    together = start_together(settings.device, "fp32")
    chosen = None
    if together.is_global_zero:
        chosen = choose_step(
            settings.model_copy(update=kept), network, plan.loss,
            sides=plan.sampler.windows, samples=len(plan.sampler), processes=together.world_size,
        )  # fmt: skip
    chosen = cast("StepChoice", together.broadcast(chosen))
    precision = chosen.precision
    fabric = start_together(settings.device, precision, some_idle=settings.freeze_encoder > 0)
    between = ", then " if settings.window_order == "small-first" else " or "
    log.info(
        "%s with encoder %s, %.1f million parameters, on %s in %s (%s); %d windows of %s px per epoch, "
        "in batches of %d%s",
        plan.network.architecture.replace("unet", "U-Net"), plan.network.encoder,
        count_parameters(network) / 1e6, fabric.device.type, precision,
        "as before" if "precision" in kept else chosen.why_precision,
        len(plan.sampler), between.join(map(str, plan.sampler.windows)), chosen.batch,
        f" ({'as before' if 'batch_size' in kept else chosen.why_batch})" if settings.batch_size == "auto" else "",
    )  # fmt: skip

    averaged = EMA(network, settings.averaging)
    averaged.model.to(fabric.device).to(memory_format=memory_format(fabric.device))
    if settings.compile:
        network.compile()
    model, optimizer = set_up(fabric, network, settings)
    schedule = Schedule(optimizer, settings)
    history: list[Epoch] = []
    if state is not None:
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
        log.info("going on after epoch %d", len(history))
    begin = time.monotonic() - (history[-1]["elapsed"] if history else 0.0)
    return _Loop(
        plan, fabric, precision, network, model, optimizer, averaged, schedule, chosen.batch, checkpoints,
        progress, begin, history,
    )  # fmt: skip


UNKNOWN = dict.fromkeys(("validation_loss", "miou", "mean_dice", "overall_accuracy"), math.nan)
"""Scores of an epoch without validation."""


def _scores(matrix: ConfusionMatrix, validation_loss: float) -> Epoch:
    return {
        "validation_loss": validation_loss,
        "miou": matrix.miou,
        "mean_dice": matrix.mean_dice,
        "overall_accuracy": matrix.overall_accuracy,
    }


@dataclass(frozen=True)
class _Loop:
    """What the epochs of a training share; ``begin`` is when it began, as if it had never been interrupted."""

    plan: TrainingPlan
    fabric: Fabric
    precision: str
    network: Network
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: EMA
    schedule: Schedule
    batch_size: int
    checkpoints: Path
    progress: Progress
    begin: float
    history: list[Epoch]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: everything needed to go on exactly."""
        return {
            "fingerprint": self.plan.fingerprint,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "model": _state(self.model),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
        }

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.begin

    def share_over(self, epochs: float) -> float:
        """Share of the training that has passed: of its epochs or of its minutes, whichever is further."""
        settings = self.plan.settings
        share = epochs / settings.epochs
        if settings.minutes is None:
            return share
        # one clock for all processes: with other rates their weights would drift apart
        return max(share, float(self.fabric.broadcast(self.elapsed())) / (60 * settings.minutes))

    def is_last_part(self, epoch: int) -> bool:
        """Whether an epoch is in the last part of the training: the last one is, but where it is the only one."""
        ends = self.agree(next_is_last(self.history, self.plan.settings, self.elapsed()))
        return (ends and epoch > 1) or self.share_over(epoch - 1) >= 1 - LAST_PART

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process is the one, of those that train together, that writes."""
        return self.fabric.is_global_zero

    def agree(self, choice: bool) -> bool:
        """What the first process has chosen."""
        return bool(self.fabric.broadcast(choice))

    @property
    def forward(self) -> Forward:
        """The averaged model, as validation takes it."""

        device = self.fabric.device

        def logits(x: Tensor) -> Tensor:
            with torch.inference_mode(), self.fabric.autocast():
                found: Tensor = self.averaged.model(x.to(device, memory_format=memory_format(device)))
                return found

        return each_season(logits, self.plan.inputs)


@contextmanager
def _enough_memory(loop: _Loop) -> Iterator[None]:
    """What a device says that has no room for a step, as a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"the device's memory does not hold a step of {loop.batch_size} windows of {loop.plan.window} px: "
            f'lower train.batch-size (train.accumulate adds several up) or set it to "auto"; then --from train.'
        ) from error


def _train_epoch(loop: _Loop, epoch: int) -> Epoch:
    """One pass over the epoch's windows; returns its part of the record."""
    plan, settings, model, optimizer = loop.plan, loop.plan.settings, loop.model, loop.optimizer
    model.train()
    freeze(loop.network, epoch <= settings.freeze_encoder)
    last_part = loop.is_last_part(epoch)
    window = max(plan.sampler.sizes(last_part))
    if last_part and window > max(plan.sampler.sizes(False)):
        hold_batch_norm(loop.network)  # large windows are few in a batch, too few to say what is usual
        if loop.history and loop.history[-1]["window"] < window:
            # what batch norm has seen last is as chancy as the last weights: their averages are steady
            loop.network.load_state_dict(loop.averaged.model.state_dict())
    fabric, (rank, processes) = loop.fabric, (loop.fabric.global_rank, loop.fabric.world_size)
    torch.manual_seed(settings.seed + 1_000_003 * epoch + rank)  # for dropout, where an encoder has it
    unit = loop.batch_size * plan.window**2  # gradients are of sums over pixels; in this unit they keep their size
    begin, waited, total, weight = time.monotonic(), 0.0, 0.0, 0.0
    count = count_batches(len(plan.sampler), loop.batch_size)
    with loop.progress.bar(f"epoch {epoch}", len(plan.sampler), "tiles") as advance:
        feed = batches(
            plan.sampler, plan.inputs, epoch, loop.batch_size, (rank, processes), in_last_part=last_part
        )
        for first in range(0, count, settings.accumulate):
            loop.schedule.step(loop.share_over(epoch - 1 + first / count))
            sums, kept = torch.zeros(3, dtype=torch.float64), None  # loss, weight of its pixels, not finite
            for _ in range(min(settings.accumulate, count - first)):
                asked = time.monotonic()
                batch = next(feed)
                waited += time.monotonic() - asked
                x = torch.from_numpy(batch.x).to(fabric.device, memory_format=memory_format(fabric.device))
                y, importance = _targets(batch, settings, fabric.device)
                loss, pixels = plan.loss(model(x), y, importance)
                fabric.backward(loss / unit)
                value = float(loss.detach())
                if not math.isfinite(value):
                    kept = save_batch(loop.checkpoints, x, y, rank)
                sums += torch.tensor([value, float(pixels), kept is not None])
                advance(len(x) * processes / plan.sampler.instead(x.shape[-1]))
            found, pixels_of_all, bad = all_reduce_sum(fabric, sums).tolist()
            if bad:
                raise _not_finite(plan, epoch, kept)
            if pixels_of_all:
                # gradients are the mean over the processes, of sums over pixels: they become the mean over pixels
                share = pixels_of_all / (unit * processes)
                torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], share)
                norm = fabric.clip_gradients(
                    model, optimizer, max_norm=settings.clip_norm or math.inf, error_if_nonfinite=False
                )
                if norm is not None and not math.isfinite(norm):  # the step would spoil the weights for good
                    raise _not_finite(plan, epoch, save_batch(loop.checkpoints, x, y, rank), "gradient")
                optimizer.step()
                loop.averaged.update()
            total, weight = total + found, weight + pixels_of_all
            optimizer.zero_grad()
            advance(
                0, _so_far(loop.history, total / weight if weight else math.nan, waited, time.monotonic() - begin)
            )
    seconds = time.monotonic() - begin
    return {
        "epoch": epoch,
        "loss": total / weight if weight else float("nan"),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "window": window,
        "seconds": seconds,
        "tiles_per_second": len(plan.sampler) / seconds,
        "waiting_share": waited / seconds,
    }


def _so_far(history: Sequence[Epoch], loss: float, waited: float, seconds: float) -> str:
    """What is worth knowing in the middle of an epoch, in words."""
    scored = [record["miou"] for record in history if not math.isnan(record["miou"])]
    last = f"last mIoU {scored[-1]:.3f}, " if scored else ""
    return f"loss {loss:.3f}, {last}{waited / max(seconds, 1e-9):.0%} of the time waiting for data"


def _targets(batch: Batch, settings: TrainSettings, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Target and weight of the pixels of a batch, as `Loss` takes them: labels or shares of classes; purity."""
    labels = torch.from_numpy(batch.y).to(device).long()
    if batch.shares is None:
        return labels, None
    shares = torch.from_numpy(batch.shares).to(device).permute(0, 3, 1, 2).float()
    purity = None
    if settings.purity_weight:
        known = shares.sum(dim=1).clamp(min=1) if shares.shape[1] > 1 else 100.0
        purity = shares.amax(dim=1) / known
    return (shares if settings.targets == "fractions" else labels), purity


def _not_finite(plan: TrainingPlan, epoch: int, kept: Path | None, what: str = "loss") -> TrainingError:
    where = f"The batch is kept in {kept}." if kept else "Another process has kept the batch."
    return TrainingError(
        f"the {what} is not finite in epoch {epoch}: lower train.learning-rate (now "
        f'{plan.settings.rate:g}), set train.clip-norm or train.precision = "fp32", or look for damaged '
        f"pixels in the scenes. {where}"
    )


def _validate(loop: _Loop, held_out: Sequence[HeldOut]) -> tuple[ConfusionMatrix, float]:
    plan, fabric = loop.plan, loop.fabric
    as_the_leader(fabric, loop.averaged.model)
    mine = held_out[fabric.global_rank :: fabric.world_size]
    with loop.progress.bar("validation", len(mine), "windows") as advance:
        size = max(1, loop.batch_size // fabric.world_size)
        matrix, loss = judge(loop.forward, plan.inputs, plan.ground, mine, size, advance)
    pixels = int(matrix.counts.sum())
    whole = ConfusionMatrix(all_reduce_sum(fabric, torch.from_numpy(matrix.counts)).numpy())
    total = float(all_reduce_sum(fabric, torch.tensor(loss * pixels if pixels else 0.0, dtype=torch.float64)))
    return whole, total / int(whole.counts.sum()) if whole.counts.any() else math.nan


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, without Fabric's wrapping."""
    inner = getattr(model, "module", model)
    return dict(inner.state_dict())


def _header(loop: _Loop, *, finished: bool) -> ModelHeader:
    plan, history = loop.plan, loop.history
    best = best_epoch(history)
    scenes = [scene for area in plan.ground.areas.values() for scene in area.scenes.values()]
    empty = {None if scene.nodata is None else finite(scene.nodata) for scene in scenes}  # NaN is never observed
    nodata = empty.pop() if len(empty) == 1 else None
    training = {
        "settings": plan.settings.model_dump(by_alias=True),
        "augmentation": plan.sampler.augmentation.model_dump(by_alias=True),
        "fingerprint": plan.fingerprint,
        "precision": loop.precision,
        "batch_size": loop.batch_size,
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "validation_miou": finite(best["miou"]),
        "finished": finished,
    }
    scale = None if scenes[0].grid.crs is None else resolution(scenes[0].grid)
    legend, window = plan.ground.legend, plan.window
    return ModelHeader(plan.network, plan.inputs, legend, scale, window, training, nodata)


def _finish(out: Path, header: ModelHeader) -> ModelHeader:
    """Give the best epoch's weights their final name; returns the model's header.

    Epoch and score are what was noted with the weights: where a training was killed between them and its
    checkpoint, the epoch that was repeated may be another one in the last digit, or less good.
    """
    path = out / "checkpoints" / BEST
    try:
        weights, noted = load_file(path), read_header(path).training
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"can't read the best epoch's weights in {path}: {error}. Delete {path.parent} to start anew."
        ) from error
    own = {key: noted[key] for key in ("best_epoch", "validation_miou")}
    header = replace(header, training={**header.training, **own})
    save_model(out / MODEL_FILE, weights, header)
    return header
