"""The oracle: what static scales, or shares of a structured part, can give at best.

CMA-ES (Hansen, *The CMA Evolution Strategy: A Tutorial*, arXiv 1604.00772; the library ``cma`` of its authors)
searches the coordinates of a space (:data:`finetune.oracle_spaces.SPACES`) and log lr together. What it minimises is
the outcome of whole zeroth-order runs: the mean over tasks and seeds of log(final validation loss / zero-shot loss).

- A run is one of ``zoft compare``'s, with a tuner made of the coordinates.
- Common random numbers: all candidates of a generation have the same seeds, so the same batches and directions.
- In the end the search's mean and the best candidates run again on seeds that no generation had; the best of them is
  the oracle. It is reported, on other seeds again, beside MeZO at the one learning rate that a √2 grid finds for it
  with as many runs.
- Every run is kept in runs.jsonl as it ends. A rerun makes the same candidates again, finds their runs there, and
  goes on: the search is a function of its seed and of the runs' results.

It chooses on the tasks that it reports on, on other seeds: an upper bound of what a tuner of that form gives there,
and no evidence about other tasks. Held-out tasks are refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from finetune import oracle_report
from finetune.compare_run import BenchFactory, language_model_bench
from finetune.executors import bench_arguments, make_executor
from finetune.oracle_config import OracleConfig
from finetune.oracle_spaces import SPACES, SearchSpace
from finetune.processes import Record
from finetune.report import number
from finetune.run_spec import Bench, RunSpec, TunerSource, run_spec
from finetune.sweep import Job, RunStore, drive, grid_lr, searched
from zoft.config import unknown
from zoft.errors import Interrupted, UsageError
from zoft.evolution import CEILING, DECIMALS, cma_es, log_ratio
from zoft.tasks import tasks_with_role
from zoft.tuner import Tuner

RUNS_FILE, RESULT_FILE, TABLE_FILE, CONFIG_FILE, TUNER_FOLDER = (
    "runs.jsonl",
    "oracle.json",
    "oracle.md",
    "config.yaml",
    "tuner",
)


@dataclass(frozen=True)
class SearchedTuner(TunerSource):
    """A run's tuner by its coordinates.

    Attributes:
        space: name of the search space; ``folder`` is the tuner that it starts from.
        coordinates: in that space.
    """

    space: str = ""
    coordinates: tuple[float, ...] = ()

    def load(self, model: nn.Module) -> Tuner:
        """The tuner; ``model`` must be at its initial weights."""
        return SPACES[self.space](model, self.folder).tuner(self.coordinates)


@dataclass(frozen=True)
class Candidate:
    """A point of a search: the coordinates in its space (None is MeZO), and the learning rate."""

    coordinates: tuple[float, ...] | None
    lr: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        candidate: the choice. ``score``: its score on the seeds that it was chosen on.
        search_runs: number of runs until the choice was made.
        trail: how the search went, JSON-able.
        records: the reported runs, task by task, seed by seed.
    """

    candidate: Candidate
    score: float
    search_runs: int
    trail: list[dict[str, Any]]
    records: Sequence[Record]


@dataclass(frozen=True)
class Oracle:
    """A finished search, and where it lies.

    Attributes:
        folder: holds runs.jsonl, oracle.json, oracle.md and the tuner's folder.
        found, mezo: what was found for the space and for MeZO.
        table: the Markdown table.
        content: what oracle.json holds.
    """

    folder: Path
    found: Found
    mezo: Found
    table: str
    content: dict[str, Any]


class Plan:
    """The runs of a search on a bench."""

    def __init__(self, config: OracleConfig, bench: Bench, say: Callable[[str], None]) -> None:
        self.config = config
        self.space: SearchSpace = SPACES[config.search](bench.model, config.tuner)
        self._bench = bench
        self._say = say

    def specs(self, candidate: Candidate, seeds: Sequence[int], reported: bool = False) -> list[RunSpec]:
        """A candidate's runs, task by task, seed by seed; only reported ones see the test split."""
        config, source = self.config, self._source(candidate)
        return [
            run_spec(
                config,
                self._bench,
                task=task,
                optimizer="mezo" if source is None else "zo-finetuner",
                hyper={},
                tuner=source,
                lr=candidate.lr,
                seed=seed,
                forwards=config.forwards,
                eval_points=10 if reported else 1,
                reported=reported,
            )
            for task in config.tasks
            for seed in seeds
        ]

    def _source(self, candidate: Candidate) -> SearchedTuner | None:
        if candidate.coordinates is None:
            return None
        digest = self.space.tuner(candidate.coordinates).digest
        return SearchedTuner(
            self.config.tuner, digest=digest, space=self.config.search, coordinates=candidate.coordinates
        )

    def scores(
        self, candidates: Sequence[Candidate], seeds: Sequence[int]
    ) -> Generator[Sequence[RunSpec], Sequence[Record], list[float]]:
        """The score of every candidate on the same seeds."""
        groups = [self.specs(candidate, seeds) for candidate in candidates]
        records = yield [spec for group in groups for spec in group]
        size = len(groups[0])
        return [score(records[at * size : (at + 1) * size]) for at in range(len(groups))]

    def search(self) -> Job[RunSpec, Found]:
        """CMA-ES over the space's coordinates and log lr, the finalists, and the reported runs."""
        config = self.config
        strategy = _strategy(self.space, config)
        tried: dict[Candidate, float] = {}
        trail: list[dict[str, Any]] = []
        runs = 0
        for generation in range(config.generations):
            asked = strategy.ask()
            candidates = [self.decoded(vector) for vector in asked]
            seeds = config.generation_seeds(generation)
            values = yield from self.scores(candidates, seeds)
            strategy.tell(asked, values)
            tried.update(zip(candidates, values, strict=True))
            runs += len(candidates) * len(seeds) * len(config.tasks)
            mean = self.decoded(strategy.result.xfavorite)
            trail.append(_generation(generation, candidates, values, mean, float(strategy.sigma)))
            self._say(_line(trail[-1], config.generations))
        best = sorted(tried, key=lambda candidate: tried[candidate])
        finalists = list(dict.fromkeys([mean, *best]))[: config.finalists]
        values = yield from self.scores(finalists, config.finalists_seeds)
        runs += len(finalists) * len(config.finalists_seeds) * len(config.tasks)
        at = min(range(len(finalists)), key=lambda index: values[index])
        trail.append({"finalists": [_point(one, value) for one, value in zip(finalists, values, strict=True)]})
        records = yield self.specs(finalists[at], config.reported_seeds, reported=True)
        return Found(finalists[at], values[at], runs, trail, records)

    def mezo(self) -> Job[RunSpec, Found]:
        """MeZO's one learning rate on the √2 grid, with about as many runs, and its reported runs."""
        config = self.config
        found = yield from searched(
            config.lr_reach,
            lambda index: self.specs(self._mezo_at(index), config.mezo_seeds),
            _finite_score,
        )
        runs = len(found.values) * len(config.mezo_seeds) * len(config.tasks)
        chosen = self._mezo_at(found.best)
        trail: list[dict[str, Any]] = [
            {"lr": grid_lr(config.lr_start, index), "score": value} for index, value in sorted(found.values.items())
        ]
        trail.append({"interior": found.interior})
        records = yield self.specs(chosen, config.reported_seeds, reported=True)
        return Found(chosen, found.values[found.best], runs, trail, records)

    def _mezo_at(self, index: int) -> Candidate:
        return Candidate(None, grid_lr(self.config.lr_start, index))

    def decoded(self, vector: Sequence[float]) -> Candidate:
        """The candidate of a vector of the search: rounded coordinates, and log(lr / lr_start) at the end."""
        *coordinates, log_lr = (round(float(value), DECIMALS) for value in vector)
        return Candidate(tuple(coordinates), float(f"{self.config.lr_start * math.exp(log_lr):.6g}"))


def score(records: Sequence[Record]) -> float:
    """Mean of :func:`zoft.evolution.log_ratio` of final and zero-shot validation losses."""
    pairs = ((record["validation_loss"], record["zero_shot"]["validation_loss"]) for record in records)
    logs = [log_ratio(number(final), number(zero)) for final, zero in pairs]
    return sum(logs) / len(logs)


def _finite_score(records: Sequence[Record]) -> float:
    """The score, infinite where no run ended finite: the grid's search then tries smaller rates."""
    value = score(records)
    return value if value < CEILING else math.inf


def run_oracle(
    config: OracleConfig, *, say: Callable[[str], None] = print, factory: BenchFactory = language_model_bench
) -> Oracle:
    """Search, report, and write oracle.json, oracle.md and the tuner; runs that are kept are not made again.

    Args:
        say: takes lines of progress.
        factory: makes the model and the tasks; importable, because every process calls it.

    Raises:
        UsageError: a wrong space, task or tuner, a held-out task, or ``cma`` is not installed.
        ArtifactError, IncompatibleError: the base or the tuner cannot be read, or they do not fit.
        Interrupted: by Ctrl-C; every finished run is kept.
    """
    config, bench, arguments = prepared(config, factory)
    plan, folder = Plan(config, bench, say), Path(config.output_dir)
    store = RunStore(folder / RUNS_FILE)
    (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
    if len(store):
        say(f"{len(store)} finished runs are in {folder}; those that this search needs are reused")
    jobs: list[Job[RunSpec, Found]] = [plan.search(), plan.mezo()]
    executor = make_executor(config, bench, factory, arguments)
    try:
        found, mezo = drive(jobs, executor, store, _progress(say))
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {len(store)} finished runs are kept in {folder}", "Run the same command again to go on."
        ) from None
    finally:
        executor.close()
    content = oracle_report.content(config, bench, plan.space, found, mezo)
    table = oracle_report.markdown(content)
    oracle_report.write(folder / RESULT_FILE, content)
    (folder / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
    tuner = plan.space.tuner(found.candidate.coordinates or ()).recommending(
        lr=found.candidate.lr, epsilon=config.epsilon, batch_size=config.batch_size
    )
    tuner.provenance = {"tasks": list(config.tasks), "oracle": {"config": config.to_dict(), **content["found"]}}
    tuner.save_pretrained(folder / TUNER_FOLDER)
    return Oracle(folder, found, mezo, table, content)


def prepared(config: OracleConfig, factory: BenchFactory) -> tuple[OracleConfig, Bench, tuple[Any, ...]]:
    """The configuration with its tasks, the bench, and the factory's arguments; see :func:`run_oracle` for errors."""
    if config.search not in SPACES:
        raise UsageError(unknown("search space", config.search, SPACES))
    config = config.model_copy(update={"tasks": config.tasks or tasks_with_role("development")})
    arguments = bench_arguments(config, config.tasks)
    bench = factory(*arguments)
    held_out = [task for task in config.tasks if bench.roles.get(task) == "held-out"]
    if held_out:
        raise UsageError(f"{', '.join(held_out)}: nothing is chosen on a held-out task", "Search on development tasks.")
    return config, bench, arguments


def _strategy(space: SearchSpace, config: OracleConfig) -> Any:
    """CMA-ES over a space's coordinates and log lr."""
    generator = np.random.default_rng((config.seed, config.generations, config.population))
    return cma_es([*space.start, 0.0], [*space.spread, 0.5], space.bound, config.population, generator)


def _generation(
    number_of: int, candidates: Sequence[Candidate], values: Sequence[float], mean: Candidate, sigma: float
) -> dict[str, Any]:
    return {
        "generation": number_of + 1,
        "best": min(values),
        "median": float(np.median(values)),
        "sigma": sigma,
        "mean": {"coordinates": mean.coordinates, "lr": mean.lr},
        "candidates": [_point(candidate, value) for candidate, value in zip(candidates, values, strict=True)],
    }


def _point(candidate: Candidate, value: float) -> dict[str, Any]:
    return {"coordinates": candidate.coordinates, "lr": candidate.lr, "score": value}


def _line(entry: dict[str, Any], generations: int) -> str:
    return (
        f"generation {entry['generation']} of {generations}: best {entry['best']:.3f}, median {entry['median']:.3f}, "
        f"mean's lr {entry['mean']['lr']:.3g}, step size {entry['sigma']:.2f}"
    )


def _progress(say: Callable[[str], None], every: int = 25) -> Callable[[int, int, Record], None]:
    began = time.monotonic()

    def progress(made: int, outstanding: int, record: Record) -> None:
        if made % every == 0:
            passed = time.monotonic() - began
            say(f"[{passed:.0f} s] {made} runs made, {passed / made:.1f} s each, {outstanding} waiting")

    return progress
