"""The runs of a comparison, as jobs for :func:`finetune.sweep.drive`: searching learning rates, then reporting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from finetune.compare_config import CompareConfig
from finetune.methods import MethodPlan
from finetune.processes import Record
from finetune.report import Chosen, number
from finetune.run_spec import Bench, RunSpec, TunerSource, run_spec
from finetune.sweep import Job, Search, grid_lr, nearest_index, searched

TUNED, UNTUNED, GIVEN = "tuned", "untuned", "given"


@dataclass(frozen=True)
class Found:
    """What a job found for one method on one task: the reported runs, and the loss by learning rate."""

    chosen: Chosen
    values: Mapping[float, float]


@dataclass(frozen=True)
class Single:
    """One learning rate for all tasks: as it is recommended, and what it gives on every reported task."""

    recommended: dict[str, Any]
    found: dict[str, Found]


@dataclass(frozen=True)
class View:
    """A comparison in one regime with one budget.

    Attributes:
        regime: ``tuned``, ``untuned``, or ``given`` where the learning rates were given.
        forwards: the budget.
        found: by task and label.
        recommended: by label, the one learning rate for this budget; empty if not searched.
    """

    regime: str
    forwards: int
    found: Mapping[tuple[str, str], Found]
    recommended: Mapping[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """Such as ``untuned-600``."""
        return f"{self.regime}-{self.forwards}"


class Jobs:
    """Makes the jobs of a comparison."""

    def __init__(self, config: CompareConfig, bench: Bench) -> None:
        self._config = config
        self._bench = bench

    def specs(
        self, method: MethodPlan, tasks: Sequence[str], lr: float, forwards: int, reported: bool
    ) -> list[RunSpec]:
        """Runs at one learning rate by task, then tuner, then seed; only reported ones see the test split.

        A learning rate is chosen on one run a selection seed, for every method alike: of several tuners each seed has
        the next.
        """
        config = self._config
        tuners: Sequence[TunerSource | None] = method.tuners or (None,)
        if reported:
            pairs = [(tuner, seed) for tuner in tuners for seed in config.reported_seeds]
        else:
            pairs = list(zip(cycle(tuners), config.chosen_on_seeds, strict=False))
        return [
            run_spec(
                config,
                self._bench,
                task=task,
                optimizer=method.optimizer,
                hyper=method.hyper,
                tuner=tuner,
                lr=lr,
                seed=seed,
                forwards=forwards,
                eval_points=config.eval_points if reported else 1,
                reported=reported,
            )
            for task in tasks
            for tuner, seed in pairs
        ]

    def pair(self, method: MethodPlan, task: str, forwards: int) -> Job[RunSpec, Found]:
        """One method on one task: its own learning rate there, searched or given, then the reported runs."""
        if method.label in self._config.lrs:
            lr, interior, search_runs, values = self._config.given_lr(method.label, task), None, 0, {}
        else:
            search = yield from self._search(method, [task], forwards, _mean_loss)
            lr = grid_lr(self._config.lr_start, search.best)
            interior = search.interior
            values = {grid_lr(self._config.lr_start, index): loss for index, loss in search.values.items()}
            search_runs = len(values) * self._config.selection_seeds
        records = yield self.specs(method, [task], lr, forwards, True)
        return Found(Chosen(lr, interior, search_runs, records, max(1, len(method.tuners))), values)

    def single(
        self, method: MethodPlan, forwards: int, choose_on: Sequence[str], tasks: Sequence[str]
    ) -> Job[RunSpec, Single]:
        """The one learning rate with the best mean of final / zero-shot loss on ``choose_on``; then ``tasks``."""
        search = yield from self._search(method, choose_on, forwards, _mean_ratio)
        start = self._config.lr_start
        lr = grid_lr(start, search.best)
        recommended = {
            "lr": float(f"{lr:.4g}"),
            "interior": search.interior,
            "score": search.values[search.best],
            "scores": {f"{grid_lr(start, index):.4g}": score for index, score in sorted(search.values.items())},
        }
        rows = max(1, len(method.tuners))
        runs = len(search.values) * self._config.selection_seeds * len(choose_on)
        records = (yield self.specs(method, tasks, lr, forwards, True)) if tasks else []
        size = rows * self._config.seeds
        found = {
            task: Found(Chosen(lr, search.interior, runs, records[at * size : (at + 1) * size], rows), {})
            for at, task in enumerate(tasks)
        }
        return Single(recommended, found)

    def _search(
        self, method: MethodPlan, tasks: Sequence[str], forwards: int, score: Callable[[Sequence[Record]], float]
    ) -> Job[RunSpec, Search]:
        """Search the grid by the score of an index's runs on ``tasks`` with all selection seeds."""
        start, reach = self._config.lr_start, self._config.lr_reach
        return searched(
            reach,
            lambda index: self.specs(method, tasks, grid_lr(start, index), forwards, False),
            score,
            nearest_index(start, method.begin) if method.begin is not None else 0,
        )


def _mean_loss(records: Sequence[Record]) -> float:
    """Mean final validation loss; infinite where a run did not end finite."""
    return sum(number(record["validation_loss"]) for record in records) / len(records)


def _mean_ratio(records: Sequence[Record]) -> float:
    """Mean of final validation loss / zero-shot validation loss."""
    ratios = [number(r["validation_loss"]) / number(r["zero_shot"]["validation_loss"]) for r in records]
    return sum(ratios) / len(ratios)
