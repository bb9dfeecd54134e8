"""Learning-rate schedules.

    constant    ‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾
    plateau     ‾‾‾‾‾‾‾‾\\_____\\__   halved when the validation loss no longer falls
    cosine      /‾‾‾‾‾--.._         warm-up, then half a cosine
    one-cycle   _./‾‾\\--..__        up from a 25th, down to nothing (Smith & Topin 2019)

All but plateau are functions of the share of the training that is done: of its epochs or of its minutes, whichever
is more. So with ``train.minutes`` the rate ends low when the time ends.
"""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cobertes.settings import TrainSettings

RISE = 0.3
"""Share of a one-cycle training in which the rate rises."""
BEGIN, END = 1 / 25, 1e-4
"""Rates of one-cycle at its beginning and end, as shares of the highest."""
COSINE_END = 0.01


def rate_share(settings: TrainSettings, done: float) -> float:
    """Learning rate, as a share of ``train.learning-rate``, after a share ``done`` (0 to 1) of the training."""
    done = min(max(done, 0.0), 1.0)
    if settings.schedule == "cosine":
        if done < settings.warm_up:
            return max(done / settings.warm_up, BEGIN)
        return _fall((done - settings.warm_up) / (1 - settings.warm_up), 1.0, COSINE_END)
    if settings.schedule == "one-cycle":
        return _fall(done / RISE, BEGIN, 1.0) if done < RISE else _fall((done - RISE) / (1 - RISE), 1.0, END)
    return 1.0


def _fall(done: float, begin: float, end: float) -> float:
    """Half a cosine from ``begin`` to ``end``."""
    return end + (begin - end) * (1 + math.cos(math.pi * done)) / 2


class Schedule:
    """Schedule of an optimizer's learning rate: set before every step, and after every validation."""

    def __init__(self, optimizer: Optimizer, settings: TrainSettings) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.plateau = ReduceLROnPlateau(
            optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
        )

    def step(self, done: float) -> None:
        """Set the rate before a step of the optimizer, after a share ``done`` of the training."""
        if self.settings.schedule in ("cosine", "one-cycle"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * rate_share(self.settings, done)

    def validated(self, loss: float) -> None:
        """Set the rate after a validation, by its loss; NaN if no held-out pixel is labelled."""
        if self.settings.schedule == "plateau" and math.isfinite(loss):
            self.plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return self.plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.plateau.load_state_dict(state)
