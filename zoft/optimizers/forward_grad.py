"""Forward gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from zoft.optimizers.base import Estimator, ZOOptimizer


class ForwardGrad(ZOOptimizer):
    """Forward gradient: MeZO with the exact directional derivative in place of the difference.

    θ ← θ − η·⟨∇L, u⟩·u, the derivative by forward-mode differentiation (``torch.func.jvp``), so ε does not
    matter. The loss must be differentiable, and every operator of the model must have a forward-mode
    derivative; the others are named in an error.

    Cost: one Jacobian-vector product a step, counted as 2 forwards; no state. During the product a tangent
    is held for every parameter and activation.

    Reference: Baydin et al., "Gradients without Backpropagation", arXiv 2202.08587; in the comparison of
    Zhang et al., arXiv 2402.11592.

    Note:
        In bfloat16 and float16 the tangent is u rounded to the parameter's dtype. A loss without a derivative, a
        metric or one that was detached, is an error; ``torch.no_grad`` does not matter.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("forward-grad", lr=5e-7)
        >>> method.plan.derivative
        True
    """

    name: ClassVar[str] = "forward-grad"
    paper: ClassVar[str] = "arXiv 2202.08587"
    published: ClassVar[str] = (
        "lr 1e-8 to 1e-5, 5e-7 the best, on OPT-1.3B, SST-2, full fine-tuning (sweep files of arXiv 2402.11592)."
    )
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("central", "one-sided"), "differences along u are what mezo takes"
    )

    estimator: Estimator = Field("derivative", description="Always the exact derivative.")
