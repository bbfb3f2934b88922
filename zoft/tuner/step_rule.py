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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

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

#: The settings of every kind, first the one that it cannot do without.
STEP_RULES = {
    "curvature": ("curvature", "every", "decay", "reach", "largest_slope"),
    "slopes": ("slope", "power", "decay", "reach"),
    "gauss-newton": ("damping", "decay"),
}


class StepRuleConfig(Config):
    """The step-size head of a tuner."""

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
        for kind, (name, *_) in STEP_RULES.items():
            if (getattr(self, name) is None) == (kind == self.kind):
                raise ValueError(f"the kind {kind} needs {name}, and no other kind has it")
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values of the kind's own settings."""
        content = super().to_dict()
        return {key: content[key] for key in ("kind", *STEP_RULES[self.kind])}

    @property
    def by_example(self) -> bool:
        """Whether it needs the losses of the examples."""
        return self.kind == "gauss-newton"

    @property
    def two_sided(self) -> bool:
        """Whether it needs the losses on both sides."""
        return self.kind == "curvature"

    def measures(self, step: int) -> bool:
        """Whether a step measures the loss at θ too."""
        return self.kind == "curvature" and step % self.every == 0

    def forwards(self, steps: int) -> int:
        """Forwards at θ in the first ``steps`` steps."""
        return -(-steps // self.every) if self.kind == "curvature" else 0

    def init(self) -> State:
        """What the means begin at, float64 on the CPU: c*²; T*, and of c² a weight and a mean of 0; or T's of 0."""
        if self.slope is not None:
            return {_SLOPES: torch.tensor(self.slope**2, dtype=torch.float64)}
        if self.by_example:
            return {_CURVATURE: torch.zeros(2, dtype=torch.float64)}
        return {
            _CURVATURE: torch.tensor(self.curvature, dtype=torch.float64),
            _SLOPES: torch.zeros(2, dtype=torch.float64),
        }

    def rate(self, state: State, probes: Sequence[Probe]) -> float:
        """What multiplies the learning rate in the step of ``probes``; leaves ``state`` as it is."""
        if self.slope is not None:
            mean = math.sqrt(self._mean_square(state, probes))
            return self._bounded((self.slope / mean) ** self.power if mean > 0 else self.reach)
        if self.by_example:
            return 1.0
        factor = self._bounded((self.curvature or 0.0) / self._mean(state, probes))
        count, squares = state[_SLOPES].tolist()
        slope = math.sqrt(_square(probes))
        limit = self.largest_slope * math.sqrt(squares / count) if count else math.inf
        return factor * limit / slope if slope > limit > 0 else factor

    def weigh(self, state: State, probes: Sequence[Probe], batch_size: int) -> Sequence[Probe]:
        """The probes as the update is to see them, of the kind gauss-newton with other slopes.

        Args:
            batch_size: examples a step. Where a batch stood in for examples, the mean of its squared slope is
                their curvature over so many, and what there is of the signal besides.
        """
        if not self.by_example or not probes[0].curvature:
            return probes
        matrix = _matrix(probes, batch_size)
        slopes = torch.tensor([probe.projected_gradient for probe in probes], dtype=torch.float64)
        step = damped_step(matrix, slopes, self._mean_diagonal(state, matrix), self.damping or 0.0)
        promised = float(slopes @ step) / len(probes)
        loss = max(mean_loss(probes), 0.0)
        if promised > _PROMISE * loss:
            step = step * (_PROMISE * loss / promised)
        return [replace(probe, slope=value) for probe, value in zip(probes, step.tolist(), strict=True)]

    def _mean_diagonal(self, state: State, matrix: Tensor) -> float:
        """T with this step's G [n, n]: from the first a mean over all, later over recent steps."""
        count, mean = state[_CURVATURE].tolist()
        keep = min(count / (count + 1), self.decay)
        return float(keep * mean + (1 - keep) * matrix.diagonal().mean())

    def _bounded(self, factor: float) -> float:
        return min(max(factor, 1 / self.reach), self.reach)

    def end(self, state: State, probes: Sequence[Probe], batch_size: int) -> None:
        """The running means with what the step measured; ``batch_size`` as in :meth:`weigh`."""
        if self.slope is not None:
            state[_SLOPES].fill_(self._mean_square(state, probes))
            return
        if self.by_example:
            if probes[0].curvature:
                mean = self._mean_diagonal(state, _matrix(probes, batch_size))
                state[_CURVATURE].copy_(torch.tensor([float(state[_CURVATURE][0]) + 1, mean], dtype=torch.float64))
            return
        state[_CURVATURE].fill_(self._mean(state, probes))
        count, squares = state[_SLOPES].tolist()
        keep = 1 - 1 / min(count + 1, 10 * self.every)  # a mean over all steps at first, then over recent ones
        state[_SLOPES].copy_(torch.tensor([keep * count + 1, keep * squares + _square(probes)], dtype=torch.float64))

    def _mean_square(self, state: State, probes: Sequence[Probe]) -> float:
        """c̄² with this step's."""
        return self.decay * float(state[_SLOPES]) + (1 - self.decay) * _square(probes)

    def _mean(self, state: State, probes: Sequence[Probe]) -> float:
        """T with this step's measurement, where there is one."""
        before = float(state[_CURVATURE])
        values = [
            abs(p.loss_plus + p.loss_minus - 2 * p.loss_zero) / p.epsilon**2 for p in probes if p.loss_zero is not None
        ]
        if not values:
            return before
        mean = self.decay * before + (1 - self.decay) * sum(values) / len(values)
        return max(mean, 1e-30)


def _square(probes: Sequence[Probe]) -> float:
    """The mean of c² over the directions."""
    return sum(probe.projected_gradient**2 for probe in probes) / len(probes)


def _matrix(probes: Sequence[Probe], batch_size: int) -> Tensor:
    """G [n, n]."""
    matrix = torch.tensor([probe.curvature for probe in probes], dtype=torch.float64)
    return matrix * batch_size if probes[0].by_batch else matrix
