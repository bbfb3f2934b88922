"""Any method as a ``torch.optim.Optimizer``: for any loop, LR scheduler or framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoft.blocks import Block, Blocks
from zoft.errors import UsageError
from zoft.noise import Key, get_noise
from zoft.objective import Objective
from zoft.optimizers.base import ZOOptimizer
from zoft.perturb import Perturber
from zoft.step import Reduce, StepResult, zo_step


class ZerothOrder(torch.optim.Optimizer):
    """A zeroth-order method with ``step(closure)``.

    Args:
        model: the model; its parameters with ``requires_grad`` are trained.
        method: a method, or its name with its hyper-parameters in ``hyper``.
        seed: the run's seed; with the step number it determines every direction.
        noise: kind of noise.
        params: parameter groups over the model's trainable parameters, each with its own ``lr``;
            by default one group of all.
        reduce: averages losses over the processes of a distributed run.
        keep_bytes: see :class:`zoft.noise.Noise`.

    Attributes:
        last: what the latest step measured.

    Examples:
        >>> import torch, zoft
        >>> model = torch.nn.Linear(3, 1)
        >>> data, target = torch.ones(8, 3), torch.zeros(8, 1)
        >>> optimizer = zoft.ZerothOrder(model, method="mezo", lr=1e-2)
        >>> losses = [optimizer.step(lambda: (model(data) - target).square().mean()) for _ in range(50)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | ZOOptimizer = "mezo",
        *,
        seed: int = 0,
        noise: str = "gaussian-table",
        params: Iterable[dict[str, Any]] | None = None,
        reduce: Reduce | None = None,
        keep_bytes: int = 0,
        **hyper: Any,
    ) -> None:
        from zoft.optimizers import get_optimizer

        if isinstance(method, str):
            method = get_optimizer(method, **hyper)
        elif hyper:
            raise UsageError(f"{', '.join(hyper)} given beside a finished method", "Set them in the method itself.")
        self.method = method
        self.model = model
        self.blocks = Blocks.of(model)
        self.seed = seed
        self.last: StepResult | None = None
        self._noise = get_noise(noise, keep_bytes)
        self._reduce = reduce
        self._perturber = Perturber(model, self.blocks)
        groups = list(params) if params is not None else [{"params": [b.parameter for b in self.blocks]}]
        super().__init__(groups, {"lr": method.lr})
        self._check_groups()
        self._method_state = method.init(self.blocks)
        self._step = 0

    def _check_groups(self) -> None:
        mine = {id(block.parameter) for block in self.blocks}
        for number, group in enumerate(self.param_groups):
            if not any(id(p) in mine for p in group["params"]):
                raise UsageError(
                    f"parameter group {number} has no trainable parameter of the model",
                    "Give groups of parameters of the model that have requires_grad.",
                )

    def step(self, closure: Callable[[], Tensor | float] | None = None) -> float:  # type: ignore[override]
        """One step.

        Args:
            closure: computes the loss of the step's batch, without backpropagation. It is called once
                for every forward of the method and must give the same value at the same parameters.

        Returns:
            Mean of the losses at θ ± εz (see :attr:`last` for all measurements).

        Raises:
            UsageError: no closure, or it does not return a scalar.
        """
        if closure is None:
            raise UsageError("a zeroth-order step needs a closure that computes the loss", "Call step(lambda: loss).")
        objective = Objective(self.model, lambda model, batch: closure(), [None])
        return self.step_on(objective).loss

    def step_on(self, objective: Objective) -> StepResult:
        """One step on an objective."""
        rates = {id(p): float(group["lr"]) for group in self.param_groups for p in group["params"]}

        def rate(block: Block) -> float:
            return rates.get(id(block.parameter), 0.0)

        self.last = zo_step(
            self.method,
            self._method_state,
            self.blocks,
            self._perturber,
            objective,
            self._noise,
            Key(self.seed, self._step),
            rate,
            self._reduce,
        )
        self._step += 1
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """Torch's dictionary with the method's state, the step and the seed under ``zoft``."""
        content = super().state_dict()
        content["zoft"] = {
            "step": self._step,
            "seed": self.seed,
            "noise": {"kind": self._noise.name, "version": self._noise.version},
            "method": self.method.describe(),
            "state": {name: tensor.clone() for name, tensor in self._method_state.items()},
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, bit for bit.

        Raises:
            UsageError: it was saved by another method, noise kind or for other parameters.
        """
        content = dict(state_dict)
        mine = content.pop("zoft", None)
        if mine is None or mine["method"]["name"] != self.method.name:
            raise UsageError(
                f"this optimizer state is not of the method {self.method.name}",
                "Load it into an optimizer of the method that saved it.",
            )
        noise = {"kind": self._noise.name, "version": self._noise.version}
        if mine["noise"] != noise:
            raise UsageError(f"this state was saved with noise {mine['noise']}, not {noise}", "Use that noise.")
        expected = {name: tuple(tensor.shape) for name, tensor in self._method_state.items()}
        if {name: tuple(tensor.shape) for name, tensor in mine["state"].items()} != expected:
            raise UsageError("this optimizer state is of a model with other blocks", "Load the same model.")
        super().load_state_dict(content)
        self._step, self.seed = mine["step"], mine["seed"]
        for name, tensor in mine["state"].items():
            self._method_state[name].copy_(tensor)
