"""The task that a configuration names, for a model."""

from __future__ import annotations

from typing import Any

from finetune.config import DataConfig
from zoft.adapters import virtual_tokens
from zoft.models import LoadedModel, context_length
from zoft.tasks import get_task
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.in_context import InContext
from zoft.tasks.lm import LMTask


def language_task(config: DataConfig, loaded: LoadedModel) -> LMTask:
    """The configuration's task, or its data set, for the model's tokenizer and within the model's context.

    Raises:
        ArtifactError: the data set cannot be had.
        UsageError: rows that cannot be used; names the file and the row.
    """
    text_task: Any
    if config.task is not None:
        text_task = get_task(config.task, config.data_dir, config.per_class, config.seed)
    else:
        text_task = load_dataset_task(
            str(config.dataset),
            config.template,
            config.labels,
            config.columns or None,
            seed=config.seed,
            validation_fraction=config.validation_fraction,
            tokenizer=loaded.tokenizer,
        )
    return LMTask(text_task, loaded.tokenizer, loaded.kind, longest(loaded, config.max_length), config.one_token)


def longest(loaded: LoadedModel, asked: int | None = None) -> int | None:
    """Tokens that an example may have: within ``asked`` and the model's context, a learned prefix aside."""
    context = context_length(loaded.model)
    limits = [asked, None if context is None else context - virtual_tokens(loaded.model)]
    return min((limit for limit in limits if limit is not None), default=None)


def in_context(task: LMTask, shots: int, seed: int) -> LMTask:
    """``task`` with demonstrations from its train split in front of every prompt; see ``InContext``.

    Raises:
        UsageError: more demonstrations than the train split has examples.
    """
    room = 0
    if task.text_task.kind == "completion":
        answers = (candidate for example in task.dataset("train") for candidate in example.candidates)
        room = getattr(task.text_task, "max_new_tokens", None) or max(map(len, answers)) + 1
    shown = InContext(task.text_task, task.tokenizer, shots, seed, task.max_length, room)
    return LMTask(shown, task.tokenizer, task.model_kind, task.max_length, task.one_token)


def shown_examples(config: DataConfig, model: str | None, count: int = 3) -> list[str]:
    """The first training examples as ``model`` will see them, what is scored marked; no weights are read.

    Empty for a task whose examples come with the package: those a page of the documentation shows.

    Raises:
        As :func:`language_task`, and :func:`zoft.tasks.preview.outline`.
    """
    if model is None or (config.dataset is None and config.data_dir is None):
        return []
    from zoft.tasks.preview import outline, rendered

    return rendered(language_task(config, outline(model, config.trust_remote_code)), "train", count)
