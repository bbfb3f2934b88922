"""Structures of gains: which blocks have them, and what they are where nothing was learned.

A gain is a change of a row or column in proportion to itself, so 1 is the same change of all of them, however large
their weights are: a *ratio* is a gain's variance in that unit. The rows of a table of embeddings, and those of a head,
are words and not features: they decide between answers, and stay at rest. A matrix of zeros, such as one half of a LoRA
adapter before its first step, has nothing that could be made larger: its directions are isotropic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.tuner.parts import Gains
from zoft.tuner.structure import Structure, StructureConfig, factor_shapes

#: By block name the ratios of its rows and of its columns, [m] and [n]; of a vector those of its entries, and anything.
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
                left, right = left * (block.numel / trace), right * (block.numel / trace)
            else:
                left, right = _alike(sizes)
        factors[name] = (left.to(config.dtype), right.to(config.dtype))
    return Structure(config, tuple(names), tuple(shapes), shares, weights, factors)


def unlearned(structure: Structure, blocks: Blocks) -> Structure | None:
    """What of a structure is a rule: gains with all ratios alike; None of other kinds.

    Args:
        structure: of a tuner.
        blocks: of its base, at the base's weights.
    """
    if structure.kind != Gains.name:
        return None
    ratios, share = _all_alike(structure.config, blocks), float(structure.share.max())
    return gains_of(structure.config, structure.names, structure.shapes, blocks, ratios, share)


def dealt_out(structure: Structure, blocks: Blocks, order: Callable[[int], Tensor]) -> Structure:
    """The control: the same gains within the blocks, but each block's mean ratio used for another one.

    The mean ratio is what the block's weight is of the weight with all ratios 1, so that a block's size and the size of
    its weights stay its own. Blocks at rest stay at rest.

    Args:
        order: gives the places that so many ratios come from, int64.
    """
    alike = gains_of(
        structure.config, structure.names, structure.shapes, blocks, _all_alike(structure.config, blocks), 1.0
    ).weight
    rows = (alike > 0).nonzero()[:, 0]
    if len(rows) < 2:
        return structure
    weight = structure.weight.clone()
    weight[rows] = (structure.weight[rows] / alike[rows])[order(len(rows))] * alike[rows]
    return replace(structure, weight=weight)


def _all_alike(config: StructureConfig, blocks: Blocks) -> Ratios:
    """Ratios of 1 for all blocks that have gains."""
    return {block.name: _alike(sizes) for block in gained(blocks) if (sizes := factor_shapes(config, block.shape))}


def _alike(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    return torch.ones(sizes[0]), torch.ones(sizes[1])


def _variances(block: Block, left: Tensor, right: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor, float]:
    """Both factors of one of the blocks from its ratios, float64, and the trace that they give."""
    left, right = left.double().cpu(), right.double().cpu()
    if not block.is_matrix:
        size = unit(block) if bool(block.parameter.any()) else _mean_square(blocks)
        left, right = left * size, torch.zeros(1)
        return left, right, float(left.sum())
    squares = block.parameter.detach().double().cpu().reshape(len(left), -1).square()
    return left, right, float(left @ squares.sum(1) + right @ squares.sum(0))


def _mean_square(blocks: Blocks) -> float:
    """Of the weights of the matrices that have gains: what a vector of zeros is taken to have."""
    matrices = [block for block in gained(blocks) if block.is_matrix]
    total = sum(float(block.parameter.detach().double().square().sum()) for block in matrices)
    count = sum(block.numel for block in matrices)
    return total / count if total > 0 else 1.0
