"""The objective of a step: this step's batches, as a function of the model's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoft.errors import UsageError

#: A loss (a scalar tensor, computed in float32 or wider) or any metric (a float) to be minimised.
LossFunction = Callable[[nn.Module, Any], Tensor | float]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within: evaluation mode, so that no dropout differs between a step's forwards. After: as before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Objective:
    """Mean loss over this step's batches: the same value whenever it is called at the same θ.

    Args:
        model: the model.
        loss: ``loss(model, batch)`` -> scalar.
        batches: one batch, or several to accumulate over with equal weight.
        held: whether one evaluation runs the model many times, as generation does. θ + shift is then made
            once for the whole evaluation, at the cost of a copy of θ, instead of once for every forward.

    Attributes:
        calls: how many times the objective was evaluated.
    """

    def __init__(self, model: nn.Module, loss: LossFunction, batches: Sequence[Any], held: bool = False) -> None:
        if not batches:
            raise UsageError("a step has no batch", "Give at least one batch a step.")
        self.model = model
        self.held = held
        self.calls = 0
        self._loss = loss
        self._batches = batches

    def __call__(self) -> float:
        """The mean loss without gradients, summed in float64; infinite or NaN values are returned as such.

        Raises:
            UsageError: the loss is not a scalar.
        """
        self.calls += 1
        with torch.inference_mode(), evaluating(self.model):
            values = [_scalar(self._loss(self.model, batch)) for batch in self._batches]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _scalar(value: Tensor | float) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UsageError(
                f"the loss has shape {tuple(value.shape)}, not one value", "Return the mean over the batch."
            )
        return float(value.detach().double())
    return float(value)
