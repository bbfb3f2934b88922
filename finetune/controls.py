"""Controls: what a learned tuner must beat before anything that it learned can be credited.

Each is a function of the tuner, the base at its initial weights and a seed, in the one registry
:data:`CONTROLS`. It returns a tuner, or the reason why there is none: a sentence for the notes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from zoft.blocks import Block, Blocks
from zoft.step import Probe, State
from zoft.tuner import BoundTuner, PertNN, Tuner
from zoft.tuner.gains import dealt_out, has_gains, unlearned
from zoft.tuner.structure import Structure

#: Makes a control's tuner from a tuner, the base and a seed, or says why there is none.
Control = Callable[[Tuner, nn.Module, int], Tuner | str]


def untrained(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """The same networks at the initial values that the seed gives, without a structure: where meta-training began.

    What of the tuner is a rule and not learned, such as its normalisation, stays, as do turns that were not learned,
    and gains, all of them alike; offsets stay along the axes that were measured.
    """
    network = PertNN(len(tuner.config.blocks.names), tuner.config.network, seed)
    rule = unlearned(tuner.structure, Blocks.of(model)) if tuner.structure is not None else None
    config = tuner.structured(None).config
    if config.turns is not None and config.turns.learned:
        config = config.model_copy(update={"turns": None})
    return Tuner(config, network).structured(rule)


def permuted(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """The learned scales, dealt out to the blocks in another order: the same spread without what was learned.

    The σ that block i's network gives is used for block π(i), with a fixed random π that leaves no block in its
    place, and so are the share and the weight of a structure, whose factors stay, and the blocks' turns; of gains it is
    the blocks' mean ratios, among those that have some. ν is computed for the scales as they are used.
    """
    output, structure = tuner.network.out, tuner.structure
    alike = not bool(output.weight.any()) and len(output.bias.unique()) == 1
    if structure is not None:
        alike = alike and len(structure.share.unique()) == len(structure.weight.unique()) == 1
    if alike and tuner.config.turns is None:
        return "it has the same scale for every block"
    if len(Blocks.of(model)) < 2:
        return "the base has a single block"
    return PermutedTuner(**{part.name: getattr(tuner, part.name) for part in fields(tuner)}, order_seed=seed)


def random_basis(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """The same tuner with another structure: a random basis of equal rank and spectrum, or scales in another order."""
    structure = tuner.structure
    if structure is None:
        return "it has no structured part"
    return tuner.structured(structure.random_like(seed))


def biases_only(tuner: Tuner, model: nn.Module, seed: int) -> Tuner | str:
    """MeZO on biases and the weights of norms alone: what has one dimension; with the tuner's step-size head."""
    sizes = {block.parameter.ndim < 2 for block in Blocks.of(model)}
    if len(sizes) < 2:
        return f"{'every' if True in sizes else 'no'} parameter of the base has one dimension"
    plain = Tuner.untrained(model)
    config = plain.config.model_copy(update={"step_rule": tuner.config.step_rule})
    return VectorsTuner(config, plain.network)


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
        return _marked(super().digest, f"permuted:{self.order_seed}")

    def bind(self, model: nn.Module, batch_size: int | None = None) -> BoundTuner:
        """As a tuner, with an order for the blocks of ``model``."""
        structure = self.structure
        if structure is None:
            bound = super().bind(model, batch_size)
        else:
            mixed = _dealt_out(structure, Blocks.of(model), self.order_seed)
            bound = Tuner.bind(self.structured(mixed), model, batch_size)
        values = {part.name: getattr(bound, part.name) for part in fields(bound)}
        order = derangement(len(Blocks.of(model)), self.order_seed)
        values["turns"] = tuple(bound.turns[at] for at in order.tolist()) if bound.turns else ()
        return _PermutedBound(**values, order=order)


def _dealt_out(structure: Structure, blocks: Blocks, seed: int) -> Structure:
    """The structure with its shares and weights, or its gains' mean ratios, used for other blocks."""
    if has_gains(structure):
        return dealt_out(structure, blocks, lambda count: derangement(count, seed))
    order = derangement(len(structure.share), seed)
    return replace(structure, share=structure.share[order], weight=structure.weight[order])


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

    def scales(self, sigma: Tensor, blocks: Blocks) -> Tensor:
        # The state keeps σ as the networks gave it, because they see their own last output.
        return super().scales(sigma[self.order], blocks)


@dataclass(eq=False)
class VectorsTuner(Tuner):
    """No tuner but a mask: scale 1 for parameters of one dimension, 0 for the others."""

    @property
    def digest(self) -> str:
        """Of the blocks' names and shapes and of the mask."""
        rule = self.config.step_rule
        named = f":{json.dumps(rule.to_dict(), sort_keys=True)}" if rule is not None else ""
        return _marked(self.config.blocks.signature, f"biases-only{named}")

    def bind(self, model: nn.Module, batch_size: int | None = None) -> BoundTuner:
        """The mask of ``model``'s blocks."""
        bound = super().bind(model, batch_size)
        values = {part.name: getattr(bound, part.name) for part in fields(bound)}
        return _VectorsBound(**values)


@dataclass(frozen=True, eq=False)
class _VectorsBound(BoundTuner):
    def init(self, blocks: Blocks) -> State:
        return self.step_rule.init() if self.step_rule is not None else {}

    def begin(self, state: State, blocks: Blocks) -> None:
        pass

    def scale(self, state: State, block: Block) -> float:
        return 1.0 if block.parameter.ndim < 2 else 0.0

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        if self.step_rule is not None:
            self.step_rule.end(state, probes, self.batch_size)
