"""The learning rate by the outcomes of whole runs: the best is found and bracketed, kept over a break, and left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from meta_train import MetaTrainConfig, meta_train, recipe
from meta_train.outcome_runs import OutcomeRuns
from tests.models import build
from tests.test_outcomes import Net, Notes, straight_and_resumed, task, tasks_left_out


def config(**changes: Any) -> MetaTrainConfig:
    """Short runs after a few meta-steps."""
    settings = {
        "steps": 4,
        "batch_size": 8,
        "network": {"hidden": 4},
        "lookahead_lr": 1e-3,
        "structure": "scales",
        "structure_from": "signal",
        "step_size": "gauss-newton",
        "rate_seeds": 2,
        "outcome_forwards": 90,
        "outcome_examples": 80,
    }
    return MetaTrainConfig(**{**settings, **changes})


def planted(monkeypatch: pytest.MonkeyPatch, best: float) -> list[tuple[int, float]]:
    """Scores that are least at a rate; returns the runs that are asked for, as they are."""
    asked = []

    def made(self: OutcomeRuns, index: int, tuner: Any, lr: float, seed: int) -> float:
        asked.append((index, lr))
        return abs(math.log(lr / best)) - 1 + index

    monkeypatch.setattr(OutcomeRuns, "_made", made)
    return asked


@pytest.mark.parametrize(
    ("best", "tried"),
    [(1.0, [1, 1.41, 0.707]), (2.1, [1, 1.41, 2, 2.83]), (0.5, [1, 1.41, 0.707, 0.5, 0.354])],
)
def test_the_best_rate_is_found_with_both_neighbours(
    monkeypatch: pytest.MonkeyPatch, best: float, tried: list[float]
) -> None:
    asked, notes = planted(monkeypatch, best), Notes()
    tuner = meta_train(build(Net, scale=0), [task("one"), task("two", seed=900)], config(), reporter=notes)
    assert asked == [(index, rate) for rate in tried for _ in range(2) for index in range(2)]
    found = min(tried, key=lambda rate: abs(math.log(rate / best)))
    assert tuner.config.recommended.lr == pytest.approx(found / math.sqrt(2), rel=3e-3)  # a step below, to be safe
    record = tuner.provenance["learning_rates"]
    assert [float(rate) for rate in record] == sorted(tried)
    assert record[f"{found:.3g}"] == pytest.approx(math.exp(abs(math.log(found / best)) - 0.5))
    assert notes.said[-1] == f"learning rate: {tuner.config.recommended.lr:.3g} is recommended"


def test_the_search_ends_where_nothing_is_ever_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, 1e9)
    tuner = meta_train(build(Net, scale=0), [task("one")], config())
    assert max(map(float, tuner.provenance["learning_rates"])) == 16
    assert tuner.config.recommended.lr == 11.3


def test_runs_choose_a_rate_that_does_better_than_one_too_large_or_too_small() -> None:
    tuner = meta_train(build(Net, scale=0), [task("one"), task("two", seed=900)], config())
    record = {float(rate): score for rate, score in tuner.provenance["learning_rates"].items()}
    best = min(record, key=lambda rate: record[rate])
    assert min(record) < best < max(record)
    assert record[best] < 1
    assert tuner.config.recommended.lr == pytest.approx(best / math.sqrt(2), rel=3e-3)


def test_a_rate_that_is_given_is_recommended_without_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planted(monkeypatch, 1.0)
    tuner = meta_train(build(Net, scale=0), [task()], config(recommended_lr=0.3))
    assert tuner.config.recommended.lr == 0.3
    assert "learning_rates" not in tuner.provenance
    assert meta_train(build(Net, scale=0), [task()], config(rate_seeds=0)).config.recommended.lr == 1
    assert asked == []


def test_other_heads_begin_at_the_rate_that_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planted(monkeypatch, 1e-9)
    settings = config(step_size="slopes", rate_seeds=1)
    plain = meta_train(build(Net, scale=0), [task()], settings.model_copy(update={"rate_seeds": 0}))
    meta_train(build(Net, scale=0), [task()], settings)
    assert asked[0][1] == pytest.approx(plain.config.recommended.lr, rel=1e-2)


def test_runs_have_what_the_other_tasks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tasks_left_out(monkeypatch)
    planted(monkeypatch, 1.0)
    meta_train(build(Net, scale=0), [task("one"), task("two", seed=900)], config(structure_share=0.5))
    assert asked == [None, 0, 1]


def test_interrupted_among_the_runs_and_resumed_gives_the_bits_of_a_straight_run(tmp_path: Path) -> None:
    straight, resumed = straight_and_resumed(config(), tmp_path)
    assert resumed.provenance["learning_rates"] == straight.provenance["learning_rates"]
    assert resumed.config.recommended == straight.config.recommended


def test_the_default_recipe_finds_its_rate() -> None:
    assert MetaTrainConfig.load(base=recipe()).rate_seeds == 1
