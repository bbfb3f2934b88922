"""The table of all candidates that were tried on development tasks, failures included.

    python -m finetune.candidates add runs/compare/compare.json --label NAME --note "what it is"
    python -m finetune.candidates render

``add`` appends a row for one tuner of a comparison to docs/candidates.json and writes docs/candidates.md. No row is
ever taken out: the table is the record of what was tried, and of how much was chosen among.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.report import number
from zoft.errors import UsageError, ZoftError

RESULT, PAGE = Path("docs/candidates.json"), Path("docs/candidates.md")


def add(comparison: Path, label: str, note: str, result: Path = RESULT, page: Path = PAGE) -> list[dict[str, Any]]:
    """Append the row of a tuner; one that is there already, in the same comparison, is not added twice.

    Args:
        comparison: compare.json. ``label``: the tuner's in it. ``note``: what the candidate is, for a reader.

    Returns:
        All rows.

    Raises:
        UsageError: no such tuner in it, or tasks that are no development tasks.
    """
    content = _read(comparison)
    try:
        row = _row(content, label, note)
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UsageError(f"{comparison} is no result of a comparison", "Give a compare.json.") from None
    rows = list(_read(result)) if result.is_file() else []
    if not any({**old, "note": ""} == {**row, "note": ""} for old in rows):
        rows.append(row)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(table(rows), encoding="utf-8")
    return rows


def _row(content: Mapping[str, Any], label: str, note: str) -> dict[str, Any]:
    methods = content["methods"]
    tuners = [name for name, method in methods.items() if method["tuners"] and method["kind"] is None]
    if label not in tuners:
        raise UsageError(f"no tuner {label} in this comparison; its tuners: {', '.join(tuners) or 'none'}")
    held = [task["task"] for task in content["tasks"] if task["role"] != "development"]
    if held:
        raise UsageError(
            f"{', '.join(held)} are no development tasks", "Candidates are chosen on development tasks alone."
        )
    views = [
        {"regime": view["regime"], "forwards": view["forwards"], **view["standings"][label]}
        for view in content["views"]
    ]
    return {
        "candidate": label,
        "note": note,
        "base": content["base"]["name"],
        "weights": content["base"]["weights"],
        "tuners": [tuner["digest"] for tuner in methods[label]["tuners"]],
        "tasks": [task["task"] for task in content["tasks"]],
        "seeds": content["config"]["seeds"],
        "rivals": content["rivals"][label],
        "views": views,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page: a row for every candidate, regime and budget, in the order in which they were tried."""
    head = ["candidate", "what it is", "base", "tuner seeds", "regime", "forwards", "wins : losses of tasks"]
    head += ["log(loss / best rival's)", "metric over MeZO", "forwards to MeZO's loss", "diverged"]
    lines = [
        "# Candidates",
        "",
        "All tuners that were tried on development tasks, in their order, failures included. Written by",
        "`python -m finetune.candidates` from comparisons; what the columns are: [Comparing](comparing.md). Something",
        "was chosen on every figure here, so that none is evidence.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        for view in row["views"]:
            reach = _share(view["reach"]) if view["reach_runs"] else "–"
            cells = (
                row["candidate"],
                " ".join(str(row["note"]).replace("|", "/").split()),
                row["base"],
                len(row["tuners"]),
                view["regime"],
                f"{view['forwards']:,}",
                f"{view['wins']} : {view['losses']} of {view['tasks']}",
                _interval(view["log_ratio"]),
                _interval(view["metric"]),
                reach,
                f"{view['diverged']} of {view['runs']}",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    mean, low, high = found["mean"], found["low"], found["high"]
    ends = (f"{value:+.4f}" if value is not None else sign for value, sign in ((low, "−∞"), (high, "∞")))
    return f"{f'{mean:+.4f}' if mean is not None else 'not finite'} ({' … '.join(ends)})"


def _share(value: float | None) -> str:
    return f"{number(value):.2f}" if math.isfinite(number(value)) else "not reached"


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}", "Give compare.json of a `zoft compare`.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m finetune.candidates", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add", help="append a tuner of a comparison")
    adding.add_argument("comparison", type=Path, help="compare.json")
    adding.add_argument("--label", required=True, help="the tuner's label in it")
    adding.add_argument("--note", required=True, help="what the candidate is")
    verbs.add_parser("render", help="write the page from the rows")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "add":
            add(given.comparison, given.label, given.note)
        else:
            PAGE.write_text(table(_read(RESULT)), encoding="utf-8")
    except ZoftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
