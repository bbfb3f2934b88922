"""Parameter groups: what may stand in one, and a method whose update differs from group to group."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoft.blocks import Block
from zoft.config import unknown
from zoft.errors import UsageError
from zoft.noise import Span
from zoft.optimizers.base import ZOOptimizer
from zoft.step import State

#: What a group may set for itself.
OPTIONS = ("lr", "weight_decay")

#: What torch keeps in a group besides.
_OF_TORCH = ("params", "param_names", "initial_lr")


def check_group(group: dict[str, Any], where: str, model: nn.Module, others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a group that cannot be trained; its ``params`` become a list.

    Args:
        where: the group's name in messages.
        others: the groups that there are already.

    Raises:
        UsageError: an unknown option or a value out of range; no trainable parameter; a tensor that is not the
            model's or is in a group already.
    """
    for name in group:
        if name not in (*OPTIONS, *_OF_TORCH):
            raise UsageError(f"{where}: {unknown('option', name, OPTIONS)}")
    for name in OPTIONS:
        given_value = group.get(name, 0.0)
        value = float(given_value) if isinstance(given_value, numbers.Real | Tensor) else math.nan
        if not (value >= 0 and math.isfinite(value)):
            shown = repr(given_value) if isinstance(given_value, str) or given_value is None else f"{value:g}"
            raise UsageError(f"{where}: {name} is {shown}", "Give a finite number, 0 or greater.")
    given = group.get("params")
    if not isinstance(given, Iterable):
        raise UsageError(f"{where} has no list of params", 'Give dictionaries such as {"params": ..., "lr": ...}.')
    group["params"] = [given] if isinstance(given, Tensor) else list(given)
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]
    mine = {id(parameter) for parameter in model.parameters()}
    if not any(id(tensor) in mine and tensor.requires_grad for tensor in tensors):
        raise UsageError(
            f"{where} has no trainable parameter of the model",
            "Give groups of parameters of the model that have requires_grad.",
        )
    taken = {id(parameter) for other in others for parameter in other["params"]}
    for tensor in tensors:
        if id(tensor) not in mine:
            raise UsageError(
                f"{where} has a tensor of shape {tuple(tensor.shape)} that is no parameter of the model",
                "Give the model's own parameters.",
            )
        if id(tensor) in taken:
            raise UsageError(
                f"{where} has a tensor of shape {tuple(tensor.shape)} that is in a group already",
                "Give every parameter once.",
            )
        taken.add(id(tensor))


class PerBlock:
    """A method whose increments are those of another one for every block, and all the rest its own.

    Args:
        method: the method.
        variant: the method that a block's increments are of: ``method`` with other values of what nothing but
            :meth:`proposal` and :meth:`update` uses.
    """

    def __init__(self, method: ZOOptimizer, variant: Callable[[Block], ZOOptimizer]) -> None:
        self._method, self._variant = method, variant

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def proposal(self, state: State, span: Span, *args: Any) -> Tensor:
        """See :meth:`zoft.optimizers.ZOOptimizer.proposal`."""
        return self._variant(span.block).proposal(state, span, *args)

    def update(self, state: State, span: Span, *args: Any) -> Tensor:
        """See :meth:`zoft.optimizers.ZOOptimizer.update`."""
        return self._variant(span.block).update(state, span, *args)
