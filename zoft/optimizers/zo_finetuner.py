"""ZO Fine-tuner, the learned method."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from zoft.optimizers.base import ZOOptimizer


class ZOFinetuner(ZOOptimizer):
    """SPSA whose perturbation scale σ_i of every block comes from learned networks.

    z_i = ν·σ_i·u_i with σ_i from the block's PertNN and ν such that the perturbation keeps the norm of
    plain N(0, I); θ_i ← θ_i − η·c·z_i. So σ enters the effective step squared.

    It differs from MeZO in the tuner alone, and every other method takes a tuner too.

    Cost: 2 forwards a step, 8 bytes a block (σ and ν·σ) and 8 for the last losses.

    Reference: Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", arXiv 2510.00419.

    Examples:
        >>> import torch, zoft
        >>> model = torch.nn.Linear(3, 1)
        >>> tuner = zoft.Tuner.untrained(model)
        >>> method = zoft.get_optimizer("zo-finetuner", tuner=tuner.bind(model))
        >>> method.forwards
        2
    """

    name: ClassVar[str] = "zo-finetuner"
    paper: ClassVar[str] = "arXiv 2510.00419"
    published: ClassVar[str] = (
        "η 1e-6 in the lookahead of meta-training on 1B models; a tuner records its own lr and ε."
    )
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "entries"

    @model_validator(mode="after")
    def _has_tuner(self) -> ZOFinetuner:
        if self.tuner is None:
            raise ValueError("the method zo-finetuner needs a tuner; give one with tuner= or --tuner")
        return self
