"""Looking ahead: K fine-tuning steps with the current networks, recorded so that σ can be differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.noise import Key, Noise, Span
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.step import Draw, Plan, Probe, State, raw_noise, zo_step
from zoft.tuner.bound import BoundTuner
from zoft.tuner.features import block_statistics
from zoft.tuner.normalization import effective_sizes, normalization
from zoft.uninterrupted import uninterrupted


@contextmanager
def restored(blocks: Blocks) -> Iterator[None]:
    """Within: the weights may be changed in place. After: bit for bit as before, also on an exception.

    The kept values lie in the host's memory: no second copy of the model on an accelerator.
    """
    kept = [block.parameter.data.to("cpu", copy=True) for block in blocks]
    try:
        yield
    finally:
        with uninterrupted(), torch.no_grad():
            for block, values in zip(blocks, kept, strict=True):
                block.parameter.copy_(values)


class LearnedStep:
    """The tuner's fine-tuning step, as ``zoft.step.zo_step`` asks for a method, with the graph of σ recorded.

    The numbers are those of ``zoft.optimizers.ZOFinetuner`` bit for bit.

    Args:
        tuner: the networks being learned, with gradients.
        blocks: the model's blocks.
        epsilon: perturbation scale ε.
        differentiable_normalization: whether ν is differentiated with σ, or a constant.
        recurrent_gradient: whether the σ that a step feeds to the next is differentiated.
    """

    directions = 1

    def __init__(
        self,
        tuner: BoundTuner,
        blocks: Blocks,
        epsilon: float,
        differentiable_normalization: bool = True,
        recurrent_gradient: bool = True,
    ) -> None:
        self._epsilon = epsilon
        self.sigmas: list[Tensor] = []
        self.scales: list[Tensor] = []
        self._tuner = tuner
        self._dtype = next(tuner.network.parameters()).dtype
        self._sizes = effective_sizes(blocks, tuner.batch_size, tuner.normalization)
        self._differentiable = differentiable_normalization
        self._recurrent = recurrent_gradient

    def initial(self) -> State:
        """What a trajectory starts with: σ [B] = 1, its ν·σ [B], and the last losses [2] = 0."""
        count = len(self._sizes)
        return {
            "sigma": torch.ones(count, dtype=self._dtype),
            "scale": torch.ones(count, dtype=self._dtype),
            "losses": torch.zeros(2, dtype=torch.float32),
        }

    def forget(self) -> None:
        """Drop the recorded graph: the next step is the first of a lookahead."""
        self.sigmas, self.scales = [], []

    def epsilon_at(self, step: int) -> float:
        """The same ε at every step."""
        return self._epsilon

    def plan_at(self, step: int) -> Plan:
        """The losses at ±ε."""
        return Plan()

    def rate(self, state: State, probes: Sequence[Probe]) -> float:
        """The learning rate as it is."""
        return 1.0

    def weigh(self, state: State, probes: Sequence[Probe]) -> Sequence[Probe]:
        """The probes as they are."""
        return probes

    def begin(self, state: State, blocks: Blocks) -> None:
        """σ and ν·σ of this step, with their graph in ``sigmas`` and ``scales``."""
        statistics = block_statistics(blocks)
        previous = self.sigmas[-1] if self.sigmas and self._recurrent else state["sigma"].clone()
        with torch.enable_grad():
            sigma = self._tuner.sigma(statistics, state["losses"].clone(), previous)
            nu = normalization(
                sigma if self._differentiable else sigma.detach(), self._sizes, self._tuner.normalization
            )
            scale = nu * sigma
        self.sigmas.append(sigma)
        self.scales.append(scale)
        state["sigma"].copy_(sigma.detach())
        state["scale"].copy_(scale.detach())

    def moves(self, state: State, key: Key, block: Block) -> bool:
        """Every direction is of all blocks."""
        return True

    def draw(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """u over the span."""
        return raw_noise(noise, key, span)

    def direction(self, state: State, span: Span, noise: Tensor) -> Tensor:
        """ν·σ_i·u over the span."""
        return noise.mul_(float(state["scale"][span.block.index]))

    def update(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """−η·c·z over the span."""
        ((noise, probe),) = draws
        return self.direction(state, span, noise).mul_(probe.projected_gradient).mul_(-lr)

    proposal = update

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """Keep the losses for the next step's σ."""
        state["losses"].copy_(torch.tensor([probes[0].loss_plus, probes[0].loss_minus]))


@dataclass
class Lookahead:
    """K recorded steps, θ_K = θ − η_u·Σ_k c_k·(ν·σ)_k ⊙ u_k.

    Attributes:
        lr: η_u.
        probes: what each step measured; its key gives u_k.
        scales: (ν·σ)_k, [B] each, with the graph back to the networks.
        noises: one generator a step, which may keep that step's noise.
        first: the state during the first step, as an inner step along it needs it.
    """

    lr: float
    noises: Sequence[Noise]
    probes: list[Probe] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    first: State = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean loss at θ ± εz of the first step: the loss before looking ahead."""
        return (self.probes[0].loss_plus + self.probes[0].loss_minus) / 2

    def noise(self, step: int, block: Block) -> Tensor:
        """u of a step over a whole block, in the block's dtype or float32 if that is wider."""
        u = self.noises[step].block(self.probes[step].key, block, block.parameter.device)
        return u.to(torch.promote_types(block.parameter.dtype, u.dtype))


def look_ahead(
    method: LearnedStep,
    state: State,
    blocks: Blocks,
    perturber: Perturber,
    objectives: Sequence[Objective],
    noises: Sequence[Noise],
    key: Key,
    lr: float,
) -> Lookahead | None:
    """Fine-tune in place for one step an objective; call it within :func:`restored`.

    Args:
        method: the step; its graph is recorded anew.
        state: σ and losses before the first step; not changed.
        key: seed and number of the first step.
        lr: learning rate η_u.

    Returns:
        The record, or None when a loss was not finite.
    """
    method.forget()
    running = {name: tensor.clone() for name, tensor in state.items()}
    record = Lookahead(lr, noises)
    for number, (objective, noise) in enumerate(zip(objectives, noises, strict=True)):
        at = key._replace(step=key.step + number)
        result = zo_step(method, running, blocks, perturber, objective, noise, at, lr)
        if result.skipped:
            return None
        record.probes.append(result.probes[0])
        if not number:
            record.first = {name: tensor.clone() for name, tensor in running.items()}
    record.scales = list(method.scales)
    return record
