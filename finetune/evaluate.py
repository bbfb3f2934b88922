"""Evaluation of a model on a task: what ``zoft evaluate`` does."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune.config import DataConfig
from finetune.linear_probe import probe
from finetune.task import in_context, language_task
from zoft.errors import UsageError
from zoft.models import LoadedModel, load_model
from zoft.tasks.in_context import InContext


class EvaluateConfig(DataConfig):
    """Configuration of ``zoft evaluate``."""

    splits: list[Literal["train", "validation", "test"]] = Field(
        ["validation", "test"], min_length=1, description="Splits to evaluate on."
    )
    limit: int | None = Field(1000, ge=1, description="Examples of a split, the first ones; none is all.")
    shots: int = Field(0, ge=0, description="Demonstrations from the train split in front of every prompt.")
    linear_probe: bool = Field(
        False, description="Fit a linear classifier on the model's features instead of asking it."
    )


def evaluate(config: EvaluateConfig, *, model: LoadedModel | None = None) -> dict[str, dict[str, Any]]:
    """Loss and metric of a model: zero-shot, in context (``shots``), or of a linear probe.

    Args:
        model: a loaded model in place of the name in ``config``.

    Returns:
        For each split the mean ``loss``, the metrics by their names, and ``examples``, their number. With
        demonstrations also ``shots``, how many of them fitted on average; of a probe also ``strength``.

    Raises:
        UsageError: no model or task, or data that cannot be used.
        ArtifactError: the model or the data cannot be had.
    """
    if model is None and config.model is None:
        raise UsageError("no model is given", "Give one with --model.")
    if (config.task is None) == (config.dataset is None):
        raise UsageError(
            "no task is given" if config.task is None else "both a task and a data set are given",
            "Give --task, or your own data with --dataset.",
        )
    if config.shots and config.linear_probe:
        raise UsageError("both demonstrations and a linear probe are asked for", "Give --shots or --linear-probe.")
    loaded = model or load_model(
        str(config.model), dtype=config.dtype, device=config.target, trust_remote_code=config.trust_remote_code
    )
    task = language_task(config, loaded)
    if config.linear_probe:
        return probe(loaded.model, task, config.splits, config.limit)
    task = in_context(task, config.shots, config.seed) if config.shots else task
    figures: dict[str, dict[str, Any]] = {}
    for split in config.splits:
        count = len(task.dataset(split)[: config.limit])
        figures[split] = {**task.evaluate(loaded.model, split, config.limit), "examples": count}
        if isinstance(task.text_task, InContext):
            figures[split]["shots"] = task.text_task.used[split]
    return figures
