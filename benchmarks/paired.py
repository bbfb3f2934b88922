"""The tuner of one comparison against the methods of another, from the JSON of both.

    python benchmarks/paired.py docs/one-rate-found.json docs/one-rate.json

So a tuner at another learning rate needs no second run of its rivals. The runs are paired by seed: both comparisons
have the same batches and directions at the same seed. Tasks and methods whose seeds differ are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.against_tuned import cells, read_two
from finetune.report import Cell, Spread
from finetune.wins import WIN, loss_difference, outcome


def rows(mine: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[tuple[str, str, Cell, Cell]]:
    """Task, the other's label, the tuner's cell and the other's, where both are of one base, budget and seeds."""
    if mine["base"]["weights"] != others["base"]["weights"]:
        return
    labels = _tuners(mine)
    for view in mine["views"]:
        regime, forwards = view["regime"], view["forwards"]
        theirs = cells(others, regime, forwards)
        for task, found in cells(mine, regime, forwards).items():
            for other, cell in theirs.get(task, {}).items():
                yield from ((task, other, found[label], cell) for label in labels if found[label].seeds == cell.seeds)


def table(mine: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The Markdown table, and on how many tasks the tuner wins against each and against the best of them."""
    lines = [
        "| task | lr | loss | against | lr | loss | difference (95 % interval) | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    won: dict[str, list[bool]] = {}
    best: dict[str, tuple[float, bool]] = {}
    tuners = _tuners(others)
    for task, label, cell, other in rows(mine, others):
        found = loss_difference(cell, other)
        result = outcome(found)
        won.setdefault(label, []).append(result == WIN)
        means = [Spread.of(one.loss).mean for one in (cell, other)]
        if label not in tuners:
            best[task] = min(best.get(task, (float("inf"), False)), (means[1], result == WIN))
        lines.append(
            f"| {task} | {cell.lr:.2e} | {means[0]:.4f} | {label} | {other.lr:.2e} | {means[1]:.4f} "
            f"| {found.mean:+.4f} ({found.low:+.4f} … {found.high:+.4f}) | {result} |"
        )
    counts = [f"{label} {sum(wins)} of {len(wins)}" for label, wins in won.items()]
    whole = f"against the best of each task's rivals {sum(win for _, win in best.values())} of {len(best)}"
    return "\n".join([*lines, "", f"Wins: {'; '.join([*counts, whole])}."])


def _tuners(content: Mapping[str, Any]) -> list[str]:
    """Labels of learned tuners: no rivals of one another."""
    return [label for label, method in content["methods"].items() if method["tuners"] and not method["kind"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    files = {"mine": "compare.json with the tuner", "others": "compare.json with the methods"}
    print(table(*read_two("The tuner of one comparison against the methods of another.", files, arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
