"""ZO-AdaMU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zoft.blocks import Blocks
from zoft.noise import Key, Noise, Span
from zoft.optimizers.base import ZOOptimizer, counted, counter, full_size
from zoft.optimizers.schedule import scheduled
from zoft.step import Draw, Probe, State

_COUNT = "adamu/count"


class Annealed(NamedTuple):
    """The uncertainty α and the smoothing parameters β₁ and β₂ of a step."""

    alpha: float
    beta1: float
    beta2: float


class ZOAdaMU(ZOOptimizer):
    """ZO-AdaMU: the perturbation carries the momentum, and a second moment of it scales the step.

    ż ~ N(0, α), z̈ ~ N(m, 1 − α), z = β₁·ż + (1 − β₁)·z̈ and v = β₂·ż² + (1 − β₂)·z̈²;
    θ ← θ − η·c·z / √(v + 1e-8), m ← z. α, β₁ and β₂ are 1 for T₁ steps, then annealed to 0.5, 0.9 and 0.01
    by step T₂. With n directions m, v and c·z are averaged over them.

    Cost: 2 forwards a step, 4 bytes a parameter; two noises a direction.

    Reference: Jiang et al., "ZO-AdaMU Optimizer: Adapting Perturbation by the Momentum and Uncertainty in
    Zeroth-order Optimization", arXiv 2312.15184, Algorithm 1 and eq. (4)–(7).

    Note:
        Eq. (7) as printed is not 1 at T₁ and ends at 0.9 for all three; what the text says is followed
        (α = 0.5, β₁ = 0.9, β₂ = 0.01 from T₂ on), along half a cosine from 1. Figure 1 shows β₁ near 0.15.
        Eq. (6) has √(v² + σ), Algorithm 1 and the public code √(v + σ), which is followed.
        In Algorithm 1 the momentum is z itself, of either sign; the public code keeps sign(c)·z, which
        points uphill: ``signed_momentum``. The steps counted are those that were not skipped.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("zo-adamu", lr=1e-4, anneal_steps=16000)
        >>> method.anneal(16000)
        Annealed(alpha=0.5, beta1=0.9, beta2=0.01)
    """

    name: ClassVar[str] = "zo-adamu"
    paper: ClassVar[str] = "arXiv 2312.15184"
    published: ClassVar[str] = (
        "lr 1e-4 of 1e-6, 1e-4 and 1e-2 at ε 1e-3 of 1e-3 to 1e-1 with (T₁, T₂) = (1024, 16000), batch 64, "
        "full fine-tuning of OPT-13B and RoBERTa-large (Table 3)."
    )
    parts: ClassVar[tuple[str, ...]] = ("direction", "update")
    # The momentum is in every direction.
    every_block: ClassVar[bool] = True

    warmup_steps: int = Field(1024, ge=0, description="Steps T₁ without momentum (Table 3).")
    anneal_steps: int = Field(16000, ge=1, description="Step T₂ at which α, β₁ and β₂ are at their last values.")
    alpha: float = Field(0.5, ge=0, le=1, description="Last uncertainty α.")
    beta1: float = Field(0.9, ge=0, le=1, description="Last weight β₁ of the noise around 0 in z.")
    beta2: float = Field(0.01, ge=0, le=1, description="Last weight β₂ of the same in v.")
    signed_momentum: bool = Field(False, description="Keep sign(c)·z as the momentum, as the public code does.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.anneal_steps <= self.warmup_steps:
            raise ValueError(f"anneal_steps ({self.anneal_steps}) must be after warmup_steps ({self.warmup_steps})")
        return self

    def anneal(self, count: int) -> Annealed:
        """α, β₁ and β₂ of the step after ``count`` steps."""
        since, span = max(count - self.warmup_steps, 0), self.anneal_steps - self.warmup_steps
        return Annealed(*(scheduled("cosine", 1.0, last, since, span) for last in (self.alpha, self.beta1, self.beta2)))

    def init(self, blocks: Blocks) -> State:
        """m = 0 for every entry, float32."""
        return {**super().init(blocks), **full_size("adamu/momentum", blocks), _COUNT: counter()}

    def draw(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """Two independent noises, [2, len(span)]."""
        return torch.stack([super(ZOAdaMU, self).draw(noise, key._replace(part=part), span) for part in (0, 1)])

    def direction(self, state: State, span: Span, noise: Tensor) -> Tensor:
        """z, a new tensor, times the learned σ where there is a tuner."""
        return super().direction(state, span, self._mixed(state, span, noise)[0])

    def _mixed(self, state: State, span: Span, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z without σ, and v."""
        alpha, beta1, beta2 = self.anneal(counted(state, _COUNT))
        momentum = span.of(state[f"adamu/momentum/{span.block.name}"])
        still, moving = noise[0] * math.sqrt(alpha), noise[1] * math.sqrt(1 - alpha) + momentum
        return beta1 * still + (1 - beta1) * moving, beta2 * still.square() + (1 - beta2) * moving.square()

    def rule(self, state: State, span: Span, estimate: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The estimate over √(v + 1e-8); then m ← z."""
        momentum, second = torch.zeros_like(estimate), torch.zeros_like(estimate)
        for noise, probe in draws:
            z, v = self._mixed(state, span, noise)
            sign = math.copysign(1.0, probe.projected_gradient) if self.signed_momentum else 1.0
            momentum.add_(z, alpha=sign / len(draws))
            second.add_(v, alpha=1 / len(draws))
        span.of(state[f"adamu/momentum/{span.block.name}"]).copy_(momentum)
        return estimate.div_(second.add_(1e-8).sqrt_())

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """One step more."""
        super().end(state, probes)
        state[_COUNT].add_(1)
