"""The normalization ν: the perturbation keeps the norm of plain N(0, I), only the shares are learned."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from zoft.blocks import Blocks
from zoft.config import Config


class NormalizationConfig(Config):
    """How ν comes about."""

    kind: Literal["effective-size", "published", "none"] = Field(
        "effective-size",
        description="ν from the blocks' effective sizes; the same as published, where an embedding may count for "
        "more than it has; or ν = 1.",
    )
    embedding_rows: int = Field(
        15,
        ge=1,
        le=2**20,
        description="Rows of an embedding that count, for every example of a batch (15 in the published code).",
    )


def effective_sizes(blocks: Blocks, batch_size: int, config: NormalizationConfig) -> Tensor:
    """w_i, float32 [B]: d_i, but of an embedding only ``embedding_rows`` rows for every example.

    Note:
        The public code's constant may exceed a small vocabulary; here w_i is never above d_i, but with
        the kind ``published``, which converted tuners have.
    """
    sizes = []
    for block in blocks:
        size = block.numel
        if block.is_embedding:
            rows = config.embedding_rows * batch_size * block.shape[-1]
            size = rows if config.kind == "published" else min(size, rows)
        sizes.append(float(size))
    return torch.tensor(sizes)


def normalization(sigma: Tensor, sizes: Tensor, config: NormalizationConfig) -> Tensor:
    """ν = sqrt(Σ w_i / Σ w_i·σ_i²) [ZOFT], a float32 scalar; differentiable in σ."""
    if config.kind == "none":
        return torch.ones(())
    return (sizes.sum() / (sizes * sigma.square()).sum().clamp(min=1e-30)).sqrt()
