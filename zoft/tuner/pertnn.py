"""PertNN: one small network a block, all of them stacked into one batched call."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoft.config import Config
from zoft.tuner.features import FEATURES, FeatureKind


class NetworkConfig(Config):
    """What the PertNNs are."""

    features: FeatureKind = Field(
        "standardised", description="Inputs as published (raw), or scaled by constants of the base."
    )
    hidden: int = Field(64, ge=1, le=2**16, description="Hidden units of each network.")
    activation: Literal["tanh"] = Field("tanh", description="Activation of the hidden units.")
    output: Literal["abs", "exp", "bounded"] = Field(
        "bounded",
        description="σ from the output y: |y| as published, exp(y), or exp(bound·tanh(y)), which cannot run away.",
    )
    bound: float = Field(1.2, gt=0, le=80, description="Largest |log σ| of the bounded output.")
    init: Literal["linear", "neutral"] = Field(
        "neutral",
        description="Start as torch's Linear does (as published), or with an output layer for which σ = 1.",
    )


def weight_shapes(count: int, config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a PertNN of ``count`` blocks, without making one."""
    return {
        "hidden.weight": (count, config.hidden, len(FEATURES)),
        "hidden.bias": (count, config.hidden),
        "out.weight": (count, 1, config.hidden),
        "out.bias": (count, 1),
    }


class PertNN(nn.Module):
    """Linear(5, hidden) → tanh → Linear(hidden, 1) → output function, for every block at once [ZOFT].

    Parameters, all float32: ``hidden.weight`` [B, hidden, 5], ``hidden.bias`` [B, hidden],
    ``out.weight`` [B, 1, hidden], ``out.bias`` [B, 1].

    Args:
        count: number of blocks B.
        config: the network.
        seed: seed of the initial values; no global generator is touched.
    """

    def __init__(self, count: int, config: NetworkConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.hidden = _Stacked(count, len(FEATURES), config.hidden, generator)
        self.out = _Stacked(count, config.hidden, 1, generator)
        if config.init == "neutral":
            nn.init.zeros_(self.out.weight)
            nn.init.constant_(self.out.bias, 1.0 if config.output == "abs" else 0.0)

    def forward(self, features: Tensor) -> Tensor:
        """σ of every block, float32 of shape [B], from features of shape [B, 5]."""
        value = self.out(torch.tanh(self.hidden(features)))[:, 0]
        if self.config.output == "abs":
            return value.abs()
        if self.config.output == "exp":
            return value.exp()
        return (self.config.bound * torch.tanh(value)).exp()


class _Stacked(nn.Module):
    """One linear layer a block, initialised as ``nn.Linear`` is."""

    def __init__(self, count: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        limit = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs).uniform_(-limit, limit, generator=generator))
        self.bias = nn.Parameter(torch.empty(count, outputs).uniform_(-limit, limit, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        return torch.einsum("boi,bi->bo", self.weight, features) + self.bias
