"""The loss's curvature along a step's directions, from the losses of the single examples and no forward more.

The mean loss of a batch of B examples has, along the directions z_1 … z_n, the Gauss–Newton matrix

    G_ij = 1/B · Σ_e w_e·(z_iᵀg_e)·(z_jᵀg_e)

with g_e the gradient of example e. For a cross-entropy −log p_e the weight follows from the loss alone where the
example has one margin m_e, log p_e = −log(1 + exp(−m_e)): then g_e = −(1 − p_e)·∇m_e, and the second derivative by the
margin is p_e·(1 − p_e). Between there and being right it has the largest value ¼ where p_e < ½, and else the one here:

    w_e = p_e / (1 − p_e) for p_e ≥ ½,    ¼ / (1 − p_e)² for p_e < ½,    p_e = exp(−L_e).

So G is the Hessian's part through the margins where all examples are right, and bounds it elsewhere. With more than two
candidates it is an approximation. Where an example's loss is a mean over tokens, e runs over the tokens: slopes of
opposite signs cancel in a mean, and curvatures do not. The empirical Fisher matrix has w_e = 1: of examples that are
nearly right it takes too little, by the factor 1 − p_e, so that steps grow without bound as a run gets better.

Sources: Schraudolph, Fast curvature matrix-vector products, Neural Computation 14, 2002 (the matrix); Böhning and
Lindsay, Annals of the Institute of Statistical Mathematics 40, 1988 (the bound ¼); Kunstner et al., arXiv 1905.12558,
section 3 (what the empirical Fisher matrix lacks). Note: local weights below ½, p/(1 − p), were tried and diverged
where a first batch had many examples that were quite wrong.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

#: The largest p_e: beyond it, float32 losses at θ ± εz tell no slope from rounding.
_MOST = 1 - 1e-6


def margin_curvature(losses: Tensor) -> Tensor:
    """w, of any shape, with p = exp(−loss) at most 1 − 1e-6."""
    right = torch.exp(-losses).clamp(max=_MOST)
    return torch.where(right < 0.5, 0.25 / (1 - right) ** 2, right / (1 - right))


class PartLosses(NamedTuple):
    """The losses that a batch's loss is a weighted mean of: its examples', or their tokens'.

    Attributes:
        values: float64 [N].
        weights: their shares of the mean, float64 [N], which sum to 1.
    """

    values: Tensor
    weights: Tensor

    @classmethod
    def of(cls, losses: Tensor) -> Self:
        """Of examples' losses [B], or of tokens' losses [B, T] with −∞ where an example has no more of them.

        The loss is the mean over the examples, of tokens the mean over the examples of the means over their tokens.
        """
        rows = losses.detach().double().cpu()
        rows = rows[:, None] if rows.ndim == 1 else rows
        present = ~rows.isneginf()
        weights = present.double() / (present.sum(1, keepdim=True) * len(rows))
        return cls(rows[present], weights[present])

    @property
    def mean(self) -> float:
        """The batch's loss."""
        return float(self.values @ self.weights)


def gauss_newton(losses: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
    """G [n, n] in float64.

    Args:
        losses, weights: of the parts of the loss, at θ, [N]; the weights are shares of the mean.
        slopes: of the parts along the directions [n, N].
    """
    return (slopes * (weights * margin_curvature(losses))) @ slopes.mT


def damped_step(matrix: Tensor, slopes: Tensor, means: Tensor, damping: float) -> Tensor:
    """(1 + κ)·(G + κ·diag(T))⁻¹·c, [n]: what takes the place of the projected gradients c [n].

    For directions along which nothing is known but the mean curvature, G = diag(T), it is c/T whatever κ is.

    Args:
        means: T of every direction [n]; along directions without curvature the result is 0.
        damping: κ.
    """
    step = torch.zeros_like(slopes)
    curved = means > 0
    if bool(curved.any()):
        steadied = matrix[curved][:, curved] + damping * torch.diag(means[curved])
        step[curved] = (1 + damping) * torch.linalg.solve(steadied, slopes[curved])
    return step
