"""The evidence: one run of all comparisons with the frozen defaults on held-out tasks, and the page that shows it.

    python -m finetune.evidence --config finetune/configs/evidence.yaml     make the runs, the figures and the page
    python -m finetune.evidence --config ... --base qwen2 --forwards 2000   make a part of the runs
    python -m finetune.evidence --config ... --so-far                       of the runs that are there, make no other
    python -m finetune.evidence --config ... --render                       make the page from the figures alone

Evidence is made once for a frozen default. The tuners' digests and the hash of the configuration are written down
before the first run; with others the command refuses, unless it is told with --supersede why the earlier evidence is
put aside. That reason, with what was put aside, stays in the figures for good. Tuners of a base of which no figure is
there yet may change: nothing was seen.

What was made elsewhere, and whose runs are not here, stays in the figures (:mod:`finetune.evidence_parts`), but for a
command that makes the whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune.compare import Comparison, compare, finished
from finetune.compare_config import listed
from finetune.compare_output import RESULT_FILE, RUNS_FILE
from finetune.compare_run import BenchFactory, language_model_bench
from finetune.evidence_config import LABEL, EvidenceBase, EvidenceConfig, settings_digest
from finetune.evidence_page import page, plots_of
from finetune.evidence_parts import KEPT, Part, merged
from finetune.report import to_json
from zoft.errors import UsageError, ZoftError
from zoft.tuner import Tuner

#: Version of the figures.
FORMAT = 2

FROZEN_FILE = "frozen.json"


def evidence(
    config: EvidenceConfig,
    *,
    supersede: str | None = None,
    part: Part | None = None,
    so_far: bool = False,
    say: Callable[[str], None] = print,
    factory: BenchFactory = language_model_bench,
) -> dict[str, Any]:
    """Make every run that is missing, then the figures and the page.

    Args:
        supersede: why earlier evidence of other tuners or settings is put aside.
        part: make only these runs: the figures are of what is complete, and name what is not.
        so_far: likewise, but make no run.
        say: takes lines of progress.
        factory: see :func:`finetune.compare.compare`.

    Returns:
        The figures, as they are written.

    Raises:
        UsageError: evidence of another default is there; or whatever a comparison raises.
    """
    notes_of(Path(config.notes))
    if part is not None:
        part.check(config)
    carried = _read(Path(config.result)) or {}
    frozen_now = _freeze(config, supersede, carried)
    found, missing = [], []
    for base in config.bases:
        say(f"== {base.name}")
        entries: list[dict[str, Any]] = []
        if part is None and not so_far:
            comparison = compare(config.comparison(base), say=say, factory=factory, role="held-out")
            entries.append(_base(base, comparison))
        else:
            own = part.of(config, base) if part is not None and not so_far else None
            if own is not None:
                compare(own, say=say, factory=factory, role="held-out")
            entries += _carried(carried, frozen_now, base)
            entries += _complete(config, base, say, factory)
        entry, lacking = merged(config, base, _rounded(entries))
        found += [entry] if entry else []
        missing += lacking
    content = to_json(
        {
            "format": FORMAT,
            "zoft_version": metadata.version("zoft"),
            **frozen_now,
            "config": config.to_dict(),
            "missing": missing,
            "bases": found,
        }
    )
    target = Path(config.result)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    render(config)
    return dict(content)


def _carried(published: dict[str, Any], frozen_now: dict[str, Any], base: EvidenceBase) -> list[dict[str, Any]]:
    """The figures of a base that are there already and were made with what is frozen now: one entry or none."""
    before, now = _frozen_in(published), frozen_now["frozen"]
    if before is None or before["config"] != now["config"]:
        return []
    kept = [entry for entry in published["bases"] if entry["name"] == base.name]
    entries = [entry for entry in kept if entry["tuners"] == now["tuners"][base.name]]
    return [{**entry, "views": [{key: view[key] for key in KEPT} for view in entry["views"]]} for entry in entries]


def _complete(
    config: EvidenceConfig, base: EvidenceBase, say: Callable[[str], None], factory: BenchFactory
) -> list[dict[str, Any]]:
    """Of a base what all runs are here of, in entries by budget and tasks."""
    whole = config.comparison(base)
    if _gone(base) or not (Path(whole.output_dir) / RUNS_FILE).is_file():
        return []
    complete = finished(whole, factory=factory)
    made: list[dict[str, Any]] = []
    for forwards in config.budgets:
        by_tasks: dict[tuple[str, ...], list[str]] = {}
        for regime in config.regimes:
            by_tasks.setdefault(tuple(complete[regime, forwards]), []).append(regime)
        for tasks, regimes in by_tasks.items():
            if tasks:
                part = whole.model_copy(update={"regimes": regimes, "budgets": [forwards], "tasks": list(tasks)})
                made.append(_base(base, compare(part, say=say, factory=factory, role="held-out")))
    return made


def render(config: EvidenceConfig) -> str:
    """Write the page and its plots from the figures alone.

    Returns:
        The page.

    Raises:
        UsageError: there are no figures, or no notes with what failed and the limits.
    """
    content = _read(Path(config.result))
    if content is None:
        raise UsageError(f"there is no {config.result}", "Make the evidence first: leave out --render.")
    target = Path(config.page)
    text = page(content, notes_of(Path(config.notes)), f"{target.stem}/")
    plots_of(content, target.parent / target.stem)
    target.write_text(text, encoding="utf-8")
    return text


def frozen(config: EvidenceConfig, published: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the evidence is of: the configuration's hash, and the digests of every base's tuners.

    Args:
        published: figures; they tell the tuners of a base whose tuners' folders are not here. There are none of a
            base without figures: its tuners are frozen with its first run.
    """
    known = {entry["name"]: entry["tuners"] for entry in (published or {}).get("bases", [])}
    return {
        "config": config.digest,
        "tuners": {
            base.name: list(known.get(base.name, []))
            if _gone(base)
            else [Tuner.from_pretrained(name).digest for name in listed(base.tuner)]
            for base in config.bases
        },
    }


def _gone(base: EvidenceBase) -> bool:
    """Whether none of a base's tuners is here: then no run can be made on it."""
    return all(name.startswith((".", "/")) and not Path(name).exists() for name in listed(base.tuner))


def _freeze(config: EvidenceConfig, supersede: str | None, published: dict[str, Any]) -> dict[str, Any]:
    """Write down what the evidence is of, before the first run.

    Returns:
        What was written: ``frozen``, and ``earlier``, what was put aside before, with the reasons.
    """
    now, file = frozen(config, published), Path(config.output_dir) / FROZEN_FILE
    here = {path.parent.name for path in file.parent.glob(f"*/{RUNS_FILE}")}
    begun = _read(file) if here else None
    begun = begun or {"frozen": _frozen_in(published), "earlier": published.get("earlier", [])}
    seen = here | {entry["name"] for entry in published.get("bases", [])}
    earlier = list(begun["earlier"])
    before = begun["frozen"]
    if before is not None and (before["config"] != now["config"] or _changed(now, before, seen)):
        changed = _changed(now, before, seen)
        what = f"tuners of {', '.join(changed)}" if changed else "settings"
        if not supersede:
            raise UsageError(
                f"evidence of other {what} is there already: it is made once for a frozen default",
                "Give back what it was made with, or put it aside with --supersede REASON, which is recorded.",
            )
        earlier.append({"frozen": before, "reason": supersede})
    file.parent.mkdir(parents=True, exist_ok=True)
    written = {"frozen": now, "earlier": earlier}
    file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return written


def _frozen_in(published: dict[str, Any]) -> dict[str, Any] | None:
    """What published figures are of, the hash as it is made today."""
    return {**published["frozen"], "config": settings_digest(published["config"])} if published else None


def _changed(now: dict[str, Any], before: dict[str, Any], seen: Collection[str]) -> list[str]:
    """The bases with other tuners than before, of those of which runs or figures are there."""
    return [name for name in now["tuners"] if name in seen and now["tuners"][name] != before["tuners"].get(name)]


def _base(base: EvidenceBase, comparison: Comparison) -> dict[str, Any]:
    """What the figures keep of one base's comparison."""
    content = json.loads((comparison.folder / RESULT_FILE).read_text(encoding="utf-8"))
    tuners = content["methods"][LABEL]["tuners"]
    return {
        "name": base.name,
        "base": content["base"],
        "derivative": base.derivative,
        "tuners": [tuner["digest"] for tuner in tuners],
        "methods": list(content["methods"]),
        "rivals": content["rivals"].get(LABEL, []),
        "reference": content["reference"],
        "choose_on": content["choose_on"],
        "notes": content["notes"],
        "views": [{key: view[key] for key in KEPT} for view in content["views"]],
    }


def notes_of(file: Path) -> str:
    """The hand-written part of the page.

    Raises:
        UsageError: it cannot be read, or says nothing of what failed or of limits.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", "Write what failed and the limits there.") from None
    for heading in ("## What failed", "## Limits"):
        _, found, rest = text.partition(f"{heading}\n")
        if not found or not rest.partition("\n## ")[0].strip():
            raise UsageError(f"{file} has nothing under {heading!r}", "Write it: evidence has failures and limits.")
    return text.strip() + "\n"


def _rounded(value: Any) -> Any:
    """Numbers with six significant digits: what is shown has four."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}", "Remove the file if it is damaged.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m finetune.evidence", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", required=True, help="configuration, a YAML file")
    parser.add_argument("--render", action="store_true", help="only make the page from the figures")
    parser.add_argument("--so-far", action="store_true", help="make no run; say what is missing")
    parser.add_argument("--base", action="append", default=[], metavar="NAME", help="make only runs of it; repeatable")
    parser.add_argument("--regime", action="append", default=[], help="likewise")
    parser.add_argument("--forwards", action="append", default=[], type=int, help="likewise")
    parser.add_argument("--task", action="append", default=[], help="likewise")
    parser.add_argument("--supersede", metavar="REASON", help="put earlier evidence of another default aside")
    given = parser.parse_args(arguments)
    try:
        config = EvidenceConfig.load(given.config)
        if given.render:
            render(config)
        else:
            part = Part(given.base, given.regime, given.forwards, given.task)
            narrowed = part if part != Part([], [], [], []) else None
            evidence(config, supersede=given.supersede, part=narrowed, so_far=given.so_far)
    except ZoftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(config.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
