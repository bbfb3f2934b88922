"""``zoft meta-train``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field, field_validator

from meta_train import RECIPES, MetaTrainConfig, recipe
from zoft.adapters import TrainableConfig
from zoft.cli import console, flags
from zoft.config import read_yaml, unknown
from zoft.errors import Interrupted, UsageError
from zoft.models import DTYPES
from zoft.names import EMBEDDED, resolve_model
from zoft.tasks import TASKS, tasks_with_role

EXAMPLES = """
zoft meta-train --base zoft-base --output-dir my-tuner
zoft meta-train --base llama-3.2-1b --tasks review-contrast,choice-cause --recipe paper --output-dir my-tuner
zoft meta-train --config recipe.yaml --steps 2000 --output-dir my-tuner
zoft meta-train --config recipe.yaml --output-dir my-tuner --resume
"""


class RunConfig(MetaTrainConfig, TrainableConfig):
    """Configuration of ``zoft meta-train``: what is learned on, and :class:`meta_train.MetaTrainConfig`."""

    base: str = Field(EMBEDDED, description="Base model: a local folder, user/repo on the Hub, or a short name.")
    tasks: list[str] = Field(
        default_factory=lambda: tasks_with_role("meta-training"),
        min_length=1,
        description="Tasks to learn on; by default all with the role meta-training.",
    )
    data_dir: str | None = Field(
        None, description="Folder with local copies of the published tasks' data sets, in place of the Hub."
    )
    recipe: str = Field("default", description=f"Settings to begin with: {', '.join(RECIPES)}.")
    allow_held_out: bool = Field(False, description="Accept tasks whose role is held-out; see the error without it.")
    dtype: str | None = Field(None, description="dtype of the weights; the checkpoint's by default.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto is cuda where there is one.")
    threads: int | None = Field(None, ge=1, description="Threads of torch on the CPU; torch's own choice by default.")
    trust_remote_code: bool = Field(False, description="Allow Python code of the model's own repository to run.")
    output_dir: str | None = Field(None, description="Folder of the tuner; tuners/<base>-<recipe>-<seed> by default.")

    @field_validator("base")
    @classmethod
    def _known_base(cls, value: str) -> str:
        try:
            resolve_model(value)
        except UsageError as error:
            raise ValueError(error.cause.replace("unknown model", "unknown base", 1)) from None
        return value

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: list[str]) -> list[str]:
        problems = [unknown("task", name, TASKS) for name in value if name not in TASKS]
        if problems:
            raise ValueError("; ".join(problems))
        return value

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str) -> str:
        if value not in RECIPES:
            raise ValueError(unknown("recipe", value, RECIPES))
        return value

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        if value is not None and value not in DTYPES:
            raise ValueError(unknown("dtype", value, DTYPES))
        return value

    def settings(self) -> MetaTrainConfig:
        """The part that :func:`meta_train.meta_train` takes."""
        return MetaTrainConfig.build({name: getattr(self, name) for name in MetaTrainConfig.model_fields})


def resolved(file: str | None, given: Mapping[str, Any]) -> RunConfig:
    """Recipe < file < flags, with the output folder's name filled in."""
    content = read_yaml(file) if file else {}
    name = given.get("recipe", content.get("recipe", "default"))
    config = flags.build(RunConfig, "meta-train", file, given, recipe(name) if name in RECIPES else {})
    if config.output_dir is None:
        base = re.sub(r"[^A-Za-z0-9._]+", "-", Path(config.base.partition("@")[0]).name)
        config = config.model_copy(update={"output_dir": f"tuners/{base}-{config.recipe}-{config.seed}"})
    return config


def run(config_file: str | None, dry_run: bool, quiet: bool, debug: bool, resume: bool, **values: Any) -> None:
    """Resolve the configuration, learn the tuner, and say what to do with it."""
    config = resolved(config_file, flags.given(values, RunConfig))
    _refuse_held_out(config)
    developed = [name for name in config.tasks if TASKS[name].role == "development"]
    if dry_run or not quiet:
        click.echo(config.to_yaml().rstrip())
    if developed:
        warnings.warn(
            f"{', '.join(developed)}: settings are chosen on development tasks, so choose none on them for this tuner",
            stacklevel=1,
        )
    if dry_run:
        return
    folder = Path(str(config.output_dir))
    with console.terminating() as ended:
        try:
            _learn(config, folder, resume, quiet)
        except Interrupted as error:
            stopped = Interrupted(error.cause, "Run the same command with --resume to go on.")
            stopped.exit_code = 143 if ended else 130
            raise stopped from None
    click.echo(f"tuner: {folder}")
    if not quiet:
        click.echo(
            f"Look at it with `zoft tuner show {folder}`, use it with `zoft finetune --tuner {folder} --task ...`."
        )


def _refuse_held_out(config: RunConfig) -> None:
    held_out = [name for name in config.tasks if TASKS[name].role == "held-out"]
    if held_out and not config.allow_held_out:
        raise UsageError(
            f"{', '.join(held_out)}: results are reported on held-out tasks, and a tuner that has learned on one "
            "makes them worthless",
            f"Choose from {', '.join(tasks_with_role('meta-training'))}, or give --allow-held-out.",
        )


def _learn(config: RunConfig, folder: Path, resume: bool, quiet: bool) -> None:
    import torch

    from meta_train import meta_train, progress
    from zoft.adapters import prepare, virtual_tokens
    from zoft.models import context_length, load_model
    from zoft.tasks import get_task
    from zoft.tasks.lm import LMTask

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    loaded = load_model(config.base, dtype=config.dtype, device=device, trust_remote_code=config.trust_remote_code)
    loaded = prepare(loaded, config, config.seed)
    context = context_length(loaded.model)
    limit = None if context is None else context - virtual_tokens(loaded.model)
    texts = [get_task(name, None if TASKS[name].offline else config.data_dir) for name in config.tasks]
    tasks = [LMTask(text, loaded.tokenizer, loaded.kind, limit) for text in texts]
    for task in tasks:
        task.dataset("train")
    settings = config.settings()
    done, finished = progress(folder)
    if (done or finished) and not resume:
        _offer(folder, settings, config.tasks, loaded.model, done, finished)
    reporter = _Reporters(folder, config, done if resume else None, quiet)
    try:
        meta_train(
            loaded.model,
            tasks,
            settings,
            output_dir=folder,
            base_model_name_or_path=loaded.name,
            base_model_revision=loaded.revision,
            resume="auto" if resume else False,
            reporter=reporter,
        )
    finally:
        reporter.close()


def _offer(folder: Path, settings: MetaTrainConfig, tasks: list[str], model: Any, done: int, finished: bool) -> None:
    """Say whether the run in ``folder`` is another one, or this very one, which --resume would continue."""
    from meta_train import checkpoint
    from zoft.blocks import Blocks

    there = checkpoint.read_finished(folder) if finished else checkpoint.read_record(folder)
    checkpoint.require_same(folder, there or {}, checkpoint.identity(settings, tasks, Blocks.of(model)))
    if finished:
        raise UsageError(f"{folder} holds this very run, finished", "Give another folder with --output-dir.")
    raise UsageError(
        f"{folder} holds this very run, stopped after {done} of {settings.steps} steps",
        "Add --resume to go on, or give another folder with --output-dir.",
    )


class _Reporters:
    """Metrics and TensorBoard in ``logs`` of the folder, opened with the first scalars; and the terminal."""

    def __init__(self, folder: Path, config: RunConfig, after: int | None, quiet: bool) -> None:
        self._folder, self._config, self._after, self._quiet = folder, config, after, quiet
        self._opened: list[Any] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the scalars on."""
        if not self._opened:
            self._open()
        for reporter in self._opened:
            reporter.scalars(step, values)

    def note(self, text: str) -> None:
        """Show a sentence."""
        if not self._quiet:
            click.echo(text, err=True)

    def close(self) -> None:
        """Close what was opened."""
        for reporter in self._opened:
            reporter.close()

    def _open(self) -> None:
        from zoft.runs.reporters import ConsoleReporter, JsonlReporter, TensorBoardReporter

        logs = self._folder / "logs"
        self._opened = [
            JsonlReporter(logs / "metrics.jsonl", self._after),
            TensorBoardReporter(logs / "tb", self._after),
        ]
        if not self._quiet:
            steps = self._config.steps
            self._opened.append(ConsoleReporter(steps, "meta-train", start=self._after or 0, loss="meta/loss"))


command = flags.verb(
    "meta-train",
    run,
    [
        *flags.config_options(RunConfig, first=["base", "tasks", "recipe", "output_dir"]),
        click.Option(["--resume"], is_flag=True, help="Go on with the unfinished run in --output-dir."),
        *flags.common_options(),
    ],
    EXAMPLES,
    "Learn a tuner for a base model: how strongly each of its blocks should be perturbed.",
)
