"""Exponential moving average (EMA) of a model's weights, which is validated, saved and applied."""

import copy
from typing import Any

import torch
from torch import nn


class EMA:
    """Exponential moving average of weights and batch-norm statistics (Tarvainen & Valpola 2017, NeurIPS 30).

    Update t multiplies the average by ``min(decay, t / (t + 9))``, so that the first, random weights soon fade.
    With ``decay`` 0 it equals the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source, self.model = model, copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's weights; call it after each step of the optimizer."""
        self.updates += 1
        weight = 1 - min(self.decay, self.updates / (self.updates + 9))
        pairs = list(zip(self.model.state_dict().values(), self.source.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [source for _, source in floats], weight)
        for own, source in pairs:
            if not own.is_floating_point():  # the batch counts of batch norm
                own.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"model": dict(self.model.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])
