"""A tuner bound to a model's blocks: the part that a running method uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.errors import UsageError
from zoft.noise import Key
from zoft.step import Probe, State
from zoft.tuner.bound_structure import BoundStructure
from zoft.tuner.features import FeatureConstants, block_statistics, features
from zoft.tuner.normalization import NormalizationConfig, effective_sizes, normalization
from zoft.tuner.pertnn import PertNN
from zoft.tuner.step_rule import StepRuleConfig
from zoft.tuner.turns import turn_at

#: Names in a method's state: σ as the networks gave it, ν·σ, and the last losses.
SIGMA, SCALE, LOSSES = "tuner/sigma", "tuner/scale", "tuner/losses"


@dataclass(frozen=True, eq=False)
class BoundTuner:
    """PertNNs in the order of a model's blocks, and the structure within the blocks where there is one.

    A block's direction has the covariance ν²·σ_i²·S_i, S_i = I without a structure. ν takes the blocks' traces
    into account: Σ w_i·ν²·σ_i²·tr(S_i)/d_i = Σ w_i, so that learning rates mean what they mean without one. Where
    blocks take K turns, z is √K times as large in those whose turn it is: over a cycle the covariance is the same.

    Attributes:
        network: the PertNNs, one row a block.
        constants: of the standardised features.
        normalization: how ν comes about.
        batch_size: examples a step, which the effective size of embeddings depends on.
        notes: what binding had to note, such as a resized vocabulary.
        structure: S_i of every block; None is I.
        step_rule: the step-size head; None leaves the learning rate as it is.
        turns: of every block its turn, from 0 (:mod:`zoft.tuner.turns`); empty where every direction is of all blocks.
    """

    network: PertNN
    constants: FeatureConstants
    normalization: NormalizationConfig
    batch_size: int = 16
    notes: tuple[str, ...] = ()
    structure: BoundStructure | None = None
    step_rule: StepRuleConfig | None = None
    turns: tuple[int, ...] = ()

    @cached_property
    def turn_count(self) -> int:
        """K, 1 where there are no turns."""
        return max(self.turns, default=0) + 1

    def takes(self, key: Key, block: Block, directions: int) -> bool:
        """Whether a direction of a step of so many is one of ``block``."""
        if not self.turns:
            return True
        return self.turns[block.index] == turn_at(key.step, key.draw, directions, self.turn_count)

    def turns_of(self, probes: Sequence[Probe]) -> Sequence[int]:
        """Whose turn every direction of a step was; empty where there are no turns."""
        if not self.turns:
            return ()
        count = len(probes)
        return [turn_at(probe.key.step, probe.key.draw, count, self.turn_count) for probe in probes]

    def check(self, blocks: Blocks) -> None:
        """Raise a UsageError if the tuner was bound to another number of trainable blocks."""
        rows = len(self.network.out.bias)
        if rows != len(blocks):
            raise UsageError(
                f"the tuner is bound to {rows} trainable blocks, and {len(blocks)} are to be trained",
                "Freeze what shall stay, then bind the tuner, and train every block that is trainable.",
            )

    def init(self, blocks: Blocks) -> State:
        """σ = 1 and losses 0 before the first step, float32 on the CPU."""
        count = len(blocks)
        state = {SIGMA: torch.ones(count), SCALE: torch.ones(count), LOSSES: torch.zeros(2)}
        return state | (self.step_rule.init(self.turn_count) if self.step_rule is not None else {})

    def sigma(self, statistics: Tensor, losses: Tensor, previous: Tensor) -> Tensor:
        """σ [B] from block statistics [B, 2], the last losses [2] and the last σ [B]; differentiable."""
        kind = self.network.config.features
        return self.network(features(kind, self.constants, statistics, losses, previous))

    def begin(self, state: State, blocks: Blocks) -> None:
        """The step's σ and ν·σ from the blocks as they are now."""
        with torch.no_grad():
            sigma = self.sigma(block_statistics(blocks), state[LOSSES], state[SIGMA])
            state[SIGMA].copy_(sigma)
            state[SCALE].copy_(self.scales(sigma, blocks))

    def scales(self, sigma: Tensor, blocks: Blocks) -> Tensor:
        """ν·σ [B] of σ [B]."""
        sizes = effective_sizes(blocks, self.batch_size, self.normalization)
        # Without a structure the squares are not touched, so that ν keeps its bits.
        spread = sigma if self.structure is None else sigma * self.structure.power.sqrt()
        return normalization(spread, sizes, self.normalization) * sigma

    def scale(self, state: State, block: Block) -> float:
        """ν·σ_i of this step, times √K."""
        return float(state[SCALE][block.index]) * math.sqrt(self.turn_count)

    def rate(self, state: State, probes: Sequence[Probe]) -> float:
        """What multiplies the learning rate: 1 without a step-size head."""
        return 1.0 if self.step_rule is None else self.step_rule.rate(state, probes, self.turns_of(probes))

    def weigh(self, state: State, probes: Sequence[Probe]) -> Sequence[Probe]:
        """The probes with the slopes that a step-size head makes of them, else as they are."""
        if self.step_rule is None:
            return probes
        return self.step_rule.weigh(state, probes, self.batch_size, self.turns_of(probes))

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """Keep the losses, averaged over the directions, for the next step's σ, and what the step-size head keeps."""
        count = len(probes)
        plus, minus = sum(p.loss_plus for p in probes) / count, sum(p.loss_minus for p in probes) / count
        state[LOSSES].copy_(torch.tensor([plus, minus]))
        if self.step_rule is not None:
            self.step_rule.end(state, probes, self.batch_size, self.turns_of(probes))
