"""Whole fine-tuning runs on the tasks of a meta-training, and what they end at: what gradients do not tell.

A run's score is log(loss after it / loss before it), both over the same examples, which are drawn from the task's
training batches with another seed. Runs have the directions, the estimator and the schedule that the tuner is to
recommend. A structure that was learned from a task would do better there than on others, and be trusted too much: so
the tuners that are run on a task are to have what the *other* tasks say (:func:`meta_train.parts.tuners_without`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import nn

from meta_train.config import MetaTrainConfig
from meta_train.feed import derived_seed
from meta_train.parts import FinishedRun
from meta_train.report import note
from meta_train.trajectory import BaseWeights
from zoft.evolution import log_ratio
from zoft.objective import evaluating
from zoft.optimizers import ZerothOrder, get_optimizer
from zoft.runs.steps import run_steps
from zoft.tasks.base import Task
from zoft.tuner.artifact import Tuner
from zoft.tuner.bound import BoundTuner


class SearchingRun(FinishedRun, Protocol):
    """What searches need of a meta-training run besides."""

    tuner: Tuner
    base: BaseWeights
    outcomes: list[float]

    def save(self) -> None: ...


class OutcomeRuns:
    """Makes runs, or takes their scores from before a break.

    Args:
        model: the base, at its weights.
        tasks: what is learned on.
        config: with ``outcome_forwards`` and ``outcome_examples``.
        put_back: sets the model to the base's weights.
        scores: of runs that were made before a break, in the order in which they are asked for; others are added.
        save: called by :meth:`keep`, and before the first run that is made.
        say: takes lines of progress.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        config: MetaTrainConfig,
        put_back: Callable[[], None],
        scores: list[float],
        save: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.tasks, self.config, self.say = tasks, config, say
        self._model, self._put_back, self._scores, self._save = model, put_back, scores, save
        self._saved: int | None = None
        self._before: dict[int, float] = {}
        #: Runs that were asked for.
        self.asked = 0

    @classmethod
    def of(cls, run: SearchingRun) -> OutcomeRuns:
        """On the tasks of a meta-training run, whose checkpoint keeps their scores."""
        return cls(
            run.model,
            run.tasks,
            run.config,
            run.base.put_back,
            run.outcomes,
            save=run.save,
            say=lambda text: note(run.reporter, text),
        )

    def score(self, task: int, tuner: BoundTuner, lr: float, seed: int) -> float:
        """A run's score: kept from before a break, or made now.

        Args:
            task: its index.
            tuner: bound to the model.
            lr: the learning rate before its schedule.
            seed: of batches and directions.
        """
        if self.asked == len(self._scores):
            if self._saved is None:
                self.keep()
            self._scores.append(self._made(task, tuner, lr, seed))
        self.asked += 1
        return self._scores[self.asked - 1]

    def keep(self) -> None:
        """Save, unless there is nothing new: runs from before a break are not."""
        if self.asked >= len(self._scores) != self._saved:
            self._saved = len(self._scores)
            self._save()

    def _made(self, index: int, tuner: BoundTuner, lr: float, seed: int) -> float:
        """The score of a run from the base's weights, which the model has again afterwards."""
        task = self.tasks[index]
        if index not in self._before:
            self._before[index] = self._loss(task)
        try:
            self._run(task, tuner, lr, seed)
            return log_ratio(self._loss(task), self._before[index])
        finally:
            self._put_back()

    def _run(self, task: Task, tuner: BoundTuner, lr: float, seed: int) -> None:
        """A fine-tuning run in place; it ends early where its losses stay not finite."""
        config = self.config
        method = get_optimizer(
            "zo-finetuner",
            lr=lr,
            epsilon=config.epsilon,
            directions=config.recommended_directions,
            estimator=config.recommended_estimator,
            tuner=tuner,
        )
        optimizer = ZerothOrder(
            self._model, method, seed=seed, noise=config.noise, keep_bytes=config.keep_noise_mib << 20
        )
        steps, course = method.steps_within(config.outcome_forwards), config.recommended_schedule
        for _ in run_steps(optimizer, task, task.train_batches(config.batch_size, seed), steps, lr, course):
            pass

    def _loss(self, task: Task) -> float:
        """Mean loss over the batches that runs are judged on; not finite where one is."""
        config = self.config
        count = math.ceil(config.outcome_examples / config.batch_size)
        seed = derived_seed("outcome batches", config.seed, task.name)
        with torch.inference_mode(), evaluating(self._model):
            batches = islice(task.train_batches(config.batch_size, seed), count)
            losses = [float(task.loss(self._model, batch)) for batch in batches]
        return math.fsum(losses) / len(losses)
