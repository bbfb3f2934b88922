"""The closed form of the meta-gradient: one backward pass at θ_K, K inner products a block.

With the measured c_k and the features held constant, θ_K = θ − η·Σ_k c_k·s_k ⊙ u_k is linear in the
scales s_k = (ν·σ)_k, so

    ∂L(θ_K)/∂s_{k,i} = −η·c_k·⟨u_{k,i}, ∇_i L(θ_K)⟩

and a tiny backward pass through the networks does the rest: through ν where it is differentiable, and
from each σ to the one before it. Each block's gradient is reduced to its K numbers, with u regenerated
chunk by chunk, and freed as soon as backpropagation has completed it; a tied tensor's once, summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meta_train.lookahead import Lookahead
from zoft.blocks import Block, Blocks
from zoft.errors import UsageError
from zoft.noise import spans
from zoft.objective import evaluating

GradientScale = Literal["none", "unit"]


def closed_form(
    record: Lookahead,
    model: nn.Module,
    blocks: Blocks,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    observe: Callable[[Block, Tensor], None] | None = None,
) -> tuple[float, Tensor]:
    """The meta-loss and its gradient with respect to the scales, at the weights as they are (θ_K).

    Args:
        observe: also sees every block's gradient.

    Returns:
        L(θ_K) and a float64 tensor [K, B], ∂L/∂s. Where the loss is not finite, the gradient is NaN.
    """
    products = torch.zeros(len(record.probes), len(blocks), dtype=torch.float64)
    into = _into(products, record)

    def reduce(block: Block, gradient: Tensor) -> None:
        into(block, gradient)
        if observe is not None:
            observe(block, gradient)

    value = backward_reduced(model, blocks, loss, batch, reduce)
    slopes = torch.tensor([probe.projected_gradient for probe in record.probes], dtype=torch.float64)
    gradient = products.mul_(slopes[:, None]).mul_(-record.lr)
    return value, gradient if math.isfinite(value) else gradient.fill_(math.nan)


def _into(products: Tensor, record: Lookahead) -> Callable[[Block, Tensor], None]:
    """Adds ⟨u_{k,i}, gradient⟩ to ``products[k, i]``, in float64."""

    def reduce(block: Block, gradient: Tensor) -> None:
        flat = gradient.contiguous().view(-1)
        for span in spans(block):
            part = flat[span.start : span.stop].double()
            for step, (noise, probe) in enumerate(zip(record.noises, record.probes, strict=True)):
                u = noise(probe.key, span, flat.device).double()
                products[step, block.index] += float(torch.dot(u, part))

    return reduce


def backward_reduced(
    model: nn.Module,
    blocks: Blocks,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    reduce: Callable[[Block, Tensor], None],
) -> float:
    """Backpropagate the loss, giving each block's gradient to ``reduce`` and freeing it at once.

    Runs in evaluation mode. The parameters' ``grad`` is None before and after.

    Returns:
        The loss; where it is not finite, nothing is backpropagated.

    Raises:
        UsageError: the loss is not a scalar tensor that depends on the parameters.
    """
    handles = []
    try:
        for block in blocks:
            block.parameter.grad = None
            handles.append(block.parameter.register_post_accumulate_grad_hook(_reducing(block, reduce)))
        with torch.enable_grad(), evaluating(model):
            result = differentiable(loss(model, batch))
            value = float(result.detach().double())
            if math.isfinite(value):
                result.backward()
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            block.parameter.grad = None
    return value


def _reducing(block: Block, reduce: Callable[[Block, Tensor], None]) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            reduce(block, gradient)

    return hook


def differentiable(value: Any) -> Tensor:
    """The loss, if it can be backpropagated.

    Raises:
        UsageError: it cannot.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise UsageError(
            "meta-training needs a differentiable loss, a scalar tensor that depends on the model's parameters",
            "Return the mean loss itself, not a float, a detached tensor or a metric.",
        )
    return value.reshape(())


def into_networks(scales: Sequence[Tensor], gradient: Tensor, network: nn.Module, scale: GradientScale) -> bool:
    """Add to the networks' ``grad`` what the gradient with respect to the scales implies.

    Args:
        scales: (ν·σ)_k [B] with their graph.
        gradient: ∂L/∂s [K, B].
        scale: ``none``; or ``unit``, which divides by the root mean square over all K·B entries, so that
            a step along a direction of large c weighs no more than another.

    Returns:
        Whether the gradient was finite; if not, nothing was added.
    """
    if not bool(torch.isfinite(gradient).all()):
        return False
    if scale == "unit":
        gradient = gradient / gradient.square().mean().sqrt().clamp(min=1e-300)
    parameters = list(network.parameters())
    surrogate = torch.stack([(s * g.to(s.dtype)).sum() for s, g in zip(scales, gradient, strict=True)]).sum()
    surrogate.backward(inputs=parameters)
    return True
