"""Controls: what a learned tuner must beat before anything that it learned can be credited.

Each is a function of the tuner, the base at its initial weights and a seed, in the one registry
:data:`CONTROLS`. It returns a tuner, or the reason why there is none: a sentence for the notes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoft.blocks import Block, Blocks
from zoft.step import Probe, State
from zoft.tuner import BoundTuner, PertNN, Tuner
from zoft.tuner.bound import _SCALE, _SIGMA
from zoft.tuner.normalization import effective_sizes, normalization

#: Makes a control's tuner from a tuner, the base and a seed, or says why there is none.
Control = Callable[[Tuner, nn.Module, int], Tuner | str]


def untrained(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """The same networks at the initial values that the seed gives: what meta-training began with."""
    return Tuner(tuner.config, PertNN(len(tuner.config.blocks.names), tuner.config.network, seed))


def permuted(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """The learned σ, dealt out to the blocks in another order: the same spread of scales without what was learned.

    The σ that block i's network gives is used for block π(i), with a fixed random π that leaves no block in its
    place. ν is computed for the scales as they are used.
    """
    output = tuner.network.out
    if not bool(output.weight.any()) and len(output.bias.unique()) == 1:
        return "its networks give every block the same σ"
    if len(Blocks.of(model)) < 2:
        return "the base has a single block"
    return PermutedTuner(**{part.name: getattr(tuner, part.name) for part in fields(tuner)}, order_seed=seed)


def random_basis(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """The same tuner with random directions of the same number in place of those that it learned."""
    structure: Any = getattr(tuner, "structure", None)
    if structure is None:
        return "it has no structured part"
    return replace(tuner, **{"structure": structure.random(seed)})


def biases_only(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """Plain MeZO on the parameters of one dimension alone: biases and the weights of norms."""
    sizes = {block.parameter.ndim < 2 for block in Blocks.of(model)}
    if len(sizes) < 2:
        return f"{'every' if True in sizes else 'no'} parameter of the base has one dimension"
    plain = Tuner.untrained(model)
    return VectorsTuner(plain.config, plain.network)


#: Every control by its name, in the order of the tables; ``compare_config.CONTROL_NAMES`` has the names without torch.
CONTROLS: dict[str, Control] = {
    "untrained": untrained,
    "permuted": permuted,
    "random-basis": random_basis,
    "biases-only": biases_only,
}


def _marked(digest: str, mark: str) -> str:
    return hashlib.sha256(f"{digest}:{mark}".encode()).hexdigest()[:32]


@dataclass(eq=False)
class PermutedTuner(Tuner):
    """A tuner whose σ are dealt out in another order; see :func:`permuted`."""

    order_seed: int = 0

    @property
    def digest(self) -> str:
        """Of the tuner and the order."""
        return _marked(Tuner.digest.__get__(self), f"permuted:{self.order_seed}")

    def bind(self, model: nn.Module, batch_size: int | None = None) -> BoundTuner:
        """As a tuner, with an order for the blocks of ``model``."""
        bound = super().bind(model, batch_size)
        values = {part.name: getattr(bound, part.name) for part in fields(bound)}
        return _PermutedBound(**values, order=derangement(len(Blocks.of(model)), self.order_seed))


def derangement(count: int, seed: int) -> Tensor:
    """A random order of ``count`` ≥ 2 things in which none keeps its place, int64 [count]."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        if not bool((order == torch.arange(count)).any()):
            return order


@dataclass(frozen=True, eq=False)
class _PermutedBound(BoundTuner):
    order: Tensor | None = None

    def begin(self, state: State, blocks: Blocks) -> None:
        # The networks see their own last output, so that the state keeps σ as they gave it.
        super().begin(state, blocks)
        with torch.no_grad():
            sigma = state[_SIGMA][self.order]
            sizes = effective_sizes(blocks, self.batch_size, self.normalization)
            state[_SCALE].copy_(normalization(sigma, sizes, self.normalization) * sigma)


@dataclass(eq=False)
class VectorsTuner(Tuner):
    """No tuner but a mask: scale 1 for parameters of one dimension, 0 for the others."""

    @property
    def digest(self) -> str:
        """Of the blocks' names and shapes and of the mask."""
        return _marked(self.config.blocks.signature, "biases-only")

    def bind(self, model: nn.Module, batch_size: int | None = None) -> BoundTuner:
        """The mask of ``model``'s blocks."""
        bound = super().bind(model, batch_size)
        values = {part.name: getattr(bound, part.name) for part in fields(bound)}
        return _VectorsBound(**values)


@dataclass(frozen=True, eq=False)
class _VectorsBound(BoundTuner):
    def init(self, blocks: Blocks) -> State:
        return {}

    def begin(self, state: State, blocks: Blocks) -> None:
        pass

    def scale(self, state: State, block: Block) -> float:
        return 1.0 if block.parameter.ndim < 2 else 0.0

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        pass
