"""HiZOO-L."""

from __future__ import annotations

from typing import ClassVar

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
    """

    name: ClassVar[str] = "hizoo-l"
    published: ClassVar[str] = "As HiZOO: lr 1e-6 or 1e-7 at ε 1e-3, smooth scale 1e-8."

    def hessians(self, blocks: Blocks) -> State:
        """R = C = 1 for a matrix, H = 1 for a vector."""
        state: State = {}
        for block in blocks:
            if not _is_matrix(block):
                state.update(super().hessians(Blocks([block])))
                continue
            sizes = block.shape[0], block.numel // block.shape[0]
            for slot, size in zip(_slots(block), sizes, strict=True):
                state[slot] = torch.ones(
                    size, dtype=working_dtype(block.parameter.dtype), device=block.parameter.device
                )
        return state

    def hessian(self, state: State, span: Span) -> Tensor:
        """H over ``span``: a new tensor for a matrix."""
        if not _is_matrix(span.block):
            return super().hessian(state, span)
        rows, columns = (state[name] for name in _slots(span.block))
        first, last = _rows(span, len(columns))
        whole = torch.outer(rows[first:last] / rows.mean(), columns).view(-1)
        return whole[span.start - first * len(columns) :][: len(span)]

    def observe(self, state: State, span: Span, curvature: Tensor, smooth_scale: float) -> None:
        """Adds h over ``span`` to the row and column sums; with the block's last span R and C change."""
        if not _is_matrix(span.block):
            super().observe(state, span, curvature, smooth_scale)
            return
        rows, columns = (state[name] for name in _slots(span.block))
        # The sums live in the state for as long as the pass over the block takes.
        sums = [f"{name}/sum" for name in _slots(span.block)]
        if span.start == 0:
            state.update(zip(sums, (torch.zeros_like(rows), torch.zeros_like(columns)), strict=True))
        first, last = _rows(span, len(columns))
        padded = curvature.new_zeros((last - first) * len(columns))
        start = span.start - first * len(columns)
        padded[start : start + len(span)] = curvature.mul_(self.hessian(state, span))
        matrix = padded.view(last - first, len(columns))
        state[sums[0]][first:last] += matrix.sum(1)
        state[sums[1]] += matrix.sum(0)
        if span.stop == span.block.numel:
            by_row, by_column = (state.pop(name) for name in sums)
            rows.mul_(1 - smooth_scale).add_(by_row, alpha=smooth_scale / len(columns))
            columns.mul_(1 - smooth_scale).add_(by_column, alpha=smooth_scale / len(rows))


def _is_matrix(block: Block) -> bool:
    return len(block.shape) > 1


def _slots(block: Block) -> tuple[str, str]:
    return f"hessian/rows/{block.name}", f"hessian/columns/{block.name}"


def _rows(span: Span, columns: int) -> tuple[int, int]:
    """The rows that ``span`` touches, as a half-open range."""
    return span.start // columns, -(-span.stop // columns)
