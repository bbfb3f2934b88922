"""HiZOO-L."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.noise import Span, working_dtype
from zoft.optimizers.hizoo import HiZOO
from zoft.step import State


class HiZOOL(HiZOO):
    """HiZOO with the Hessian of a matrix kept as its row and column means R and C.

    H = R·Cᵀ / mean(R) for a matrix, as Adafactor factors its second moments; R ← (1 − α)·R + α·(row means
    of h), C ← (1 − α)·C + α·(column means of h) with HiZOO's h. Vectors keep all of H. Tensors of more
    dimensions are matrices of their first dimension by the others.

    Cost: 3 forwards a step, 4 bytes for each row and each column of a matrix and each entry of a vector.

    Reference: Zhao et al., "Second-Order Fine-Tuning without Pain for LLMs: A Hessian Informed
    Zeroth-Order Optimizer", arXiv 2402.15173, HiZOO-L; the factors are those of Shazeer and Stern,
    "Adafactor", arXiv 1804.04235, Algorithm 2.

    Note:
        H is made in chunks of rows, never whole. As in HiZOO, all of a step uses the H that drew z.

    Examples:
        >>> import zoft
        >>> method = zoft.get_optimizer("hizoo-l", smooth_scale=1e-8)
        >>> method.forwards
        3
    """

    name: ClassVar[str] = "hizoo-l"
    published: ClassVar[str] = (
        "None apart from HiZOO's: lr 1e-6 at ε 1e-3 with smooth scale 1e-8 on OPT-13B, WSC (the public code's README). "
        "The published cost is 1.39 times MeZO's time and 1.12 times its memory."
    )
    stacks: ClassVar[Literal["entries", "blocks"] | None] = "blocks"

    def hessians(self, blocks: Blocks) -> State:
        """R = C = 1 for a matrix, H = 1 for a vector."""
        state: State = {}
        for block in blocks:
            if not block.is_matrix:
                state.update(super().hessians(Blocks([block])))
                continue
            dtype, device = working_dtype(block.parameter.dtype), block.parameter.device
            for slot, size in zip(_slots(block), (block.shape[0], block.columns), strict=True):
                state[slot] = torch.ones(size, dtype=dtype, device=device)
        return state

    def hessian(self, state: State, span: Span) -> Tensor:
        """H over ``span``: a new tensor for a matrix."""
        if not span.block.is_matrix:
            return super().hessian(state, span)
        rows, columns = (state[slot] for slot in _slots(span.block))
        first, last = span.rows
        part = rows[..., first:last] / rows.mean(-1, keepdim=True)
        return span.of_rows(part[..., None] * columns[..., None, :])

    def observe(self, state: State, span: Span, curvature: Tensor, smooth_scale: float) -> None:
        """Adds h over ``span`` to the row and column sums; with the block's last span R and C change."""
        if not span.block.is_matrix:
            super().observe(state, span, curvature, smooth_scale)
            return
        rows, columns = (state[slot] for slot in _slots(span.block))
        # The sums live in the state for as long as the pass over the block takes.
        sums = [f"{slot}/sum" for slot in _slots(span.block)]
        if span.start == 0:
            state.update(zip(sums, (torch.zeros_like(rows), torch.zeros_like(columns)), strict=True))
        first, last = span.rows
        whole = curvature.new_zeros(*rows.shape[:-1], last - first, columns.shape[-1])
        span.of_rows(whole).copy_(curvature.mul_(self.hessian(state, span)))
        state[sums[0]][..., first:last] += whole.sum(-1)
        state[sums[1]] += whole.sum(-2)
        if span.stop == span.block.numel:
            by_row, by_column = (state.pop(slot) for slot in sums)
            rows.mul_(1 - smooth_scale).add_(by_row, alpha=smooth_scale / columns.shape[-1])
            columns.mul_(1 - smooth_scale).add_(by_column, alpha=smooth_scale / rows.shape[-1])


def _slots(block: Block) -> tuple[str, str]:
    return f"hessian/rows/{block.name}", f"hessian/columns/{block.name}"
