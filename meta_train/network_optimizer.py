"""The optimizer of the PertNNs, its schedule, and its state as plain tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meta_train.config import MetaTrainConfig
from zoft.tuner.pertnn import PertNN


class NetworkOptimizer:
    """SGD or Adam on the PertNNs, with the schedule of the configuration.

    Note:
        Adam's ε is 1e-30, not 1e-8: meta-gradients are proportional to the lookahead's learning rate
        and may be far below 1e-8.
    """

    def __init__(self, config: MetaTrainConfig, network: PertNN, tasks: int) -> None:
        self._config, self._network = config, network
        self._peak = config.network_rate(tasks)
        self._pending = 0
        parameters = list(network.parameters())
        if config.network_optimizer == "adam":
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=self._peak, eps=1e-30)
        else:
            self._optimizer = torch.optim.SGD(parameters, lr=self._peak)

    def rate(self, step: int) -> float:
        """Learning rate at meta-step ``step``."""
        done = step / self._config.steps
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self._peak * factor[self._config.network_schedule]

    def advance(self, step: int) -> None:
        """Use the gradient that was added to the networks: an update when enough are accumulated."""
        self._pending += 1
        if self._pending < self._config.accumulate:
            return
        for parameter in self._network.parameters():
            if parameter.grad is not None:
                parameter.grad /= self._pending
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._pending = 0

    def state(self) -> dict[str, Tensor]:
        """Optimizer state and accumulated gradients by name."""
        state = {"pending": torch.tensor(self._pending)}
        for name, parameter in self._network.named_parameters():
            if parameter.grad is not None:
                state[f"gradient/{name}"] = parameter.grad
            for key, value in self._optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    state[f"{key}/{name}"] = value
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self._pending = int(state["pending"])
        for name, parameter in self._network.named_parameters():
            gradient = state.get(f"gradient/{name}")
            parameter.grad = None if gradient is None else gradient.clone()
            kept = {
                key: state[f"{key}/{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in state
            }
            if kept:
                self._optimizer.state[parameter].update(kept)
