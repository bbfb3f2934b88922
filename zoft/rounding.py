"""Additions to weights of low precision, by stochastic rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from zoft.noise import Key, Span, rounding_bits


def add_rounded(theta: Tensor, change: Tensor, key: Key, span: Span) -> None:
    """θ += change; below float32 by stochastic rounding, so that small changes survive on average."""
    if theta.dtype in (torch.float32, torch.float64):
        theta.add_(change)
    else:
        theta.copy_(stochastic_round(theta.float() + change, theta.dtype, rounding_bits(key, span, theta.device)))


def stochastic_round(values: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Round float32 ``values`` to one of the two neighbours in ``dtype``, equal to them in expectation.

    Args:
        values: float32, any shape.
        dtype: torch.bfloat16 or torch.float16.
        bits: integers 0..65535 of the same shape, uniform and independent.
    """
    near = values.to(dtype)
    error = values - near.float()
    # The neighbour on the other side of the value: one more or one less in the magnitude's bits.
    pattern = near.view(torch.int16)
    outward = (error > 0) == (near > 0)
    step = torch.where(outward, 1, -1).to(torch.int16)
    smallest = torch.where(error > 0, 1, torch.iinfo(torch.int16).min + 1).to(torch.int16)
    other = torch.where(near == 0, smallest, pattern + step).view(dtype)
    gap = (other.float() - near.float()).abs()
    threshold = (error.abs() / gap).mul_(65536.0)
    take_other = (error != 0) & (bits.to(torch.float32) < threshold)
    return torch.where(take_other, other, near)
