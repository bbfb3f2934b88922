"""The shape of a zeroth-order method: hyper-parameters and a few verbs, with MeZO as the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from torch import Tensor

from zoft.blocks import Block, Blocks
from zoft.config import Config
from zoft.noise import Span
from zoft.step import Draw, Probe, State
from zoft.tuner.bound import BoundTuner


class ZOOptimizer(Config):
    """A zeroth-order method. Frozen: what changes during a run is in its state.

    A subclass overrides what differs from MeZO: usually :meth:`direction` or :meth:`update`, and
    :meth:`init` when it keeps something. With a ``tuner``, the learned σ multiplies the direction of
    whatever method it is.

    Class attributes:
        name: the name in ``zoft.optimizers.OPTIMIZERS``.
        paper: where the method comes from.
        needs_loss_zero: whether a step measures the loss at θ too.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_loss_zero: ClassVar[bool] = False

    lr: float = Field(1e-6, ge=0, allow_inf_nan=False, description="Learning rate η.")
    epsilon: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Perturbation scale ε.")
    directions: int = Field(1, ge=1, description="Directions a step averages over (n of n-SPSA).")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="Decoupled weight decay λ.")
    tuner: BoundTuner | None = Field(
        None, exclude=True, description="A tuner bound to the model: its σ scale the direction by block."
    )

    @property
    def forwards(self) -> int:
        """Forward passes a step, audits of the model's structure aside."""
        return 2 * self.directions + self.needs_loss_zero

    def state_bytes(self, blocks: Blocks) -> int:
        """Bytes that the state takes for these blocks."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.init(blocks).values())

    def init(self, blocks: Blocks) -> State:
        """The state before the first step."""
        return self.tuner.init(blocks) if self.tuner else {}

    def begin(self, state: State, blocks: Blocks) -> None:
        """Prepare the state for a step's directions: the learned σ, where there is a tuner."""
        if self.tuner:
            self.tuner.begin(state, blocks)

    def scale(self, state: State, block: Block) -> float:
        """What multiplies the whole direction of a block: ν·σ_i with a tuner, else 1."""
        return self.tuner.scale(state, block) if self.tuner else 1.0

    def direction(self, state: State, span: Span, noise: Tensor) -> Tensor:
        """z over ``span`` from u, float32 of shape [len(span)]; ``noise`` may be overwritten."""
        scale = self.scale(state, span.block)
        return noise if scale == 1.0 else noise.mul_(scale)

    def estimate(self, state: State, span: Span, draws: Sequence[Draw]) -> Tensor:
        """The gradient estimate over ``span``: the mean of c·z over the draws, whose noise it overwrites."""
        total: Tensor | None = None
        for noise, probe in draws:
            part = self.direction(state, span, noise).mul_(probe.projected_gradient / len(draws))
            total = part if total is None else total.add_(part)
        if total is None:
            raise ValueError("an update needs at least one draw")
        return total

    def update(self, state: State, span: Span, theta: Tensor, draws: Sequence[Draw], lr: float) -> Tensor:
        """Increment of θ over ``span``, float32: −η·(estimate + λ·θ)."""
        estimate = self.estimate(state, span, draws)
        if self.weight_decay:
            estimate.add_(theta, alpha=self.weight_decay)
        return estimate.mul_(-lr)

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """Note what was measured: the learned σ of the next step depend on it."""
        if self.tuner:
            self.tuner.end(state, probes)

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, for records."""
        return {"name": self.name, **self.to_dict()}
