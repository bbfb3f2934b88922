"""Tuners at one given learning rate against MeZO at its best one for each task, from the JSON of both.

    python benchmarks/against_tuned.py runs/one-rate/compare.json docs/evidence.json

The runs are paired by seed: a comparison and the evidence have the same batches and directions at the same seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.compare_jobs import GIVEN, TUNED
from finetune.evidence_page import summary
from finetune.report import Cell, Spread
from finetune.wins import WIN, loss_difference, outcome


def cells(content: Mapping[str, Any], regime: str, forwards: int) -> dict[str, dict[str, Cell]]:
    """The cells of every task, by label; empty where the regime with that budget is not there."""
    views = [view for view in content["views"] if (view["regime"], view["forwards"]) == (regime, forwards)]
    return {task["task"]: summary(task).cells for view in views for task in view["tasks"]}


def rows(given: Mapping[str, Any], evidence: Mapping[str, Any]) -> Iterator[tuple[str, str, Cell, Cell]]:
    """Task, label, the tuner's cell at its one rate and MeZO's at its best, where both are there for one base."""
    (forwards,) = {view["forwards"] for view in given["views"]}
    mine = cells(given, GIVEN, forwards)
    bases = [base for base in evidence["bases"] if base["base"]["weights"] == given["base"]["weights"]]
    tuned = cells(bases[0], TUNED, forwards) if bases else {}
    for label, method in given["methods"].items():
        for task in mine if method["tuners"] else ():
            if task in tuned and tuned[task]["mezo"].seeds == mine[task][label].seeds:
                yield task, label, mine[task][label], tuned[task]["mezo"]


def table(given: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    """The Markdown table, and how many tasks are won."""
    lines = [
        "| task | method, its one lr | loss | mezo's best lr | loss | difference (95 % interval) | |",
        "|---|---|---|---|---|---|---|",
    ]
    won: dict[str, list[bool]] = {}
    for task, label, mine, mezo in rows(given, evidence):
        found = loss_difference(mine, mezo)
        result = outcome(found)
        won.setdefault(label, []).append(result == WIN)
        losses = [f"{Spread.of(cell.loss).mean:.4f}" for cell in (mine, mezo)]
        lines.append(
            f"| {task} | {label}, {mine.lr:.2e} | {losses[0]} | {mezo.lr:.2e} | {losses[1]} "
            f"| {found.mean:+.4f} ({found.low:+.4f} … {found.high:+.4f}) | {result} |"
        )
    counts = [f"{label} wins on {sum(wins)} of {len(wins)}" for label, wins in won.items()]
    return "\n".join([*lines, "", "; ".join(counts) + "."])


def read_two(description: str, files: Mapping[str, str], arguments: Sequence[str] | None) -> list[dict[str, Any]]:
    """The JSON of the two files that a command is given.

    Args:
        files: their names in the usage, and what each is.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, what in files.items():
        parser.add_argument(name, type=Path, help=what)
    given = vars(parser.parse_args(arguments))
    return [json.loads(given[name].read_text(encoding="utf-8")) for name in files]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    files = {"given": "compare.json of a comparison with given learning rates", "evidence": "evidence.json"}
    print(table(*read_two("Tuners at one learning rate against MeZO tuned for each task.", files, arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
