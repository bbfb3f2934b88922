"""ZO-SGD-MMT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zoft.blocks import Blocks
from zoft.noise import Span
from zoft.optimizers.base import ZOOptimizer, full_size
from zoft.step import Draw, State


class ZOSGDMomentum(ZOOptimizer):
    """ZO-SGD with momentum.

    m ← β·m + c·z, θ ← θ − η·m, as ``torch.optim.SGD`` with momentum on the estimate c·z.

    Cost: 2 forwards a step, 4 bytes a parameter.

    Reference: Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning:
    A Benchmark", arXiv 2402.11592.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("zo-sgd-mmt", momentum=0.9)
        >>> method.forwards
        2
    """

    name: ClassVar[str] = "zo-sgd-mmt"
    paper: ClassVar[str] = "arXiv 2402.11592"
    published: ClassVar[str] = (
        "β 0.9; lr 1e-8 to 1e-5 at ε 1e-5 to 1e-3 on OPT-1.3B, SST-2, full fine-tuning (the benchmark's sweep files)."
    )
    parts: ClassVar[tuple[str, ...]] = ("update",)
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"

    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum β.")

    def init(self, blocks: Blocks) -> State:
        """m = 0 for every entry, float32."""
        return {**super().init(blocks), **full_size("momentum", blocks)}

    def rule(self, state: State, span: Span, estimate: Tensor, draws: Sequence[Draw]) -> Tensor:
        """m, after c·z has been added to it."""
        momentum = span.of(state[f"momentum/{span.block.name}"])
        return estimate.copy_(momentum.mul_(self.momentum).add_(estimate))
