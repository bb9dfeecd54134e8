"""The learning rate over a training.

    constant    ‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾
    plateau     ‾‾‾‾‾‾‾‾\\_____\\__   halved where the validation loss no longer falls
    cosine      /‾‾‾‾‾--.._         warm-up, then half a cosine
    one-cycle   _./‾‾\\--..__        up from a 25th, down to nothing (Smith & Topin 2019)

All but plateau are functions of the share of the training that is over: of its epochs or of its minutes, whichever
is further. So with ``train.minutes`` the rate ends low when the time ends.
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


def rate_share(settings: TrainSettings, over: float) -> float:
    """The learning rate, as a share of ``train.learning-rate``, when a share ``over`` (0 to 1) has passed."""
    over = min(max(over, 0.0), 1.0)
    if settings.schedule == "cosine":
        if over < settings.warm_up:
            return max(over / settings.warm_up, BEGIN)
        return _fall((over - settings.warm_up) / (1 - settings.warm_up), 1.0, COSINE_END)
    if settings.schedule == "one-cycle":
        return _fall(over / RISE, BEGIN, 1.0) if over < RISE else _fall((over - RISE) / (1 - RISE), 1.0, END)
    return 1.0


def _fall(over: float, begin: float, end: float) -> float:
    """Along half a cosine from ``begin`` to ``end``."""
    return end + (begin - end) * (1 + math.cos(math.pi * over)) / 2


class Schedule:
    """Sets the rate of an optimizer: before every step, and after every validation."""

    def __init__(self, optimizer: Optimizer, settings: TrainSettings) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.plateau = ReduceLROnPlateau(
            optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
        )

    def step(self, over: float) -> None:
        """Before a step of the optimizer, when a share ``over`` of the training has passed."""
        if self.settings.schedule in ("cosine", "one-cycle"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * rate_share(self.settings, over)

    def validated(self, loss: float) -> None:
        """After a validation, by its loss; NaN where nothing held out is labelled."""
        if self.settings.schedule == "plateau" and math.isfinite(loss):
            self.plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From what `state_dict` gives."""
        self.plateau.load_state_dict(state)
