"""The page of one rate on other bases: MeZO is searched, the tuner has one rate, and what is counted is what ran."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import one_rate_bases as bench
from finetune.evidence_page import summary
from finetune.report import Cell, Spread

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


def test_mezo_is_searched_and_the_tuner_and_its_controls_have_the_rate_that_it_recommends() -> None:
    config = bench.configuration(_content(bench.EVIDENCE), "runs/bases/qwen2-derivative-0", TUNER)
    assert (config.base, config.lr_mode, config.optimizers) == ("./runs/bases/qwen2-derivative-0", "search", ["mezo"])
    at_one = ("untrained", "permuted", "random-basis", "biases-only", "default")
    assert config.lrs == dict.fromkeys(at_one, 1.41)
    assert config.tasks == ["mood", "headline", "choice-kind", "list-item"]
    assert bench.configuration(_content(bench.EVIDENCE), "zoft-base", TUNER).base == "zoft-base"


def test_what_the_legend_says_of_methods_that_were_not_run() -> None:
    views = [v for base in _content(bench.EVIDENCE)["bases"] for v in base["views"] if v["regime"] == "tuned"]
    tasks = [summary(task) for view in views if view["forwards"] == 600 for task in view["tasks"]]
    assert len(tasks) == 28
    for task in tasks:
        means = {label: Spread.of(cell.loss).mean for label, cell in task.cells.items()}
        left_out = [mean for label, mean in means.items() if label.startswith("hizoo")]
        assert len(left_out) == 4
        assert min(left_out) > min(means["mezo"], means["zo-adam"])
    diverged = {label: sum(task.cells[label].divergences for task in tasks) for label in ("mezo", "zo-adam")}
    assert diverged["zo-adam"] < diverged["mezo"]


def test_wins_and_losses_are_counted_by_rival() -> None:
    losses = {label: [2.0, 2.1, 2.2, 2.3] for label in bench.RIVALS}
    losses |= {"untrained": [0.5, 0.6, 0.7, 0.8], "random-basis": [1.0, 1.2, 1.1, 1.3], "default": [1.0, 1.1, 1.2, 1.3]}
    text = bench.page([_entry(losses)], ["other-derivative-0", "absent"])
    rows = {row[1].strip(): row[2:] for row in (line.split("|") for line in text.splitlines()) if len(row) == 6}
    shown = {measure: cells[1].strip() for measure, cells in rows.items()}
    for measure, expected in {
        "wins against the best of all below": "0 of 1",
        "losses against it": "1 of 1",
        "wins against `mezo` tuned for each task": "1 of 1",
        "losses against `mezo` tuned for each task": "0 of 1",
        "losses against `untrained`": "1 of 1",
        "wins against `random-basis`": "0 of 1",
        "losses against `random-basis`": "0 of 1",
        "metric over MeZO's, mean, points": "+10.0",
        "forwards to MeZO's final loss, median, parts of the budget": "0.25",
        "runs of `default` that diverged": "0 of 4",
    }.items():
        assert shown[measure].startswith(expected), measure
    assert rows["wins against `mezo` tuned for each task"][0].strip() == "–"  # there is no base that is no derivative
    ratios = [1.0 / 0.5, 1.1 / 0.6, 1.2 / 0.7, 1.3 / 0.8]
    assert shown["loss by that of `untrained`, geometric mean"].startswith(f"{math.prod(ratios) ** 0.25:.2f} (")
    assert "Not made yet, and in no figure: absent.\n" in text
    assert "| mezo | win: -1.0000 (-1.0000 … -1.0000), seeds 4 : 0 |" in text
    assert "| untrained | loss: +0.5000 (+0.5000 … +0.5000), seeds 0 : 4 |" in text


def test_the_page_is_current() -> None:
    evidence = _content(bench.EVIDENCE)
    names = [base["name"] for base in evidence["bases"]]
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(_content(bench.FIGURES), names)


def test_mistakes_are_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--base", "runs/bases/qwen2"])
    assert "go together" in capsys.readouterr().err
    for arguments, code, message in (
        (["--base", "runs/bases/qwen", "--tuner", TUNER], 2, "did you mean qwen2"),
        (["--base", "runs/bases/qwen2", "--tuner", "runs/absent"], 3, "runs/absent"),
    ):
        assert bench.main(arguments) == code
        error = capsys.readouterr().err
        assert message in error
        assert "usage" not in error
