"""Structures with random factors, for tests: ``structure_for(model, kind)``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from zoft.blocks import Blocks
from zoft.tuner.gains import gains_of
from zoft.tuner.structure import Structure, StructureConfig, factor_shapes


def structure_for(
    model: nn.Module, kind: str, share: float = 0.5, seed: int = 0, weights: bool = False, **config: Any
) -> Structure:
    """A structure whose scales differ by factors of up to 50; with ``weights`` the blocks differ too.

    Gains have traces of d at the model's weights, which must not be 0.
    """
    blocks = Blocks.of(model)
    settings = StructureConfig.build({"kind": kind, "vectors": "elementwise", **config})
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for block in blocks:
        both = factor_shapes(settings, block.shape)
        if both is not None:
            left, right = (torch.rand(size, generator=generator) * 2 + 0.04 for size in both)
            if kind == "gains-and-offsets":  # an axis has signs
                right[:, 1] = torch.randn(len(right), generator=generator)
            factors[block.name] = (left.to(settings.dtype), right.to(settings.dtype))
    count = len(blocks)
    weight = torch.rand(count, generator=generator) + 0.5 if weights else torch.ones(count)
    names, shapes = tuple(blocks.names), tuple(blocks.shapes)
    if kind.startswith("gains"):
        made = gains_of(settings, names, shapes, blocks, factors, share)
        return replace(made, weight=weight)
    return Structure(settings, names, shapes, torch.full((count,), share), weight, factors)


def covariance(structure: Structure, name: str, theta: torch.Tensor | None = None) -> np.ndarray:
    """S of a block, [d, d] in float64, from what is stored: an independent transcript of the definition.

    Args:
        theta: the block's weights, which gains depend on.
    """
    sizes = np.array([np.prod(shape) for shape in structure.shapes], dtype=np.float64)
    share, weight = structure.share.double().numpy(), structure.weight.double().numpy()
    weight = weight * (sizes * share).sum() / (sizes * share * weight).sum()
    at = structure.names.index(name)
    size = int(sizes[at])
    learned = np.eye(size)
    if name in structure.factors:
        left, right = (factor.double().numpy() for factor in structure.factors[name])
        if structure.kind.startswith("gains"):
            assert theta is not None
            offsets, axis = (left[:, 1], right[:, 1]) if left.ndim > 1 else (np.zeros(len(left)), np.zeros(len(right)))
            left, right = (factor if factor.ndim == 1 else factor[:, 0] for factor in (left, right))
            learned = np.diag(left)
            if theta.ndim > 1:
                rows, columns = np.indices((len(left), len(right))).reshape(2, -1)
                same_row, same_column = rows[:, None] == rows, columns[:, None] == columns
                values = theta.detach().double().numpy().ravel()
                learned = (same_row * left[rows] + same_column * right[columns]) * np.outer(values, values)
                learned += same_row * offsets[rows] * np.outer(axis[columns], axis[columns])
        elif left.ndim == 1:
            values = np.kron(left, right)
            learned = np.diag(values / values.mean())
        else:
            learned = np.kron(left @ left.T, right @ right.T)
            learned *= size / np.trace(learned)
    return (1 - share[at]) * np.eye(size) + share[at] * weight[at] * learned
