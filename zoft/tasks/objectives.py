"""Objectives that have no gradient: a metric of a model's answers, to be minimised as 1 − metric."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.tasks.base import Task
from zoft.tasks.lm import LMTask
from zoft.tasks.metrics import METRICS, Metric, measure

#: The differentiable objective, and the default.
LOSS = "loss"

#: Every objective that has a name.
OBJECTIVES = (LOSS, *METRICS)


class MetricTask:
    """A language model's task whose loss is 1 − metric of the model's answers to a batch.

    Answers are those that an evaluation scores: the best candidate, or the greedy continuation. The value
    changes in steps, and where a batch is answered alike at θ ± εz a step does nothing; larger batches and
    metrics with many values (F1 rather than exact match) help. [MeZO, section 3.3] trains so on accuracy
    and F1.

    Args:
        task: the task.
        metric: ``metric(predictions, references)`` -> a number, higher is better: texts, and for each all
            that are accepted.
        name: of the metric, in evaluations.

    Attributes:
        held: whether the model generates, so that θ ± εz is made once for an evaluation, not for each token.
        discrete: True: equal losses at θ ± εz are nothing unusual.

    Reference: [MeZO] Malladi et al., arXiv 2305.17333.
    """

    discrete = True

    def __init__(self, task: LMTask, metric: Metric, name: str) -> None:
        self.task, self.metric, self.metric_name = task, metric, name
        self.held = task.text_task.kind == "completion"
        task.further_metrics[name] = metric

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def train_batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The task's own batches."""
        return self.task.train_batches(batch_size, seed, start)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """1 − metric over the batch: a float64 scalar without a gradient.

        Raises:
            UsageError: the metric fails on the answers, or is no number.
        """
        answers = self.task.predict(model, batch)
        groups = [self.task.text_task.examples("train")[index].group for index in batch["indices"].tolist()]
        try:
            value = measure(self.metric, answers, self.task.accepted(batch), groups)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UsageError(
                f"the metric {self.metric_name} failed on a batch: {error}",
                "It takes a list of predictions and a list of references, and returns a number.",
            ) from error
        return torch.tensor(1.0 - value, dtype=torch.float64)

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        """The task's own evaluation, with the metric in it."""
        return self.task.evaluate(model, split, limit)


def with_objective(task: Task, objective: str | Metric) -> Task:
    """``task`` with this objective in place of its loss.

    Args:
        objective: one of :data:`OBJECTIVES`, or a function ``metric(predictions, references)``.

    Raises:
        UsageError: an unknown name, a function of other arguments, or a task that has no answers in text.
    """
    if objective == LOSS:
        return task
    if isinstance(objective, str) and objective not in METRICS:
        raise UsageError(unknown("objective", objective, OBJECTIVES))
    metric: Metric = METRICS[objective] if isinstance(objective, str) else objective
    name = objective if isinstance(objective, str) else objective_name(objective)
    if not isinstance(task, LMTask):
        raise UsageError(
            f"the objective {name} needs answers in text, and task {task.name!r} is no text task",
            "Give the metric as the task's loss.",
        )
    try:
        count = len(inspect.signature(metric).parameters)
    except (TypeError, ValueError):
        count = 2
    if count < 2:
        raise UsageError(f"the metric {name} takes {count} arguments", "Write it as metric(predictions, references).")
    return MetricTask(task, metric, name)


def objective_name(metric: Metric) -> str:
    """What a metric of one's own is called in records."""
    return str(getattr(metric, "__name__", type(metric).__name__))
