"""The meta-gradient by an unrolled graph, through ``higher``: the general path, and the closed form's oracle.

Each lookahead step is plain SGD on the linear surrogate c·Σ_i s_i·⟨u_i, θ_i⟩, which ``higher``'s
differentiable SGD unrolls; the meta-loss is taken by ``torch.func.functional_call`` at the resulting
weights. ``higher.monkeypatch`` is not used: it fails on models that slice a ``ModuleList``. All K
intermediate models and their noise are alive at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import higher
import torch
from torch import Tensor, nn

from meta_train.lookahead import Lookahead
from meta_train.meta_gradient import differentiable
from zoft.blocks import Blocks
from zoft.objective import evaluating


class _WithLoss(nn.Module):
    """A model and its loss as one module, so that a functional call reaches any use of the model."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


def unrolled(
    record: Lookahead, model: nn.Module, blocks: Blocks, loss: Callable[[nn.Module, Any], Tensor], batch: Any
) -> tuple[float, Tensor]:
    """The meta-loss and its gradient with respect to the scales, from the weights before the lookahead (θ).

    The same arguments and results as :func:`meta_train.meta_gradient.closed_form`, which is called at
    θ_K instead.
    """
    wrapper = _WithLoss(model, loss)
    by_id = {id(parameter): name for name, parameter in wrapper.named_parameters()}
    names = [by_id[id(block.parameter)] for block in blocks]
    fast = [block.parameter.detach().clone().requires_grad_() for block in blocks]
    leaves = [scale.detach().clone().requires_grad_() for scale in record.scales]
    with torch.enable_grad(), evaluating(model):
        optimizer = higher.get_diff_optim(torch.optim.SGD(fast, lr=record.lr), fast)
        for step, (probe, scale) in enumerate(zip(record.probes, leaves, strict=True)):
            parts = [
                scale[block.index] * (record.noise(step, block) * theta).sum()
                for block, theta in zip(blocks, fast, strict=True)
            ]
            fast = list(optimizer.step(probe.projected_gradient * torch.stack(parts).sum(), params=fast))
        result = differentiable(torch.func.functional_call(wrapper, dict(zip(names, fast, strict=True)), (batch,)))
        value = float(result.detach().double())
        if not math.isfinite(value):
            return value, torch.full((len(leaves), len(blocks)), math.nan, dtype=torch.float64)
        gradients = torch.autograd.grad(result, leaves)
    return value, torch.stack(gradients).double()
