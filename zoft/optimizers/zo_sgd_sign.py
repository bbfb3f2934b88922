"""ZO-SGD-Sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoft.noise import Span
from zoft.optimizers.base import ZOOptimizer
from zoft.step import Draw, Probe, State


class ZOSGDSign(ZOOptimizer):
    """ZO-SGD by signs: only the sign of the estimate counts.

    θ ← θ − η·sign(c)·z, the reading of the public benchmark's code. With ``elementwise`` set,
    θ ← θ − η·sign(mean of c·z), entry by entry, the reading of the original method.

    Cost: 2 forwards a step, no state.

    Reference: Liu et al., "signSGD via Zeroth-Order Oracle", ICLR 2019, Algorithm 1 (elementwise);
    Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
    Benchmark", arXiv 2402.11592.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("zo-sgd-sign", elementwise=True)
        >>> method.forwards
        2
    """

    name: ClassVar[str] = "zo-sgd-sign"
    paper: ClassVar[str] = "arXiv 2402.11592"
    published: ClassVar[str] = (
        "lr 1e-8, 1e-6 and 1e-4 at ε 1e-5 and 1e-3 on OPT-1.3B, SST-2, full fine-tuning (the benchmark's sweep files)."
    )
    parts: ClassVar[tuple[str, ...]] = ("update",)
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"

    elementwise: bool = Field(False, description="Take the sign of every entry of c·z instead of that of c.")

    def coefficient(self, probe: Probe) -> float:
        """sign(c), or c where the signs are taken elementwise."""
        c = super().coefficient(probe)
        if self.elementwise:
            return c
        return torch.sign(c) if isinstance(c, Tensor) else float(c and math.copysign(1.0, c))

    def rule(self, state: State, span: Span, estimate: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The estimate, or its signs."""
        return estimate.sign_() if self.elementwise else estimate
