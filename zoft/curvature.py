"""The loss's curvature along a step's directions, from the losses of the single examples and no forward more.

The mean loss of a batch of B examples has, along the directions z_1 … z_n, the Gauss–Newton matrix

    G_ij = 1/B · Σ_e w_e·(z_iᵀg_e)·(z_jᵀg_e)

with g_e the gradient of example e. For a cross-entropy −log p_e the weight follows from the loss alone where the
example has one margin m_e, log p_e = −log(1 + exp(−m_e)): then g_e = −(1 − p_e)·∇m_e, and the second derivative by the
margin is p_e·(1 − p_e), so that

    w_e = p_e·(1 − p_e) / (1 − p_e)² = p_e / (1 − p_e),    p_e = exp(−L_e).

With more than two candidates, or a mean over an answer's tokens, that is an approximation. The empirical Fisher matrix
has w_e = 1: of examples that are nearly right it takes too little, by the factor 1 − p_e, so that steps grow without
bound as a run gets better; of those that are quite wrong it takes too much.

Sources: Schraudolph, Fast curvature matrix-vector products, Neural Computation 14, 2002 (the matrix); Kunstner et al.,
arXiv 1905.12558, section 3 (what the empirical Fisher matrix lacks).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: The range that p_e is kept to: beyond it, float32 losses at θ ± εz tell no slope from rounding.
_LEAST, _MOST = 1e-4, 1 - 1e-6


def example_weights(losses: Tensor) -> Tensor:
    """w = p/(1 − p) with p = exp(−loss) kept to 1e-4 … 1 − 1e-6, of any shape."""
    right = torch.exp(-losses).clamp(_LEAST, _MOST)
    return right / (1 - right)


def gauss_newton(batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """G [n, n] in float64, the mean over the batches of each one's.

    Args:
        batches: of every batch the examples' losses at θ [B] and their slopes along the directions [n, B].
    """
    parts = [(slopes * example_weights(losses)) @ slopes.mT / slopes.shape[-1] for losses, slopes in batches]
    return torch.stack(parts).mean(0)


def damped_step(matrix: Tensor, slopes: Tensor, mean: float, damping: float) -> Tensor:
    """(1 + κ)·(G + κ·T·I)⁻¹·c, [n]: what takes the place of the projected gradients c [n].

    For directions along which nothing is known but the mean curvature T, G = T·I, it is c/T whatever κ is.

    Args:
        mean: T; without curvature or slopes the result is 0.
        damping: κ.
    """
    if not mean > 0:
        return torch.zeros_like(slopes)
    steadied = matrix + damping * mean * torch.eye(len(slopes), dtype=matrix.dtype)
    solved: Tensor = torch.linalg.solve(steadied, slopes)
    return (1 + damping) * solved
