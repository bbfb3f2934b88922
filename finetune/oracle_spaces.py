"""Search spaces: what makes a tuner from a vector of coordinates.

A space is a class in the one registry :data:`SPACES`. It knows the names of its coordinates, where a search begins
and how far it goes, and gives the tuner of a vector. The learning rate is no coordinate of a space: every search has
it besides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.module_types import depths, module_types
from zoft.tuner.normalization import effective_sizes, normalization


class SearchSpace(ABC):
    """Tuners by their coordinates.

    Args:
        model: the base at its initial weights.
        folder: name of the tuner to start from; None where there is none.

    Attributes:
        names: of the coordinates.
        start, spread: where a search begins, and its standard deviation there, by coordinate.
        bound: no coordinate goes further than this from 0.
    """

    name: ClassVar[str]
    bound: ClassVar[float] = 4.0
    names: tuple[str, ...]
    start: tuple[float, ...]
    spread: tuple[float, ...]

    @abstractmethod
    def __init__(self, model: nn.Module, folder: str | None = None) -> None: ...

    @abstractmethod
    def tuner(self, coordinates: Sequence[float]) -> Tuner:
        """The tuner of a vector."""

    @abstractmethod
    def described(self, coordinates: Sequence[float]) -> dict[str, Any]:
        """What a vector means, JSON-able."""


class _ByType(SearchSpace):
    """One coordinate for every module type, and the slope over the layers where there are several."""

    def _name(self, blocks: Blocks) -> None:
        types = module_types(blocks)
        self._kinds = list(dict.fromkeys(types))
        self._rows = torch.tensor([self._kinds.index(kind) for kind in types])
        self._places = depths(blocks)
        self.names = (*self._kinds, *(["slope"] if self._places.any() else []))

    def _values(self, coordinates: Sequence[float]) -> Tensor:
        """The coordinates' sum for every block, float32."""
        given = torch.tensor(coordinates, dtype=torch.float32)
        return given[self._rows] + self._slope(coordinates) * self._places

    def _slope(self, coordinates: Sequence[float]) -> float:
        return coordinates[-1] if len(self.names) > len(self._kinds) else 0.0

    def _by_type(self, by_type: Sequence[float], slope: float) -> tuple[float, ...]:
        """A vector."""
        return (*by_type, slope)[: len(self.names)]


class Scales(_ByType):
    """Static scales: log σ is a constant of the block's module type plus the slope times its depth.

    The tuner is one like every other: networks whose weights are 0, so that the output layer's bias decides. ν keeps
    the direction's norm, so only the shares of the blocks matter: adding a constant to all types changes nothing.
    """

    name = "scales"

    def __init__(self, model: nn.Module, folder: str | None = None) -> None:
        if folder is not None:
            raise UsageError("the search of scales starts from no tuner", "Leave the tuner out, or search share.")
        self._blocks = Blocks.of(model)
        self._name(self._blocks)
        count = len(self._kinds)
        self.start, self.spread = self._by_type([0.0] * count, 0.0), self._by_type([0.5] * count, 0.25)
        # init neutral: the weights of the output layer are 0, and the hidden units are of no effect.
        self._plain = Tuner.untrained(model, NetworkConfig(output="exp", hidden=1, init="neutral"))

    def tuner(self, coordinates: Sequence[float]) -> Tuner:
        """The tuner whose σ is the same at every step."""
        plain = self._plain
        tuner = replace(plain, network=type(plain.network)(len(self._blocks), plain.config.network))
        with torch.no_grad():
            tuner.network.out.bias.copy_(self._values(coordinates)[:, None])
        return tuner

    def described(self, coordinates: Sequence[float]) -> dict[str, Any]:
        """ν·σ by module type in the middle of the layers, and the factor from the first layer to the last."""
        values = self._values(coordinates)
        settings = self._plain.config
        sizes = effective_sizes(self._blocks, settings.recommended.batch_size, settings.normalization)
        scale = float(normalization(values.exp(), sizes, settings.normalization))
        by_type = zip(self._kinds, coordinates, strict=False)
        return {
            "scale": {kind: round(scale * math.exp(value), 4) for kind, value in by_type},
            "last_layer_over_first": round(math.exp(2 * self._slope(coordinates)), 4),
        }


class Share(_ByType):
    """The share of a tuner's structured part: its logit by module type plus the slope times the depth.

    Blocks that the tuner's structure leaves isotropic stay so.
    """

    name = "share"

    def __init__(self, model: nn.Module, folder: str | None = None) -> None:
        if folder is None:
            raise UsageError("the search of shares needs a tuner with a structured part", "Give one with --tuner.")
        self._given = Tuner.from_pretrained(folder)
        structure = self._given.structure
        if structure is None:
            raise UsageError(f"tuner {folder} has no structured part", "Give one that has.")
        self._structure = structure
        self._given.bind(model)
        blocks = [block for block in Blocks.of(model) if block.name in structure.factors]
        if not blocks:
            raise UsageError(f"the structured part of tuner {folder} covers no block", "Give another tuner.")
        order = {name: row for row, name in enumerate(structure.names)}
        self._covered = torch.tensor([order[block.name] for block in blocks])
        self._name(Blocks(blocks))
        own = structure.share[self._covered].double().clamp(0.02, 0.98).logit()
        count = len(self._kinds)
        self.start = self._by_type([float(own[self._rows == kind].mean()) for kind in range(count)], 0.0)
        self.spread = self._by_type([1.0] * count, 0.5)

    def tuner(self, coordinates: Sequence[float]) -> Tuner:
        """The given tuner with other shares."""
        share = self._structure.share.clone()
        share[self._covered] = self._values(coordinates).sigmoid().to(share.dtype)
        return self._given.structured(replace(self._structure, share=share))

    def described(self, coordinates: Sequence[float]) -> dict[str, Any]:
        """The share by module type in the middle of the layers, and the slope of its logit."""
        by_type = zip(self._kinds, coordinates, strict=False)
        share = {kind: round(1 / (1 + math.exp(-value)), 4) for kind, value in by_type}
        return {"share": share, "slope_of_logit": self._slope(coordinates)}


#: Every search space by its name.
SPACES: dict[str, type[SearchSpace]] = {space.name: space for space in (Scales, Share)}
