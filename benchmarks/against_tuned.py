"""Tuners at one given learning rate against MeZO at its best one for each task, from the JSON of comparisons.

    python benchmarks/against_tuned.py runs/one-rate/*.json --tuned runs/mezo-tuned/*.json [--json FILE]

Files after ``--tuned`` are comparisons in which MeZO searched its rate for each task, or an evidence.json. The runs are
paired by base, task and seed: two comparisons on the same base have the same batches and directions at the same seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.compare_jobs import GIVEN, TUNED
from finetune.evidence_page import summary
from finetune.intervals import Interval, differences
from finetune.report import Cell, Spread
from finetune.wins import LOSS, WIN, log_ratios, loss_difference, outcome, over_tasks

MEZO = "mezo"


@dataclass(frozen=True)
class Pair:
    """A method at its one rate and MeZO at its best, on a base and a task."""

    base: str
    task: str
    label: str
    mine: Cell
    mezo: Cell

    @property
    def difference(self) -> Interval:
        """The method's test loss minus MeZO's."""
        return loss_difference(self.mine, self.mezo)


def cells(content: Mapping[str, Any], regime: str, forwards: int) -> dict[str, dict[str, Cell]]:
    """The cells of every task, by label; empty where the regime with that budget is not there."""
    views = [view for view in content["views"] if (view["regime"], view["forwards"]) == (regime, forwards)]
    return {task["task"]: summary(task).cells for view in views for task in view["tasks"]}


def pairs(given: Mapping[str, Any], tuned: Sequence[Mapping[str, Any]]) -> Iterator[Pair]:
    """One for every task and method with a tuner for which MeZO's runs are on the same base with the same seeds."""
    (forwards,) = {view["forwards"] for view in given["views"]}
    mine = cells(given, GIVEN, forwards)
    bases = [base for content in tuned for base in content.get("bases", [content])]
    weights = given["base"]["weights"]
    found = [cells(base, TUNED, forwards) for base in bases if base["base"]["weights"] == weights]
    mezo = {task: own[MEZO] for tasks in reversed(found) for task, own in tasks.items() if MEZO in own}
    for label, method in given["methods"].items():
        for task in mine if method["tuners"] else ():
            if task in mezo and mezo[task].seeds == mine[task][label].seeds:
                yield Pair(Path(given["base"]["name"]).name, task, label, mine[task][label], mezo[task])


def table(found: Sequence[Pair]) -> str:
    """The Markdown tables: every pair, and every method over all of them."""
    lines = [
        "| base | task | method, its one lr | loss | mezo's best lr | loss | difference (95 % interval) | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pair in found:
        losses = [f"{Spread.of(cell.loss).mean:.4f}" for cell in (pair.mine, pair.mezo)]
        lines.append(
            f"| {pair.base} | {pair.task} | {pair.label}, {pair.mine.lr:.3g} | {losses[0]} | {pair.mezo.lr:.2e} "
            f"| {losses[1]} | {_with_ends(pair.difference)} | {outcome(pair.difference)} |"
        )
    lines += [
        "",
        "| method | wins | losses | of | log(loss / mezo's) | metric − mezo's | diverged | mezo diverged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label in dict.fromkeys(pair.label for pair in found):
        lines.append(_over_all(label, [pair for pair in found if pair.label == label]))
    return "\n".join(lines)


def _over_all(label: str, found: Sequence[Pair]) -> str:
    outcomes = [outcome(pair.difference) for pair in found]
    ratio = over_tasks([log_ratios(pair.mine, pair.mezo) for pair in found])
    metric = over_tasks(
        [differences(p.mine.metric, p.mezo.metric, len(p.mine.seeds)) for p in found if p.mine.metric and p.mezo.metric]
    )
    counts = [
        f"{sum(cell.divergences for cell in own)} of {sum(len(cell.loss) for cell in own)}"
        for own in ([pair.mine for pair in found], [pair.mezo for pair in found])
    ]
    shown = [_with_ends(value) if value is not None else "–" for value in (ratio, metric)]
    row = (label, outcomes.count(WIN), outcomes.count(LOSS), len(found), *shown, *counts)
    return "| " + " | ".join(map(str, row)) + " |"


def _with_ends(found: Interval) -> str:
    return f"{found.mean:+.4f} ({found.low:+.4f} … {found.high:+.4f})"


def figures(found: Sequence[Pair]) -> list[dict[str, Any]]:
    """What the tables are made of, JSON-able."""
    kept = ("lr", "seeds", "loss", "metric", "divergences")
    return [
        {"base": pair.base, "task": pair.task, "label": pair.label}
        | {name: {key: getattr(cell, key) for key in kept} for name, cell in (("mine", pair.mine), (MEZO, pair.mezo))}
        for pair in found
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Tuners at one learning rate against MeZO tuned for each task.")
    parser.add_argument("given", type=Path, nargs="+", help="compare.json of comparisons with given learning rates")
    parser.add_argument("--tuned", type=Path, nargs="+", required=True, help="compare.json with MeZO, or evidence.json")
    parser.add_argument("--json", type=Path, help="a file that all figures are written to")
    files = parser.parse_args(arguments)
    given, tuned = (
        [json.loads(file.read_text(encoding="utf-8")) for file in own] for own in (files.given, files.tuned)
    )
    found = [pair for content in given for pair in pairs(content, tuned)]
    if not found:
        print("no base, task and seeds that both have", file=sys.stderr)
        return 1
    print(table(found))
    if files.json is not None:
        files.json.write_text(json.dumps(figures(found)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
