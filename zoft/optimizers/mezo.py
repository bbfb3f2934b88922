"""MeZO."""

from __future__ import annotations

from typing import ClassVar, Literal

from zoft.optimizers.base import ZOOptimizer


class MeZO(ZOOptimizer):
    """ZO-SGD: SPSA with the direction regenerated from its key.

    z = u, θ ← θ − η·(c·z + λ·θ) with c = (L(θ + εz) − L(θ − εz)) / (2ε). With ``directions`` = n the
    mean of c_k·z_k over n directions (n-SPSA, 2n forwards).

    Cost: 2 forwards a step, no state.

    Reference: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", arXiv
    2305.17333, Algorithm 1.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("mezo", directions=4)
        >>> method.forwards
        8
    """

    name: ClassVar[str] = "mezo"
    paper: ClassVar[str] = "arXiv 2305.17333"
    published: ClassVar[str] = (
        "lr 1e-6 or 1e-7 at ε 1e-3 on OPT-13B, batch 16; lr 1e-7, 1e-6 or 1e-5 at ε 1e-3 on RoBERTa-large, batch 64 "
        "(the grids of the paper's appendix, full fine-tuning)."
    )
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"
