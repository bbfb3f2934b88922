"""The inner trajectory: the weights that the meta-steps see, moved a step at a time and restarted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from meta_train.config import MetaTrainConfig
from meta_train.lookahead import LearnedStep, Lookahead
from meta_train.meta_gradient import differentiable
from zoft.blocks import Blocks
from zoft.objective import evaluating
from zoft.step import apply_update


class Trajectory(Protocol):
    """One way of moving the weights between meta-steps."""

    def prepare(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any, record: Lookahead) -> bool:
        """Compute the next move without moving; False where it is not finite."""
        ...

    def move(self, record: Lookahead) -> None:
        """Move the weights; the time since the restart grows by one."""
        ...

    def restart(self) -> None:
        """Forget what was accumulated; the weights are put back by the caller."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the weights."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        ...


class BaseWeights:
    """The base's weights in the host's memory."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._values = [block.parameter.data.to("cpu", copy=True) for block in blocks]

    def put_back(self) -> None:
        """Set the model to the base's weights, bit for bit."""
        with torch.no_grad():
            for block, values in zip(self._blocks, self._values, strict=True):
                block.parameter.copy_(values)
                block.parameter.grad = None


def inner_rate(config: MetaTrainConfig, peak: float, age: int) -> float:
    """The inner learning rate ``age`` steps after a restart, ``peak`` right after it."""
    if config.inner_schedule == "constant":
        return peak
    period = config.restart_every or config.steps
    return peak * max(0.0, 1 - age / period)


class ZerothOrderTrajectory:
    """The tuner's own fine-tuning step along the first direction of the lookahead: no further forward pass."""

    def __init__(
        self, config: MetaTrainConfig, peak: float, model: nn.Module, blocks: Blocks, method: LearnedStep
    ) -> None:
        self._config, self._peak, self._blocks, self._method = config, peak, blocks, method
        self.age = 0

    def prepare(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any, record: Lookahead) -> bool:
        """Nothing to compute: the lookahead measured everything."""
        return True

    def move(self, record: Lookahead) -> None:
        """θ ← θ − η·c_0·(ν·σ)_0 ⊙ u_0."""
        state = {name: tensor.clone() for name, tensor in record.first.items()}
        rate = inner_rate(self._config, self._peak, self.age)
        apply_update(self._method, state, self._blocks, record.noises[0], record.probes[:1], rate)
        self.age += 1

    def restart(self) -> None:
        """The schedule starts again."""
        self.age = 0

    def state(self) -> dict[str, Tensor]:
        """The steps since the restart."""
        return {"age": torch.tensor(self.age)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The steps since the restart."""
        self.age = int(state["age"])


class FirstOrderTrajectory:
    """SGD with momentum on the step's minibatch, in evaluation mode [ZOFT].

    Costs a gradient and a momentum of the model's size beside the weights.
    """

    def __init__(
        self, config: MetaTrainConfig, peak: float, model: nn.Module, blocks: Blocks, method: LearnedStep
    ) -> None:
        self._config, self._peak, self._model, self._blocks = config, peak, model, blocks
        self.age = 0
        self._optimizer = self._fresh()

    def _fresh(self) -> torch.optim.SGD:
        parameters = [block.parameter for block in self._blocks]
        return torch.optim.SGD(parameters, lr=0.0, momentum=self._config.inner_momentum, foreach=False)

    def prepare(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any, record: Lookahead) -> bool:
        """Gradients of the loss at θ, clipped."""
        parameters = [block.parameter for block in self._blocks]
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad(), evaluating(self._model):
            differentiable(loss(self._model, batch)).backward()
        limit = self._config.clip if self._config.clip is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=False)
        return bool(torch.isfinite(norm))

    def move(self, record: Lookahead) -> None:
        """A step of SGD."""
        for group in self._optimizer.param_groups:
            group["lr"] = inner_rate(self._config, self._peak, self.age)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.age += 1

    def restart(self) -> None:
        """The momentum is dropped and the schedule starts again, as in the public code."""
        self._optimizer = self._fresh()
        self.age = 0

    def state(self) -> dict[str, Tensor]:
        """The steps since the restart and the momentum."""
        state = {"age": torch.tensor(self.age)}
        for block in self._blocks:
            momentum = self._optimizer.state[block.parameter].get("momentum_buffer")
            if momentum is not None:
                state[f"momentum/{block.name}"] = momentum
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """The steps since the restart and the momentum."""
        self.age = int(state["age"])
        for block in self._blocks:
            momentum = state.get(f"momentum/{block.name}")
            if momentum is not None:
                self._optimizer.state[block.parameter]["momentum_buffer"] = momentum.to(block.parameter.device)


#: Ways of moving the weights by name.
TRAJECTORIES: dict[str, Callable[..., Trajectory]] = {
    "zeroth-order": ZerothOrderTrajectory,
    "first-order": FirstOrderTrajectory,
}
