"""ZO-Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zoft.blocks import Blocks
from zoft.noise import Span
from zoft.optimizers.base import ZOOptimizer, counted, counter, full_size
from zoft.step import Draw, Probe, State

_COUNT = "adam/count"


class ZOAdam(ZOOptimizer):
    """Adam on the gradient estimate c·z (MeZO-Adam).

    g = c·z; m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², θ ← θ − η·m̂ / (√v̂ + ε_A) with
    m̂ = m / (1 − β₁^t), v̂ = v / (1 − β₂^t), as ``torch.optim.Adam``; t counts the steps that were not skipped.

    Cost: 2 forwards a step, 8 bytes a parameter.

    Reference: Kingma and Ba, "Adam", arXiv 1412.6980, Algorithm 1, on the estimate of Malladi et al.,
    arXiv 2305.17333; in the comparison of Zhang et al., arXiv 2402.11592.

    Note:
        Weight decay is decoupled, as in AdamW. Malladi et al. keep the moments as past seeds and c's, which
        gives the same numbers with less memory and more time; here they are tensors.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("zo-adam", lr=1e-4, directions=2)
        >>> method.forwards
        4
    """

    name: ClassVar[str] = "zo-adam"
    paper: ClassVar[str] = "arXiv 2305.17333"
    published: ClassVar[str] = (
        "lr 1e-8 to 1e-4 at ε 1e-5 to 1e-3 on OPT-1.3B, SST-2, full fine-tuning (sweep files of arXiv 2402.11592)."
    )
    parts: ClassVar[tuple[str, ...]] = ("update",)
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"

    beta1: float = Field(0.9, ge=0, lt=1, description="Decay β₁ of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay β₂ of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="What is added to √v̂.")

    def init(self, blocks: Blocks) -> State:
        """m = v = 0 for every entry, float32, and t = 0."""
        return {
            **super().init(blocks),
            **full_size("adam/first", blocks),
            **full_size("adam/second", blocks),
            _COUNT: counter(),
        }

    def rule(self, state: State, span: Span, estimate: Tensor, draws: Sequence[Draw]) -> Tensor:
        """m̂ / (√v̂ + ε_A)."""
        count = counted(state, _COUNT) + 1
        first, second = (span.of(state[f"adam/{which}/{span.block.name}"]) for which in ("first", "second"))
        first.lerp_(estimate, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(estimate, estimate, value=1 - self.beta2)
        scale = second.sqrt().div_(_root(1 - self.beta2**count)).add_(self.adam_epsilon)
        return estimate.copy_(first).div_(scale.mul_(1 - self.beta1**count))

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """t ← t + 1."""
        super().end(state, probes)
        state[_COUNT].add_(1)


def _root(value: Any) -> Any:
    """The square root of a number, or of those of stacked runs."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)
