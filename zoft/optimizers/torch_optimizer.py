"""Any method as a ``torch.optim.Optimizer``: for any loop, LR scheduler or framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import Key, Noise, get_noise
from zoft.objective import Objective
from zoft.optimizers.base import ZOOptimizer
from zoft.optimizers.closure import Closure, check_same_twice, objective_of
from zoft.optimizers.groups import PerBlock, check_group
from zoft.perturb import Perturber
from zoft.step import Method, Reduce, State, StepResult, zo_step

#: Hyper-parameters that are the groups' and so come from a loaded state.
_OF_GROUPS = frozenset({"lr", "weight_decay"})


class ZerothOrder(torch.optim.Optimizer):
    """A zeroth-order method with ``step(closure)``.

    Trained, and perturbed, are the parameters that are in a group and have ``requires_grad`` when a step begins.
    Every group has its own ``lr`` and ``weight_decay``, which schedulers and you may change at any time; a group
    whose ``lr`` is 0 is still perturbed but keeps its bits. To freeze parameters, clear their ``requires_grad``:
    before the start or later, and set it again to go on with the state that they had.

    Args:
        model: the model; its parameters with ``requires_grad`` are trained.
        method: a method, or its name with its hyper-parameters in ``hyper``.
        seed: the run's seed; with the step number it determines every direction.
        noise: kind of noise, or the noise itself (``keep_bytes`` is then its own).
        params: parameter groups over the model's parameters, as for any optimizer of torch: tensors, named
            tensors, or dictionaries with ``params`` and, where they differ from the method's, ``lr`` and
            ``weight_decay``. By default one group of all that is trainable.
        reduce: averages losses over the processes of a distributed run.
        keep_bytes: see :class:`zoft.noise.Noise`.
        check_closure: before the first step, evaluate the closure twice at the same weights and refuse it if the
            losses differ by more than a millionth. Costs two evaluations, which ``last.forwards`` leaves out.

    Attributes:
        blocks: what the latest step trained, or the next one will.
        last: what the latest step measured.

    Raises:
        UsageError: no model; no such method, hyper-parameter or group option, or a value out of range; a group
            without a trainable parameter, or with a tensor that is not the model's or is in two groups.

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
        noise: str | Noise = "gaussian-table",
        params: Iterable[Any] | None = None,
        reduce: Reduce | None = None,
        keep_bytes: int = 0,
        check_closure: bool = False,
        **hyper: Any,
    ) -> None:
        from zoft.optimizers import get_optimizer

        if not isinstance(model, nn.Module):
            raise UsageError(
                f"ZerothOrder is given {_described(model)}, not the model: it runs the model at perturbed weights, and "
                "has to know which module reads them",
                "Call ZerothOrder(model, ...); with params=... it trains some of the parameters only.",
            )
        if isinstance(method, str):
            method = get_optimizer(method, **hyper)
        elif not isinstance(method, ZOOptimizer):
            raise UsageError(
                f"a method is given as {type(method).__name__}", "Give its name, or zoft.get_optimizer(...)."
            )
        elif hyper:
            raise UsageError(f"{', '.join(hyper)} given beside a finished method", "Set them in the method itself.")
        self.method = method
        self.model = model
        self.seed = seed
        self.last: StepResult | None = None
        self._noise = get_noise(noise, keep_bytes) if isinstance(noise, str) else noise
        self._reduce = reduce
        self._check_closure = check_closure
        self._method_state: State = {}
        self._step = 0
        if isinstance(params, Tensor | str | Mapping | nn.Module) or not isinstance(params, Iterable | None):
            raise UsageError(
                f"params is {type(params).__name__}, not a list", "Give parameters of the model, or groups."
            )
        groups = [b.parameter for b in Blocks.of(model)] if params is None else list(params)
        if not groups:
            raise UsageError("params is empty", "Give parameters of the model, or leave params out to train all.")
        self._built = False
        super().__init__(groups, {"lr": method.lr, "weight_decay": method.weight_decay})
        self._built = True
        self._take_up(self._trainable())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more of the model's parameters, from the next step on.

        Raises:
            UsageError: see :class:`ZerothOrder`.
        """
        check_group(param_group, f"parameter group {len(self.param_groups)}", self.model, self.param_groups)
        super().add_param_group(param_group)
        if self._built:
            self._take_up(self._trainable())

    def _trainable(self) -> list[int]:
        """Identities of the parameters that are in a group and have requires_grad now."""
        return [id(p) for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _take_up(self, trainable: list[int]) -> None:
        """Train these parameters from now on; those that are new get their initial state."""
        if not trainable:
            raise UsageError("no parameter of any group is trainable now", "Set requires_grad on some of them.")
        wanted = frozenset(trainable)
        chosen = [block for block in Blocks.of(self.model) if id(block.parameter) in wanted]
        blocks = Blocks([replace(block, index=index) for index, block in enumerate(chosen)])
        if self.method.tuner is not None:
            self.method.tuner.check(blocks)
        self.blocks = blocks
        self._trained = trainable
        self._perturber = Perturber(self.model, blocks)
        self._method_state = {**self.method.init(blocks), **self._method_state}

    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """One step.

        Args:
            closure: computes the loss of the step's batch, without backpropagation: one number, or the losses of
                the batch's examples [B], of which it is the mean. It is called once for every forward of the
                method and must give the same value at the same parameters.

        Returns:
            Mean of the losses at θ ± εz (see :attr:`last` for all measurements).

        Raises:
            UsageError: no closure, or it does not return a scalar, asks for gradients, or gives other values at
                the same parameters (with ``check_closure``); or no parameter is trainable.
        """
        if not callable(closure):
            raise UsageError("a zeroth-order step needs a closure that computes the loss", "Call step(lambda: loss).")
        if self._check_closure:
            check_same_twice(objective_of(closure, self.model, self.blocks))
            self._check_closure = False
        return self.step_on(objective_of(closure, self.model, self.blocks)).loss

    def step_on(self, objective: Objective) -> StepResult:
        """One step on an objective."""
        trainable = self._trainable()
        if trainable != self._trained:
            self._take_up(trainable)
        rates = {id(p): float(group["lr"]) for group in self.param_groups for p in group["params"]}
        self.last = zo_step(
            self._with_decays(),
            self._method_state,
            self.blocks,
            self._perturber,
            objective,
            self._noise,
            Key(self.seed, self._step),
            lambda block: rates[id(block.parameter)],
            self._reduce,
        )
        self._step += 1
        return self.last

    def _with_decays(self) -> Method:
        """The method with every group's weight decay."""
        decays = {
            id(p): float(group.get("weight_decay", self.method.weight_decay))
            for group in self.param_groups
            for p in group["params"]
        }
        if set(decays.values()) == {self.method.weight_decay}:
            return self.method
        variants = {decay: self.method.model_copy(update={"weight_decay": decay}) for decay in set(decays.values())}
        return cast(Method, PerBlock(self.method, lambda block: variants[decays[id(block.parameter)]]))

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
        """Go on from :meth:`state_dict`, bit for bit; ``lr`` and ``weight_decay`` become the saved groups'.

        Raises:
            UsageError: it was saved by another method, with other hyper-parameters or noise, or for other
                parameters; then nothing is changed.
        """
        content = dict(state_dict)
        mine = content.pop("zoft", None)
        self._check_saved(mine)
        try:
            super().load_state_dict(content)
        except ValueError as error:
            raise UsageError(f"this state has other parameter groups: {error}", "Give the groups it had.") from None
        self._step, self.seed = mine["step"], mine["seed"]
        # A block that was frozen after some steps may have a state that this optimizer has not asked for yet.
        devices = {name: tensor.device for name, tensor in self._method_state.items()}
        for name, tensor in mine["state"].items():
            self._method_state[name] = tensor.to(devices.get(name, tensor.device), copy=True)

    def _check_saved(self, mine: dict[str, Any] | None) -> None:
        """Raise a UsageError if a saved state is not for this method, noise and model."""
        if mine is None or mine["method"]["name"] != self.method.name:
            raise UsageError(
                f"this optimizer state is not of the method {self.method.name}",
                "Load it into an optimizer of the method that saved it.",
            )
        own = self.method.describe()
        for name, value in mine["method"].items():
            if name in own and name not in _OF_GROUPS and value != own[name]:
                raise UsageError(f"this state was saved with {name} {value}, not {own[name]}", f"Use {name}={value}.")
        noise = {"kind": self._noise.name, "version": self._noise.version}
        if mine["noise"] != noise:
            raise UsageError(f"this state was saved with noise {mine['noise']}, not {noise}", "Use that noise.")
        saved = {name: tuple(tensor.shape) for name, tensor in mine["state"].items()}
        if any(saved.get(name) != tuple(tensor.shape) for name, tensor in self._method_state.items()):
            raise UsageError("this optimizer state is of a model with other blocks", "Load the same model.")


def _described(value: object) -> str:
    """What stands in the model's place, in words."""
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, str):
        return f"the name {value!r}"
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return "parameters"
    return f"an object of type {type(value).__name__}"
