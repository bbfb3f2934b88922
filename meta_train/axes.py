"""Axes of offsets: along which everything that goes into a layer has something in common.

A layer without a bias can be given one by way of its weights: what comes out of y = θ·x is shifted by e·(a·x) when θ
becomes θ + e·aᵀ, which is nearly a constant where a·x is nearly the same for all x. So a is the leading eigenvector of
E[x·xᵀ], uncentred, over the tokens of the meta-training tasks. No label decides it. It is measured once, at the base's
weights, over all tasks, each with the same energy.

Note:
    What the *other* tasks say of a task (:func:`meta_train.parts.tuners_without`) has these axes too, in which the
    task's own text had a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meta_train.feed import derived_seed
from meta_train.moments import EXACT, nystrom
from zoft.blocks import Block, Blocks
from zoft.objective import evaluating
from zoft.tasks.base import Task
from zoft.tuner.gains import gained

#: Examples of every task that the axes are measured on, one at a time so that there is no padding among the tokens.
EXAMPLES = 64

#: Columns of the sketch of a moment of more than :data:`meta_train.moments.EXACT` rows.
_COLUMNS = 16


def input_axes(model: nn.Module, blocks: Blocks, tasks: Sequence[Task], seed: int) -> dict[str, Tensor]:
    """The axis of every linear layer without a bias, by its weights' block, float64 [n] with mean square 1.

    Args:
        model: the base, at its weights.
        blocks: its blocks; embeddings and heads have no axis.
        tasks: of meta-training.
        seed: of the run.
    """
    by_id = {id(block.parameter): block for block in gained(blocks)}
    moments: dict[str, _Moment] = {}
    hooks: list[RemovableHandle] = []
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is None and id(module.weight) in by_id:
            block = by_id[id(module.weight)]
            moment = moments.setdefault(block.name, _Moment(block, seed))
            hooks.append(module.register_forward_pre_hook(moment.take))
    try:
        for task in tasks if moments else ():
            with torch.no_grad(), evaluating(model):
                for batch in islice(task.train_batches(1, derived_seed("axes", seed, task.name)), EXAMPLES):
                    task.loss(model, batch)
            for moment in moments.values():
                moment.commit()
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: moment.axis() for name, moment in moments.items()}
    return {name: axis for name, axis in found.items() if axis is not None}


class _Moment:
    """E[x·xᵀ] of what goes into a layer, or C·Ω of it where it is large (:mod:`meta_train.moments`)."""

    def __init__(self, block: Block, seed: int) -> None:
        size, device = block.columns, block.parameter.device
        self._omega: Tensor | None = None
        if size > EXACT:
            generator = torch.Generator().manual_seed(derived_seed("axes", seed, block.name))
            self._omega = torch.randn(size, _COLUMNS, generator=generator).to(device)
        columns = size if self._omega is None else _COLUMNS
        self._pending, self._total = (torch.zeros(size, columns, device=device) for _ in range(2))
        self._energy = 0.0

    def take(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """What goes into the layer; a hook."""
        tokens = inputs[0].detach().reshape(-1, len(self._pending)).float()
        self._energy += float(tokens.square().sum())
        self._pending.addmm_(tokens.T, tokens if self._omega is None else tokens @ self._omega)

    def commit(self) -> None:
        """Add what was taken since the last time, as of energy 1."""
        if self._energy > 0:
            self._total.add_(self._pending, alpha=1 / self._energy)
        self._pending.zero_()
        self._energy = 0.0

    def axis(self) -> Tensor | None:
        """The leading eigenvector, [n] on the CPU, its largest entry positive; None where nothing ever went in."""
        if not bool(self._total.any()) or not bool(torch.isfinite(self._total).all()):
            return None
        total = self._total.double().cpu()
        if self._omega is None:
            vector = torch.linalg.eigh(total)[1][:, -1]
        else:
            vector = nystrom(total, self._omega.double().cpu())[1][:, -1]
        return vector * (len(vector) ** 0.5 * float(vector[vector.abs().argmax()].sign()))
