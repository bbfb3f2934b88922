"""Comparing methods: every one at its own best learning rate, with the same number of forward passes.

What makes it a fair comparison, for every method alike:

- The learning rate is searched per method and task: in factors of 2 until the best has been bracketed by a
  factor of 4 to either side, then in factors of √2 until both neighbours of the best were evaluated. The
  criterion is the mean final *validation* loss over the selection seeds. What is reported is the *test*
  loss of other seeds.
- At one seed all methods begin at the same weights, see the same batches in the same order and draw
  their directions from the same keys, so that differences are paired. The learning rate is constant.
- The budget counts forward passes: a method whose step costs three makes fewer steps. Evaluations, and
  the audit of the model's structure at a run's first step, are not in the budget.
- The final weights are judged, never the best along the way.
- The tuner's control with the same initial values but no meta-training is always among the methods.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune import plots, report
from finetune.compare_config import REFERENCE, CompareConfig
from finetune.compare_run import Bench, BenchFactory, Runner, RunSpec, language_model_bench, make_runner
from finetune.methods import MethodPlan, pinned, plan_methods, with_all
from finetune.report import Chosen, TaskSummary, number
from finetune.sweep import Executor, InProcess, Job, Processes, Record, RunStore, Search, drive, grid_lr, search_grid
from zoft.config import unknown
from zoft.errors import Interrupted, UsageError
from zoft.runs.reporters import TensorBoardReporter
from zoft.tasks import tasks_with_role

RUNS_FILE, RESULT_FILE, TABLE_FILE, LRS_FILE, CONFIG_FILE = (
    "runs.jsonl",
    "compare.json",
    "compare.md",
    "recommended-lrs.yaml",
    "config.yaml",
)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies.

    Attributes:
        folder: holds runs.jsonl, compare.json, compare.md, plots/ and tb/.
        tasks: the summary of every task. ``table``: the Markdown table. ``verdict``: one sentence.
        recommended: by method, ``lr`` and its score over the development tasks; empty if not searched.
        plots: the PNG files.
    """

    folder: Path
    tasks: list[TaskSummary]
    table: str
    verdict: str
    recommended: dict[str, dict[str, Any]]
    plots: list[Path]


@dataclass(frozen=True)
class _Found:
    """What a job found for one method on one task."""

    chosen: Chosen
    values: Mapping[float, float]


def compare(
    config: CompareConfig,
    *,
    say: Callable[[str], None] = print,
    factory: BenchFactory = language_model_bench,
) -> Comparison:
    """Run a comparison; runs that are already in the output folder are not made again.

    Args:
        config: what to compare.
        say: takes lines of progress.
        factory: makes the model and the tasks; importable, because every process calls it.

    Raises:
        UsageError: a wrong method, hyper-parameter, task or learning rate, or a task that a tuner was
            meta-trained on.
        ArtifactError, IncompatibleError: a base or tuner cannot be read, or they do not fit.
        Interrupted: by Ctrl-C; every finished run is kept.
    """
    tasks, optimizers = config.tasks or tasks_with_role("development"), with_all(config.optimizers)
    config = pinned(config.model_copy(update={"tasks": tasks, "optimizers": optimizers}))
    arguments: tuple[Any, ...] = (config.base, tuple(config.tasks), config.device, config.dtype)
    arguments += (config.data_dir,) if config.data_dir else ()
    bench = factory(*arguments)
    methods = plan_methods(config, bench)
    _check(config, methods)
    folder = Path(config.output_dir)
    store = RunStore(folder / RUNS_FILE)
    (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
    for line in describe(config, methods):
        say(line)
    pairs = [(method, task) for task in config.tasks for method in methods]
    grid = _Grid(config, bench)
    jobs: list[Job[RunSpec, Any]] = [grid.pair(method, task) for method, task in pairs]
    development = [task for task in config.tasks if bench.roles.get(task) == "development"]
    recommending = config.recommend and config.lr_mode == "search" and bool(development)
    jobs += [grid.single_lr(method, development) for method in methods] if recommending else []
    found = _make_runs(config, bench, factory, arguments, jobs, store, say)
    by_pair = {(task, method.label): result for (method, task), result in zip(pairs, found, strict=False)}
    recommended = {m.label: r for m, r in zip(methods, found[len(pairs) :], strict=True)} if recommending else {}
    return _write(config, bench, methods, by_pair, recommended, development)


def describe(config: CompareConfig, methods: Sequence[MethodPlan]) -> list[str]:
    """What will be compared, in a few lines."""
    lines = [f"{len(methods)} methods on {', '.join(config.tasks)}; {config.forwards} forward passes a run"]
    for method in methods:
        lines.append(f"  {method.label}: {config.forwards // method.forwards} steps of {method.forwards} forwards")
    if config.lr_mode == "search":
        lines.append(
            f"learning rates: √2 grid from {config.lr_start:g}, chosen on seeds {_listed(config.chosen_on_seeds)}"
        )
    else:
        rates = ", ".join(f"{method.label} {config.lrs[method.label]:g}" for method in methods)
        lines.append(f"learning rates, given: {rates}")
    lines.append(f"reported seeds: {_listed(config.reported_seeds)}")
    return lines


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _check(config: CompareConfig, methods: Sequence[MethodPlan]) -> None:
    """Raise a UsageError for what cannot be compared, or would prove nothing."""
    overlap = set(config.reported_seeds) & set(config.chosen_on_seeds)
    if overlap:
        raise UsageError(f"seeds {sorted(overlap)} would be both chosen on and reported", "Use other seeds.")
    labels = [method.label for method in methods]
    if config.lr_mode == "fixed":
        for label in config.lrs:
            if label not in labels:
                raise UsageError(unknown("method in lrs", label, labels))
        missing = [label for label in labels if label not in config.lrs]
        if missing:
            raise UsageError(f"lrs has no learning rate for {', '.join(missing)}", "Add them, or search.")
    for method in methods:
        seen = [task for task in config.tasks if task in method.trained_on]
        if seen and not config.allow_meta_training_tasks:
            raise UsageError(
                f"tuner {method.label} was meta-trained on {', '.join(seen)}, so a result there is no evidence",
                "Leave the task out, or set allow_meta_training_tasks to see it anyway.",
            )
        if config.forwards < method.forwards:
            raise UsageError(
                f"{config.forwards} forward passes are less than one step of {method.label}", "Raise forwards."
            )


class _Grid:
    """The runs of a comparison, as jobs for :func:`finetune.sweep.drive`."""

    def __init__(self, config: CompareConfig, bench: Bench) -> None:
        self._config = config
        self._bench = bench

    def spec(self, method: MethodPlan, task: str, lr: float, seed: int, reported: bool) -> RunSpec:
        """The settings of one run: only reported runs see the test split."""
        config = self._config
        return RunSpec(
            fingerprint=self._bench.fingerprint,
            data=self._bench.data.get(task, ""),
            task=task,
            optimizer=method.optimizer,
            hyper=method.hyper,
            tuner=method.tuner,
            lr=lr,
            epsilon=config.epsilon,
            seed=seed,
            forwards=config.forwards,
            batch_size=config.batch_size,
            eval_points=config.eval_points if reported else 1,
            validation_examples=config.validation_examples,
            test=reported,
            test_examples=config.test_examples if reported else None,
            noise=config.noise,
        )

    def pair(self, method: MethodPlan, task: str) -> Job[RunSpec, _Found]:
        """One method on one task: its learning rate, then the reported runs."""
        if self._config.lr_mode == "fixed":
            lr, interior, search_runs, values = self._config.lrs[method.label], None, 0, {}
        else:
            search = yield from self._search(method, [task], _mean_loss)
            lr = grid_lr(self._config.lr_start, search.best)
            interior = search.interior
            values = {grid_lr(self._config.lr_start, index): loss for index, loss in search.values.items()}
            search_runs = len(values) * self._config.selection_seeds
        records = yield [self.spec(method, task, lr, seed, True) for seed in self._config.reported_seeds]
        return _Found(Chosen(lr, interior, search_runs, records), values)

    def single_lr(self, method: MethodPlan, tasks: Sequence[str]) -> Job[RunSpec, dict[str, Any]]:
        """The one learning rate with the best mean of final loss / zero-shot loss over tasks and seeds."""
        search = yield from self._search(method, tasks, _mean_ratio)
        start = self._config.lr_start
        return {
            "lr": float(f"{grid_lr(start, search.best):.4g}"),
            "interior": search.interior,
            "score": search.values[search.best],
            "scores": {f"{grid_lr(start, index):.4g}": score for index, score in sorted(search.values.items())},
        }

    def _search(
        self, method: MethodPlan, tasks: Sequence[str], score: Callable[[Sequence[Record]], float]
    ) -> Generator[Sequence[RunSpec], Sequence[Record], Search]:
        """Search the grid by the score of an index's runs on ``tasks`` with all selection seeds."""
        search = search_grid(self._config.lr_reach)
        wanted = next(search)
        while True:
            specs = [
                [
                    self.spec(method, task, grid_lr(self._config.lr_start, index), seed, False)
                    for task in tasks
                    for seed in self._config.chosen_on_seeds
                ]
                for index in wanted
            ]
            records = yield [spec for group in specs for spec in group]
            size = len(specs[0])
            values = {index: score(records[at * size : (at + 1) * size]) for at, index in enumerate(wanted)}
            try:
                wanted = search.send(values)
            except StopIteration as end:
                found: Search = end.value
                return found


def _mean_loss(records: Sequence[Record]) -> float:
    """Mean final validation loss; infinite where a run did not end finite."""
    return sum(number(record["validation_loss"]) for record in records) / len(records)


def _mean_ratio(records: Sequence[Record]) -> float:
    """Mean of final validation loss / zero-shot validation loss."""
    ratios = [number(r["validation_loss"]) / number(r["zero_shot"]["validation_loss"]) for r in records]
    return sum(ratios) / len(ratios)


def _make_runs(
    config: CompareConfig,
    bench: Bench,
    factory: BenchFactory,
    arguments: tuple[Any, ...],
    jobs: Sequence[Job[RunSpec, Any]],
    store: RunStore,
    say: Callable[[str], None],
) -> list[Any]:
    count = config.workers or (len(os.sched_getaffinity(0)) if config.device == "cpu" else 1)
    if len(store):
        say(f"{len(store)} finished runs are in {config.output_dir}; those that this comparison needs are reused")
    executor: Executor
    if count == 1:
        executor = InProcess(Runner(bench, config.keep_bytes, config.threads))
    else:
        executor = Processes(count, make_runner, (factory, arguments, config.keep_bytes, config.threads))
    began = time.monotonic()

    def progress(made: int, outstanding: int, record: Record) -> None:
        settings, loss = record["settings"], record["validation_loss"]
        end = "not finite" if loss is None else f"{loss:.4f}"
        name = settings["optimizer"] if settings["tuner"] is None else _tuner_name(settings["tuner"], config)
        name += "".join(f":{key}={value}" for key, value in settings["hyper"].items())
        say(
            f"[{time.monotonic() - began:5.0f} s, {made} made, {outstanding} waiting] {settings['task']} {name} "
            f"lr {settings['lr']:.2e} seed {settings['seed']}: validation loss {end}"
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


def _tuner_name(source: Mapping[str, Any], config: CompareConfig) -> str:
    label = next((label for label, folder in config.tuners.items() if folder == source["folder"]), "")
    return " ".join(filter(None, ("untrained" if source["untrained"] else "", label)))


def _write(
    config: CompareConfig,
    bench: Bench,
    methods: Sequence[MethodPlan],
    found: Mapping[tuple[str, str], _Found],
    recommended: dict[str, dict[str, Any]],
    development: Sequence[str],
) -> Comparison:
    """Summarise, and write table, JSON, plots and TensorBoard logs."""
    folder = Path(config.output_dir)
    labels = [method.label for method in methods]
    reference = REFERENCE if REFERENCE in labels else labels[0]
    tasks = [
        report.summarise_task(
            task,
            bench.roles.get(task, ""),
            {label: found[task, label].chosen for label in labels},
            reference,
            bench.chance.get(task),
            [method.label for method in methods if task in method.trained_on],
        )
        for task in config.tasks
    ]
    notes = _notes(config, methods)
    table = report.markdown(tasks, reference, notes)
    verdict = report.verdict(tasks, reference, {m.label: m.control for m in methods if m.control})
    (folder / TABLE_FILE).write_text(f"{table}\n{verdict}\n", encoding="utf-8")
    content = {
        "format": 1,
        "zoft_version": metadata.version("zoft"),
        "config": config.to_dict(),
        "base": {"name": bench.base, "revision": bench.revision, "weights": bench.fingerprint},
        "methods": {method.label: method.record() for method in methods},
        "reference": reference,
        "overall": {label: asdict(report.overall(tasks, label)) for label in labels},
        "tasks": [asdict(task) for task in tasks],
        "search": {task: {label: found[task, label].values for label in labels} for task in config.tasks},
        "recommended": recommended,
        "verdict": verdict,
    }
    text = json.dumps(report.to_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
    if recommended:
        (folder / LRS_FILE).write_text(report.recommendation_yaml(recommended, development), encoding="utf-8")
    images = _plot(folder, config, tasks, found, labels)
    if config.tensorboard:
        _tensorboard(folder, found)
    return Comparison(folder, tasks, table, verdict, recommended, images)


def _notes(config: CompareConfig, methods: Sequence[MethodPlan]) -> list[str]:
    steps = ", ".join(f"{method.label} {config.forwards // method.forwards}" for method in methods)
    chosen = (
        f"Learning rates: √2 grid, chosen by the mean final validation loss of {config.selection_seeds} other seeds."
        if config.lr_mode == "search"
        else "Learning rates: one for each method on all tasks, given beforehand."
    )
    return [
        f"{config.forwards} forward passes a run, evaluations apart (steps: {steps}); batch {config.batch_size}, "
        f"ε {config.epsilon:g}. {chosen}"
    ]


def _plot(
    folder: Path,
    config: CompareConfig,
    tasks: Sequence[TaskSummary],
    found: Mapping[tuple[str, str], _Found],
    labels: Sequence[str],
) -> list[Path]:
    images = []
    for task in tasks:
        runs = {label: found[task.task, label].chosen.records for label in labels}
        images.append(folder / "plots" / f"{task.task}-loss.png")
        plots.plot_curves(images[-1], task.task, runs, undecided=not task.decided)
        if config.lr_mode == "search":
            values = {label: found[task.task, label].values for label in labels}
            zero = number(runs[labels[0]][0]["zero_shot"]["validation_loss"])
            images.append(folder / "plots" / f"{task.task}-lr.png")
            plots.plot_search(images[-1], task.task, values, zero)
    return images


def _tensorboard(folder: Path, found: Mapping[tuple[str, str], _Found]) -> None:
    """The reported runs' losses by forward passes; a log that is there already is left alone."""
    for (task, label), result in found.items():
        for record in result.chosen.records:
            name = re.sub(r"[^A-Za-z0-9._+-]", "-", label)
            target = folder / "tb" / task / name / f"seed-{record['settings']['seed']}-{record['key'][:8]}"
            if target.is_dir():
                continue
            reporter = TensorBoardReporter(target)
            for forwards, loss, training in record["curve"]:
                values = {"validation/loss": loss, "train/loss": training}
                reporter.scalars(forwards, {key: value for key, value in values.items() if value is not None})
            if record["test_loss"] is not None:
                reporter.scalars(record["forwards"], {"test/loss": record["test_loss"]})
            reporter.close()
