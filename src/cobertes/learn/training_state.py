"""State of a training: network, optimizer, average, schedule and history; new, or from the last checkpoint."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cobertes.learn.architectures import Network, build_network, count_parameters
from cobertes.learn.batch_size import StepChoice, choose_step, setup_model
from cobertes.learn.checkpoints import load_checkpoint
from cobertes.learn.devices import memory_format
from cobertes.learn.distributed import make_distributed_fabric
from cobertes.learn.ema import EMA
from cobertes.learn.inference import Forward, each_season
from cobertes.learn.lr_schedule import Schedule
from cobertes.learn.metrics_log import Epoch, next_is_last
from cobertes.learn.pretrained import RANDOM, load_pretrained
from cobertes.learn.training_setup import TrainingSetup
from cobertes.settings import FINAL_PHASE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """Everything that the epochs of a training share and change.

    step         batch size and precision
    model        the network as Fabric wraps it
    ema          average of the network's weights, which is validated and saved
    checkpoints  folder
    start        time.monotonic() at which it would have started without any interruption
    """

    setup: TrainingSetup
    fabric: Fabric
    step: StepChoice
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: EMA
    checkpoints: Path
    start: float
    history: list[Epoch]

    @property
    def network(self) -> Network:
        """The network itself, without Fabric's wrapping."""
        return cast("Network", self.ema.source)

    @property
    def is_rank_zero(self) -> bool:
        """True in the one process, of those that train together, that writes files."""
        return self.fabric.is_global_zero

    @property
    def forward(self) -> Forward:
        """Averaged model on the channels of all seasons, for validation."""
        device = self.fabric.device

        def logits(x: Tensor) -> Tensor:
            with torch.inference_mode(), self.fabric.autocast():
                result: Tensor = self.ema.model(x.to(device, memory_format=memory_format(device)))
                return result

        return each_season(logits, self.setup.inputs)

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.start

    def share_done(self, epochs: float) -> float:
        """Share of the training that is done after some epochs: of its epochs or minutes, whichever is more."""
        settings = self.setup.settings
        share = epochs / settings.epochs
        if settings.minutes is None:
            return share
        # one clock for all processes: with other rates their weights would drift apart
        return max(share, float(self.fabric.broadcast(self.elapsed())) / (60 * settings.minutes))

    def in_final_phase(self, epoch: int) -> bool:
        """Test if an epoch is in the final phase: always the last one, unless it is the only one."""
        is_last = self.from_rank_zero(next_is_last(self.history, self.setup.settings, self.elapsed()))
        return (is_last and epoch > 1) or self.share_done(epoch - 1) >= 1 - FINAL_PHASE

    def from_rank_zero(self, choice: bool) -> bool:
        """Broadcast rank zero's choice to all processes."""
        return bool(self.fabric.broadcast(choice))

    def state_dict(self) -> dict[str, Any]:
        """Checkpoint: everything needed to resume exactly."""
        inner = getattr(self.model, "module", self.model)  # without Fabric's wrapping
        return {
            "fingerprint": self.setup.fingerprint,
            "precision": self.step.precision,
            "batch_size": self.step.batch,
            "model": dict(inner.state_dict()),
            "averaged": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
        }


def begin_training(setup: TrainingSetup, checkpoints: Path) -> TrainingState:
    """Build the state of a training, or restore it from the last checkpoint.

    Raises TrainingError if no checkpoint can be read, SettingsError if a batch is too small to learn from.
    """
    settings = setup.settings
    checkpoints.mkdir(parents=True, exist_ok=True)
    saved = load_checkpoint(checkpoints, setup.fingerprint)
    # The seed decides the initial weights; all later choices are functions of (seed, epoch, position).
    torch.manual_seed(settings.seed)
    network = build_network(setup.network)
    if setup.weights != RANDOM and saved is None:
        log.info("%s", load_pretrained(network, setup.weights, setup.inputs.bands))
    step, fabric = _choose_step(setup, network, saved)
    ema = EMA(network, settings.averaging)
    ema.model.to(fabric.device).to(memory_format=memory_format(fabric.device))
    if settings.compile:
        network.compile()
    model, optimizer = setup_model(fabric, network, settings)
    schedule = Schedule(optimizer, settings)
    history: list[Epoch] = []
    if saved is not None:
        model.load_state_dict(saved["model"])
        ema.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        history = saved["history"]
        log.info("going on after epoch %d", len(history))
    start = time.monotonic() - (history[-1]["elapsed"] if history else 0.0)
    return TrainingState(setup, fabric, step, model, optimizer, schedule, ema, checkpoints, start, history)


def _choose_step(
    setup: TrainingSetup, network: Network, saved: dict[str, Any] | None
) -> tuple[StepChoice, Fabric]:
    """Batch size and precision, as rank zero chooses them, and this process's Fabric; both are logged."""
    settings = setup.settings
    # A trial may choose otherwise the second time, so a resumed training keeps its first choice.
    automatic = [name for name in ("batch_size", "precision") if getattr(settings, name) == "auto"]
    resumed: dict[str, Any] = {} if saved is None else {name: saved[name] for name in automatic}
    fabric = make_distributed_fabric(settings.device, "fp32")
    choice = None
    if fabric.is_global_zero:
        choice = choose_step(
            settings.model_copy(update=resumed), network, setup.loss,
            sides=setup.sampler.windows, samples=len(setup.sampler), processes=fabric.world_size,
        )  # fmt: skip
    step = cast("StepChoice", fabric.broadcast(choice))
    fabric = make_distributed_fabric(settings.device, step.precision, find_unused=settings.freeze_encoder > 0)
    why_batch = "as before" if "batch_size" in resumed else step.why_batch
    between = ", then " if settings.window_order == "small-first" else " or "
    log.info(
        "%s with encoder %s, %.1f million parameters, on %s in %s (%s); %d windows of %s px per epoch, "
        "in batches of %d%s",
        setup.network.architecture.replace("unet", "U-Net"), setup.network.encoder,
        count_parameters(network) / 1e6, fabric.device.type, step.precision,
        "as before" if "precision" in resumed else step.why_precision,
        len(setup.sampler), between.join(map(str, setup.sampler.windows)), step.batch,
        f" ({why_batch})" if settings.batch_size == "auto" else "",
    )  # fmt: skip
    return step, fabric
