"""ZO-SGD-Cons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from zoft.noise import Span
from zoft.optimizers.base import ZOOptimizer
from zoft.step import Draw, Probe, State


class ZOSGDConservative(ZOOptimizer):
    """Conservative ZO-SGD: the step, its opposite or none, whichever has the least loss on the batch.

    θ ← the one of θ, θ − η·c·z and θ + η·c·z with the least loss. A candidate whose loss is not finite is
    not taken.

    Cost: 5 forwards a step (θ, θ ± εz, θ ± η·c·z), 4 with the one-sided estimator; no state.

    Reference: Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning:
    A Benchmark", arXiv 2402.11592.

    Note:
        In bfloat16 and float16 a candidate is measured rounded to nearest, and taken by stochastic rounding.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("zo-sgd-cons", estimator="one-sided")
        >>> method.forwards
        4
    """

    name: ClassVar[str] = "zo-sgd-cons"
    paper: ClassVar[str] = "arXiv 2402.11592"
    published: ClassVar[str] = (
        "lr 1e-8 to 1e-5 at ε 1e-4 to 1e-2 on OPT-1.3B, SST-2, full fine-tuning (the benchmark's sweep files)."
    )
    parts: ClassVar[tuple[str, ...]] = ("update",)
    needs_loss_zero: ClassVar[bool] = True
    trials: ClassVar[tuple[int, ...]] = (1, -1)

    def update(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """The chosen multiple of −η·(c·z + λ·θ)."""
        return super().update(state, span, theta, draws, lr).mul_(self.choice(draws[0][1]))

    def choice(self, probe: Probe) -> int:
        """1, −1 or 0: the multiple of the step with the least loss, the step itself where losses are equal."""
        if probe.loss_zero is None:
            raise ValueError("the conservative step needs the loss at θ")
        losses = {1: probe.trials[0], 0: probe.loss_zero, -1: probe.trials[1]}
        return min(losses, key=lambda multiple: losses[multiple] if math.isfinite(losses[multiple]) else math.inf)
