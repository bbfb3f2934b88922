"""transformers' Trainer with a zeroth-order step: checkpoints, schedules, callbacks and resume are Trainer's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from finetune.state import CheckpointsWithoutPickles
from zoft.errors import DivergedError, UsageError
from zoft.objective import ExampleLosses, Objective
from zoft.optimizers import ZerothOrder, ZOOptimizer
from zoft.step import Reduce, StepResult

#: A loss this many times the first step's (or this many nats, where that was below 1) counts as lost.
EXPLODED = 5.0


class _SteppedInTraining(ZerothOrder):
    """A :class:`ZerothOrder` that the training step drives: Trainer's own ``step()`` does nothing more."""

    def step(self, closure: Callable[[], Tensor | float] | None = None) -> float:  # type: ignore[override]
        if closure is not None:
            return super().step(closure)
        return self.last.loss if self.last is not None else math.nan


class ZOTrainerMixin(CheckpointsWithoutPickles):
    """Makes any ``transformers.Trainer`` subclass train with a zeroth-order method.

    Put it first: ``class MyZOTrainer(ZOTrainerMixin, MyTrainer)``. The loss is the subclass's
    ``compute_loss``, in evaluation mode and without gradients. One step uses all micro-batches of
    ``gradient_accumulation_steps`` and, with several processes, those of all of them; no gradient is
    allocated and the model is not wrapped. Gradient clipping does not apply.

    Args:
        zo_method: the method; its ``lr`` and ``weight_decay`` are used, ``args.learning_rate`` and
            ``args.weight_decay`` are not. ``args.lr_scheduler_type`` scales the former.
        zo_seed: seed of the directions; ``args.seed`` by default.
        zo_noise: kind of noise.
        zo_keep_bytes: see :class:`zoft.noise.Noise`.
        zo_params: parameter groups, as for :class:`zoft.ZerothOrder`; by default one of all that is trainable.
        zo_patience: so many lost steps in a row end the training. A step is lost if a loss is not finite
            (it is then skipped), if it is 5 times the first step's (or 5 nats, where that was below 1), or if
            L+ = L−, as when weights have grown so large that no perturbation matters.

    Attributes:
        forwards: forward passes of the steps so far, each over all of a step's micro-batches.
        audits: forward passes besides, which check how the model uses its parameters; a few a run.
        skipped: steps so far that were skipped because a loss was not finite.
        last: what the latest step measured, and ``last_lr``, its learning rate.

    Raises:
        UsageError: ``args`` ask for a gradient scaler, which has nothing to scale here.
        DivergedError: from ``train``, after the checkpoint was written.
    """

    #: Whether one value of the loss runs the model many times, as generation does; see ``Objective``.
    zo_held = False
    #: Whether the loss takes few values, as 1 − accuracy does; L+ = L− is then nothing unusual.
    zo_discrete = False
    #: The losses of a micro-batch's examples, for a step-size head that wants them; None: a micro-batch counts as one.
    zo_losses: ExampleLosses | None = None

    # What a Trainer has, for the type checker.
    accelerator: Any
    control: Any
    state: Any
    optimizer: Any
    model: Any

    def __init__(
        self,
        *args: Any,
        zo_method: ZOOptimizer,
        zo_seed: int | None = None,
        zo_noise: str = "gaussian-table",
        zo_keep_bytes: int = 0,
        zo_params: Iterable[Any] | None = None,
        zo_patience: int = 10,
        **kwargs: Any,
    ) -> None:
        self.zo_method = zo_method
        self.forwards = 0
        self.audits = 0
        self.skipped = 0
        self.last: StepResult | None = None
        self.last_lr = math.nan
        self._zo_seed, self._zo_noise, self._zo_keep_bytes = zo_seed, zo_noise, zo_keep_bytes
        self._zo_params, self._zo_patience = zo_params, zo_patience
        self._lost_in_a_row = 0
        self._first_loss: float | None = None
        self._micro_batches: list[Any] = []
        self._stop_requested = False
        super().__init__(*args, **kwargs)
        if self.args.fp16:
            raise UsageError(
                "fp16=True asks for a gradient scaler, and a zeroth-order step has no gradient to scale",
                "Load the model in float16 instead.",
            )
        self.args.max_grad_norm = 0.0

    def request_stop(self) -> None:
        """End the training after the step that is running, with a checkpoint; on every process."""
        self._stop_requested = True

    @property
    def stopped(self) -> bool:
        """Whether :meth:`request_stop` ended the training."""
        return self._stop_requested

    # ---- what Trainer calls ----

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, but the model is never wrapped for gradients."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        self.args._n_gpu = min(self.args.n_gpu, 1)  # no DataParallel
        prepare_model = self.accelerator.prepare_model
        prepare_optimizer = self.accelerator.prepare_optimizer

        def unwrapped(model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
            return prepare_model(model, device_placement=device_placement, evaluation_mode=True)

        def in_place(optimizer: Any, device_placement: bool | None = None) -> Any:
            # The state is where it belongs; placing it would copy it.
            return prepare_optimizer(optimizer, device_placement=False)

        self.accelerator.prepare_model = unwrapped
        self.accelerator.prepare_optimizer = in_place

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The method as a :class:`zoft.ZerothOrder`, which learning rate schedulers work on."""
        if self.optimizer is None:
            several = self.accelerator.num_processes > 1
            self.optimizer = _SteppedInTraining(
                self.model if model is None else model,
                self.zo_method,
                seed=self.args.seed if self._zo_seed is None else self._zo_seed,
                noise=self._zo_noise,
                keep_bytes=self._zo_keep_bytes,
                params=self._zo_params,
                reduce=self._over_processes() if several else None,
            )
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Collect the micro-batch; with the last one of a step, do the zeroth-order step.

        Returns:
            Mean loss at θ ± εz over the step's micro-batches, float32; 0 where the step is not due yet.
        """
        self._micro_batches.append(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        # Losses that were divided by the step's number of items are summed, others are averaged.
        weight = len(batches) if self._divided_by_items(num_items_in_batch) else 1

        def loss(model: nn.Module, batch: Any) -> Tensor:
            # compute_loss may remove entries from its batch, and it is called several times.
            inputs = copy.copy(batch)
            value = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[attr-defined]
            return value * weight

        self.last_lr = float(self._zeroth_order.param_groups[0]["lr"])

        objective = Objective(model, loss, batches, self.zo_held, self.zo_losses)
        self.last = result = self._zeroth_order.step_on(objective)
        planned = self.zo_method.plan_at(result.probes[0].key.step).forwards(self.zo_method.directions)
        self.forwards += planned
        self.audits += result.forwards - planned
        self.skipped += result.skipped
        self._watch(result)
        if self._stop_requested or self._lost_in_a_row >= self._zo_patience:
            self.control.should_training_stop = self.control.should_save = True
        return torch.tensor(result.loss, device=self.args.device, dtype=torch.float32)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's.

        Raises:
            DivergedError: too many lost steps in a row; the checkpoint is written.
        """
        output = super().train(*args, **kwargs)  # type: ignore[misc]
        if self._lost_in_a_row >= self._zo_patience:
            raise DivergedError(
                f"diverged at learning rate {self.zo_method.lr:g}: in {self._lost_in_a_row} steps in a row, up to "
                f"step {self.state.global_step}, the loss was not finite, or more than {EXPLODED:g} times the first, "
                "or no longer changed with the weights",
                f"Use a smaller one, for instance {self.zo_method.lr / 2:g}.",
            )
        return output

    def _divided_by_items(self, num_items_in_batch: Any) -> bool:
        if num_items_in_batch is None:
            return False
        return bool(self.model_accepts_loss_kwargs or self.compute_loss_func is not None)  # type: ignore[attr-defined]

    def _watch(self, result: StepResult) -> None:
        """Count the lost steps in a row."""
        loss = result.loss
        if self._first_loss is None and math.isfinite(loss):
            self._first_loss = loss
        bound = EXPLODED * max(abs(self._first_loss or 0.0), 1.0)
        lost = not math.isfinite(loss) or loss > bound or (result.projected_gradient == 0 and not self.zo_discrete)
        self._lost_in_a_row = self._lost_in_a_row + 1 if lost else 0

    @property
    def _zeroth_order(self) -> ZerothOrder:
        inner: ZerothOrder = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    def _over_processes(self) -> Reduce:
        """Averages losses over the processes in float64, and lets a stop reach all of them at the same step."""

        def reduce(losses: list[float]) -> list[float]:
            values = torch.tensor([*losses, float(self._stop_requested)], dtype=torch.float64)
            mean = self.accelerator.reduce(values.to(self.accelerator.device), reduction="mean").tolist()
            self._stop_requested = mean.pop() > 0
            return [float(value) for value in mean]

        return reduce

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return model

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """There is no gradient."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Operations of a step on ``inputs``: Trainer counts a forward and a backward, this counts the forwards."""
        return super().floating_point_ops(inputs) * self.zo_method.forwards // 3  # type: ignore[misc]

    def _counters(self) -> dict[str, Any]:
        return {
            "forwards": self.forwards,
            "audits": self.audits,
            "skipped": self.skipped,
            "lost_in_a_row": self._lost_in_a_row,
            "first_loss": self._first_loss,
        }

    def _set_counters(self, counters: dict[str, Any]) -> None:
        self.forwards, self.audits = counters["forwards"], counters["audits"]
        self.skipped = counters["skipped"]
        self._lost_in_a_row, self._first_loss = counters["lost_in_a_row"], counters["first_loss"]


class ZOTrainer(ZOTrainerMixin, Trainer):
    """transformers' ``Trainer`` with a zeroth-order step."""
