"""HiZOO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoft.blocks import Blocks
from zoft.noise import Span, working_dtype
from zoft.optimizers.base import ZOOptimizer
from zoft.optimizers.schedule import Schedule
from zoft.step import Draw, State

_NO_CURVATURE = "the Hessian's estimate needs L+ + L− − 2·L, and only the central one measures both sides"


class HiZOO(ZOOptimizer):
    """Hessian-informed ZO: the direction is scaled by an estimated diagonal Hessian H.

    z = H^(−1/2)·u; with Δ = L+ + L− − 2·L the estimate is h = |Δ| / (2ε²)·H·u², and
    H ← (1 − α)·H + α·h with the smooth scale α; θ ← θ − η·c·z. With n directions h and c·z are
    averaged over them (HiZOO-multi, 2n + 1 forwards). α = 0 makes it MeZO.

    Cost: 3 forwards a step, 4 bytes a parameter.

    Reference: Zhao et al., "Second-Order Fine-Tuning without Pain for LLMs: A Hessian Informed
    Zeroth-Order Optimizer", arXiv 2402.15173, Algorithm 1 and eq. (1)–(5).

    Note:
        The update uses the H that drew z, as eq. (1)–(2) say; the public code uses the H just updated.
        The term −Σ⁻¹ of eq. (5) is left out unless ``subtract_inverse`` is set, as in the public code;
        the appendix shows that it is negligible.
        With a tuner, H is the Hessian in the coordinates that its σ and scales multiply; with a structure of low
        rank u² is taken over its variance, which differs by entry there.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("hizoo", smooth_scale=1e-8, directions=2)
        >>> method.forwards
        5
    """

    name: ClassVar[str] = "hizoo"
    paper: ClassVar[str] = "arXiv 2402.15173"
    published: ClassVar[str] = (
        "lr 1e-6 at ε 1e-3 with smooth scale 1e-8 on OPT-13B, WSC (the public code's README); smooth scales from "
        "1e-8 to 1e-5. The published cost is 1.37 times MeZO's time and 2.04 times its memory."
    )
    parts: ClassVar[tuple[str, ...]] = ("direction",)
    refuses: ClassVar[Mapping[str, str]] = {"one-sided": _NO_CURVATURE, "derivative": _NO_CURVATURE}
    # H learns from every entry of every direction.
    every_block: ClassVar[bool] = True
    needs_loss_zero: ClassVar[bool] = True
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"

    smooth_scale: float = Field(
        1e-6, ge=0, lt=1, description="Smooth scale α of the Hessian's moving average; 1e-8 to 1e-5 on LLMs."
    )
    smooth_scale_schedule: Schedule = Field(
        "constant", description="How α goes to smooth_scale_end over schedule_steps."
    )
    smooth_scale_end: float | None = Field(None, ge=0, lt=1, description="α at the end of its schedule.")
    subtract_inverse: bool = Field(False, description="Keep the term −Σ⁻¹ of eq. (5): h = |Δ / (2ε²)·H·(u² − 1)|.")

    def init(self, blocks: Blocks) -> State:
        """H = 1 for every entry, float32."""
        return {**super().init(blocks), **self.hessians(blocks)}

    def hessians(self, blocks: Blocks) -> State:
        """The part of the state that is H."""
        return {
            _slot(block.name): torch.ones(
                block.shape, dtype=working_dtype(block.parameter.dtype), device=block.parameter.device
            )
            for block in blocks
        }

    def hessian(self, state: State, span: Span) -> Tensor:
        """H over ``span``; may be the state's own memory."""
        return span.of(state[_slot(span.block.name)])

    def observe(self, state: State, span: Span, curvature: Tensor, smooth_scale: float) -> None:
        """H ← (1 − α)·H + α·H·curvature over ``span``; ``curvature`` may be overwritten."""
        self.hessian(state, span).mul_(curvature.mul_(smooth_scale).add_(1 - smooth_scale))

    def direction(self, state: State, span: Span, noise: Tensor) -> Tensor:
        """z = H^(−1/2)·u, times the learned σ where there is a tuner."""
        return super().direction(state, span, noise).mul_(self.hessian(state, span).rsqrt())

    def update(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """−η·(c·z + λ·θ), then the moving average of H."""
        curvature = torch.zeros_like(draws[0][0])
        structure = self.tuner.structure if self.tuner else None
        variance = structure.variance(span) if structure else None
        for noise, probe in draws:
            if probe.loss_zero is None:
                raise ValueError("HiZOO needs the loss at θ")
            over = noise if variance is None else noise / variance
            second = abs(probe.loss_plus + probe.loss_minus - 2 * probe.loss_zero) / (2 * probe.epsilon**2)
            square = noise * over
            if self.subtract_inverse:
                square.sub_(1).abs_()
            curvature.add_(square.mul_(second / len(draws)))
        change = super().update(state, span, theta, draws, lr)
        self.observe(state, span, curvature, self.scheduled("smooth_scale", draws[0][1].key.step))
        return change


def _slot(name: str) -> str:
    return f"hessian/{name}"
