"""The method and the trainer that a plan asks for: zeroth-order, or a first-order baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.config import FinetuneConfig
from finetune.first_order import FIRST_ORDER, FirstOrder
from finetune.first_order_trainer import FirstOrderTrainer
from finetune.plan import Plan
from finetune.task_trainer import TaskTrainer, TaskTraining, training_arguments
from zoft.errors import UsageError
from zoft.models import LoadedModel
from zoft.optimizers import ZOOptimizer, get_optimizer
from zoft.runs import folder as runs
from zoft.runs.reporters import ConsoleReporter, JsonlReporter, Reporter, TensorBoardReporter
from zoft.tasks.base import Task
from zoft.tuner.config import CONSTANT


def build_method(planned: Plan, model: Any) -> ZOOptimizer | FirstOrder:
    """The plan's method, with its tuner bound to the model.

    Raises:
        IncompatibleError: the tuner is for another base.
    """
    config = planned.config
    if config.optimizer in FIRST_ORDER:
        return FIRST_ORDER[config.optimizer].build(config.hyper, source=f"optimizer {config.optimizer}")
    bound = planned.tuner.bind(model, config.batch_size) if planned.tuner is not None else None
    return get_optimizer(str(config.optimizer), tuner=bound, **config.hyper)


def build_trainer(
    config: FinetuneConfig,
    loaded: LoadedModel,
    task: Task,
    method: ZOOptimizer | FirstOrder,
    folder: runs.RunFolder,
    reporters: Sequence[Reporter] | None,
) -> tuple[TaskTraining, list[Reporter]]:
    """The trainer, and the reporters that were opened for it."""
    args = training_arguments(
        folder.checkpoints,
        steps=config.steps,
        accumulate=config.accumulate,
        seed=config.seed,
        schedule=config.schedule or CONSTANT,
        warmup_steps=config.warmup_steps,
        eval_every=config.eval_every or 0,
        save_every=config.save_every or 0,
        keep_checkpoints=config.keep_checkpoints,
        device=next(loaded.model.parameters()).device.type,
        use_cache=bool(getattr(loaded.model.config, "use_cache", False)),
    )
    opened: list[Reporter] = []
    if args.process_index == 0:
        opened += [
            JsonlReporter(folder.path / runs.METRICS_FILE, folder.step),
            TensorBoardReporter(folder.path / runs.TENSORBOARD, folder.step),
        ]
        if reporters is None:
            opened.append(ConsoleReporter(config.steps, task.name, start=folder.step or 0))
    common: dict[str, Any] = {
        "task": task,
        "batch_size": share(config, args.world_size),
        "eval_limit": config.eval_limit,
        "tokenizer": loaded.tokenizer,
        "reporters": [*opened, *(reporters or ())],
    }
    if isinstance(method, FirstOrder):
        return FirstOrderTrainer(loaded.model, args, method=method, patience=config.patience, **common), opened
    trainer = TaskTrainer(
        loaded.model,
        args,
        zo_method=method,
        zo_noise=str(config.noise),
        zo_keep_bytes=config.noise_cache * 2**20,
        zo_patience=config.patience,
        **common,
    )
    return trainer, opened


def share(config: FinetuneConfig, processes: int) -> int:
    """Examples of one part of a step's batch on one process."""
    batch_size, parts = int(config.batch_size or 1), config.accumulate * processes
    if batch_size % parts:
        raise UsageError(
            f"a batch of {batch_size} does not divide into {config.accumulate} parts on {processes} processes",
            f"Use a batch size that {parts} divides.",
        )
    return batch_size // parts
