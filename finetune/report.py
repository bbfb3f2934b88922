"""From the records of a comparison to its summary, its Markdown table and the recommended learning rates.

Conventions, the same for every method:

- A run has diverged when it ended early or its loss is not finite, or when its loss is no better than the
  zero-shot loss. A loss that is not finite counts as infinite in means and comparisons.
- A task is decided when some method's mean test loss is below the zero-shot loss and below the loss of
  guessing, by 2 % or more and beyond the spread over seeds. Other tasks are left out of every count.
- Differences are taken seed by seed (same data order, same initial weights, same noise keys). A method is
  ahead or behind on a task where the 95 % interval of the mean difference (:mod:`finetune.intervals`) excludes zero.
- A tuner that was learned with several seeds is one method: its runs are those of every tuner seed with every
  run seed, and each is paired with the others' run of the same run seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from finetune.intervals import differences, interval
from finetune.processes import Record

#: How far below zero-shot and guessing, relative to them, a mean loss must lie for a task to be decided.
DECIDED_MARGIN = 0.02

_UNDECIDED = f"no method is {DECIDED_MARGIN:.0%} below zero-shot, beyond the spread over its seeds"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation is NaN for fewer than two values."""

    mean: float
    sd: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of values of which infinite ones make the mean infinite."""
        count = len(values)
        mean = sum(values) / count if count else math.nan
        if count < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, count)
        return cls(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1)), count)


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        lr: the learning rate of the reported runs; ``interior``: whether the search bracketed it (None
            where it was given).
        seeds: reported run seeds. ``loss``, ``metric``: final test losses and metrics, by tuner seed where there are
            several, then by run seed.
        divergences: number of reported runs that diverged; ``not_finite`` of them did not end finite.
        search_runs: number of runs the learning rate was chosen with.
        difference: loss minus the reference's, seed by seed; None for the reference itself. ``interval``: low and
            high end of the 95 % interval of its mean.
        wins, losses: number of runs with a smaller, a larger loss than the reference's.
        outcome: ``ahead``, ``behind`` or ``open`` against the reference; empty for the reference itself.
    """

    lr: float
    interior: bool | None
    seeds: list[int]
    loss: list[float]
    metric: list[float]
    divergences: int
    not_finite: int
    search_runs: int
    seconds: float
    difference: list[float] | None = None
    interval: tuple[float, float] | None = None
    wins: int = 0
    losses: int = 0
    outcome: str = ""


@dataclass(frozen=True)
class TaskSummary:
    """All methods on one task.

    Attributes:
        role: the task's role. ``seen_by``: labels of the tuners that were meta-trained on it.
        zero_shot_loss, zero_shot_metric: of the base on the test split; ``chance``: the loss of guessing.
        decided: whether the task decides anything; see the module's conventions.
    """

    task: str
    role: str
    metric: str
    zero_shot_loss: float
    zero_shot_metric: float
    chance: float | None
    decided: bool
    cells: dict[str, Cell]
    seen_by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chosen:
    """A learning rate, how it was come by, and its reported runs: input of :func:`summarise_task`.

    Attributes:
        records: by tuner seed, then by run seed; ``tuners``: the number of tuner seeds, 1 without a tuner.
    """

    lr: float
    interior: bool | None
    search_runs: int
    records: Sequence[Record]
    tuners: int = 1


def number(value: float | None) -> float:
    """A record's number: null is not finite and counts as infinite."""
    return math.inf if value is None else float(value)


def summarise_task(
    task: str,
    role: str,
    chosen: Mapping[str, Chosen],
    reference: str,
    chance: float | None = None,
    seen_by: Sequence[str] = (),
) -> TaskSummary:
    """Summarise the reported runs of every method on one task.

    Args:
        chosen: by label; the records of all methods are of the same seeds, in the same order.
        reference: label of the method that the others are paired with.
    """
    first = next(iter(chosen.values())).records[0]
    zero = number(first["zero_shot"]["test_loss"])
    cells = {label: _cell(choice) for label, choice in chosen.items()}
    base = cells[reference]
    paired = {label: cell if label == reference else _paired(cell, base) for label, cell in cells.items()}
    limit = min(zero, chance) if chance is not None else zero
    return TaskSummary(
        task=task,
        role=role,
        metric=first["metric"] or "",
        zero_shot_loss=zero,
        zero_shot_metric=number(first["zero_shot"]["test_metric"]) if first["metric"] else math.nan,
        chance=chance,
        decided=any(_leaves(cell, limit) for cell in cells.values()),
        cells=paired,
        seen_by=list(seen_by),
    )


def _cell(choice: Chosen) -> Cell:
    records = choice.records
    return Cell(
        lr=choice.lr,
        interior=choice.interior,
        seeds=[record["settings"]["seed"] for record in records[: len(records) // choice.tuners]],
        loss=[math.inf if record["diverged"] == "not finite" else number(record["test_loss"]) for record in records],
        metric=[number(record["test_metric"]) for record in records if record["metric"]],
        divergences=sum(record["diverged"] is not None for record in records),
        not_finite=sum(record["diverged"] == "not finite" for record in records),
        search_runs=choice.search_runs,
        seconds=sum(record["seconds"] for record in records) / len(records),
    )


def _paired(cell: Cell, base: Cell) -> Cell:
    if cell.seeds != base.seeds:
        raise ValueError("methods are paired by seed, and these runs are of different seeds")
    table = differences(cell.loss, base.loss, len(cell.seeds))
    found = interval(table)
    return replace(
        cell,
        difference=table.ravel().tolist(),
        interval=(found.low, found.high),
        wins=int((table < 0).sum()),
        losses=int((table > 0).sum()),
        outcome="ahead" if found.below else "behind" if found.above else "open",
    )


def _leaves(cell: Cell, limit: float) -> bool:
    """Whether a method's mean loss is below ``limit`` by the margin, beyond the spread over seeds."""
    found = interval(np.reshape(cell.loss, (-1, len(cell.seeds))))
    beyond = len(cell.loss) < 2 or found.high < limit
    return limit - found.mean >= DECIDED_MARGIN * limit and beyond


@dataclass(frozen=True)
class Overall:
    """A method over the decided tasks.

    Attributes:
        metric: mean over tasks of the mean metric, over decided tasks; ``loss_ratio``: mean over tasks of
            mean loss / zero-shot loss.
        better, worse: on how many tasks the mean loss is below, above the reference's; ``ahead`` and
            ``behind``: on how many of them beyond the 95 % interval.
        pairs_won, pairs_lost: runs with a smaller, a larger loss than the reference's.
        divergences, runs: over all tasks, undecided ones too.
    """

    metric: float
    loss_ratio: float
    better: int
    worse: int
    ahead: int
    behind: int
    pairs_won: int
    pairs_lost: int
    divergences: int
    runs: int


def overall(tasks: Sequence[TaskSummary], label: str) -> Overall:
    """Summarise one method over tasks."""
    decided = [(task, task.cells[label]) for task in tasks if task.decided]
    means = [sum(cell.difference) if cell.difference else 0.0 for _, cell in decided]
    metrics = [sum(cell.metric) / len(cell.metric) for _, cell in decided if cell.metric]
    ratios = [Spread.of(cell.loss).mean / task.zero_shot_loss for task, cell in decided]
    return Overall(
        metric=_mean(metrics),
        loss_ratio=_mean(ratios),
        better=sum(mean < 0 for mean in means),
        worse=sum(mean > 0 for mean in means),
        ahead=sum(cell.outcome == "ahead" for _, cell in decided),
        behind=sum(cell.outcome == "behind" for _, cell in decided),
        pairs_won=sum(cell.wins for _, cell in decided),
        pairs_lost=sum(cell.losses for _, cell in decided),
        divergences=sum(task.cells[label].divergences for task in tasks),
        runs=sum(len(task.cells[label].loss) for task in tasks),
    )


def markdown(tasks: Sequence[TaskSummary], reference: str, notes: Iterable[str] = ()) -> str:
    """The overall table, a table for every task, and what the columns mean."""
    labels = list(tasks[0].cells)
    decided = [task for task in tasks if task.decided]
    lines = ["| " + " | ".join(("method", "metric", "loss / zero-shot", f"tasks vs {reference}", "seeds", "diverged"))]
    lines[0] += " |"
    lines.append("|---|---|---|---|---|---|")
    for label in labels:
        total = overall(tasks, label)
        against, pairs = "", ""
        if label != reference:
            against = f"{total.better} better ({total.ahead} clear), {total.worse} worse ({total.behind} clear)"
            pairs = f"{total.pairs_won} : {total.pairs_lost}"
        row = (label, _plain(total.metric), _plain(total.loss_ratio), against, pairs)
        lines.append("| " + " | ".join(row) + f" | {total.divergences} of {total.runs} |")
    undecided = [task.task for task in tasks if not task.decided]
    lines += ["", f"Counted: {', '.join(task.task for task in decided) or 'no task'}."]
    if undecided:
        lines.append(f"Undecided, left out of the counts ({_UNDECIDED}): {', '.join(undecided)}.")
    for task in tasks:
        lines += ["", *_task_lines(task, reference)]
    lines += ["", *_legend(tasks, reference), *notes]
    return "\n".join(lines) + "\n"


def verdict(tasks: Sequence[TaskSummary], reference: str, controls: Mapping[str, str]) -> str:
    """Who had the lowest loss, and how every tuner did against the reference and its untrained control.

    Args:
        controls: by label of a tuner, the label of its untrained control.
    """
    decided = [task for task in tasks if task.decided]
    if not decided:
        return "No task is decided: no method left zero-shot within the budget."
    ratios = {label: overall(tasks, label).loss_ratio for label in decided[0].cells}
    least = min(ratios.values())
    lowest = " and ".join(label for label, ratio in ratios.items() if ratio == least)
    count = f"{len(decided)} decided task" + "s" * (len(decided) > 1)
    parts = [f"Lowest mean of test loss / zero-shot loss over {count}: {lowest} ({_plain(least)})"]
    for label, control in controls.items():
        total = overall(tasks, label)
        below = sum(
            Spread.of(task.cells[label].loss).mean < Spread.of(task.cells[control].loss).mean for task in decided
        )
        parts.append(
            f"{label} ({_plain(ratios[label])}) against {reference}: better on {total.better} ({total.ahead} clear), "
            f"worse on {total.worse} ({total.behind} clear); against {control}: better on {below} of {len(decided)}"
        )
    return ". ".join(parts) + "."


def _task_lines(task: TaskSummary, reference: str) -> list[str]:
    metric = task.metric or "metric"
    zero = f"zero-shot: loss {_plain(task.zero_shot_loss)}"
    zero += f", {metric} {_plain(task.zero_shot_metric)}" if task.metric else ""
    zero += f"; guessing: loss {_plain(task.chance)}" if task.chance is not None else ""
    state = "" if task.decided else ", undecided"
    seen = f", meta-trained on by {', '.join(task.seen_by)}: no evidence" if task.seen_by else ""
    lines = [
        f"**{task.task}** ({task.role}{state}{seen}; {zero})",
        "",
        f"| method | lr | test loss | {metric} | loss − {reference} | seeds | diverged |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, cell in task.cells.items():
        rate = f"{cell.lr:.2e}" + ("*" if cell.interior is False else "")
        difference, pairs = "", ""
        if cell.difference is not None:
            difference = _with_spread(cell.difference, signed=True) + {"ahead": " ▼", "behind": " ▲"}.get(
                cell.outcome, ""
            )
            pairs = f"{cell.wins} : {cell.losses}"
        row = (label, rate, _with_spread(cell.loss), _with_spread(cell.metric), difference, pairs)
        lines.append("| " + " | ".join(row) + f" | {cell.divergences} of {len(cell.loss)} |")
    return lines


def _legend(tasks: Sequence[TaskSummary], reference: str) -> list[str]:
    cell = next(iter(tasks[0].cells.values()))
    lines = [
        f"Mean ± standard deviation over {len(cell.seeds)} seeds. Differences to {reference} are paired by seed; "
        "▼ below, ▲ above it: the 95 % interval (bootstrap, at least Student's t) excludes zero. "
        "seeds: won : lost against it, ties in neither. "
        "diverged: not finite, or a final test loss no better than zero-shot. ∞: a run did not end finite.",
    ]
    if any(cell.interior is False for task in tasks for cell in task.cells.values()):
        lines.append("*: the best learning rate lies at the end of the grid's reach, so it is not bracketed.")
    return lines


def recommendation_yaml(recommended: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """A piece of a comparison's configuration that uses one learning rate for every method."""
    content = yaml.safe_dump(
        {"lr_mode": "fixed", "lrs": {label: found["lr"] for label, found in recommended.items()}}, sort_keys=False
    )
    return f"# The best single learning rate of every method over the development tasks {', '.join(tasks)}.\n{content}"


def to_json(value: Any) -> Any:
    """``value`` with every number that is not finite as null, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _plain(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value:.4f}"


def _with_spread(values: Sequence[float], signed: bool = False) -> str:
    spread = Spread.of(values)
    text = _plain(spread.mean)
    if signed and spread.mean > 0:
        text = f"+{text}"
    return text if math.isnan(spread.sd) else f"{text} ± {spread.sd:.4f}"
