"""transformers' Trainer on a :class:`zoft.tasks.base.Task`: its batches, loss, evaluation, and where scalars go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from finetune.batches import TaskBatches
from finetune.trainer import ZOTrainer
from zoft.runs.reporters import Reporter
from zoft.tasks.base import Task


class TaskTraining(Trainer):
    """A ``transformers.Trainer`` on a :class:`zoft.tasks.base.Task`: its batches, loss and evaluation.

    Args:
        task: the task.
        batch_size: examples of a micro-batch of one process.
        eval_limit: examples used in an evaluation; None is all.
        tokenizer: saved beside every checkpoint's weights, where there is one.
        reporters: where scalars go; see :mod:`zoft.runs.reporters`.

    Attributes:
        forwards, audits, skipped: see :class:`finetune.trainer.ZOTrainerMixin`.
        stopped: whether ``request_stop`` ended the training.
    """

    model: Any
    optimizer: Any
    forwards: int
    audits: int
    skipped: int
    stopped: Any
    request_stop: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        task: Task,
        batch_size: int,
        eval_limit: int | None = None,
        tokenizer: Any = None,
        reporters: Sequence[Reporter] = (),
        **kwargs: Any,
    ) -> None:
        self.task = task
        self._eval_limit, self._tokenizer = eval_limit, tokenizer
        count = args.max_steps * args.gradient_accumulation_steps
        self._batches = TaskBatches(task, batch_size, args.seed, count, args.process_index, args.world_size)
        super().__init__(model=model, args=args, train_dataset=self._batches, eval_dataset=[], **kwargs)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Reporting(self, reporters))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The task's batches; they are not sharded again."""
        return DataLoader(self._batches, batch_size=1, shuffle=False, collate_fn=_only)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The micro-batches of a step. A task's loss is a mean, so its items are not counted."""
        return list(islice(epoch_iterator, num_batches)), None

    def _prepare_inputs(self, inputs: Any) -> Any:
        # A task's batch may be anything: tensors in it are moved, the rest stays.
        return self._prepare_input(inputs)

    def floating_point_ops(self, inputs: Any) -> int:
        """As the mixin's; 0 for batches that do not tell their tokens."""
        return super().floating_point_ops(dict(inputs)) if isinstance(inputs, Mapping) else 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The task's loss: of the model's logits, only those that it needs are computed."""
        return self.task.loss(model, inputs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """The task's evaluation on its validation split."""
        values = self.task.evaluate(self.model, "validation", self._eval_limit)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def step_values(self) -> dict[str, float]:
        """What the latest step measured, by the name of its scalar; nothing before the first."""
        return {}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._tokenizer is not None and self.args.should_save:
            self._tokenizer.save_pretrained(output_dir if output_dir is not None else self.args.output_dir)


class TaskTrainer(TaskTraining, ZOTrainer):
    """A :class:`finetune.trainer.ZOTrainer` on a task, whose loss may be any number, such as 1 − F1."""

    def __init__(self, model: nn.Module, args: TrainingArguments, *, task: Task, **kwargs: Any) -> None:
        super().__init__(model, args, task=task, **kwargs)
        self.zo_held, self.zo_discrete = getattr(task, "held", False), getattr(task, "discrete", False)
        self.zo_losses = getattr(task, "part_losses", None)

    def step_values(self) -> dict[str, float]:
        """What the latest step measured."""
        if self.last is None:
            return {}
        return {
            "train/loss": self.last.loss,
            "train/projected_gradient": self.last.projected_gradient,
            "train/lr": self.last_lr,
            "train/forwards": self.forwards,
            "train/skipped": self.skipped,
        }


class _Reporting(TrainerCallback):
    """Hands every step's and every evaluation's scalars to the reporters."""

    def __init__(self, trainer: TaskTraining, reporters: Sequence[Reporter]) -> None:
        self._trainer, self._reporters = trainer, reporters

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        values = self._trainer.step_values()
        if values:
            self._report(state.global_step, values)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        values = {f"validation/{name.removeprefix('eval_')}": value for name, value in (metrics or {}).items()}
        self._report(state.global_step, values)

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        for reporter in self._reporters:
            reporter.scalars(step, values)


def _only(batches: list[Any]) -> Any:
    return batches[0]


def training_arguments(
    folder: Path,
    *,
    steps: int,
    accumulate: int = 1,
    seed: int = 0,
    schedule: str = "constant",
    warmup_steps: int = 0,
    eval_every: int = 0,
    save_every: int = 0,
    keep_checkpoints: int = 1,
    device: str = "cpu",
    use_cache: bool = False,
) -> TrainingArguments:
    """TrainingArguments for :class:`TaskTrainer`.

    Args:
        eval_every: steps; 0 is never. ``save_every`` likewise.
        device: ``cpu``, or anything else for the accelerator that there is.
        use_cache: what the saved model's configuration shall say; Trainer writes it there.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        gradient_accumulation_steps=accumulate,
        seed=seed,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" and warmup_steps else schedule,
        warmup_steps=warmup_steps,
        eval_strategy="steps" if eval_every else "no",
        eval_steps=eval_every or None,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 1,
        save_total_limit=keep_checkpoints,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        dataloader_pin_memory=False,
        max_grad_norm=0.0,
        use_cache=use_cache,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
    )
