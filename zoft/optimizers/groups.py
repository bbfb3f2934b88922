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

_FORM = 'Give dictionaries such as {"params": model.head.parameters(), "lr": 1e-6}.'


def check_group(group: dict[str, Any], where: str, model: nn.Module, others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a group that cannot be trained; its ``params`` become a list.

    Args:
        where: the group's name in messages.
        others: the groups that there are already.

    Raises:
        UsageError: an unknown option or a value out of range; an empty group, or one of frozen parameters only; an
            entry that is no parameter, not the model's, or in a group already.
    """
    if not isinstance(group, dict):
        raise UsageError(f"{where} is {type(group).__name__}, not a dictionary", _FORM)
    for name in group:
        if name not in (*OPTIONS, *_OF_TORCH):
            raise UsageError(f"{where}: {unknown('option', name, OPTIONS)}")
    for name in OPTIONS:
        given_value = group.get(name, 0.0)
        value = float(given_value) if isinstance(given_value, numbers.Real | Tensor) else math.nan
        if not (value >= 0 and math.isfinite(value)):
            shown = repr(given_value) if isinstance(given_value, str) or given_value is None else f"{value:g}"
            raise UsageError(f"{where}: {name} is {shown}", "Give a finite number, 0 or greater.")
    group["params"] = _listed(group.get("params"), where)
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]
    named = {isinstance(entry, tuple) for entry in group["params"]} | {"param_names" in other for other in others}
    if len(named) > 1:
        raise UsageError(
            f"{where}: some parameters are given with names and some without",
            "Name all of them, in all groups, or none.",
        )
    taken = {id(parameter) for other in others for parameter in other["params"]}
    mine = {id(parameter) for parameter in model.parameters()}
    for tensor in tensors:
        what = f"{where} has a tensor of shape {tuple(tensor.shape)}"
        if id(tensor) not in mine:
            raise UsageError(f"{what} that is no parameter of the model", "Give the model's own parameters.")
        if id(tensor) in taken:
            raise UsageError(f"{what} that is in a group already", "Give every parameter once.")
        taken.add(id(tensor))
    if not any(tensor.requires_grad for tensor in tensors):
        raise UsageError(
            f"{where} has no trainable parameter: all of it is frozen", "Set requires_grad on some, or leave it out."
        )


def _listed(given: Any, where: str) -> list[Any]:
    """The entries of a group: parameters, or pairs of a name and a parameter; at least one.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(given, Tensor):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping | nn.Module):
        raise UsageError(f"{where} has no list of params", _FORM)
    entries = list(given)
    if not entries:
        raise UsageError(f"{where} is empty", "Give it parameters of the model, or leave it out.")
    for entry in entries:
        tensor = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if not isinstance(tensor, Tensor):
            raise UsageError(
                f"{where} has an entry of type {type(tensor).__name__}, not a parameter",
                "Give parameters, as model.parameters() does, or names with them, as model.named_parameters().",
            )
    return entries


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
