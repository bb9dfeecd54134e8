"""The running average of a model's weights: what is validated, kept and used."""

import copy
from typing import Any

import torch
from torch import nn


class EMA:
    """Exponential moving average of weights and batch-norm statistics (Tarvainen & Valpola 2017, NeurIPS 30).

    After update t the average keeps ``min(decay, t / (t + 9))`` of itself, so that the first, random weights
    are soon forgotten. With ``decay`` 0 it is the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source, self.model = model, copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's weights: after each step of the optimizer."""
        self.updates += 1
        towards = 1 - min(self.decay, self.updates / (self.updates + 9))
        pairs = list(zip(self.model.state_dict().values(), self.source.state_dict().values(), strict=True))
        numbers = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in numbers], [theirs for _, theirs in numbers], towards)
        for mine, theirs in pairs:
            if not mine.is_floating_point():  # how many batches batch norm has seen
                mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"model": dict(self.model.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From what `state_dict` gives."""
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])
