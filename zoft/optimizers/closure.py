"""A user's closure as the loss of a step, with one clear sentence for each way in which it can be wrong."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from types import TracebackType

from torch import Tensor, nn

from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.objective import Objective

Closure = Callable[[], Tensor | float]

#: Two losses at the same weights may differ by so much relatively: atomic additions on accelerators do, and a
#: closure that draws new data or new dropout masks differs by far more.
_SAME = 1e-6


def objective_of(closure: Closure, model: nn.Module, blocks: Blocks) -> Objective:
    """The closure's loss as an objective.

    Its call raises a UsageError where the closure backpropagates, or gives a loss that carries gradients or
    is neither one number nor one for every example.
    """

    def loss(model: nn.Module, batch: None) -> Tensor | float:
        before = _gradients(blocks)
        try:
            value = closure()
        except RuntimeError as error:
            if _differentiated(error.__traceback__):
                raise UsageError(
                    "the closure asks for gradients, and a zeroth-order step records none",
                    "Let it return the loss alone, without backward(); a loss that is itself a derivative is "
                    "computed under torch.inference_mode(False) and torch.enable_grad() and returned detached.",
                ) from error
            raise
        if any(grad is not None and grad != before[index] for index, grad in enumerate(_gradients(blocks))):
            raise UsageError(
                "the closure calls backward(), which a zeroth-order step has no use for",
                "Let it return the loss alone.",
            )
        if not isinstance(value, Tensor | numbers.Real):
            raise UsageError(
                f"the closure returned {type(value).__name__}, not a loss", "Return a scalar tensor or a number."
            )
        if isinstance(value, Tensor) and value.requires_grad:
            raise UsageError(
                "the closure's loss carries gradients, so it was computed outside the step or with gradients enabled",
                "Compute it inside the closure, at the weights of that moment, and return it detached.",
            )
        return value

    def mean(model: nn.Module, batch: None) -> Tensor | float:
        value = loss(model, batch)
        return value.mean() if isinstance(value, Tensor) and value.ndim == 1 else value

    return Objective(model, mean, [None], losses=loss)


def check_same_twice(objective: Objective) -> None:
    """Evaluate twice at the same weights.

    Raises:
        UsageError: the two losses differ by more than rounding.
    """
    first, second = objective(), objective()
    if not (math.isclose(first, second, rel_tol=_SAME) or (math.isnan(first) and math.isnan(second))):
        raise UsageError(
            f"the closure is not deterministic: it gave {first:.9g} and then {second:.9g} at the same weights",
            "Draw the batch before the step, and keep dropout and other randomness out of the closure.",
        )


def _gradients(blocks: Blocks) -> list[tuple[int, int] | None]:
    """Which gradient every block has, in a form that changes whenever something is added to it."""
    grads = [block.parameter.grad for block in blocks]
    return [None if grad is None else (id(grad), grad._version) for grad in grads]


def _differentiated(trace: TracebackType | None) -> bool:
    """Whether an error was raised by autograd's entry points, ``backward`` or ``grad``."""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "torch.autograd":
            return True
        trace = trace.tb_next
    return False
