"""The shape of a zeroth-order method: hyper-parameters and a few verbs, with MeZO as the default.

A step is put together from three parts, each of which a method may replace alone:

- the *direction*: :meth:`ZOOptimizer.draw` and :meth:`ZOOptimizer.direction` turn noise into z (a learned σ,
  H^(−1/2), low rank);
- the *estimator*: what is measured along z and gives c (central, one-sided, derivative; n directions);
- the *update rule*: :meth:`ZOOptimizer.coefficient` and :meth:`ZOOptimizer.rule` turn c·z into a step (sign,
  momentum, Adam).

Parts call ``super()``, so a class that inherits from a direction and from an update rule has both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.config import Config
from zoft.noise import Key, Noise, Span, working_dtype
from zoft.optimizers.schedule import Schedule, scheduled
from zoft.step import Draw, Plan, Probe, State, raw_noise
from zoft.tuner.bound import BoundTuner

#: What is measured along a direction.
Estimator = Literal["central", "one-sided", "derivative"]


class ZOOptimizer(Config):
    """A zeroth-order method. Frozen: what changes during a run is in its state.

    A subclass overrides what differs from MeZO: usually :meth:`direction` or :meth:`rule`, and
    :meth:`init` when it keeps something. With a ``tuner``, the learned σ multiplies the direction of
    whatever method it is, and so does the tuner's structure within the blocks.

    Class attributes:
        name: the name in ``zoft.optimizers.OPTIMIZERS``.
        paper: where the method comes from.
        published: the learning rates and ε that its paper or public code used, with the place.
        parts: which parts it replaces: "direction", "update".
        refuses: estimators that it cannot use, each with the reason.
        every_block: whether each direction has to be of every block, so that a tuner's blocks cannot take turns, or
            rest.
        needs_loss_zero: whether a step measures the loss at θ too.
        trials: multiples of the proposed step whose losses are measured before it is taken.
        stacks: whether the verbs also take several runs at once (:mod:`zoft.stack`): tensors that begin with a
            dimension of runs, and probes whose losses are tensors [runs, 1]. "entries": no entry depends on another,
            so that all blocks can be handled as one; "blocks": block by block; None: no.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: ClassVar[str]
    paper: ClassVar[str]
    published: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[Mapping[str, str]] = {}
    every_block: ClassVar[bool] = False
    needs_loss_zero: ClassVar[bool] = False
    trials: ClassVar[tuple[int, ...]] = ()
    stacks: ClassVar[Literal["entries", "blocks"] | None] = None

    lr: float = Field(1e-6, ge=0, allow_inf_nan=False, description="Learning rate η.")
    epsilon: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Perturbation scale ε.")
    directions: int = Field(1, ge=1, description="Directions a step averages over (n of n-SPSA).")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="Decoupled weight decay λ.")
    estimator: Estimator = Field(
        "central",
        description="c along each direction: (L+ − L−)/2ε, (L+ − L)/ε with one L for all, or the exact derivative.",
    )
    epsilon_schedule: Schedule = Field("constant", description="How ε goes to epsilon_end over schedule_steps.")
    epsilon_end: float | None = Field(None, gt=0, allow_inf_nan=False, description="ε at the end of its schedule.")
    schedule_steps: int | None = Field(None, ge=1, description="Steps that schedules take; constant afterwards.")
    tuner: BoundTuner | None = Field(
        None, exclude=True, description="A tuner bound to the model: its σ scale the direction by block."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.estimator in self.refuses:
            raise ValueError(f"{self.name} cannot use the estimator {self.estimator}: {self.refuses[self.estimator]}")
        rule = self.tuner.step_rule if self.tuner is not None else None
        if rule is not None and rule.two_sided and self.estimator != "central":
            raise ValueError(
                f"the tuner's step-size head needs the losses on both sides, and the estimator is {self.estimator}"
            )
        if self.every_block and self.tuner is not None:
            structure = self.tuner.structure
            partial = "the tuner's structure leaves some at rest" if structure and not structure.everywhere else None
            if reason := "the tuner's blocks take turns" if self.tuner.turns else partial:
                raise ValueError(
                    f"{self.name} needs directions of every block, and {reason}; take another method or tuner"
                )
        for name in type(self).model_fields:
            if not name.endswith("_schedule"):
                continue
            of, kind = name.removesuffix("_schedule"), getattr(self, name)
            lacking = [key for key in (f"{of}_end", "schedule_steps") if getattr(self, key) is None]
            if kind != "constant" and lacking:
                raise ValueError(f"{name} {kind} needs {' and '.join(lacking)}")
            if kind == "constant" and getattr(self, f"{of}_end") is not None:
                raise ValueError(f"{of}_end has no effect while {name} is constant; choose another schedule")
            if kind == "exponential" and not (getattr(self, of) > 0 and getattr(self, f"{of}_end") > 0):
                raise ValueError(f"{name} exponential needs {of} and {of}_end above 0")
        return self

    @property
    def plan(self) -> Plan:
        """What a step measures."""
        if self.estimator == "derivative":
            return Plan((), True, True, self.trials)
        rule = self.tuner.step_rule if self.tuner is not None else None
        examples = rule is not None and rule.by_example
        if self.estimator == "one-sided":
            return Plan((1,), True, False, self.trials, examples)
        return Plan((1, -1), self.needs_loss_zero, False, self.trials, examples)

    @property
    def forwards(self) -> int:
        """Forward passes a step, audits of the model's structure aside; a derivative counts as two.

        With a tuner's step-size head a few steps need one more; :meth:`forwards_in` counts them.
        """
        return self.plan.forwards(self.directions)

    def plan_at(self, step: int) -> Plan:
        """What a step measures: :attr:`plan`, and now and then the loss at θ for a tuner's step-size head."""
        rule = self.tuner.step_rule if self.tuner else None
        return replace(self.plan, zero=True) if rule is not None and rule.measures(step) else self.plan

    def forwards_in(self, steps: int) -> int:
        """Forward passes of the first ``steps`` steps."""
        rule = self.tuner.step_rule if self.tuner else None
        more = rule.forwards(steps) if rule is not None and not self.plan.zero else 0
        return steps * self.forwards + more

    def steps_within(self, forwards: int) -> int:
        """The most steps with no more than so many forward passes."""
        steps = forwards // self.forwards
        while self.forwards_in(steps) > forwards:
            steps -= 1
        return steps

    def rate(self, state: State, probes: Sequence[Probe]) -> float:
        """What multiplies the learning rate in the step of ``probes``: 1 without a step-size head."""
        return self.tuner.rate(state, probes) if self.tuner else 1.0

    def weigh(self, state: State, probes: Sequence[Probe]) -> Sequence[Probe]:
        """The probes as the update sees them: with the slopes that a step-size head makes of them, else as they are."""
        return self.tuner.weigh(state, probes) if self.tuner else probes

    def epsilon_at(self, step: int) -> float:
        """The perturbation scale ε of a step."""
        return self.scheduled("epsilon", step)

    def scheduled(self, name: str, step: int) -> float:
        """The value of the hyper-parameter ``name``, which has a schedule, at a step."""
        kind: Schedule = getattr(self, f"{name}_schedule")
        first: float = getattr(self, name)
        if kind == "constant":
            return first
        return scheduled(kind, first, getattr(self, f"{name}_end"), step, self.schedule_steps or 1)

    def state_bytes(self, blocks: Blocks) -> int:
        """Bytes that the state takes for these blocks; nothing of their size is allocated."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.init(blocks.without_values()).values())

    def init(self, blocks: Blocks) -> State:
        """The state before the first step."""
        return self.tuner.init(blocks) if self.tuner else {}

    def begin(self, state: State, blocks: Blocks) -> None:
        """Prepare the state for a step's directions: the learned σ, where there is a tuner."""
        if self.tuner:
            self.tuner.begin(state, blocks)

    def raw(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """The method's own noise over ``span``, float32 of shape [len(span)], before any learned structure."""
        return raw_noise(noise, key, span)

    def raw_variance(self, block: Block) -> float:
        """The variance of an entry of :meth:`raw`."""
        return 1.0

    def scale(self, state: State, block: Block) -> float:
        """What multiplies the whole direction of a block: ν·σ_i with a tuner, else 1."""
        return self.tuner.scale(state, block) if self.tuner else 1.0

    def moves(self, state: State, key: Key, block: Block) -> bool:
        """Whether a direction is of ``block``: not where a tuner leaves it at rest, or it is another's turn."""
        tuner = self.tuner
        if tuner is None:
            return True
        rests = tuner.structure is not None and not tuner.structure.moves(block)
        return not rests and tuner.takes(key, block, self.directions) and self.scale(state, block) != 0

    def draw(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """u over ``span``, float32 of shape [len(span)]: what :meth:`direction` makes z of.

        That is :meth:`raw`, into which a tuner's structure mixes a low rank or gains; 0 where a tuner's blocks take
        turns and it is not this one's.
        """
        if self.tuner is None:
            return self.raw(noise, key, span)
        structure, takes = self.tuner.structure, self.tuner.takes(key, span.block, self.directions)
        if takes and (structure is None or structure.uses_noise(span.block)):
            u = self.raw(noise, key, span)
        else:
            parameter = span.block.parameter
            u = torch.zeros(len(span), dtype=working_dtype(parameter.dtype), device=parameter.device)
        if structure is None or not takes:
            return u
        return structure.mixed(noise, key, span, u, self.raw_variance(span.block))

    def direction(self, state: State, span: Span, noise: Tensor) -> Tensor:
        """z over ``span`` from u, float32 of shape [len(span)]; ``noise`` may be overwritten."""
        scale = self.scale(state, span.block)
        z = noise if scale == 1.0 else noise.mul_(scale)
        if self.tuner is None or self.tuner.structure is None:
            return z
        deviation = self.tuner.structure.deviation(span)
        return z if isinstance(deviation, float) and deviation == 1.0 else z.mul_(deviation)

    def coefficient(self, probe: Probe) -> float:
        """What multiplies z: c."""
        return probe.projected_gradient

    def estimate(self, state: State, span: Span, draws: Sequence[Draw]) -> Tensor:
        """The gradient estimate over ``span``: the mean of c·z over the draws, whose noise it overwrites."""
        total: Tensor | None = None
        for noise, probe in draws:
            part = self.direction(state, span, noise).mul_(self.coefficient(probe) / len(draws))
            total = part if total is None else total.add_(part)
        if total is None:
            raise ValueError("an update needs at least one draw")
        return total

    def rule(self, state: State, span: Span, estimate: Tensor, draws: Sequence[Draw]) -> Tensor:
        """What −η multiplies, from the gradient estimate, which may be overwritten: the estimate itself."""
        return estimate

    def proposal(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """Increment of θ over ``span`` without an update rule: −η·(estimate + λ·θ). Leaves ``state`` as it is."""
        return self._increment(self.estimate(state, span, draws), theta, lr)

    def update(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """Increment of θ over ``span``, float32: −η·(rule(estimate) + λ·θ)."""
        return self._increment(self.rule(state, span, self.estimate(state, span, draws), draws), theta, lr)

    def _increment(self, step: Tensor, theta: Tensor, lr: float) -> Tensor:
        if self.weight_decay:
            step.add_(theta, alpha=self.weight_decay)
        return step.mul_(-lr)

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """Note what was measured: the learned σ of the next step depend on it."""
        if self.tuner:
            self.tuner.end(state, probes)

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, for records."""
        return {"name": self.name, **self.to_dict()}


def full_size(slot: str, blocks: Blocks) -> State:
    """Zeros of every block's size, float32 or wider, under ``slot/NAME``."""
    return {
        f"{slot}/{block.name}": torch.zeros(
            block.shape, dtype=working_dtype(block.parameter.dtype), device=block.parameter.device
        )
        for block in blocks
    }


def counter() -> Tensor:
    """A count of steps in the state: int64, on the CPU."""
    return torch.zeros((), dtype=torch.int64)


def counted(state: State, slot: str) -> int:
    """The value of a :func:`counter`; where several runs are stacked, the tensor of their counts."""
    count = state[slot]
    return int(count) if count.ndim == 0 else cast(int, count)
