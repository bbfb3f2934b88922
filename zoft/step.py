"""One zeroth-order step: the one place that sequences perturbed evaluations, the update and the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoft.blocks import Block, Blocks
from zoft.curvature import PartLosses, gauss_newton
from zoft.noise import Key, Noise, Span, spans, working_dtype
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.rounding import add_rounded
from zoft.uninterrupted import uninterrupted

#: A method's state: a flat mapping of names to tensors, so that any format can store it.
State = dict[str, Tensor]

#: Averages a list of losses over the processes of a distributed run.
Reduce = Callable[[list[float]], list[float]]


@dataclass(frozen=True)
class Plan:
    """What a step measures.

    Attributes:
        sides: the multiples of ε at which the loss is evaluated along each direction.
        zero: whether the loss at θ is measured too.
        derivative: whether each direction's exact derivative ⟨∇L, z⟩ is taken by forward-mode
            differentiation, in place of evaluations at ±ε. It gives the loss at θ along with it.
        trials: multiples of the method's proposed step whose losses are measured before it decides.
        examples: whether the losses of the examples are kept apart, for the curvature along the directions;
            not along exact derivatives.
    """

    sides: tuple[int, ...] = (1, -1)
    zero: bool = False
    derivative: bool = False
    trials: tuple[int, ...] = ()
    examples: bool = False

    def forwards(self, directions: int) -> int:
        """Forward passes of a step. A derivative counts as two: the value's and the tangent's."""
        along = 2 if self.derivative else len(self.sides)
        return directions * along + (self.zero and not self.derivative) + len(self.trials)


@dataclass(frozen=True)
class Probe:
    """What was measured along one direction; with the state before it, it determines the update.

    Attributes:
        key: which direction.
        loss_plus: loss at θ + εz.
        loss_minus: loss at θ − εz.
        epsilon: the perturbation scale ε.
        loss_zero: loss at θ, for methods that measure it.
        slope: the directional derivative, where it is not the central difference. The losses at θ ± εz
            that the plan leaves out then hold their values to first order.
        trials: losses at the multiples of the proposed step that the plan names; the same for all
            directions of a step.
        curvature: the direction's row of the step's Gauss–Newton matrix (:mod:`zoft.curvature`), where the plan
            keeps the examples apart.
        by_batch: whether whole batches stood in for examples there.
    """

    key: Key
    loss_plus: float
    loss_minus: float
    epsilon: float
    loss_zero: float | None = None
    slope: float | None = None
    trials: tuple[float, ...] = ()
    curvature: tuple[float, ...] = ()
    by_batch: bool = False

    @property
    def projected_gradient(self) -> float:
        """c = (L+ − L−) / (2ε), in float64; (L+ − L) / ε or ⟨∇L, z⟩ where the plan says so."""
        if self.slope is not None:
            return self.slope
        return (self.loss_plus - self.loss_minus) / (2 * self.epsilon)

    @property
    def finite(self) -> bool:
        """Whether every loss that the update needs is finite; a trial may fail, and is then not chosen."""
        return all(map(math.isfinite, (self.loss_plus, self.loss_minus, self.loss_zero or 0.0, self.slope or 0.0)))


#: A direction's raw noise u over a span, and what was measured along it.
Draw = tuple[Tensor, Probe]


class Method(Protocol):
    """What a step asks of a method; ``zoft.optimizers.ZOOptimizer`` has the defaults.

    Attributes:
        directions: how many directions a step averages over.
    """

    @property
    def directions(self) -> int: ...

    def plan_at(self, step: int) -> Plan:
        """What a step measures."""

    def epsilon_at(self, step: int) -> float:
        """The perturbation scale ε of a step."""

    def begin(self, state: State, blocks: Blocks) -> None:
        """Prepare ``state`` for this step's directions."""

    def moves(self, state: State, key: Key, block: Block) -> bool:
        """Whether a direction is of ``block``; one that is not is 0 there."""

    def draw(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """The direction's raw noise over ``span``; its last dimension is the span's."""

    def direction(self, state: State, span: Span, noise: Tensor) -> Tensor:
        """z over ``span`` from the raw noise; may overwrite and return ``noise``."""

    def proposal(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """The increment whose multiples are the plan's trials; leaves ``state`` as it is."""

    def rate(self, state: State, probes: Sequence[Probe]) -> float:
        """What multiplies the learning rate in the step of ``probes``; leaves ``state`` as it is."""

    def weigh(self, state: State, probes: Sequence[Probe]) -> Sequence[Probe]:
        """The probes as the update is to see them, with other slopes or as they are; leaves ``state`` as it is."""

    def update(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """Increment of θ over ``span``, float32; updates the span's part of ``state``."""

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """Note what was measured, once the update is done."""


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        probes: one a direction.
        skipped: whether nothing was updated, because a loss was not finite.
        forwards: evaluations of the objective, audits included; a derivative counts as two.
    """

    probes: tuple[Probe, ...]
    skipped: bool
    forwards: int

    @property
    def loss(self) -> float:
        """Mean of the losses at θ ± εz: what a step knows of the loss without another forward."""
        return mean_loss(self.probes)

    @property
    def projected_gradient(self) -> float:
        """Mean c over the directions."""
        return sum(p.projected_gradient for p in self.probes) / len(self.probes)


def mean_loss(probes: Sequence[Probe]) -> float:
    """Mean of the losses at θ ± εz over a step's directions."""
    return sum(p.loss_plus + p.loss_minus for p in probes) / (2 * len(probes))


def zo_step(
    method: Method,
    state: State,
    blocks: Blocks,
    perturber: Perturber,
    objective: Objective,
    noise: Noise,
    key: Key,
    lr: float | Callable[[Block], float],
    reduce: Reduce | None = None,
) -> StepResult:
    """Measure along ``method.directions`` directions, then update θ and ``state`` in one pass.

    Args:
        key: seed and step; the draw counts the directions.
        lr: learning rate η, or one for every block. Where it is 0, θ keeps its bits.
        reduce: averages losses over processes; every process must hold the same θ and state.

    Returns:
        The measurements. If one is not finite, θ is untouched and ``skipped`` is set.
    """
    calls = objective.calls
    method.begin(state, blocks)
    probes = _measure(method, state, blocks, perturber, objective, noise, key, reduce)
    if not all(probe.finite for probe in probes):
        return StepResult(probes, True, objective.calls - calls)
    if method.plan_at(key.step).trials:
        probes = _try(method, state, perturber, objective, noise, probes, lr, reduce)
    forwards = objective.calls - calls
    with uninterrupted():
        apply_update(method, state, blocks, noise, probes, lr)
    return StepResult(probes, False, forwards)


def apply_update(
    method: Method,
    state: State,
    blocks: Blocks,
    noise: Noise,
    probes: Sequence[Probe],
    lr: float | Callable[[Block], float],
) -> None:
    """The update that ``probes`` determine: θ and ``state`` after the step, without a forward pass."""
    factor, weighed = method.rate(state, probes), method.weigh(state, probes)
    for block in blocks:
        rate = factor * (lr(block) if callable(lr) else lr)
        values = block.parameter.data
        flat = values if values.is_contiguous() else values.contiguous()
        for span in spans(block):
            draws = [(method.draw(noise, probe.key, span), probe) for probe in weighed]
            theta = span.of(flat)
            change = method.update(state, span, theta, draws, rate)
            if rate:
                add_rounded(theta, change, probes[0].key, span)
        if flat is not values:
            values.copy_(flat)
    method.end(state, probes)


def raw_noise(noise: Noise, key: Key, span: Span) -> Tensor:
    """u over ``span`` on the block's device: float32, or float64 where the block is."""
    parameter = span.block.parameter
    return noise(key, span, parameter.device).to(working_dtype(parameter.dtype))


def _measure(
    method: Method,
    state: State,
    blocks: Blocks,
    perturber: Perturber,
    objective: Objective,
    noise: Noise,
    key: Key,
    reduce: Reduce | None,
) -> tuple[Probe, ...]:
    plan, epsilon = method.plan_at(key.step), method.epsilon_at(key.step)
    keys = [key._replace(draw=draw) for draw in range(method.directions)]
    apart = objective.apart if plan.examples else None
    evaluate: Callable[[], Any] = objective if apart is None else apart
    found: list[Any] = [evaluate()] if plan.zero and not plan.derivative else []
    for at in keys:
        if plan.derivative:
            found.extend(objective.derivative(_tangents(method, state, blocks, noise, at)))
            continue
        shift = _Shift(method, state, noise, at, epsilon, perturber.numel)
        for shift.sign in plan.sides:
            found.append(perturber.evaluate(shift, evaluate))
    count = len(found)
    if apart is not None:
        matrix = along_directions(plan, found, epsilon, len(keys))
        found = [sum(batch.mean for batch in losses) / len(losses) for losses in found]
        found += matrix.flatten().tolist()
    if reduce is not None:
        found = reduce(found)
    probes = probes_of(plan, keys, epsilon, found[:count])
    if apart is None:
        return probes
    rows = [found[at : at + len(keys)] for at in range(count, len(found), len(keys))]
    return tuple(with_curvature(probes, rows, apart.by_batch))


def with_curvature(probes: Sequence[Probe], matrix: Sequence[Sequence[float]], by_batch: bool = False) -> list[Probe]:
    """The probes with each one's row of the Gauss–Newton matrix."""
    return [replace(probe, curvature=tuple(row), by_batch=by_batch) for probe, row in zip(probes, matrix, strict=True)]


def probes_of(
    plan: Plan, keys: Sequence[Key], epsilon: float, losses: Sequence[Any], kind: type[Probe] = Probe
) -> tuple[Probe, ...]:
    """What was measured along each direction, from the losses in the order of their evaluations.

    Args:
        kind: of the probes; another takes other losses, such as tensors of several runs.
    """
    values = iter(losses)
    if plan.derivative:
        return tuple(_along(at, epsilon, next(values), next(values)) for at in keys)
    zero = next(values) if plan.zero else None
    if plan.sides == (1, -1):
        return tuple(kind(at, next(values), next(values), epsilon, zero) for at in keys)
    if zero is None:
        raise ValueError("a one-sided difference needs the loss at θ")
    return tuple(
        kind(at, plus, 2 * zero - plus, epsilon, zero, (plus - zero) / epsilon)
        for at, plus in zip(keys, values, strict=True)
    )


def along_directions(plan: Plan, found: Sequence[Sequence[PartLosses]], epsilon: float, directions: int) -> Tensor:
    """The Gauss–Newton matrix [n, n] along the directions: of every evaluation the losses of each batch's parts."""
    matrices = []
    for batch in zip(*found, strict=True):
        losses = torch.stack([part.values for part in batch])
        sides = losses[1 if plan.zero else 0 :].view(directions, len(plan.sides), -1)
        zero = losses[0] if plan.zero else sides.mean((0, 1))
        other = sides[:, 1] if len(plan.sides) == 2 else zero
        slopes = (sides[:, 0] - other) / (epsilon * len(plan.sides))
        matrices.append(gauss_newton(zero, slopes, batch[0].weights))
    return torch.stack(matrices).mean(0)


def _along(key: Key, epsilon: float, zero: float, slope: float) -> Probe:
    """A probe of the loss at θ and the derivative along one direction."""
    return Probe(key, zero + epsilon * slope, zero - epsilon * slope, epsilon, zero, slope)


def _tangents(
    method: Method, state: State, blocks: Blocks, noise: Noise, key: Key
) -> list[tuple[nn.Parameter, Tensor]]:
    """Every block with its direction, in the block's shape and dtype."""
    pairs = []
    # Tensors that are made in inference mode cannot be tangents.
    with torch.inference_mode(False), torch.no_grad():
        for block in blocks:
            tangent = torch.empty(block.shape, dtype=block.parameter.dtype, device=block.parameter.device)
            for span in spans(block):
                span.of(tangent).copy_(method.direction(state, span, method.draw(noise, key, span)))
            pairs.append((block.parameter, tangent))
    return pairs


def _try(
    method: Method,
    state: State,
    perturber: Perturber,
    objective: Objective,
    noise: Noise,
    probes: tuple[Probe, ...],
    lr: float | Callable[[Block], float],
    reduce: Reduce | None,
) -> tuple[Probe, ...]:
    """The probes with the losses at the plan's multiples of the proposed step."""

    factor, plan = method.rate(state, probes), method.plan_at(probes[0].key.step)
    weighed = method.weigh(state, probes)

    def shift(multiple: int, span: Span) -> Tensor:
        rate = factor * (lr(span.block) if callable(lr) else lr)
        flat = span.block.parameter.data.contiguous()
        draws = [(method.draw(noise, probe.key, span), probe) for probe in weighed]
        return method.proposal(state, span, span.of(flat), draws, rate).mul_(multiple)

    losses = [perturber.evaluate(partial(shift, multiple), objective) for multiple in plan.trials]
    if reduce is not None:
        losses = reduce(losses)
    return tuple(replace(probe, trials=tuple(losses)) for probe in probes)


class _Shift:
    """±ε·z of one direction. Where the noise may keep enough, ε·z is made once for both signs."""

    sign = 1

    def __init__(self, method: Method, state: State, noise: Noise, key: Key, epsilon: float, numel: int) -> None:
        self._method, self._state, self._noise, self._key, self._epsilon = method, state, noise, key, epsilon
        # The noise itself takes as much again.
        self._kept: dict[tuple[int, int], Tensor] | None = {} if noise.may_keep(2 * numel) else None

    def moves(self, block: Block) -> bool:
        """Whether the direction is of ``block``; others need no copy of their weights."""
        return self._method.moves(self._state, self._key, block)

    def __call__(self, span: Span) -> Tensor:
        index = (span.block.index, span.start)
        change = self._kept.get(index) if self._kept is not None else None
        if change is None:
            u = self._method.draw(self._noise, self._key, span)
            change = self._method.direction(self._state, span, u).mul_(self._epsilon)
            if self._kept is not None:
                self._kept[index] = change
        return change if self.sign > 0 else -change
