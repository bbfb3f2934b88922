"""A fine-tuning run from its configuration to the finished model: what ``zoft finetune`` does."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune.config import FinetuneConfig
from finetune.plan import Plan, plan
from finetune.state import generator_states, set_generator_states
from finetune.task import language_task
from finetune.task_trainer import TaskTraining
from finetune.trainers import build_method, build_trainer, share
from zoft.adapters import prepare
from zoft.blocks import Blocks
from zoft.config import read_yaml
from zoft.errors import DivergedError, Interrupted
from zoft.models import LoadedModel, load_model, save_model
from zoft.runs import folder as runs
from zoft.runs.reporters import Reporter
from zoft.tasks.base import Task
from zoft.tasks.lm import LMTask
from zoft.tasks.metrics import Metric
from zoft.tasks.objectives import LOSS, MetricTask, objective_name, with_objective
from zoft.tuner import Tuner

#: Splits that zero-shot and final figures are given for.
_REPORTED = ("validation", "test")


@dataclass
class FinetuneResult:
    """What a run gave; result.json holds all but ``model``.

    Attributes:
        folder: the run's folder; ``final`` in it holds the model.
        zero_shot: for each split the loss and the metric before the first step.
        final: the same after the last step.
        steps: steps done, skipped ones included.
        forwards: forward passes of the steps.
        audits: forward passes besides, which check how the model uses its parameters.
        skipped: steps that were skipped because a loss was not finite.
        method: name and hyper-parameters of the method.
        sources: where lr, epsilon and batch size came from.
        seeds: of the directions, and of the order of the data.
        examples: examples that a figure is a mean over, for each split; None where the task does not tell.
        parameters: entries of all trained tensors.
        seconds: wall time of the training with its evaluations, of this part of it if it was resumed.
        warnings: what the user should know, one sentence each.
        model: the fine-tuned model, in memory.
    """

    folder: Path
    zero_shot: dict[str, dict[str, float]]
    final: dict[str, dict[str, float]]
    steps: int
    forwards: int
    audits: int
    skipped: int
    method: dict[str, Any]
    sources: dict[str, str]
    seeds: dict[str, int]
    examples: dict[str, int | None]
    parameters: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    model: LoadedModel | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        values = {key: value for key, value in vars(self).items() if key != "model"}
        return {**values, "folder": str(self.folder)}


def finetune(
    config: FinetuneConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    model: str | LoadedModel | None = None,
    task: str | Task | None = None,
    tuner: str | Path | Tuner | None = None,
    objective: str | Metric | None = None,
    resume: bool = False,
    reporters: Sequence[Reporter] | None = None,
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune a model, by a zeroth-order method or a baseline; writes a run folder, the model in ``final``.

    Args:
        config: a configuration, its values, or a YAML file; ``settings`` win over it.
        model: a name (see :func:`zoft.names.resolve_model`) or a loaded model, which is changed in place.
        task: a name in ``zoft.tasks.TASKS``, or any :class:`zoft.tasks.base.Task`.
        tuner: a name (see :mod:`zoft.names`), a folder as a ``Path``, or a tuner.
        objective: what is minimised: a name (see :data:`zoft.tasks.objectives.OBJECTIVES`), or any function
            ``metric(predictions, references)``, as 1 − metric.
        resume: go on with the unfinished run in ``output_dir``, bit for bit.
        reporters: where scalars go besides metrics.jsonl and TensorBoard; None is the terminal.
        settings: fields of :class:`FinetuneConfig`; ``hyper`` is merged by key. None counts as not given.

    Raises:
        UsageError: a wrong configuration or data, or ``output_dir`` holds something else.
        ArtifactError: a model, tuner or data set cannot be had.
        IncompatibleError: the tuner is for another base.
        DivergedError: too many lost steps in a row; a checkpoint is written.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is written.

    Examples:
        >>> import tempfile, zoft
        >>> from zoft.tasks import TASKS
        >>> result = zoft.finetune(
        ...     model="zoft-base", task=next(iter(TASKS)), optimizer="mezo", steps=2, batch_size=2, eval_limit=4,
        ...     output_dir=tempfile.mkdtemp(), reporters=[],
        ... )
        >>> result.steps
        2
    """
    loaded = model if isinstance(model, LoadedModel) else None
    given_task = None if task is None or isinstance(task, str) else task
    given_tuner = tuner if isinstance(tuner, Tuner) else None
    names = {
        "model": model if isinstance(model, str) else None,
        "task": task if isinstance(task, str) else None,
        "tuner": str(tuner.absolute()) if isinstance(tuner, Path) else tuner if isinstance(tuner, str) else None,
        "objective": objective if isinstance(objective, str) else None,
    }
    values = _as_values(config)
    over = {key: value for key, value in {**settings, **names}.items() if value is not None}
    if "hyper" in over:
        over["hyper"] = {**(values.get("hyper") or {}), **over["hyper"]}
    built = FinetuneConfig.build({**values, **over})
    metric = None if objective is None or isinstance(objective, str) else objective
    planned = plan(built, model=loaded, task=given_task, tuner=given_tuner, objective=metric)
    with _global_generators_kept():
        return run(planned, model=loaded, task=given_task, resume=resume, reporters=reporters)


def run(
    planned: Plan,
    *,
    model: LoadedModel | None = None,
    task: Task | None = None,
    resume: bool = False,
    reporters: Sequence[Reporter] | None = None,
) -> FinetuneResult:
    """Carry out a plan; see :func:`finetune`."""
    config = planned.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    loaded = model or load_model(
        str(config.model),
        dtype=config.dtype,
        device=_placed(config.device),
        trust_remote_code=config.trust_remote_code,
    )
    loaded = prepare(loaded, config, config.seed)
    work: Task = task if task is not None else language_task(config, loaded)
    examples = _examples(work, config.eval_limit)
    trained = with_objective(work, planned.objective or config.objective)
    share(config, int(os.environ.get("WORLD_SIZE", "1")))
    method = build_method(planned, loaded.model)
    folder = runs.claim(
        str(config.output_dir), "finetune", config.to_dict(), _inputs(planned, loaded, work), resume=resume
    )
    trainer, opened = build_trainer(config, loaded, trained, method, folder, reporters)
    zero_shot = _zero_shot(folder, trained, loaded, config, trainer.is_world_process_zero())
    started = time.perf_counter()
    try:
        _train(trainer, folder)
    finally:
        for reporter in opened:
            reporter.close()
    seconds = round(time.perf_counter() - started, 3)
    result = FinetuneResult(
        folder=folder.path,
        zero_shot=zero_shot,
        final=_evaluated(trained, loaded, config.eval_limit),
        steps=trainer.state.global_step,
        forwards=trainer.forwards,
        audits=trainer.audits,
        skipped=trainer.skipped,
        method=method.describe(),
        sources=planned.sources,
        seeds={"directions": config.seed, "data": config.seed},
        examples=examples,
        parameters=Blocks.of(loaded.model).numel,
        seconds=seconds,
        model=loaded,
    )
    result.warnings = _warnings(result, trained)
    if trainer.is_world_process_zero():
        save_model(loaded, folder.final)
        runs.write_result(folder, result.to_dict())
    trainer.accelerator.wait_for_everyone()
    return result


def _examples(task: Task, limit: int | None) -> dict[str, int | None]:
    """Examples that each reported figure is a mean over; reads and checks every split before any step."""
    if not isinstance(task, LMTask):
        return dict.fromkeys(_REPORTED)
    counts = {split: len(task.dataset(split)) for split in ("train", *_REPORTED)}
    return {split: counts[split] if limit is None else min(counts[split], limit) for split in _REPORTED}


def _inputs(planned: Plan, loaded: LoadedModel, task: Task) -> dict[str, Any]:
    """What the names in the configuration stood for."""
    inputs: dict[str, Any] = {"model_revision": loaded.revision, "task_name": task.name}
    if planned.tuner is not None:
        structure = planned.tuner.structure
        weights = planned.tuner.network.state_dict() | (structure.tensors() if structure is not None else {})
        origin = planned.tuner.origin
        inputs["tuner_revision"] = origin.commit if origin is not None else None
        inputs["tuner_sha256"] = _digest(*(tensor.numpy().tobytes() for tensor in weights.values()))
    if planned.objective is not None:
        inputs["objective"] = objective_name(planned.objective)
    if planned.config.dataset is not None and isinstance(task, LMTask):
        inputs["dataset_sha256"] = _digest(*(repr(example).encode() for example in task.text_task.examples("train")))
    return inputs


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _zero_shot(
    folder: runs.RunFolder, task: Task, loaded: LoadedModel, config: FinetuneConfig, main: bool
) -> dict[str, dict[str, float]]:
    """Figures before the first step: measured, or as run.json has them where a run goes on."""
    noted: dict[str, dict[str, float]] | None = runs.noted(folder, "zero_shot")
    if folder.checkpoint is not None and noted is not None:
        return noted
    figures = _evaluated(task, loaded, config.eval_limit)
    if main:
        runs.note(folder, "zero_shot", figures)
    return figures


def _evaluated(task: Task, loaded: LoadedModel, limit: int | None) -> dict[str, dict[str, float]]:
    return {split: task.evaluate(loaded.model, split, limit) for split in _REPORTED}


def _train(trainer: TaskTraining, folder: runs.RunFolder) -> None:
    """Train; an interrupt ends it after the step that is running, with a checkpoint."""
    with _stopping(trainer) as signals:
        try:
            trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
        except DivergedError as error:
            saved = runs.latest_checkpoint(folder.path)
            raise DivergedError(f"{error.cause}; the weights are in {saved}", error.remedy) from None
    if trainer.stopped and trainer.state.global_step < trainer.args.max_steps:
        interrupted = Interrupted(
            f"stopped after step {trainer.state.global_step}, saved in {runs.latest_checkpoint(folder.path)}",
            "Run the same command with --resume to go on.",
        )
        interrupted.exit_code = 128 + (signals[0] if signals else signal.SIGINT)
        raise interrupted


@contextmanager
def _stopping(trainer: TaskTraining) -> Iterator[list[int]]:
    """Within: Ctrl-C and SIGTERM ask the trainer to stop; a second Ctrl-C interrupts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def ask(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        trainer.request_stop()
        print("stopping after this step; press Ctrl-C again to stop at once, unsaved", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """After: the global generators are as before; Trainer seeds them."""
    tensors, values = generator_states()
    try:
        yield
    finally:
        set_generator_states(tensors, values)


def _warnings(result: FinetuneResult, task: Task) -> list[str]:
    notes = []
    if result.skipped:
        notes.append(f"{result.skipped} of {result.steps} steps were skipped: a loss was not finite")
    name = task.metric_name if isinstance(task, MetricTask) else LOSS
    before, after = result.zero_shot["validation"][name], result.final["validation"][name]
    if not (after >= before if isinstance(task, MetricTask) else after <= before):
        notes.append(
            f"the {name} on validation is worse than before, {after:.4f} against {before:.4f}: "
            f"use a smaller learning rate than {result.method['lr']:g}, or more steps"
        )
    return notes


def _as_values(config: FinetuneConfig | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    if isinstance(config, FinetuneConfig):
        return config.to_dict()
    if isinstance(config, str | Path):
        return read_yaml(config)
    return dict(config or {})


def _placed(device: str) -> str:
    """The accelerator of this process, where a launcher runs one process for each."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device
