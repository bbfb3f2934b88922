"""Trainer's own backpropagation on a task: the first-order baselines, in the folder that every run has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from finetune.first_order import FirstOrder
from finetune.state import (
    OPTIMIZER_JSON,
    OPTIMIZER_TENSORS,
    CheckpointsWithoutPickles,
    damaged,
    read_json,
    write_json,
)
from finetune.task_trainer import TaskTraining
from finetune.trainer import EXPLODED
from zoft.errors import DivergedError, UsageError


class FirstOrderTrainer(CheckpointsWithoutPickles, TaskTraining):
    """A :class:`finetune.task_trainer.TaskTraining` with gradients, in training mode (with dropout, if any).

    Args:
        method: the optimizer and its hyper-parameters.
        patience: so many lost steps in a row end the training: steps whose loss is not finite, or 5 times
            the first step's (or 5 nats, where that was below 1).

    Attributes:
        forwards: forward passes so far, each over all of a step's micro-batches; as many backward passes.
        audits, skipped: 0; a first-order step has neither.
        stopped: whether :meth:`request_stop` ended the training.

    Raises:
        UsageError: the trained parameters are float16, whose gradients would need a scaler.
        DivergedError: from ``train``, after the checkpoint was written.
    """

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, method: FirstOrder, patience: int, **kwargs: Any
    ) -> None:
        if any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
            raise UsageError(
                f"{method.name} on float16 weights: gradients below 6e-8 would be lost", "Use bfloat16 or float32."
            )
        self.method, self.stopped = method, False
        self.forwards = self.audits = self.skipped = 0
        self.last_lr = self.last_loss = math.nan
        self._patience, self._lost_in_a_row, self._first_loss = patience, 0, None  # type: int, int, float | None
        self._parts: list[float] = []
        args.max_grad_norm = method.clip or 0.0
        super().__init__(model, args, **kwargs)

    def request_stop(self) -> None:
        """End the training after the step that is running, with a checkpoint."""
        self.stopped = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The method over what is trainable."""
        if self.optimizer is None:
            trained = [p for p in (self.model if model is None else model).parameters() if p.requires_grad]
            self.optimizer = self.method.build_optimizer(trained)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Trainer's; notes the step's loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._parts.append(float(loss))
        if self.accelerator.sync_gradients:
            # Trainer has divided each part by their number.
            self.last_loss, self._parts = math.fsum(self._parts), []
            self.last_lr = float(self.optimizer.param_groups[0]["lr"])
            self.forwards += 1
            self._watch(self.last_loss)
            if self.stopped or self._lost_in_a_row >= self._patience:
                self.control.should_training_stop = self.control.should_save = True
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; the model is in evaluation mode after it.

        Raises:
            DivergedError: too many lost steps in a row; the checkpoint is written.
        """
        output = super().train(*args, **kwargs)
        self.model.eval()
        if self._lost_in_a_row >= self._patience:
            raise DivergedError(
                f"diverged at learning rate {self.method.lr:g}: in {self._lost_in_a_row} steps in a row, up to step "
                f"{self.state.global_step}, the loss was not finite or more than {EXPLODED:g} times the first",
                f"Use a smaller one, for instance {self.method.lr / 2:g}.",
            )
        return output

    def step_values(self) -> dict[str, float]:
        """Loss, learning rate and forwards of the latest step."""
        if not self.forwards:
            return {}
        return {"train/loss": self.last_loss, "train/lr": self.last_lr, "train/forwards": self.forwards}

    def _watch(self, loss: float) -> None:
        if self._first_loss is None and math.isfinite(loss):
            self._first_loss = loss
        lost = not math.isfinite(loss) or loss > EXPLODED * max(abs(self._first_loss or 0.0), 1.0)
        self._lost_in_a_row = self._lost_in_a_row + 1 if lost else 0

    def _counters(self) -> dict[str, Any]:
        return {"forwards": self.forwards, "lost_in_a_row": self._lost_in_a_row, "first_loss": self._first_loss}

    def _set_counters(self, counters: dict[str, Any]) -> None:
        self.forwards = counters["forwards"]
        self._lost_in_a_row, self._first_loss = counters["lost_in_a_row"], counters["first_loss"]

    def _write_optimizer(self, folder: Path) -> None:
        content = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for index, entries in content["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"{index}.{name}"] = value.contiguous()
                else:
                    numbers[f"{index}.{name}"] = value
        save_file(tensors, folder / OPTIMIZER_TENSORS)
        record = {"method": self.method.name, "param_groups": content["param_groups"], "numbers": numbers}
        write_json(folder / OPTIMIZER_JSON, record)

    def _read_optimizer(self, folder: Path) -> None:
        content = read_json(folder / OPTIMIZER_JSON)
        try:
            entries: dict[str, Any] = {**load_file(folder / OPTIMIZER_TENSORS), **content["numbers"]}
            state: dict[int, dict[str, Any]] = {}
            for key, value in entries.items():
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = value
            self.optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise damaged(folder / OPTIMIZER_TENSORS, error) from None
