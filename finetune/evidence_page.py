"""docs/evidence.md from the figures: the goals, a table for every base, budget and regime, plots, and the notes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from finetune import plots
from finetune.compare_jobs import TUNED, UNTUNED
from finetune.evidence_config import LABEL
from finetune.intervals import Interval, differences
from finetune.report import Cell, Spread, TaskSummary, number
from finetune.wins import LOSS, OPEN, WIN, Contest, contest, loss_difference, median, outcome, over_tasks

#: The goals, with what the field has: measure, goal, the field.
GOALS = {
    "tuned": ("wins on final loss over the best rival, tuned", "≥ 95 % of ≥ 28 pairs", "82.1 %, no control"),
    "untuned": ("the same, untuned", "100 %, no divergence", "–"),
    "reach": ("forwards to MeZO's final loss, median, parts of the budget", "≤ 1/3", "1/3 (FZOO)"),
    "metric": ("metric over MeZO, mean, points", "+5", "+2.5"),
    "crossed": ("wins untuned against MeZO tuned for each task", "≥ 80 %", "–"),
}


@dataclass(frozen=True)
class Pair:
    """A (base, task) pair in one regime with one budget.

    Attributes:
        contest: the tuner against its rivals; None where the task is undecided.
        reach: see :func:`finetune.wins.reach`.
        crossed: whether the tuner, untuned, wins against MeZO tuned; None where that cannot be said.
    """

    base: str
    derivative: bool
    regime: str
    forwards: int
    task: TaskSummary
    contest: Contest | None
    reach: list[float]
    crossed: bool | None


@dataclass(frozen=True)
class Figure:
    """What was measured for a goal: the figure with its interval, and how it is shown."""

    measure: str
    forwards: int
    derivatives: bool
    found: Interval | None
    pairs: int
    shown: str


def pairs_of(content: Mapping[str, Any]) -> list[Pair]:
    """Every pair of every base, regime and budget."""
    return [pair for base in content["bases"] for pair in _of_base(base)]


def _of_base(base: Mapping[str, Any]) -> Iterator[Pair]:
    tasks = {(v["regime"], v["forwards"]): {t["task"]: summary(t) for t in v["tasks"]} for v in base["views"]}
    for view in base["views"]:
        for name, task in tasks[view["regime"], view["forwards"]].items():
            tuned = tasks.get((TUNED, view["forwards"]), {}).get(name)
            crossed = None
            if view["regime"] == UNTUNED and tuned is not None and task.decided:
                against = loss_difference(task.cells[LABEL], tuned.cells[base["reference"]])
                crossed = outcome(against) == WIN
            yield Pair(
                base["name"],
                base["derivative"],
                view["regime"],
                view["forwards"],
                task,
                contest(task, LABEL, base["rivals"]) if task.decided else None,
                [number(part) for part in view["reach"][name][LABEL]],
                crossed,
            )


def summary(task: Mapping[str, Any]) -> TaskSummary:
    """A task's summary from JSON, where null is a loss that is not finite."""
    cells = {}
    for label, cell in task["cells"].items():
        known = {part.name: cell[part.name] for part in fields(Cell) if part.name in cell}
        cells[label] = Cell(**{**known, "loss": [number(loss) for loss in cell["loss"]]})
    return TaskSummary(**{**task, "cells": cells})


def figures(pairs: Sequence[Pair], reference: str = "mezo") -> list[Figure]:
    """Every goal at every budget, for bases and derivatives apart."""
    found = []
    for derivatives in (False, True):
        mine = [pair for pair in pairs if pair.derivative is derivatives]
        for forwards in dict.fromkeys(pair.forwards for pair in mine):
            at = [pair for pair in mine if pair.forwards == forwards]
            for measure in GOALS:
                found.append(_figure(measure, forwards, derivatives, at, reference))
    return found


def _figure(measure: str, forwards: int, derivatives: bool, pairs: Sequence[Pair], reference: str) -> Figure:
    regime = UNTUNED if measure in ("untuned", "crossed") else TUNED
    mine = [pair for pair in pairs if pair.regime == regime]
    decided = [pair for pair in mine if pair.contest is not None]
    count, shown = len(decided), "–"
    found: Interval | None = None
    if measure in ("tuned", "untuned"):
        wins = sum(pair.contest is not None and pair.contest.outcome == WIN for pair in decided)
        found, shown = share_of(wins, count)
        if measure == "untuned" and mine:
            cells = [pair.task.cells[LABEL] for pair in mine]
            lost, runs = sum(cell.divergences for cell in cells), sum(len(cell.loss) for cell in cells)
            shown += f"; {lost} of {runs} runs diverged"
    elif measure == "crossed":
        known = [pair.crossed for pair in decided if pair.crossed is not None]
        count = len(known)
        found, shown = share_of(sum(known), count)
    elif measure == "reach":
        found = median_of_pairs([pair.reach for pair in decided])
        shown = with_ends(found, "{:.2f}") if found else "–"
    else:
        tables = [metric_differences(pair.task, reference) for pair in decided if pair.task.cells[LABEL].metric]
        found, count = over_tasks(tables), len(tables)
        shown = with_ends(found, "{:+.1f}", 100) if found else "–"
    return Figure(measure, forwards, derivatives, found, count, shown)


def metric_differences(task: TaskSummary, reference: str) -> np.ndarray:
    """The default's metric minus the reference's, paired by run seed: [tuner seeds, run seeds]."""
    mine, other = task.cells[LABEL], task.cells[reference]
    return differences(mine.metric, other.metric, len(mine.seeds))


def share_of(wins: int, count: int) -> tuple[Interval | None, str]:
    """A share with Wilson's 95 % interval."""
    if not count:
        return None, "–"
    z = 1.96
    share, weight = wins / count, z * z / count
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    found = Interval(share, max(0.0, (middle - half) / (1 + weight)), min(1.0, (middle + half) / (1 + weight)))
    return found, f"{wins} of {count} = {share:.0%} ({found.low:.0%} … {found.high:.0%})"


def median_of_pairs(groups: Sequence[Sequence[float]], resamples: int = 2000) -> Interval | None:
    """The median over all runs, its interval by drawing pairs with replacement."""
    groups = [group for group in groups if group]
    middle = median([value for group in groups for value in group])
    if middle is None:
        return None
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        chosen = generator.integers(len(groups), size=len(groups))
        drawn.append(median([value for index in chosen for value in groups[index]]))
    ordered = sorted(value for value in drawn if value is not None)
    return Interval(middle, ordered[int(0.025 * resamples)], ordered[int(0.975 * resamples)])


def with_ends(found: Interval, form: str, factor: float = 1) -> str:
    """A mean with the ends of its interval, each times ``factor``."""
    mean, low, high = (
        form.format(factor * value) if math.isfinite(value) else "not reached"
        for value in (found.mean, found.low, found.high)
    )
    return f"{mean} ({low} … {high})"


def page(content: Mapping[str, Any], notes: str, images: str) -> str:
    """The page.

    Args:
        notes: the hand-written part; what it says before its first heading comes first.
        images: where the plots lie, relative to the page.
    """
    pairs, (lead, _, _) = pairs_of(content), notes.partition("## ")
    lines = [
        "# The evidence",
        "",
        "Written by `python -m finetune.evidence` from `evidence.json`; how it is measured: [Comparing](comparing.md).",
        "One run over held-out tasks with the frozen default; nothing was chosen on anything that is shown here.",
        "",
        *([lead.strip(), ""] if lead.strip() else []),
        *_goal_lines(pairs),
        *_missing_lines(content.get("missing", [])),
        *_rival_lines(pairs),
        *_frozen_lines(content),
    ]
    for base in content["bases"]:
        lines += ["", f"## {base['name']}{' (derivative)' if base['derivative'] else ''}", ""]
        lines += [f"- {note}" for note in base["notes"]]
        for view in base["views"]:
            mine = [
                p for p in pairs if (p.base, p.regime, p.forwards) == (base["name"], view["regime"], view["forwards"])
            ]
            lines += [
                "",
                f"### {base['name']}: {view['regime']}, {view['forwards']:,} forward passes",
                "",
                *_table(mine),
            ]
        lines += ["", f"![Loss by forward passes]({images}{base['name']}-loss.png)", ""]
        if any(view["regime"] == TUNED for view in base["views"]):
            lines.append(f"![Final loss by learning rate]({images}{base['name']}-lr.png)")
    return "\n".join(lines) + "\n\n" + notes.removeprefix(lead)


def _goal_lines(pairs: Sequence[Pair]) -> list[str]:
    found = figures(pairs)
    lines = []
    for derivatives, title in ((False, "On held-out tasks"), (True, "On derivatives")):
        mine = [figure for figure in found if figure.derivatives is derivatives]
        if not mine:
            continue
        budgets = list(dict.fromkeys(figure.forwards for figure in mine))
        head = ("measure", "goal", "the field", *(f"{forwards:,} forwards" for forwards in budgets))
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for measure, texts in GOALS.items():
            shown = [figure.shown for forwards in budgets for figure in mine if _is(figure, measure, forwards)]
            lines.append("| " + " | ".join((*texts, *shown)) + " |")
        undecided = [f"{p.task.task} on {p.base} at {p.forwards:,}" for p in pairs if _left_out(p, derivatives)]
        lines.append("")
        if undecided:
            lines.append(f"Undecided, in no count: {', '.join(dict.fromkeys(undecided))}.")
    return [*lines, "In brackets 95 % intervals: of shares Wilson's, of the others over pairs and seeds.", ""]


def _missing_lines(missing: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was planned and is not made yet: part of the frozen configuration, and in no figure."""
    if not missing:
        return []
    lines = ["Planned, not made yet, and in no figure:", ""]
    for regime, forwards in dict.fromkeys((one["regime"], one["forwards"]) for one in missing):
        on: dict[str, list[str]] = {}
        for one in missing:
            if (one["regime"], one["forwards"]) == (regime, forwards):
                on.setdefault(", ".join(one["tasks"]), []).append(one["base"])
        where = "; ".join(f"{tasks} on {', '.join(bases)}" for tasks, bases in on.items())
        lines.append(f"- {regime}, {forwards:,} forwards: {where}")
    return [*lines, ""]


def _rival_lines(pairs: Sequence[Pair]) -> list[str]:
    """Against every rival by itself, which is no goal: who the best rival was, and which of them are beaten."""
    lines = []
    kinds = dict.fromkeys((pair.regime, pair.forwards, pair.derivative) for pair in pairs)
    for regime, forwards, derivative in kinds:
        found = [p.contest for p in pairs if (p.regime, p.forwards, p.derivative) == (regime, forwards, derivative)]
        contests = [one for one in found if one is not None]
        where = "on derivatives" if derivative else "on bases"
        lines += [
            f"Against every rival by itself, {regime}, {forwards:,} forwards, {where}, of {len(contests)} pairs:",
            "",
            "| rival | wins | open | losses | was the best rival on |",
            "|---|---|---|---|---|",
        ]
        for rival in dict.fromkeys(rival for one in contests for rival in one.against):
            counts = Counter(one.against[rival] for one in contests if rival in one.against)
            best = sum(one.rival == rival for one in contests)
            lines.append(f"| {rival} | {counts[WIN]} | {counts[OPEN]} | {counts[LOSS]} | {best} |")
        lines.append("")
    return lines


def _is(figure: Figure, measure: str, forwards: int) -> bool:
    return (figure.measure, figure.forwards) == (measure, forwards)


def _left_out(pair: Pair, derivatives: bool) -> bool:
    return pair.derivative is derivatives and pair.contest is None


def _frozen_lines(content: Mapping[str, Any]) -> list[str]:
    lines = ["Frozen before a base's first run:", ""]
    tuners = content["frozen"]["tuners"].items()
    lines += [f"- {name}: tuners {', '.join(digests)}" for name, digests in tuners if digests]
    lines.append(f"- configuration {content['frozen']['config']}, zoft {content['zoft_version']}")
    for before in content["earlier"]:
        digests = ", ".join(digest for group in before["frozen"]["tuners"].values() for digest in group)
        lines.append(f"- put aside earlier: tuners {digests}: {before['reason']}")
    return lines


def _table(pairs: Sequence[Pair]) -> list[str]:
    """Methods by tasks: mean test loss ± standard deviation; then the best rival, the difference and the outcome."""
    if not pairs:
        return ["No task."]
    tasks = [pair.task for pair in pairs]
    head = ["method", *(task.task + ("" if task.decided else " (undecided)") for task in tasks)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines.append("| zero-shot | " + " | ".join(f"{task.zero_shot_loss:.4f}" for task in tasks) + " |")
    for label in tasks[0].cells:
        name = f"**{label}**" if label == LABEL else label
        lines.append(f"| {name} | " + " | ".join(loss_text(task.cells[label]) for task in tasks) + " |")
    found = [pair.contest for pair in pairs]
    lines.append("| best rival | " + " | ".join(one.rival if one else "–" for one in found) + " |")
    shown = [f"{one.outcome}: {with_ends(one.difference, '{:+.4f}')}" if one else "–" for one in found]
    lines.append("| **outcome** | " + " | ".join(shown).replace("not reached", "∞") + " |")
    return lines


def loss_text(cell: Cell) -> str:
    """Mean test loss ± standard deviation, and how many runs diverged if any did."""
    spread = Spread.of(cell.loss)
    text = f"{spread.mean:.4f}" if math.isfinite(spread.mean) else "∞"
    text += f" ± {spread.sd:.4f}" if math.isfinite(spread.sd) else ""
    return text + (f", {cell.divergences} diverged" if cell.divergences else "")


def plots_of(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """For every base the losses by forward passes at the largest budget, and the final losses by learning rate."""
    images = []
    for base in content["bases"]:
        view = max(base["views"], key=lambda view: (view["regime"] == TUNED, view["forwards"]))
        shown = [*base["rivals"], LABEL]
        tasks = view["tasks"]
        curves = {task["task"]: {label: view["curves"][task["task"]][label] for label in shown} for task in tasks}
        title = f"{base['name']}, {view['regime']}, mean of {len(tasks[0]['cells'][LABEL]['seeds'])} seeds ± 1 sd"
        images.append(plots.panels_of_curves(folder / f"{base['name']}-loss.png", title, curves))
        if view["regime"] == TUNED:
            searches = {
                name: {label: {float(lr): number(loss) for lr, loss in by_label[label].items()} for label in shown}
                for name, by_label in view["search"].items()
            }
            images.append(plots.panels_of_searches(folder / f"{base['name']}-lr.png", base["name"], searches))
    return images
