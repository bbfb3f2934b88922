"""The step-size head: the learning rate follows what the losses of a run say, so that one rate does for many tasks.

A step θ − η·c·z with z of covariance S and c = g_bᵀz, g_b the minibatch's gradient and g its mean, changes the loss by

    E ΔL ≈ −η·gᵀSg + ½·η²·E[c²·zᵀHz],    E[c²·zᵀHz] = E[g_bᵀSg_b]·tr(SH) + 2·E[g_bᵀSHSg_b] ≈ E[c²]·tr(SH)

(the last where no single direction has much of tr(SH)), which is least at η* = ρ / tr(SH) with ρ = gᵀSg / E[c²], the
part of c's variance that is signal. What differs between tasks, models and moments of a run is tr(SH); ρ cannot be had
from one batch a step and is left in the learning rate. There are three kinds of rule, :data:`STEP_RULES`:

- *curvature* measures it: zᵀHz ≈ (L₊ + L₋ − 2·L₀)/ε² has the mean tr(SH), for one forward more now and then. The
  learning rate η, which was found at the curvature T*, is multiplied by T*/T with T a running mean of |zᵀHz|. The
  absolute value errs on the low side where curvatures of both signs cancel. Next to it, c's variance bounds a single
  step: a c far beyond its own root mean square counts as so many of them.
- *slopes* costs no forward: E[c²] itself is nearly a curvature, since the Hessian of a cross-entropy near a trained
  model is close to its Fisher matrix, whose trace over S and the batch size is what E[c²] is but for the signal. The
  learning rate is multiplied by (c*/c̄)^p with c̄ the running root mean square of c, the present step included: p = 2 is
  that argument, p = 1 makes all steps as long as they were when the rate was found. Either way a run whose losses grow
  takes smaller steps, where plain SPSA takes larger ones.
- *gauss-newton* costs no forward either: with the losses of the batch's examples kept apart, the step's own directions
  z_1 … z_n show the Gauss–Newton matrix G along them (:mod:`zoft.curvature`), and their slopes c become
  (1 + κ)·(G + κ·T·I)⁻¹·c with T the running mean of G's diagonal, the present step included. So the learning rate is a
  number without units, the part of a Newton step along a direction by itself, over n: the same for tasks and models of
  all scales. κ keeps directions that G's few examples say little about near the mean. To first order no step may
  promise more than a quarter of the loss: cᵀ times the slopes over n is at most that.

Where blocks take turns (:mod:`zoft.tuner.turns`), the running means of *slopes* and *gauss-newton* are kept by turn,
and so every part of the model has a step size of its own. *curvature* has no such means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zoft.config import Config
from zoft.curvature import damped_step
from zoft.step import Probe, State, mean_loss

_CURVATURE, _SLOPES = "tuner/curvature", "tuner/slopes"

#: What a step of the kind gauss-newton, at the learning rate 1, may promise to first order, of the loss that there is.
_PROMISE = 0.25

StepRuleKind = Literal["curvature", "slopes", "gauss-newton"]

_Value = TypeVar("_Value")

#: Whose turn every direction of a step was; empty where blocks do not take turns.
Turns = Sequence[int]


class StepRuleConfig(Config):
    """The step-size head of a tuner.

    What it does is up to its kind, :data:`STEP_RULES`. Arguments that are alike:

        state: the method's, with what :meth:`init` gave; left as it is by all but :meth:`end`.
        probes: of a step.
        turns: whose turn each probe was.
    """

    kind: StepRuleKind = Field("curvature", description="What the rule goes by.")
    curvature: float | None = Field(
        None, gt=0, le=1e30, description="Of the kind curvature: mean |zᵀHz| T* at which the learning rate was found."
    )
    slope: float | None = Field(
        None, gt=0, le=1e15, description="Of the kind slopes: root mean square c* of c at which it was found."
    )
    damping: float | None = Field(None, gt=0, le=1e3, description="Of the kind gauss-newton: κ.")
    power: float = Field(1.0, ge=0, le=4, description="Of the kind slopes: the exponent p.")
    every: int = Field(10, ge=1, le=2**20, description="Steps between two forwards at θ, the first at step 0.")
    decay: float = Field(0.8, ge=0, lt=1, description="Weight of the past in the running mean, T* or c* at first.")
    reach: float = Field(16.0, ge=1, le=2**20, description="The learning rate is at most so many times more or less.")
    largest_slope: float = Field(
        3.0, gt=0, le=2**20, description="Of the kind curvature: a |c| beyond so many of its root mean square is cut."
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        for kind, rule in STEP_RULES.items():
            if (getattr(self, rule.settings[0]) is None) == (kind == self.kind):
                raise ValueError(f"the kind {kind} needs {rule.settings[0]}, and no other kind has it")
        return self

    @property
    def _rule(self) -> StepRule:
        return STEP_RULES[self.kind](self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values of the kind's own settings."""
        content = super().to_dict()
        return {key: content[key] for key in ("kind", *self._rule.settings)}

    @property
    def by_example(self) -> bool:
        """Whether it needs the losses of the examples."""
        return self._rule.by_example

    @property
    def two_sided(self) -> bool:
        """Whether it needs the losses on both sides."""
        return self._rule.two_sided

    def measures(self, step: int) -> bool:
        """Whether a step measures the loss at θ too."""
        return self._rule.measures(step)

    def forwards(self, steps: int) -> int:
        """Forwards at θ in the first ``steps`` steps."""
        return self._rule.forwards(steps)

    def init(self, turns: int = 1) -> State:
        """What the running means begin at, float64 on the CPU, for so many turns."""
        return self._rule.init(turns)

    def rate(self, state: State, probes: Sequence[Probe], turns: Turns = ()) -> float:
        """What multiplies the learning rate in the step of ``probes``."""
        return self._rule.rate(state, probes, turns)

    def weigh(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns = ()) -> Sequence[Probe]:
        """The probes as the update is to see them, with other slopes where the kind makes some.

        Args:
            batch_size: examples a step. Where a batch stood in for examples, the mean of its squared slope is
                their curvature over so many, and what there is of the signal besides.
        """
        return self._rule.weigh(state, probes, batch_size, turns)

    def end(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns = ()) -> None:
        """The running means with what the step measured; ``batch_size`` as in :meth:`weigh`."""
        self._rule.end(state, probes, batch_size, turns)


class StepRule:
    """A kind of rule; the verbs are those of :class:`StepRuleConfig`, here for a rule that does nothing.

    Class attributes:
        settings: the settings of the kind, first the one that it cannot do without.
        by_example: whether it needs the losses of the examples.
        two_sided: whether it needs the losses on both sides.
    """

    settings: ClassVar[tuple[str, ...]]
    by_example: ClassVar[bool] = False
    two_sided: ClassVar[bool] = False

    def __init__(self, config: StepRuleConfig) -> None:
        self.config = config

    def measures(self, step: int) -> bool:
        return False

    def forwards(self, steps: int) -> int:
        return 0

    def init(self, turns: int) -> State:
        raise NotImplementedError

    def rate(self, state: State, probes: Sequence[Probe], turns: Turns) -> float:
        return 1.0

    def weigh(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> Sequence[Probe]:
        return probes

    def end(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> None:
        raise NotImplementedError

    def bounded(self, factor: float) -> float:
        """Within the reach."""
        return min(max(factor, 1 / self.config.reach), self.config.reach)


class Curvature(StepRule):
    """T by a forward at θ now and then. The state: T, and of c² a weight and a mean."""

    settings = ("curvature", "every", "decay", "reach", "largest_slope")
    two_sided = True

    def measures(self, step: int) -> bool:
        return step % self.config.every == 0

    def forwards(self, steps: int) -> int:
        return -(-steps // self.config.every)

    def init(self, turns: int) -> State:
        return {
            _CURVATURE: torch.tensor(self.config.curvature, dtype=torch.float64),
            _SLOPES: torch.zeros(2, dtype=torch.float64),
        }

    def rate(self, state: State, probes: Sequence[Probe], turns: Turns) -> float:
        factor = self.bounded((self.config.curvature or 0.0) / self._mean(state, probes))
        count, squares = state[_SLOPES].tolist()
        slope = math.sqrt(_square(probes))
        limit = self.config.largest_slope * math.sqrt(squares / count) if count else math.inf
        return factor * limit / slope if slope > limit > 0 else factor

    def end(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> None:
        state[_CURVATURE].fill_(self._mean(state, probes))
        count, squares = state[_SLOPES].tolist()
        keep = 1 - 1 / min(count + 1, 10 * self.config.every)  # a mean over all steps at first, then over recent ones
        state[_SLOPES].copy_(torch.tensor([keep * count + 1, keep * squares + _square(probes)], dtype=torch.float64))

    def _mean(self, state: State, probes: Sequence[Probe]) -> float:
        """T with this step's measurement, where there is one."""
        before = float(state[_CURVATURE])
        values = [
            abs(p.loss_plus + p.loss_minus - 2 * p.loss_zero) / p.epsilon**2 for p in probes if p.loss_zero is not None
        ]
        if not values:
            return before
        mean = self.config.decay * before + (1 - self.config.decay) * sum(values) / len(values)
        return max(mean, 1e-30)


class Slopes(StepRule):
    """E[c²] in T's place. The state: c̄², of every turn where there are turns."""

    settings = ("slope", "power", "decay", "reach")

    def init(self, turns: int) -> State:
        square = torch.tensor((self.config.slope or 0.0) ** 2, dtype=torch.float64)
        return {_SLOPES: square if turns == 1 else square.repeat(turns)}

    def rate(self, state: State, probes: Sequence[Probe], turns: Turns) -> float:
        return 1.0 if turns else self._factor(state, probes, 0)

    def weigh(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> Sequence[Probe]:
        if not turns:
            return probes
        factors = {turn: self._factor(state, own, turn) for turn, own in _by_turn(probes, turns).items()}
        return [
            replace(probe, slope=probe.projected_gradient * factors[turn])
            for probe, turn in zip(probes, turns, strict=True)
        ]

    def end(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> None:
        for turn, own in _by_turn(probes, turns).items():
            state[_SLOPES].view(-1)[turn] = self._mean_square(state, own, turn)

    def _factor(self, state: State, probes: Sequence[Probe], turn: int) -> float:
        mean = math.sqrt(self._mean_square(state, probes, turn))
        return self.bounded(((self.config.slope or 0.0) / mean) ** self.config.power if mean > 0 else math.inf)

    def _mean_square(self, state: State, probes: Sequence[Probe], turn: int) -> float:
        """c̄² of a turn with this step's."""
        decay = self.config.decay
        return decay * float(state[_SLOPES].view(-1)[turn]) + (1 - decay) * _square(probes)


class GaussNewton(StepRule):
    """G along the step's directions. The state: of T the number of steps and the mean, of every turn."""

    settings = ("damping", "decay")
    by_example = True

    def init(self, turns: int) -> State:
        return {_CURVATURE: torch.zeros((turns, 2) if turns > 1 else 2, dtype=torch.float64)}

    def weigh(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> Sequence[Probe]:
        if not probes[0].curvature:
            return probes
        matrix = _matrix(probes, batch_size)
        slopes = torch.tensor([probe.projected_gradient for probe in probes], dtype=torch.float64)
        of_turn = self._mean_diagonals(state, matrix.diagonal(), turns)
        means = torch.tensor([of_turn[turn] for turn in turns or [0] * len(probes)], dtype=torch.float64)
        step = damped_step(matrix, slopes, means, self.config.damping or 0.0)
        promised = float(slopes @ step) / len(probes)
        loss = max(mean_loss(probes), 0.0)
        if promised > _PROMISE * loss:
            step = step * (_PROMISE * loss / promised)
        return [replace(probe, slope=value) for probe, value in zip(probes, step.tolist(), strict=True)]

    def end(self, state: State, probes: Sequence[Probe], batch_size: int, turns: Turns) -> None:
        if not probes[0].curvature:
            return
        diagonal = _matrix(probes, batch_size).diagonal()
        for turn, mean in self._mean_diagonals(state, diagonal, turns).items():
            own = state[_CURVATURE].view(-1, 2)[turn]
            own.copy_(torch.tensor([float(own[0]) + 1, mean], dtype=torch.float64))

    def _mean_diagonals(self, state: State, diagonal: Tensor, turns: Turns) -> dict[int, float]:
        """T of every turn that the step had, with its G: from the first a mean over all, later over recent steps."""
        means = {}
        for turn, own in _by_turn(diagonal.tolist(), turns).items():
            count, mean = state[_CURVATURE].view(-1, 2)[turn].tolist()
            keep = min(count / (count + 1), self.config.decay)
            means[turn] = keep * mean + (1 - keep) * sum(own) / len(own)
        return means


#: Every kind of rule by its name.
STEP_RULES: dict[str, type[StepRule]] = {"curvature": Curvature, "slopes": Slopes, "gauss-newton": GaussNewton}


def _by_turn(values: Sequence[_Value], turns: Turns) -> dict[int, list[_Value]]:
    """The values of every turn that the step had; all of one where blocks do not take turns."""
    found: dict[int, list[_Value]] = {}
    for value, turn in zip(values, turns or [0] * len(values), strict=True):
        found.setdefault(turn, []).append(value)
    return found


def _square(probes: Sequence[Probe]) -> float:
    """The mean of c² over the directions."""
    return sum(probe.projected_gradient**2 for probe in probes) / len(probes)


def _matrix(probes: Sequence[Probe], batch_size: int) -> Tensor:
    """G [n, n]."""
    matrix = torch.tensor([probe.curvature for probe in probes], dtype=torch.float64)
    return matrix * batch_size if probes[0].by_batch else matrix
