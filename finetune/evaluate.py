"""Evaluation of a model on a task: what ``zoft evaluate`` does."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune.config import DataConfig
from finetune.task import language_task
from zoft.errors import UsageError
from zoft.models import LoadedModel, load_model


class EvaluateConfig(DataConfig):
    """Configuration of ``zoft evaluate``."""

    splits: list[Literal["train", "validation", "test"]] = Field(
        ["validation", "test"], min_length=1, description="Splits to evaluate on."
    )
    limit: int | None = Field(1000, ge=1, description="Examples of a split, the first ones; none is all.")


def evaluate(config: EvaluateConfig, *, model: LoadedModel | None = None) -> dict[str, dict[str, Any]]:
    """Zero-shot loss and metric of a model.

    Args:
        model: a loaded model in place of the name in ``config``.

    Returns:
        For each split the mean ``loss``, the metric by its name, and ``examples``, their number.

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
    loaded = model or load_model(
        str(config.model), dtype=config.dtype, device=config.target, trust_remote_code=config.trust_remote_code
    )
    task = language_task(config, loaded)
    figures: dict[str, dict[str, Any]] = {}
    for split in config.splits:
        count = len(task.dataset(split)[: config.limit])
        figures[split] = {**task.evaluate(loaded.model, split, config.limit), "examples": count}
    return figures
