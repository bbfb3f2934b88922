"""The page of one learning rate on other bases: MeZO's rates are the evidence's, and what is counted is what ran."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import one_rate_bases as bench
from finetune.evidence_page import pairs_of
from finetune.report import Cell

TUNER = "pretrained_tuners/zoft-base-default"


def _content(path: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _cell(losses: list[float], lr: float, metric: float) -> dict[str, Any]:
    seeds = list(range(len(losses)))
    cell = Cell(
        lr=lr, interior=None, seeds=seeds, loss=losses, metric=[metric] * len(losses), divergences=0, not_finite=0,
        search_runs=0, seconds=1.0,
    )  # fmt: skip
    return asdict(cell)


def _entry(cells: dict[str, list[float]]) -> dict[str, Any]:
    made = {label: _cell(losses, 1e-3, 0.5 + 0.1 * (label == "default")) for label, losses in cells.items()}
    task = {
        "task": "held", "role": "held-out", "metric": "accuracy", "zero_shot_loss": 9.0, "zero_shot_metric": 0.1,
        "chance": 1.0, "decided": True, "cells": made, "seen_by": [],
    }  # fmt: skip
    view = {"regime": "given", "forwards": 600, "tasks": [task], "reach": {"held": {"default": [0.25] * 4}}}
    return {"name": "other-derivative-0", "derivative": True, "tuners": {"default": "abc"}, "views": [view]}


def test_mezo_has_the_evidence_s_best_rate_and_the_tuner_the_one_it_recommends() -> None:
    evidence = _content(bench.EVIDENCE)
    config = bench.configuration(evidence, "runs/bases/qwen2-derivative-0", TUNER)
    (base,) = (base for base in evidence["bases"] if base["name"] == "qwen2-derivative-0")
    (view,) = (v for v in base["views"] if (v["regime"], v["forwards"]) == ("tuned", 600))
    assert config.lrs["mezo"] == {task["task"]: task["cells"]["mezo"]["lr"] for task in view["tasks"]}
    assert {label: config.lrs[label] for label in ("default", *bench.CONTROLS)} == dict.fromkeys(
        ("default", *bench.CONTROLS), 1.41
    )
    assert (config.base, config.lr_mode) == ("./runs/bases/qwen2-derivative-0", "fixed")
    assert bench.configuration(evidence, "zoft-base", TUNER).base == "zoft-base"


def test_wins_losses_and_what_is_missing_are_counted_by_rival() -> None:
    losses = {"mezo": [2.0, 2.1, 2.2, 2.3], "untrained": [0.5, 0.6, 0.7, 0.8], "default": [1.0, 1.1, 1.2, 1.3]}
    alone, whole = _entry(losses), _entry({**losses, "random-basis": [1.0, 1.2, 1.1, 1.3]})
    assert "| losses against the best of these | – | – | – |" in bench.page([alone], [])
    text = bench.page([whole], ["other-derivative-0", "absent"])
    rows = {row[1].strip(): row[2:] for row in (line.split("|") for line in text.splitlines()) if len(row) == 6}
    assert rows["wins against MeZO tuned for each task"][1].strip().startswith("1 of 1")
    assert rows["losses against MeZO tuned"][1].strip().startswith("0 of 1")
    assert rows["losses against `untrained`"][1].strip().startswith("1 of 1")
    assert rows["wins against `random-basis`"][1].strip().startswith("0 of 1")
    assert rows["losses against `random-basis`"][1].strip().startswith("0 of 1")
    assert rows["metric over MeZO's, mean, points"][1].strip().startswith("+10.0")
    assert rows["forwards to MeZO's final loss, median, parts of the budget"][1].strip().startswith("0.25")
    assert rows["wins against MeZO tuned for each task"][0].strip() == "–"
    assert rows["losses against the best of these"][1].strip().startswith("1 of 1")
    ratios = [1.0 / 0.5, 1.1 / 0.6, 1.2 / 0.7, 1.3 / 0.8]
    shown = rows["loss by that of untrained, geometric mean"][1]
    assert shown.strip().startswith(f"{math.prod(ratios) ** 0.25:.2f} (")
    assert "Not made yet, and in no figure: absent.\n" in text
    assert "win: -1.0000 (-1.0000 … -1.0000), seeds 4 : 0" in text
    assert "loss: +0.5000 (+0.5000 … +0.5000), seeds 0 : 4" in text


def test_the_embedded_base_s_entry_is_of_the_same_weights_and_seeds() -> None:
    entry = bench.embedded(_content(bench.FOUND), _content(bench.EVIDENCE))
    pairs = pairs_of({"bases": [{**entry, "rivals": ["mezo"], "reference": "mezo"}]})
    assert [pair.task.task for pair in pairs] == ["mood", "headline", "choice-kind", "list-item"]
    assert all(pair.task.cells["mezo"].seeds == pair.task.cells["default"].seeds for pair in pairs)
    assert list(pairs[0].task.cells) == ["mezo", "random-basis", "default"]
    assert all(pair.contest is not None and pair.contest.outcome == "win" for pair in pairs)


def test_the_page_is_current() -> None:
    evidence = _content(bench.EVIDENCE)
    entries = [bench.embedded(_content(bench.FOUND), evidence), *_content(bench.FIGURES)]
    names = [base["name"] for base in evidence["bases"]]
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(entries, names)


def test_mistakes_are_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--base", "runs/bases/qwen2"], "go together"),
        (["--base", "runs/bases/qwen", "--tuner", TUNER], "did you mean qwen2"),
        (["--base", "runs/bases/qwen2", "--tuner", "runs/absent"], "runs/absent"),
    ):
        with pytest.raises(SystemExit):
            bench.main(arguments)
        assert message in capsys.readouterr().err
