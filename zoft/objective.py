"""The objective of a step: this step's batches, as a function of the model's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoft.curvature import PartLosses
from zoft.errors import UsageError

#: A loss (a scalar tensor, computed in float32 or wider) or any metric (a float) to be minimised.
LossFunction = Callable[[nn.Module, Any], Tensor | float]

#: What a batch's loss is a mean of: the losses of its examples [B], or of their tokens [B, T] with −∞ where an example
#: has no more of them (:class:`zoft.curvature.PartLosses`); or that mean alone, where there is nothing else.
ExampleLosses = Callable[[nn.Module, Any], Tensor | float]


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
        losses: what ``loss`` is a mean of, see :data:`ExampleLosses`, where it can be had.

    Attributes:
        calls: forward passes so far: one an evaluation, two a derivative.
        loss, batches, losses: as given.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        batches: Sequence[Any],
        held: bool = False,
        losses: ExampleLosses | None = None,
    ) -> None:
        if not batches:
            raise UsageError("a step has no batch", "Give at least one batch a step.")
        self.model = model
        self.held = held
        self.calls = 0
        self.loss = loss
        self.batches = batches
        self.losses = losses

    @property
    def apart(self) -> ExamplesApart:
        """The same objective as a function that gives the losses of the examples, and not their mean."""
        return ExamplesApart(self)

    def __call__(self) -> float:
        """The mean loss without gradients, summed in float64; infinite or NaN values are returned as such.

        Raises:
            UsageError: the loss is not a scalar.
        """
        self.calls += 1
        with torch.inference_mode(), evaluating(self.model):
            values = [_scalar(self.loss(self.model, batch)) for batch in self.batches]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

    def derivative(self, direction: Sequence[tuple[nn.Parameter, Tensor]]) -> tuple[float, float]:
        """The mean loss and its exact derivative along ``direction``, by forward-mode differentiation.

        Args:
            direction: parameters of the model, each with a tangent of its shape and dtype.

        Returns:
            Loss and directional derivative, summed in float64; NaN where a value is not finite.

        Raises:
            UsageError: the loss is no tensor or does not depend on the parameters in a way that can be
                differentiated (a metric, or a value that was detached on the way), or the model uses an operator
                without a forward-mode derivative.
        """
        self.calls += 2
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        keys = ["model." + names[id(parameter)] for parameter, _ in direction]
        primals = tuple(parameter.detach() for parameter, _ in direction)
        tangents = tuple(tangent for _, tangent in direction)
        pairs = []
        for batch in self.batches:
            caller = _Caller(self.model, self.loss, batch)

            def loss(*values: Tensor, caller: nn.Module = caller) -> Tensor:
                result: Tensor = torch.func.functional_call(caller, dict(zip(keys, values, strict=True)), ())
                return result

            # Only the plain attention kernel has a forward-mode derivative, and inference mode has none at all.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                evaluating(self.model),
                sdpa_kernel(SDPBackend.MATH),
                _explained(),
            ):
                # Strict: a loss without a tangent is an error, not a derivative of 0.
                result = torch.func.jvp(loss, primals, tangents, strict=True)
            pairs.append((_scalar(result[0]), _scalar(result[1])))
        if not all(math.isfinite(number) for pair in pairs for number in pair):
            return math.nan, math.nan
        return math.fsum(pair[0] for pair in pairs) / len(pairs), math.fsum(pair[1] for pair in pairs) / len(pairs)


class ExamplesApart:
    """An objective whose examples' losses are kept apart.

    A batch whose examples' losses cannot be had, or are one value, counts as one example.

    Attributes:
        held: the objective's.
        by_batch: whether batches stood in for examples when it was called last.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.held, self.by_batch = objective.held, False

    def __call__(self) -> list[PartLosses]:
        """Of every batch what its loss is a mean of, on the CPU, without gradients; one forward pass.

        The mean over the batches of their means is the objective's value, but for rounding.

        Raises:
            UsageError: a batch's losses are neither one value an example nor one a token.
        """
        of = self._objective
        of.calls += 1
        with torch.inference_mode(), evaluating(of.model):
            values = [(of.losses or of.loss)(of.model, batch) for batch in of.batches]
        rows = [value for value in values if isinstance(value, Tensor) and value.ndim]
        self.by_batch = len(rows) < len(values)
        if self.by_batch:
            return [PartLosses.of(torch.tensor([_scalar(value)], dtype=torch.float64)) for value in values]
        if not all(value.ndim < 3 and value.numel() for value in rows):
            raise UsageError(
                "the losses of a batch are neither one value an example nor one a token",
                "Return a tensor of shape [B], or [B, T].",
            )
        return [PartLosses.of(value) for value in rows]


class _Caller(nn.Module):
    """Calls the loss while the model's parameters may be exchanged underneath it."""

    def __init__(self, model: nn.Module, loss: LossFunction, batch: Any) -> None:
        super().__init__()
        self.model = model
        self._loss, self._batch = loss, batch

    def forward(self) -> Tensor:
        value = self._loss(self.model, self._batch)
        if not isinstance(value, Tensor):
            raise UsageError(
                "the loss is a number, which has no derivative",
                "Return a tensor, or choose a method without derivatives.",
            )
        return value


@contextmanager
def _explained() -> Iterator[None]:
    """Within: an operator without a forward-mode derivative, or a loss without a tangent, ends in one sentence."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        # The first is what a strict product says of a loss without a tangent.
        if any(words in str(error).lower() for words in ("output of f is independent", "inference tensor")):
            raise UsageError(
                "the loss has no derivative with respect to what is trained: it is a metric, or was cut off on the "
                "way, as by item(), detach() or torch.inference_mode()",
                "Return a differentiable loss as it was computed, or choose a method that takes differences, such as "
                "mezo.",
            ) from None
        if not any(words in str(error) for words in ("forward AD", "forward-mode", "forward mode")):
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"the model cannot be differentiated in forward mode: {reason}",
            "Choose a method that needs evaluations only, such as mezo.",
        ) from None


def _scalar(value: Tensor | float) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UsageError(
                f"the loss has shape {tuple(value.shape)}, not one value", "Return the mean over the batch."
            )
        if value.is_complex():
            raise UsageError("the loss is complex", "Return a real number.")
        return float(value.detach().double())
    return float(value)
