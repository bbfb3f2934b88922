"""Comparing methods: every one at its own best learning rate, with the same number of forward passes.

What makes it a fair comparison, for every method alike:

- The learning rate is searched per method, task and budget: in factors of 2 until the best has been bracketed by a
  factor of 4 to either side, then in factors of √2 until both neighbours of the best were evaluated. The
  criterion is the mean final *validation* loss over the selection seeds. What is reported is the *test*
  loss of other seeds.
- At one seed all methods begin at the same weights, see the same batches in the same order and draw
  their directions from the same keys, so that differences are paired. The learning rate is constant, or
  falls to 0 by the schedule that a method's entry or a tuner names.
- The budget counts forward passes: a method whose step costs three makes fewer steps. Evaluations, and
  the audit of the model's structure at a run's first step, are not in the budget.
- The final weights are judged, never the best along the way.
- A tuner's controls are always among the methods: the same with no meta-training, with its scales permuted, with
  random directions, and biases alone (:mod:`finetune.controls`).
- That is the regime *tuned*. In the regime *untuned* every method has one learning rate for all tasks, found by the
  same search on development tasks alone: what a user gets who makes no search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.compare_config import CompareConfig
from finetune.compare_jobs import GIVEN, TUNED, UNTUNED, Found, Jobs, Single, View
from finetune.compare_output import RUNS_FILE, Output, Summary, describe, method_name
from finetune.compare_run import BenchFactory, language_model_bench
from finetune.executors import bench_arguments, make_executor
from finetune.methods import MethodPlan, pinned, plan_methods, with_all
from finetune.processes import Record
from finetune.report import TaskSummary
from finetune.run_spec import Bench, RunSpec
from finetune.sweep import Job, RunStore, all_there, drive
from zoft.config import unknown
from zoft.errors import Interrupted, UsageError
from zoft.tasks import tasks_with_role

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies.

    Attributes:
        folder: holds runs.jsonl, compare.json, compare.md, plots/ and tb/.
        tasks: the summary of every task, in the first regime and with the first budget.
        views: everything that was found in each regime with each budget, the first of all first.
        table: the Markdown tables. ``verdict``: one sentence.
        recommended: by method, ``lr`` and its score over the development tasks; empty if not searched.
        plots: the PNG files.
    """

    folder: Path
    tasks: list[TaskSummary]
    views: list[Summary]
    table: str
    verdict: str
    recommended: dict[str, dict[str, Any]]
    plots: list[Path]


def compare(
    config: CompareConfig,
    *,
    say: Callable[[str], None] = print,
    factory: BenchFactory = language_model_bench,
    role: str | None = None,
) -> Comparison:
    """Run a comparison; runs that are already in the output folder are not made again.

    Args:
        config: what to compare.
        say: takes lines of progress.
        factory: makes the model and the tasks; importable, because every process calls it.
        role: refuse tasks of any other role.

    Raises:
        UsageError: a wrong method, hyper-parameter, task or learning rate, or a task that a tuner was
            meta-trained on, or one learning rate to be chosen on anything but development tasks.
        ArtifactError, IncompatibleError: a base or tuner cannot be read, or they do not fit.
        Interrupted: by Ctrl-C; every finished run is kept.
    """
    tasks, optimizers = config.tasks or tasks_with_role("development"), with_all(config.optimizers)
    config = pinned(config.model_copy(update={"tasks": tasks, "optimizers": optimizers}))
    config = config.model_copy(update={"forwards": config.all_budgets[0]})
    bench, arguments, choose_on = _bench(config, factory)
    wrong = [task for task in config.tasks if role is not None and bench.roles.get(task) != role]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: no {role} task", f"Compare {role} tasks only.")
    methods, notes = plan_methods(config, bench)
    _check(config, methods)
    folder = Path(config.output_dir)
    store = RunStore(folder / RUNS_FILE)
    (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
    for line in describe(config, methods, choose_on):
        say(line)
    jobs = _jobs(config, bench, methods, choose_on)
    made = _make_runs(config, bench, factory, arguments, list(jobs.values()), store, say)
    views = _views(config, methods, dict(zip(jobs, made, strict=True)))
    written = Output(config, bench, methods, notes, choose_on).write(views)
    first = written.summaries[0]
    recommended = dict(first.view.recommended)
    return Comparison(
        folder, first.tasks, written.summaries, written.table, written.verdict, recommended, written.plots
    )


def finished(
    config: CompareConfig, *, factory: BenchFactory = language_model_bench
) -> dict[tuple[str, int], list[str]]:
    """The tasks of a comparison all of whose runs are in its output folder, by regime and budget; nothing is made.

    In the regime untuned these are all tasks or none.

    Raises:
        As :func:`compare`, of which this is a part, but for Interrupted.
    """
    optimizers = with_all(config.optimizers)
    config = pinned(config.model_copy(update={"optimizers": optimizers, "forwards": config.all_budgets[0]}))
    bench, _, choose_on = _bench(config, factory)
    methods, _ = plan_methods(config, bench)
    store = RunStore(Path(config.output_dir) / RUNS_FILE)
    lacking = {
        (regime, forwards, task)
        for (regime, forwards, _, task), job in _jobs(config, bench, methods, choose_on).items()
        if not all_there(job, store)
    }
    return {
        (regime, forwards): [
            task for task in config.tasks if not {(regime, forwards, task), (regime, forwards, "")} & lacking
        ]
        for regime in config.regimes
        for forwards in config.all_budgets
    }


def _bench(config: CompareConfig, factory: BenchFactory) -> tuple[Bench, tuple[Any, ...], list[str]]:
    """The bench, what the factory made it from, and the development tasks that one learning rate is chosen on."""
    given = bench_arguments(config, [*config.tasks, *(task for task in config.choose_on if task not in config.tasks)])
    bench = factory(*given)
    choose_on = config.choose_on or [task for task in config.tasks if bench.roles.get(task) == "development"]
    if UNTUNED in config.regimes and not choose_on:
        choose_on = tasks_with_role("development")
        given = bench_arguments(config, [*config.tasks, *choose_on])
        bench = factory(*given)
    wrong = [task for task in choose_on if bench.roles.get(task) != "development"]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} cannot choose a learning rate: not of the role development",
            "Give development tasks in choose_on.",
        )
    return bench, given, choose_on


#: What a job is for: regime, budget, method, and the task where there is one.
_Place = tuple[str, int, str, str]


def _jobs(
    config: CompareConfig, bench: Bench, methods: Sequence[MethodPlan], choose_on: Sequence[str]
) -> dict[_Place, Job[RunSpec, Any]]:
    """The jobs of all views; a single learning rate is also searched where it is only to be recommended."""
    make = Jobs(config, bench)
    jobs: dict[_Place, Job[RunSpec, Any]] = {}
    searching = config.lr_mode == "search"
    for forwards in config.all_budgets:
        if TUNED in config.regimes:
            for task in config.tasks:
                for method in methods:
                    jobs[TUNED, forwards, method.label, task] = make.pair(method, task, forwards)
        if searching and choose_on and (config.recommend or UNTUNED in config.regimes):
            reported = config.tasks if UNTUNED in config.regimes else []
            for method in (method for method in methods if method.label not in config.lrs):
                jobs[UNTUNED, forwards, method.label, ""] = make.single(method, forwards, choose_on, reported)
    return jobs


def _views(config: CompareConfig, methods: Sequence[MethodPlan], made: dict[_Place, Any]) -> list[View]:
    """What the jobs found, by regime and budget; the first regime of the first budget is first."""
    views = []
    for regime in config.regimes:
        for forwards in config.all_budgets:
            singles: dict[str, Single] = {
                m.label: made[UNTUNED, forwards, m.label, ""]
                for m in methods
                if (UNTUNED, forwards, m.label, "") in made
            }
            found: dict[tuple[str, str], Found] = {
                (task, m.label): made[TUNED, forwards, m.label, task]
                if regime == TUNED
                else singles[m.label].found[task]
                for task in config.tasks
                for m in methods
            }
            name = regime if config.lr_mode == "search" else GIVEN
            recommended = {label: single.recommended for label, single in singles.items()}
            views.append(View(name, forwards, found, recommended))
    return views


def _check(config: CompareConfig, methods: Sequence[MethodPlan]) -> None:
    """Raise a UsageError for what cannot be compared, or would prove nothing."""
    overlap = set(config.reported_seeds) & set(config.chosen_on_seeds)
    if overlap:
        raise UsageError(f"seeds {sorted(overlap)} would be both chosen on and reported", "Use other seeds.")
    labels = [method.label for method in methods]
    for label, given in config.lrs.items():
        if label not in labels:
            raise UsageError(unknown("method in lrs", label, labels))
        without = [task for task in config.tasks if isinstance(given, dict) and task not in given]
        if without:
            raise UsageError(f"lrs has no learning rate of {label} for {', '.join(without)}", "Add it, or search.")
    missing = [label for label in labels if config.lr_mode == "fixed" and label not in config.lrs]
    if missing:
        raise UsageError(f"lrs has no learning rate for {', '.join(missing)}", "Add them, or search.")
    for method in methods:
        seen = [task for task in (*config.tasks, *config.choose_on) if task in method.trained_on]
        if seen and not config.allow_meta_training_tasks:
            raise UsageError(
                f"tuner {method.label} was meta-trained on {', '.join(seen)}, so a result there is no evidence",
                "Leave the task out, or set allow_meta_training_tasks to see it anyway.",
            )
        if min(config.all_budgets) < method.forwards:
            raise UsageError(
                f"{min(config.all_budgets)} forward passes are less than one step of {method.label}", "Raise forwards."
            )


def _make_runs(
    config: CompareConfig,
    bench: Bench,
    factory: BenchFactory,
    arguments: tuple[Any, ...],
    jobs: Sequence[Job[RunSpec, Any]],
    store: RunStore,
    say: Callable[[str], None],
) -> list[Any]:
    if len(store):
        say(f"{len(store)} finished runs are in {config.output_dir}; those that this comparison needs are reused")
    executor = make_executor(config, bench, factory, arguments)
    began = time.monotonic()

    def progress(made: int, outstanding: int, record: Record) -> None:
        settings, loss = record["settings"], record["validation_loss"]
        end = "not finite" if loss is None else f"{loss:.4f}"
        budget = f" {settings['forwards']} forwards" if len(config.all_budgets) > 1 else ""
        say(
            f"[{time.monotonic() - began:5.0f} s, {made} made, {outstanding} waiting] {settings['task']} "
            f"{method_name(settings, config)}{budget} lr {settings['lr']:.2e} seed {settings['seed']}: "
            f"validation loss {end}"
        )

    try:
        return drive(jobs, executor, store, progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {len(store)} finished runs are kept in {config.output_dir}",
            "Run the same command again to go on.",
        ) from None
    finally:
        executor.close()
