"""The step-size head: the learning rate follows the curvature that an occasional third forward measures.

A step θ − η·c·z with z of covariance S and c = g_bᵀz, g_b the minibatch's gradient and g its mean, changes the loss by

    E ΔL ≈ −η·gᵀSg + ½·η²·E[c²·zᵀHz],    E[c²·zᵀHz] = E[g_bᵀSg_b]·tr(SH) + 2·E[g_bᵀSHSg_b] ≈ E[c²]·tr(SH)

(the last where no single direction has much of tr(SH)), which is least at η* = ρ / tr(SH) with ρ = gᵀSg / E[c²], the
part of c's variance that is signal. What differs between tasks, models and moments of a run is tr(SH), and that can be
measured: zᵀHz ≈ (L₊ + L₋ − 2·L₀)/ε² has the mean tr(SH), for one forward more. ρ cannot be had from one batch a step
and is left in the learning rate. So the rule multiplies the learning rate η, which was found at the curvature T*, by
T*/T with T a running mean of |zᵀHz|: a rate that holds for one task holds for others.

The absolute value errs on the low side where curvatures of both signs cancel. Next to it, c's variance bounds a single
step: a c far beyond its own root mean square, as a steep or broken batch gives it, counts as so many of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from zoft.config import Config
from zoft.step import Probe, State

_CURVATURE, _SLOPES = "tuner/curvature", "tuner/slopes"


class StepRuleConfig(Config):
    """The step-size head of a tuner."""

    kind: Literal["curvature"] = Field("curvature", description="What the rule goes by.")
    curvature: float = Field(gt=0, le=1e30, description="Mean |zᵀHz| T* at which the learning rate was found.")
    every: int = Field(10, ge=1, le=2**20, description="Steps between two forwards at θ, the first at step 0.")
    decay: float = Field(0.8, ge=0, lt=1, description="Weight of the past in the running mean T, which begins at T*.")
    reach: float = Field(16.0, ge=1, le=2**20, description="The learning rate is at most so many times more or less.")
    largest_slope: float = Field(
        3.0, gt=0, le=2**20, description="A |c| beyond so many of its root mean square counts as that."
    )

    def measures(self, step: int) -> bool:
        """Whether a step measures the loss at θ too."""
        return step % self.every == 0

    def forwards(self, steps: int) -> int:
        """Forwards at θ in the first ``steps`` steps."""
        return -(-steps // self.every)

    def init(self) -> State:
        """T* and a mean c² of 0 from no step, float64 on the CPU."""
        return {
            _CURVATURE: torch.tensor(self.curvature, dtype=torch.float64),
            _SLOPES: torch.zeros(2, dtype=torch.float64),
        }

    def rate(self, state: State, probes: Sequence[Probe]) -> float:
        """What multiplies the learning rate in the step of ``probes``; leaves ``state`` as it is."""
        factor = min(max(self.curvature / self._mean(state, probes), 1 / self.reach), self.reach)
        count, squares = state[_SLOPES].tolist()
        slope = math.sqrt(_square(probes))
        limit = self.largest_slope * math.sqrt(squares / count) if count else math.inf
        return factor * limit / slope if slope > limit > 0 else factor

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """The running means with what the step measured."""
        state[_CURVATURE].fill_(self._mean(state, probes))
        count, squares = state[_SLOPES].tolist()
        keep = 1 - 1 / min(count + 1, 10 * self.every)  # a mean over all steps at first, then over recent ones
        state[_SLOPES].copy_(torch.tensor([keep * count + 1, keep * squares + _square(probes)], dtype=torch.float64))

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
