"""The training loop, in reading order."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.atomic_io import StrPath
from cobertes.errors import TrainingError
from cobertes.geo.grid import resolution
from cobertes.learn.architectures import freeze, freeze_batch_norm
from cobertes.learn.checkpoints import BEST, save_batch, save_checkpoint
from cobertes.learn.devices import is_out_of_memory, memory_format, torch_state
from cobertes.learn.distributed import all_reduce_sum, broadcast_buffers
from cobertes.learn.inference import HeldOut, evaluate_windows
from cobertes.learn.loader import Batch, batches, count_batches
from cobertes.learn.metrics_log import Epoch, best_epoch, finite, should_stop_early, time_is_up, write_history
from cobertes.learn.model_file import MODEL_FILE, ModelHeader, read_header, save_model
from cobertes.learn.tensorboard_log import TensorBoardLogger
from cobertes.learn.training_setup import TrainingSetup
from cobertes.learn.training_state import TrainingState, begin_training
from cobertes.progress import SILENT, Progress
from cobertes.settings import TrainSettings

log = logging.getLogger(__name__)

UNKNOWN = dict.fromkeys(("validation_loss", "miou", "mean_dice", "overall_accuracy"), math.nan)
"""Scores of an epoch without validation."""


def train(
    setup: TrainingSetup,
    out: StrPath,
    *,
    progress: Progress = SILENT,
    on_epoch: Callable[[Epoch], None] = lambda record: None,
) -> ModelHeader:
    """Train a model, or resume an interrupted training; the weights of the best epoch are the result.

    out       run folder: checkpoints/, metrics.jsonl, tensorboard/ and, at the end, the model file are written
    on_epoch  called with the record of each epoch
    Raises TrainingError if the loss is not finite or the checkpoint is damaged, SettingsError if a batch is too
    small to learn from.
    """
    out = Path(out)
    with torch_state(setup.settings.threads):
        state = begin_training(setup, out / "checkpoints")
        with _memory_errors(state):
            _train_epochs(state, out, progress, on_epoch)
            header = _header(state, finished=True)
            if state.is_rank_zero:
                header = _finish(out, header)
            state.fabric.barrier()
    return header


def _train_epochs(state: TrainingState, out: Path, progress: Progress, on_epoch: Callable[[Epoch], None]) -> None:
    """Train, validate and save, epoch by epoch, to the last or the best one."""
    setup, settings, history, held_out = state.setup, state.setup.settings, state.history, state.setup.held_out()
    metrics = out / "metrics.jsonl"
    with (
        TensorBoardLogger(out / "tensorboard", purge=len(history) + 1)
        if state.is_rank_zero
        else nullcontext() as board
    ):
        if state.is_rank_zero:
            write_history(metrics, history)
        last = state.from_rank_zero(time_is_up(history, settings, state.elapsed()))
        for epoch in range(len(history) + 1, settings.epochs + 1):
            if last or should_stop_early(history, settings):
                break
            record = _train_epoch(state, epoch, progress) | UNKNOWN
            matrix = None
            last = epoch == settings.epochs or state.from_rank_zero(
                time_is_up([*history, record | {"elapsed": state.elapsed()}], settings, state.elapsed())
            )
            if epoch % settings.validate_every == 0 or last:
                matrix, validation_loss = _validate(state, held_out, progress)
                state.schedule.validated(validation_loss)
                record |= _scores(matrix, validation_loss)
            record["elapsed"] = state.elapsed()
            history.append(record)
            if board is None:  # rank zero writes
                continue
            if best_epoch(history) is record:
                header = _header(state, finished=False)
                save_model(state.checkpoints / BEST, state.ema.model.state_dict(), header)
            # The checkpoint is written last: everything it refers to is on disk.
            save_checkpoint(state.checkpoints, state.state_dict())
            write_history(metrics, history)
            board.log_epoch(record)
            if matrix is not None:
                board.log_classes(matrix, setup.dataset.legend, epoch)
                board.log_windows(state.forward, setup.inputs, setup.dataset, held_out, epoch)
            on_epoch(record)


def _train_epoch(state: TrainingState, epoch: int, progress: Progress) -> Epoch:
    """Train on the windows of an epoch; returns its part of the record."""
    setup, settings, model, optimizer = state.setup, state.setup.settings, state.model, state.optimizer
    fabric, (rank, processes) = state.fabric, (state.fabric.global_rank, state.fabric.world_size)
    in_final_phase = state.in_final_phase(epoch)
    _set_modes(state, epoch, in_final_phase)
    torch.manual_seed(settings.seed + 1_000_003 * epoch + rank)  # for dropout, which some encoders have
    unit = state.step.batch * setup.window**2  # gradients of sums over pixels keep their size in this unit
    begin, waited, total, weight = time.monotonic(), 0.0, 0.0, 0.0
    count = count_batches(len(setup.sampler), state.step.batch)
    with progress.bar(f"epoch {epoch}", len(setup.sampler), "tiles") as advance:
        feed = batches(
            setup.sampler, setup.inputs, epoch, state.step.batch, (rank, processes),
            in_final_phase=in_final_phase, reuse=True,  # each batch is done with before the next is taken
        )  # fmt: skip
        for first in range(0, count, settings.accumulate):
            state.schedule.step(state.share_done(epoch - 1 + first / count))
            sums, saved = torch.zeros(3, dtype=torch.float64), None  # loss, weight of its pixels, not finite
            for _ in range(min(settings.accumulate, count - first)):
                requested = time.monotonic()
                batch = next(feed)
                waited += time.monotonic() - requested
                x = torch.from_numpy(batch.x).to(fabric.device, memory_format=memory_format(fabric.device))
                y, pixel_weight = _targets(batch, settings, fabric.device)
                loss, pixels = setup.loss(model(x), y, pixel_weight)
                fabric.backward(loss / unit)
                value = float(loss.detach())
                if not math.isfinite(value):
                    saved = save_batch(state.checkpoints, x, y, rank)
                sums += torch.tensor([value, float(pixels), saved is not None])
                advance(len(x) * processes / setup.sampler.windows_per_largest(x.shape[-1]))
            step_loss, step_weight, failed = all_reduce_sum(fabric, sums).tolist()
            if failed:
                raise _not_finite(setup, epoch, saved)
            if step_weight:
                # DDP averages gradients of sums over pixels; divided so, they are those of the mean over pixels
                share = step_weight / (unit * processes)
                if not math.isfinite(_scale_gradients(state, share)):  # the step would spoil the weights for good
                    raise _not_finite(setup, epoch, save_batch(state.checkpoints, x, y, rank), "gradient")
                optimizer.step()
                state.ema.update()
            total, weight = total + step_loss, weight + step_weight
            optimizer.zero_grad()
            mean_loss = total / weight if weight else math.nan
            advance(0, _status(state.history, mean_loss, waited, time.monotonic() - begin))
    seconds = time.monotonic() - begin
    return {
        "epoch": epoch,
        "loss": mean_loss,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "window": max(setup.sampler.window_sizes(in_final_phase)),
        "seconds": seconds,
        "tiles_per_second": len(setup.sampler) / seconds,
        "waiting_share": waited / seconds,
    }


def _set_modes(state: TrainingState, epoch: int, in_final_phase: bool) -> None:
    """Set training mode, but for what is frozen: the backbone at first, batch norm in the final phase."""
    sampler, network = state.setup.sampler, state.network
    state.model.train()
    freeze(network, epoch <= state.setup.settings.freeze_encoder)
    window = max(sampler.window_sizes(in_final_phase))
    if in_final_phase and window > max(sampler.window_sizes(False)):
        freeze_batch_norm(network)  # a batch has too few large windows for steady statistics
        if state.history and state.history[-1]["window"] < window:
            # the last running statistics are as noisy as the last weights: continue from the averages of both
            network.load_state_dict(state.ema.model.state_dict())


def _scale_gradients(state: TrainingState, share: float) -> float:
    """Divide gradients by ``share`` and clip them; returns their norm before the clipping."""
    torch._foreach_div_([p.grad for p in state.model.parameters() if p.grad is not None], share)
    limit = state.setup.settings.clip_norm or math.inf
    norm = state.fabric.clip_gradients(state.model, state.optimizer, max_norm=limit, error_if_nonfinite=False)
    return 0.0 if norm is None else float(norm)


def _status(history: Sequence[Epoch], loss: float, waited: float, seconds: float) -> str:
    """Text beside an epoch's progress bar."""
    scored = [record["miou"] for record in history if not math.isnan(record["miou"])]
    last = f"last mIoU {scored[-1]:.3f}, " if scored else ""
    return f"loss {loss:.3f}, {last}{waited / max(seconds, 1e-9):.0%} of the time waiting for data"


def _targets(batch: Batch, settings: TrainSettings, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Target and weight of a batch's pixels, as `Loss` takes them: labels or class shares; purity or None."""
    labels = torch.from_numpy(batch.y).to(device).long()
    if batch.shares is None:
        return labels, None
    shares = torch.from_numpy(batch.shares).to(device).permute(0, 3, 1, 2).float()
    purity = None
    if settings.purity_weight:
        total = shares.sum(dim=1).clamp(min=1) if shares.shape[1] > 1 else 100.0
        purity = shares.amax(dim=1) / total
    return (shares if settings.targets == "fractions" else labels), purity


def _validate(
    state: TrainingState, held_out: Sequence[HeldOut], progress: Progress
) -> tuple[ConfusionMatrix, float]:
    """Confusion matrix and mean cross-entropy of the averaged model; every process evaluates some windows."""
    setup, fabric = state.setup, state.fabric
    broadcast_buffers(fabric, state.ema.model)
    mine = held_out[fabric.global_rank :: fabric.world_size]
    with progress.bar("validation", len(mine), "windows") as advance:
        size = max(1, state.step.batch // fabric.world_size)
        matrix, loss = evaluate_windows(state.forward, setup.inputs, setup.dataset, mine, size, advance)
    pixels = int(matrix.counts.sum())
    summed = ConfusionMatrix(all_reduce_sum(fabric, torch.from_numpy(matrix.counts)).numpy())
    total = float(all_reduce_sum(fabric, torch.tensor(loss * pixels if pixels else 0.0, dtype=torch.float64)))
    return summed, total / int(summed.counts.sum()) if summed.counts.any() else math.nan


def _scores(matrix: ConfusionMatrix, validation_loss: float) -> Epoch:
    return {
        "validation_loss": validation_loss,
        "miou": matrix.miou,
        "mean_dice": matrix.mean_dice,
        "overall_accuracy": matrix.overall_accuracy,
    }


@contextmanager
def _memory_errors(state: TrainingState) -> Iterator[None]:
    """Raise TrainingError if the device runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"the device's memory does not hold a step of {state.step.batch} windows of {state.setup.window} px: "
            f'lower train.batch-size (train.accumulate adds several up) or set it to "auto"; then --from train.'
        ) from error


def _not_finite(setup: TrainingSetup, epoch: int, saved: Path | None, what: str = "loss") -> TrainingError:
    where = f"The batch is kept in {saved}." if saved else "Another process has kept the batch."
    return TrainingError(
        f"the {what} is not finite in epoch {epoch}: lower train.learning-rate (now "
        f'{setup.settings.rate:g}), set train.clip-norm or train.precision = "fp32", or look for damaged '
        f"pixels in the scenes. {where}"
    )


def _header(state: TrainingState, *, finished: bool) -> ModelHeader:
    setup, history = state.setup, state.history
    best = best_epoch(history)
    scenes = [scene for area in setup.dataset.areas.values() for scene in area.scenes.values()]
    empty = {None if scene.nodata is None else finite(scene.nodata) for scene in scenes}  # NaN is never observed
    nodata = empty.pop() if len(empty) == 1 else None
    training = {
        "settings": setup.settings.model_dump(by_alias=True),
        "augmentation": setup.sampler.augmentation.model_dump(by_alias=True),
        "fingerprint": setup.fingerprint,
        "precision": state.step.precision,
        "batch_size": state.step.batch,
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "validation_miou": finite(best["miou"]),
        "finished": finished,
    }
    scale = None if scenes[0].grid.crs is None else resolution(scenes[0].grid)
    return ModelHeader(setup.network, setup.inputs, setup.dataset.legend, scale, setup.window, training, nodata)


def _finish(out: Path, header: ModelHeader) -> ModelHeader:
    """Write the best epoch's weights under the model's final name; returns its header.

    Epoch and score are those saved with the weights: if a training was killed between them and its checkpoint,
    the repeated epoch may differ in the last digit, or have a lower score.
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
