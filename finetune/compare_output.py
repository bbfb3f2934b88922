"""What a comparison writes: tables, compare.json, plots, TensorBoard logs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune import plots, report, wins
from finetune.compare_config import REFERENCE, CompareConfig
from finetune.compare_jobs import GIVEN, TUNED, UNTUNED, Found, View
from finetune.methods import MethodPlan
from finetune.report import TaskSummary, number
from finetune.run_spec import Bench
from finetune.wins import Contest, Standing
from zoft.runs.reporters import TensorBoardReporter
from zoft.tuner.config import CONSTANT

RUNS_FILE, RESULT_FILE, TABLE_FILE, LRS_FILE = ("runs.jsonl", "compare.json", "compare.md", "recommended-lrs.yaml")

#: Version of compare.json.
RESULT_FORMAT = 1


def describe(config: CompareConfig, methods: Sequence[MethodPlan], choose_on: Sequence[str]) -> list[str]:
    """What will be compared, in a few lines."""
    budgets = config.all_budgets
    lines = [f"{len(methods)} methods on {', '.join(config.tasks)}; {_listed(budgets)} forward passes a run"]
    for method in methods:
        steps = _listed([forwards // method.forwards for forwards in budgets])
        course = "" if method.course == CONSTANT else f", learning rate {method.course} to 0"
        lines.append(f"  {method.label}: {steps} steps of {method.forwards} forwards{course}")
    if config.lr_mode == "search":
        grid = f"√2 grid from {config.lr_start:g}, chosen on seeds {_listed(config.chosen_on_seeds)}"
        lines.append(f"learning rates: {grid}")
        if UNTUNED in config.regimes:
            lines.append(f"untuned: one learning rate a method, chosen on {', '.join(choose_on)}")
    if config.lrs:
        given = [method.label for method in methods if method.label in config.lrs]
        rates = ", ".join(f"{label} {_rates(config.lrs[label])}" for label in given)
        lines.append(f"learning rates, given: {rates}")
    lines.append(f"reported seeds: {_listed(config.reported_seeds)}")
    return lines


def method_name(settings: Mapping[str, Any], config: CompareConfig) -> str:
    """How a run's method is called in lines of progress."""
    source = settings["tuner"]
    if source is None:
        return str(settings["optimizer"]) + "".join(f":{key}={value}" for key, value in settings["hyper"].items())
    label = next((label for label in config.tuners if source["folder"] in config.folders(label)), "")
    return " ".join(filter(None, (source["control"], label)))


def _rates(given: float | Mapping[str, float]) -> str:
    """Learning rates of ``lrs``: one, or each task's."""
    if isinstance(given, Mapping):
        return "(" + ", ".join(f"{task} {lr:g}" for task, lr in given.items()) + ")"
    return f"{given:g}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass(frozen=True)
class Summary:
    """A view, summarised.

    Attributes:
        contests: every tuner on every decided task; ``standings``: by tuner.
        reach: by task and label, the forwards to the reference's final loss in parts of the budget.
    """

    view: View
    tasks: list[TaskSummary]
    contests: list[Contest]
    standings: dict[str, Standing]
    reach: dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Written:
    """What :meth:`Output.write` made: see :class:`finetune.compare.Comparison`."""

    summaries: list[Summary]
    table: str
    verdict: str
    plots: list[Path]


class Output:
    """Summarises a comparison and writes its files.

    Args:
        notes: why some controls are missing.
        choose_on: the development tasks of the one learning rate.
    """

    def __init__(
        self,
        config: CompareConfig,
        bench: Bench,
        methods: Sequence[MethodPlan],
        notes: Sequence[str],
        choose_on: Sequence[str],
    ) -> None:
        self._config, self._bench, self._methods = config, bench, methods
        self._choose_on = choose_on
        self._folder = Path(config.output_dir)
        self._labels = [method.label for method in methods]
        self._reference = REFERENCE if REFERENCE in self._labels else self._labels[0]
        self._tuners = [method for method in methods if method.is_learned]
        missing = [name for name in config.rivals if name not in {method.optimizer for method in methods}]
        self._notes = list(notes)
        if self._tuners and missing:
            self._notes.append(f"not among the methods, and so no rivals here: {', '.join(missing)}")

    def write(self, views: Sequence[View]) -> Written:
        """Summarise the views and write everything."""
        summaries = self._summaries(views)
        crossed = self._untuned_against_tuned(summaries)
        untrained = {method.label: method.untrained for method in self._tuners if method.untrained}
        verdict = report.verdict(summaries[0].tasks, self._reference, untrained)
        table = self._table(summaries, crossed)
        (self._folder / TABLE_FILE).write_text(f"{table}\n{verdict}\n", encoding="utf-8")
        content = self._content(summaries, crossed, verdict)
        text = json.dumps(report.to_json(content), indent=1, ensure_ascii=False, allow_nan=False)
        (self._folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
        if views[0].recommended:
            lrs = report.recommendation_yaml(views[0].recommended, self._choose_on)
            (self._folder / LRS_FILE).write_text(lrs, encoding="utf-8")
        first = views[0].name
        images = [
            image
            for found in summaries
            for image in self._plot(found, "" if found.view.name == first else found.view.name)
        ]
        if self._config.tensorboard:
            for view in views:
                _tensorboard(self._folder, view.found)
        return Written(summaries, table, verdict, images)

    def rivals(self, tuner: MethodPlan) -> list[str]:
        """The labels that a tuner has to beat: the named methods and its controls."""
        named = [m.label for m in self._methods if not m.tuners and m.optimizer in self._config.rivals]
        return [*named, *tuner.controls]

    def _summaries(self, views: Sequence[View]) -> list[Summary]:
        tasks = [self._tasks(view) for view in views]
        decided = {
            (view.forwards, task.task)
            for view, found in zip(views, tasks, strict=True)
            for task in found
            if task.decided
        }
        return [
            self._summary(view, [replace(task, decided=(view.forwards, task.task) in decided) for task in found])
            for view, found in zip(views, tasks, strict=True)
        ]

    def _tasks(self, view: View) -> list[TaskSummary]:
        return [
            report.summarise_task(
                task,
                self._bench.roles.get(task, ""),
                {label: view.found[task, label].chosen for label in self._labels},
                self._reference,
                self._bench.chance.get(task),
                [method.label for method in self._methods if task in method.trained_on],
            )
            for task in self._config.tasks
        ]

    def _summary(self, view: View, tasks: list[TaskSummary]) -> Summary:
        reach = {
            task.task: {
                label: wins.reach(view.found[task.task, label].chosen, view.found[task.task, self._reference].chosen)
                for label in self._labels
            }
            for task in tasks
        }
        contests, standings = [], {}
        for tuner in self._tuners:
            rivals = self.rivals(tuner)
            if not rivals:
                continue
            mine = [wins.contest(task, tuner.label, rivals) for task in tasks if task.decided]
            contests += mine
            # Without MeZO the reference is another method, and nothing is to be said of MeZO.
            with_mezo = self._reference == REFERENCE
            reaches = {task: shares[tuner.label] for task, shares in reach.items() if with_mezo}
            standings[tuner.label] = wins.standing(tuner.label, tasks, mine, reaches, REFERENCE)
        return Summary(view, tasks, contests, standings, reach)

    def _untuned_against_tuned(self, summaries: Sequence[Summary]) -> list[dict[str, Any]]:
        """Every tuner untuned against MeZO tuned on each task, for each budget that has both."""
        by_name = {(found.view.regime, found.view.forwards): found for found in summaries}
        crossed = []
        for forwards in self._config.all_budgets:
            tuned, untuned = by_name.get((TUNED, forwards)), by_name.get((UNTUNED, forwards))
            if tuned is None or untuned is None or self._reference != REFERENCE:
                continue
            for tuner in self._tuners:
                for mine, other in zip(untuned.tasks, tuned.tasks, strict=True):
                    if not (mine.decided or other.decided):
                        continue
                    difference = wins.loss_difference(mine.cells[tuner.label], other.cells[REFERENCE])
                    found = {"label": tuner.label, "task": mine.task, "forwards": forwards}
                    crossed.append({**found, "outcome": wins.outcome(difference), "difference": asdict(difference)})
        return crossed

    def _table(self, summaries: Sequence[Summary], crossed: Sequence[Mapping[str, Any]]) -> str:
        parts = []
        for found in summaries:
            heading = f"## {found.view.regime}, {found.view.forwards} forward passes\n\n" if len(summaries) > 1 else ""
            text = report.markdown(found.tasks, self._reference, self._legend(found.view))
            parts.append(heading + text + wins.markdown(found.contests, found.standings))
        for label in dict.fromkeys(item["label"] for item in crossed):
            for forwards in self._config.all_budgets:
                mine = [item for item in crossed if item["label"] == label and item["forwards"] == forwards]
                count = sum(item["outcome"] == wins.WIN for item in mine)
                parts.append(
                    f"{label} with one learning rate against mezo with its best on each task, {forwards} forward "
                    f"passes: wins on {count} of {len(mine)} tasks.\n"
                )
        parts += ["\n".join(f"- {note}" for note in self._notes) + "\n"] if self._notes else []
        return "\n".join(parts)

    def _legend(self, view: View) -> list[str]:
        config = self._config
        steps = ", ".join(f"{label} {self._steps(view, label)}" for label in self._labels)
        seeds = f"{config.selection_seeds} other seeds"
        chosen = {
            TUNED: f"√2 grid, chosen by the mean final validation loss of {seeds}{self._but_given()}.",
            UNTUNED: f"one for each method on all tasks, chosen from a √2 grid on {', '.join(self._choose_on)} "
            f"by the mean of final / zero-shot validation loss of {seeds}.",
            GIVEN: f"one for each method on all tasks, given beforehand{self._but_by_task()}.",
        }[view.regime]
        falling = [f"{method.label} ({method.course})" for method in self._methods if method.course != CONSTANT]
        courses = f" They fall to 0 over the run: {', '.join(falling)}." if falling else ""
        return [
            f"{view.forwards} forward passes a run, evaluations apart (steps: {steps}); batch {config.batch_size}, "
            f"ε {config.epsilon:g}. Learning rates: {chosen}{courses}"
        ]

    def _but_given(self) -> str:
        given = [label for label in self._labels if label in self._config.lrs]
        return f"; given beforehand of {', '.join(given)}{self._but_by_task()}" if given else ""

    def _but_by_task(self) -> str:
        by_task = [label for label in self._labels if isinstance(self._config.lrs.get(label), Mapping)]
        return f", but {', '.join(by_task)}: one for each task" if by_task else ""

    def _steps(self, view: View, label: str) -> int:
        """The steps that fit into the budget, as a run that did not give up made them."""
        return max(record["steps"] for task in self._config.tasks for record in view.found[task, label].chosen.records)

    def _content(
        self, summaries: Sequence[Summary], crossed: Sequence[Mapping[str, Any]], verdict: str
    ) -> dict[str, Any]:
        """compare.json: the first view's figures at the top, then all views."""
        views = [{"regime": s.view.regime, "forwards": s.view.forwards, **self._figures(s)} for s in summaries]
        return {
            "format": RESULT_FORMAT,
            "zoft_version": metadata.version("zoft"),
            "config": self._config.to_dict(),
            "base": {
                "name": self._bench.base,
                "revision": self._bench.revision,
                "weights": self._bench.fingerprint,
            },
            "methods": {method.label: method.record() for method in self._methods},
            "reference": self._reference,
            **{key: views[0][key] for key in ("overall", "tasks", "search", "recommended")},
            "verdict": verdict,
            "rivals": {tuner.label: self.rivals(tuner) for tuner in self._tuners},
            "choose_on": list(self._choose_on),
            "notes": self._notes,
            "views": views,
            "untuned_against_tuned": list(crossed),
        }

    def _figures(self, summary: Summary) -> dict[str, Any]:
        found = summary.view.found
        return {
            "overall": {label: asdict(report.overall(summary.tasks, label)) for label in self._labels},
            "tasks": [asdict(task) for task in summary.tasks],
            "search": {
                task: {label: found[task, label].values for label in self._labels} for task in self._config.tasks
            },
            "recommended": dict(summary.view.recommended),
            "contests": [asdict(item) for item in summary.contests],
            "standings": {label: asdict(item) for label, item in summary.standings.items()},
            "reach": summary.reach,
            "curves": {
                task: {label: plots.curve(found[task, label].chosen.records) for label in self._labels}
                for task in self._config.tasks
            },
        }

    def _plot(self, summary: Summary, subfolder: str) -> list[Path]:
        images: list[Path] = []
        if not self._config.plots:
            return images
        folder, found = self._folder / "plots" / subfolder, summary.view.found
        for task in summary.tasks:
            runs = {label: found[task.task, label].chosen.records for label in self._labels}
            images.append(folder / f"{task.task}-loss.png")
            plots.plot_curves(images[-1], task.task, runs, undecided=not task.decided)
            if summary.view.regime == TUNED:
                values = {label: found[task.task, label].values for label in self._labels}
                zero = number(runs[self._labels[0]][0]["zero_shot"]["validation_loss"])
                images.append(folder / f"{task.task}-lr.png")
                plots.plot_search(images[-1], task.task, values, zero)
        return images


def _tensorboard(folder: Path, found: Mapping[tuple[str, str], Found]) -> None:
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
