"""Who wins: every tuner against the best of its rivals and controls, and how soon it is where MeZO ends.

- A tuner *wins* on a task where the interval of its test loss minus that of its best rival lies below zero, and
  *loses* where it lies above. The best rival is the one with the lowest mean test loss on the reported seeds among
  the named rivals and all controls of the tuner, so that a rival that was lucky is the one to be beaten.
- Runs are paired by run seed. Where a tuner was learned with several seeds, all its runs count, and the interval
  covers both kinds of seeds (:mod:`finetune.intervals`).
- Who has diverged in the mean, being no better than zero-shot, wins nothing.
- Tasks that are undecided are left out of all counts. Whether a task is decided at a budget is a matter of all
  regimes: one that some method learns when tuned counts untuned too, where all of them may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.intervals import Interval, differences, interval
from finetune.report import Cell, Chosen, Spread, TaskSummary, number

WIN, LOSS, OPEN = "win", "loss", "open"


@dataclass(frozen=True)
class Contest:
    """One tuner against its rivals on one task.

    Attributes:
        rival: label of the best rival.
        outcome: ``win``, ``loss`` or ``open`` against it.
        difference: test loss minus the best rival's.
        against: outcome against every rival by itself.
    """

    task: str
    label: str
    rival: str
    outcome: str
    difference: Interval
    against: dict[str, str]


def loss_difference(mine: Cell, other: Cell) -> Interval:
    """The test loss minus the other's, paired by run seed."""
    return interval(differences(mine.loss, other.loss, len(mine.seeds)))


def outcome(difference: Interval) -> str:
    """``win`` where the interval lies below zero, ``loss`` where above."""
    return WIN if difference.below else LOSS if difference.above else OPEN


def contest(task: TaskSummary, label: str, rivals: Sequence[str]) -> Contest:
    """``label`` against ``rivals`` on a task.

    Raises:
        ValueError: there is no rival.
    """
    mine = task.cells[label]
    best = min(rivals, key=lambda rival: Spread.of(task.cells[rival].loss).mean)
    against = {rival: loss_difference(mine, task.cells[rival]) for rival in rivals}
    learns = Spread.of(mine.loss).mean < task.zero_shot_loss
    outcomes = {rival: outcome(found) for rival, found in against.items()}
    outcomes = {rival: OPEN if found == WIN and not learns else found for rival, found in outcomes.items()}
    return Contest(task.task, label, best, outcomes[best], against[best], outcomes)


@dataclass(frozen=True)
class Standing:
    """A tuner over the decided tasks.

    Attributes:
        wins, losses, tasks: against the best rival, and the number of decided tasks.
        over: wins over every rival by itself.
        log_ratio: mean over tasks of log(test loss / the best rival's).
        metric: mean over tasks of the metric minus MeZO's; None without MeZO or metrics.
        reach: median over tasks and runs of the forwards to MeZO's final loss, in parts of the budget; of
            ``reach_runs`` runs, None of none.
        diverged, runs: over all tasks, undecided ones too.
    """

    wins: int
    losses: int
    tasks: int
    over: dict[str, int]
    log_ratio: Interval | None
    metric: Interval | None
    reach: float | None
    reach_runs: int
    diverged: int
    runs: int


def standing(
    label: str,
    tasks: Sequence[TaskSummary],
    contests: Sequence[Contest],
    reaches: Mapping[str, Sequence[float]],
    reference: str,
) -> Standing:
    """Summarise the contests of the tuner ``label``.

    Args:
        tasks: all tasks; ``contests``: one for every decided one.
        reaches: by task, what :func:`reach` gave.
        reference: label of MeZO.
    """
    by_name = {task.task: task for task in tasks}
    pairs = [(by_name[found.task].cells[label], by_name[found.task].cells[found.rival]) for found in contests]
    with_metric = [
        (by_name[found.task].cells[label], by_name[found.task].cells[reference])
        for found in contests
        if reference in by_name[found.task].cells and by_name[found.task].cells[label].metric
    ]
    shares = [share for found in contests for share in reaches.get(found.task, ())]
    cells = [task.cells[label] for task in tasks]
    return Standing(
        wins=sum(found.outcome == WIN for found in contests),
        losses=sum(found.outcome == LOSS for found in contests),
        tasks=len(contests),
        over={rival: sum(found.against.get(rival) == WIN for found in contests) for rival in _rivals(contests)},
        log_ratio=over_tasks([log_ratios(mine, other) for mine, other in pairs]),
        metric=over_tasks([differences(mine.metric, other.metric, len(mine.seeds)) for mine, other in with_metric]),
        reach=median(shares),
        reach_runs=len(shares),
        diverged=sum(cell.divergences for cell in cells),
        runs=sum(len(cell.loss) for cell in cells),
    )


def _rivals(contests: Sequence[Contest]) -> list[str]:
    return list(dict.fromkeys(rival for found in contests for rival in found.against))


def log_ratios(mine: Cell, other: Cell) -> np.ndarray:
    """log(test loss / the other's), paired by run seed: [tuner seeds, run seeds]; of equal losses 0."""
    with np.errstate(divide="ignore"):
        logs = [np.log(np.asarray(cell.loss)) for cell in (mine, other)]
    return differences(list(logs[0]), list(logs[1]), len(mine.seeds))


def over_tasks(tables: Sequence[np.ndarray]) -> Interval | None:
    """The mean over tasks of tables [tuner seeds, run seeds], its interval covering tasks and seeds; None of none.

    Tasks may have other numbers of tuner seeds; their number of run seeds is the same.
    """
    if not tables:
        return None
    with np.errstate(invalid="ignore"):
        return interval(np.stack([table.mean(0) for table in tables]), unit="rows")


def reach(mine: Chosen, other: Chosen) -> list[float]:
    """For every run the forwards after which its validation loss first is where the other's ends, by the budget.

    Between two points of the curve the loss is taken to be linear. Infinite where it does not get there. Runs whose
    counterpart did not leave its zero-shot loss are left out: they would be there before the first step.
    """
    shares = []
    for index, record in enumerate(mine.records):
        counterpart = other.records[index % len(other.records)]
        target, zero = number(counterpart["validation_loss"]), number(counterpart["zero_shot"]["validation_loss"])
        if target < zero:
            shares.append(_crossing(record["curve"], target) / counterpart["settings"]["forwards"])
    return shares


def _crossing(curve: Sequence[Sequence[float | None]], target: float) -> float:
    before, above = 0.0, math.inf
    for forwards, loss, *_ in curve:
        at, value = number(forwards), number(loss)
        if value <= target:
            if not math.isfinite(above) or above == value:
                return at
            return before + (at - before) * (above - target) / (above - value)
        before, above = at, value
    return math.inf


def median(values: Sequence[float]) -> float | None:
    """The median, of which infinite values are part; None of none. Of an even number the upper one."""
    return sorted(values)[len(values) // 2] if values else None


def markdown(contests: Sequence[Contest], standings: Mapping[str, Standing]) -> str:
    """A row for every tuner and task, then a sentence for every tuner; empty without tuners."""
    if not standings:
        return ""
    head = ["", "| tuner | task | best rival | loss − its | 95 % interval | |", "|---|---|---|---|---|---|"]
    lines = head if contests else []
    for found in contests:
        ends = f"{_signed(found.difference.low)} … {_signed(found.difference.high)}"
        row = (found.label, found.task, found.rival, _signed(found.difference.mean), ends, found.outcome)
        lines.append("| " + " | ".join(row) + " |")
    lines.append("")
    lines += [sentence(label, found) for label, found in standings.items()]
    return "\n".join(lines) + "\n"


def sentence(label: str, found: Standing) -> str:
    """What a standing says, in words."""
    over = ", ".join(f"{rival} {count}" for rival, count in found.over.items())
    parts = [
        f"{label}: wins on {found.wins} of {found.tasks} decided tasks against the best rival, loses on "
        f"{found.losses} (against each by itself it wins: {over or 'nothing to win'})",
        f"diverged {found.diverged} of {found.runs}",
    ]
    if found.log_ratio is not None:
        parts.append(f"log(loss / best rival's) {_with_ends(found.log_ratio)}")
    if found.metric is not None:
        parts.append(f"metric over MeZO's {_with_ends(found.metric)}")
    if found.reach is not None:
        share = f"{found.reach:.2f} of the budget" if math.isfinite(found.reach) else "not reached"
        parts.append(f"forwards to MeZO's final loss (median): {share}")
    return "; ".join(parts) + "."


def _with_ends(found: Interval) -> str:
    return f"{_signed(found.mean)} ({_signed(found.low)} … {_signed(found.high)})"


def _signed(value: float) -> str:
    if math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value:+.4f}"
