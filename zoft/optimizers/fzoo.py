"""FZOO."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoft.noise import Key, Noise, Span
from zoft.optimizers.base import Estimator, ZOOptimizer
from zoft.step import Draw, State

_ONE_SIDED = "the step is divided by the deviation of the losses at θ + εz alone"


class FZOO(ZOOptimizer):
    """FZOO: N one-sided Rademacher directions, and a step divided by the deviation of their losses.

    g = 1/(εN)·Σ (L_k − L)·u_k with u_k of signs, θ ← θ − η·g / std(L_1, ..., L_N), std with N − 1.

    Cost: N + 1 forwards a step (N = 8), no state.

    Reference: Dang et al., "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards
    Adam-Scale Speed", arXiv 2506.09034, Algorithm 1.

    Note:
        The public code has no 1/ε in g, so its learning rate is ours over ε, and its std is divided by N.
        The N forwards run one after the other, in the memory of one, where the paper batches them.
        u is the sign of the run's noise; ``rademacher`` noise is cheaper and gives signs at once.
        Where all losses are equal, θ stays.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("fzoo", directions=8)
        >>> method.forwards
        9
    """

    name: ClassVar[str] = "fzoo"
    paper: ClassVar[str] = "arXiv 2506.09034"
    published: ClassVar[str] = (
        "lr 5e-5 at ε 1e-4 with N = 8 on OPT-13B, WSC (the public code's README); lr 5e-9 in the paper's formula, "
        "which is the one here."
    )
    parts: ClassVar[tuple[str, ...]] = ("update",)
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"
    refuses: ClassVar[Mapping[str, str]] = {"central": _ONE_SIDED, "derivative": _ONE_SIDED}

    lr: float = Field(5e-9, ge=0, allow_inf_nan=False, description="Learning rate η.")
    epsilon: float = Field(1e-4, gt=0, allow_inf_nan=False, description="Perturbation scale ε.")
    directions: int = Field(8, ge=2, description="Directions N a step; their losses' deviation scales the step.")
    estimator: Estimator = Field("one-sided", description="Always one-sided.")

    def raw(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """The signs of u."""
        return super().raw(noise, key, span).sign_()

    def rule(self, state: State, span: Span, estimate: Tensor, draws: Sequence[Draw]) -> Tensor:
        """g over the deviation of the losses, 0 where there is none."""
        losses: Any = [probe.loss_plus for _, probe in draws]
        if isinstance(losses[0], Tensor):
            spread = torch.stack(losses).std(0)
            return estimate.div_(spread).masked_fill_(spread == 0, 0.0)
        deviation = statistics.stdev(losses)
        return estimate.div_(deviation) if deviation else estimate.zero_()
