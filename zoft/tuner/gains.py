"""Structures of gains: which blocks have them, and what they are where nothing was learned.

A gain is a change of a row or column in proportion to itself, so 1 is the same change of all of them, however large
their weights are: a *ratio* is a gain's variance in that unit. The rows of a table of embeddings, and those of a head,
are words and not features: they decide between answers, and stay at rest. A matrix of zeros, such as one half of a LoRA
adapter before its first step, has nothing that could be made larger: its directions are isotropic.

The unit of an offset is such that it changes a row by as much as a gain does in the mean over the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.tuner.parts import PARTS, Gains
from zoft.tuner.structure import Structure, StructureConfig, factor_shapes

#: By block name the ratios of its rows and of its columns, [m] and [n]; of a vector those of its entries, and anything.
#: With offsets [m, 2] and [n, 2], those of the offsets and the axis besides.
Ratios = Mapping[str, tuple[Tensor, Tensor]]


def gained(blocks: Blocks) -> list[Block]:
    """The blocks that have gains: all but embeddings and heads."""
    words = {block.shape[0] for block in blocks if block.is_embedding}
    return [block for block in blocks if not (block.is_embedding or (block.is_matrix and block.shape[0] in words))]


def unit(block: Block) -> float:
    """The mean square of a vector's entries, which its gains are multiples of; 1 where all are 0."""
    return float(block.parameter.detach().double().square().mean()) or 1.0


def gains_of(
    config: StructureConfig,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    blocks: Blocks,
    ratios: Ratios,
    share: float,
) -> Structure:
    """The structure with these ratios, at the weights as they are.

    Args:
        config: of the kind ``gains``.
        names, shapes: the tuner's blocks.
        blocks: the model's. Those without ratios, or not there, are at rest but for the isotropic part.
        share: a, of all blocks but matrices of zeros, which have 0.
    """
    shares, weights, factors = torch.full((len(names),), share), torch.zeros(len(names)), {}
    for row, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        sizes, block = factor_shapes(config, shape), blocks.named(name)
        if sizes is None:
            continue
        left, right = ratios.get(name, _alike(sizes))
        if block is not None and name in ratios and block.is_matrix and not bool(block.parameter.any()):
            shares[row], (left, right) = 0.0, _alike(sizes)
        elif block is not None:
            left, right, trace = _variances(block, left, right, blocks)
            if trace > 0:
                weights[row] = trace / block.numel if name in ratios else 0.0
                left, right = _scaled(left, right, block.numel / trace)
            else:
                left, right = _alike(sizes)
        factors[name] = (left.to(config.dtype), right.to(config.dtype))
    return Structure(config, tuple(names), tuple(shapes), shares, weights, factors)


def unlearned(structure: Structure, blocks: Blocks) -> Structure | None:
    """What of a structure is a rule: gains with all ratios alike, along the axes that it has; None of other kinds.

    Args:
        structure: of a tuner.
        blocks: of its base, at the base's weights.
    """
    if not has_gains(structure):
        return None
    return _all_alike(structure, blocks, float(structure.share.max()))


def has_gains(structure: Structure) -> bool:
    """Whether a structure is of gains, with or without offsets: they depend on the weights."""
    return issubclass(PARTS[structure.kind], Gains)


def dealt_out(structure: Structure, blocks: Blocks, order: Callable[[int], Tensor]) -> Structure:
    """The control: the same gains within the blocks, but each block's mean ratio used for another one.

    The mean ratio is what the block's weight is of the weight with all ratios 1, so that a block's size and the size of
    its weights stay its own. Blocks at rest stay at rest.

    Args:
        order: gives the places that so many ratios come from, int64.
    """
    alike = _all_alike(structure, blocks, 1.0).weight
    rows = (alike > 0).nonzero()[:, 0]
    if len(rows) < 2:
        return structure
    weight = structure.weight.clone()
    weight[rows] = (structure.weight[rows] / alike[rows])[order(len(rows))] * alike[rows]
    return replace(structure, weight=weight)


def _all_alike(structure: Structure, blocks: Blocks, share: float) -> Structure:
    """The structure with ratios of 1 for all blocks that have gains, along its axes."""
    config, ratios = structure.config, {}
    for block in gained(blocks):
        sizes = factor_shapes(config, block.shape)
        if sizes is not None and block.name in structure.factors:
            ratios[block.name] = _alike(sizes, structure.factors[block.name][1])
    return gains_of(config, structure.names, structure.shapes, blocks, ratios, share)


def _alike(sizes: tuple[tuple[int, ...], tuple[int, ...]], right: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ratios of 1, with the axis that ``right`` has, or none."""
    ratios = torch.ones(sizes[0]), torch.ones(sizes[1])
    if len(sizes[1]) > 1:
        ratios[1][:, 1] = 0.0 if right is None else right[:, 1].float()
    return ratios


def _variances(block: Block, left: Tensor, right: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor, float]:
    """Both factors of one of the blocks from its ratios, float64, and the trace that they give."""
    left, right = left.double().cpu(), right.double().cpu()
    of_rows, of_columns = (factor.view(len(factor), -1)[:, 0] for factor in (left, right))
    if not block.is_matrix:
        size = unit(block) if bool(block.parameter.any()) else _mean_square(blocks)
        made = torch.zeros_like(left)
        made.view(len(left), -1)[:, 0] = of_rows * size
        return made, torch.zeros_like(right), float(of_rows.sum() * size)
    squares = block.parameter.detach().double().cpu().reshape(len(left), -1).square()
    trace = of_rows @ squares.sum(1) + of_columns @ squares.sum(0)
    if left.ndim > 1:
        length = right[:, 1].square().sum()
        offsets = left[:, 1] * squares.mean() if length > 0 else torch.zeros_like(of_rows)
        left = torch.stack([of_rows, offsets], 1)
        trace = trace + offsets.sum() * length
    return left, right, float(trace)


def _scaled(left: Tensor, right: Tensor, by: float) -> tuple[Tensor, Tensor]:
    """Both factors with variances that are so many times as large; an axis stays as it is."""
    if right.ndim == 1:
        return left * by, right * by
    return left * by, right * torch.tensor([by, 1.0], dtype=right.dtype)


def _mean_square(blocks: Blocks) -> float:
    """Of the weights of the matrices that have gains: what a vector of zeros is taken to have."""
    matrices = [block for block in gained(blocks) if block.is_matrix]
    total = sum(float(block.parameter.detach().double().square().sum()) for block in matrices)
    count = sum(block.numel for block in matrices)
    return total / count if total > 0 else 1.0
