"""What the stacks of a bench share: its examples as tables, its tuners, and the evaluation of all runs at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from finetune.compare_run import Runner
from finetune.run_spec import RunSpec
from zoft.errors import UsageError
from zoft.stack import StackedModel
from zoft.tasks.lm import LMTask
from zoft.tasks.table import ExampleTable
from zoft.tuner.bound import BoundTuner

#: Rows of all runs that the model is evaluated on at once, at most.
_ROWS = 1 << 15

#: Examples of every run that are evaluated at once, at most.
_EXAMPLES = 64


class CannotStack(Exception):
    """The runs have to be made one by one."""


class StackBench:
    """What stacks on the same bench share.

    Args:
        runner: whose bench it is; it knows the zero-shot figures.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.bench = runner, runner.bench
        self._tables: dict[tuple[str, str, str, int | None], ExampleTable] = {}
        self._tuners: dict[str, BoundTuner] = {}

    def tuner(self, spec: RunSpec) -> BoundTuner | None:
        """The tuner of a run, bound to the model, which must be at its initial weights."""
        if spec.tuner is None:
            return None
        if spec.tuner.digest not in self._tuners:
            self._tuners[spec.tuner.digest] = spec.tuner.load(self.bench.model).bind(self.bench.model, spec.batch_size)
        return self._tuners[spec.tuner.digest]

    def table(self, task: LMTask, kind: str, split: str, limit: int | None = None) -> ExampleTable:
        """A split's examples: as they are ``trained`` on, ``whole``, or their ``prompts``."""
        key = (task.name, kind, split, limit)
        if key not in self._tables:
            members = task.dataset(split)[:limit]
            if kind == "trained":
                members = task.trained_on(members)
            elif kind == "prompts":
                members = task.prompts(members)
            device = next(self.bench.model.parameters()).device
            try:
                self._tables[key] = ExampleTable(members, task.pad_id, device)
            except UsageError as error:
                raise CannotStack from error
        return self._tables[key]


class Split:
    """A split of a task as all runs of a stack are evaluated on it."""

    def __init__(self, bench: StackBench, task: LMTask, split: str, limit: int | None) -> None:
        self._task, self._split = task, split
        self._members = task.dataset(split)[:limit]
        self._table = bench.table(task, "whole", split, limit)
        self._prompts = bench.table(task, "prompts", split, limit) if task.text_task.kind == "completion" else None

    def _parts(self, runs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places of examples, neighbours in length together, and the same once for every run."""
        order = np.argsort(self._table.lengths, kind="stable")
        size = max(1, min(_EXAMPLES, _ROWS // runs))
        for begin in range(0, len(order), size):
            places = order[begin : begin + size]
            yield places, np.tile(places, runs)

    def losses(self, model: StackedModel) -> list[float]:
        """The mean loss of every run."""
        sums = [
            self._task.losses(model.model, self._table.batch(everywhere)).view(model.runs, -1).double().sum(1)
            for _, everywhere in self._parts(model.runs)
        ]
        means: list[float] = (torch.stack(sums).sum(0) / len(self._members)).tolist()
        return means

    def judged(self, model: StackedModel) -> list[dict[str, float]]:
        """The mean loss of every run, and the task's metrics."""
        sums = []
        answers: list[dict[int, str]] = [{} for _ in range(model.runs)]
        for places, everywhere in self._parts(model.runs):
            shown = [self._members[place] for place in everywhere]
            asked = self._prompts.batch(everywhere) if self._prompts is not None else None
            batch = self._table.batch(everywhere)
            losses, texts = self._task.judged(model.model, shown, self._split, batch, asked)
            sums.append(losses.view(model.runs, -1).double().sum(1))
            for run, own in enumerate(answers):
                mine = texts[run * len(places) : (run + 1) * len(places)]
                own.update({self._members[place].index: text for place, text in zip(places, mine, strict=True)})
        means = (torch.stack(sums).sum(0) / len(self._members)).tolist()
        measured = [self._task.measured(own, self._split) for own in answers]
        return [{"loss": mean, **metrics} for mean, metrics in zip(means, measured, strict=True)]
