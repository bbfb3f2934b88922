"""The search, the scheduler and the summary by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune.processes import InProcess
from finetune.report import Chosen, markdown, overall, summarise_task, verdict
from finetune.run_spec import RunSpec, TunerSource
from finetune.sweep import RunStore, Search, drive, grid_lr, nearest_index, search_grid
from zoft.errors import UsageError


def searched(function: Callable[[int], float], reach: int = 20, first: int = 0) -> Search:
    """The search's result on a function of the grid index."""
    search = search_grid(reach, first)
    wanted = next(search)
    while True:
        assert all(abs(index - first) <= reach for index in wanted)
        try:
            wanted = search.send({index: function(index) for index in wanted})
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("best", range(-15, 16))
@pytest.mark.parametrize("cliff", [1, 2, 30])
def test_the_search_finds_the_least_and_evaluates_both_neighbours(best: int, cliff: int) -> None:
    def loss(index: int) -> float:
        return math.nan if index >= best + cliff else abs(index - best) / 40

    found = searched(loss)
    assert found.best == best
    assert found.interior
    assert {best - 1, best, best + 1} <= set(found.values)
    assert {best - 4 + best % 2, best + 4 - best % 2} <= set(found.values)
    assert len(found.values) <= 16


def test_the_search_finds_a_dip_below_the_divergence() -> None:
    measured = {-6: 0.5735, -4: 0.5709, -2: 0.5726, -1: 0.571, 0: 0.567, 1: 0.55}
    found = searched(lambda index: math.inf if index > 1 else measured.get(index, 0.574))
    assert (found.best, found.interior) == (1, True)


@pytest.mark.parametrize("first", [-15, -7, 3, 20, 23])
def test_where_the_search_begins_changes_nothing_but_its_length(first: int) -> None:
    found = searched(lambda index: abs(index - 4) / 40 if index < 6 else math.inf, first=first)
    assert (found.best, found.interior) == (4, True)
    assert {3, 4, 5} <= set(found.values)
    assert nearest_index(1e-3, grid_lr(1e-3, first) * 1.1) == first
    assert nearest_index(1e-3, 0.8) == 19  # however far


def test_a_best_at_the_end_of_the_reach_is_not_interior() -> None:
    assert searched(lambda index: -float(index), reach=6).best == 6
    assert not searched(lambda index: -float(index), reach=6).interior
    assert not searched(lambda index: float(index), reach=6).interior


def test_where_everything_diverges_the_search_goes_down_and_where_nothing_moves_up() -> None:
    assert searched(lambda index: math.inf, reach=8).best == -8
    assert searched(lambda index: 1.0, reach=8).best == 8
    assert searched(lambda index: math.inf if index > -9 else 0.1 * abs(index + 11)).best == -11


def test_of_several_minima_the_least_evaluated_one_is_bracketed() -> None:
    found = searched(lambda index: math.cos(index) + abs(index) / 10)
    assert found.interior
    assert found.values[found.best] == min(found.values.values())


def test_neighbours_on_the_grid_differ_by_the_root_of_two() -> None:
    assert grid_lr(1e-3, 2) == pytest.approx(2e-3)
    assert grid_lr(1e-3, 1) / grid_lr(1e-3, 0) == pytest.approx(math.sqrt(2))


@dataclass(frozen=True)
class Named:
    """A run that is its key."""

    key: str


def job(*rounds: Sequence[str]) -> Generator[Sequence[Named], list[dict], list[str]]:
    """Asks for rounds of runs and returns the keys of all the records that it was sent."""
    got = []
    for keys in rounds:
        records = yield [Named(key) for key in keys]
        got += [record["key"] for record in records]
    return got


def test_jobs_share_runs_and_get_their_records_in_order(tmp_path: Path) -> None:
    made: list[str] = []

    def run(spec: Named) -> dict:
        made.append(spec.key)
        return {"key": spec.key}

    store = RunStore(tmp_path / "runs.jsonl")
    store.add({"key": "d"})
    jobs = [job(["b", "a", "b"], ["c"]), job(["a", "d"], ["c", "a"]), job(["d"]), job()]
    assert drive(jobs, InProcess(run), store) == [["b", "a", "b", "c"], ["a", "d", "c", "a"], ["d"], []]
    assert sorted(made) == ["a", "b", "c"]
    assert len(RunStore(tmp_path / "runs.jsonl")) == 4


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("hello\nworld\n")
    with pytest.raises(UsageError, match="cannot be used"):
        RunStore(tmp_path / "runs.jsonl")


def spec(**values: object) -> RunSpec:
    """A run's settings."""
    base = {
        "fingerprint": "f", "data": "d", "task": "t", "optimizer": "mezo", "hyper": {}, "tuner": None, "lr": 1e-3,
        "epsilon": 1e-3, "seed": 0, "forwards": 10, "batch_size": 4, "eval_points": 1, "validation_examples": None,
        "test": False, "test_examples": None, "noise": "gaussian-table",
    }  # fmt: skip
    return RunSpec(**{**base, **values})


def test_a_runs_key_depends_on_every_setting_but_not_on_where_a_tuner_lies() -> None:
    changed = {
        "fingerprint": "g", "data": "e", "task": "u", "optimizer": "hizoo", "hyper": {"a": 1}, "lr": 2e-3,
        "epsilon": 1e-2, "seed": 1, "forwards": 11, "batch_size": 5, "eval_points": 2, "validation_examples": 7,
        "test": True, "test_examples": 7, "noise": "rademacher", "tuner": TunerSource("x", None, 0, "1"),
    }  # fmt: skip
    assert set(changed) == set(spec().settings)
    keys = {spec(**{name: value}).key for name, value in changed.items()}
    assert len(keys | {spec().key}) == len(changed) + 1
    here, there = (spec(tuner=TunerSource(folder, None, 0, "1")).key for folder in ("here", "there"))
    assert here == there != spec(tuner=TunerSource("here", None, 0, "2")).key


def chosen(losses: Sequence[float], zero: float = 1.0, interior: bool | None = True) -> Chosen:
    """Reported runs with these test losses."""
    made = []
    for seed, loss in enumerate(losses):
        finite = math.isfinite(loss)
        made.append(
            {
                "settings": {"seed": seed}, "metric": "accuracy", "seconds": 1.0,
                "zero_shot": {"test_loss": zero, "test_metric": 0.5},
                "test_loss": loss if finite else None, "test_metric": 0.6,
                "diverged": "not finite" if not finite else None if loss < zero else "no better than zero-shot",
            }
        )  # fmt: skip
    return Chosen(1e-3, interior, 14, made)


def test_differences_are_paired_and_ties_win_nothing() -> None:
    found = {"mezo": chosen([0.5, 0.7, 0.6]), "a": chosen([0.4, 0.6, 0.5]), "b": chosen([0.4, 0.7, 0.8])}
    task = summarise_task("t", "development", found, "mezo")
    a, b = task.cells["a"], task.cells["b"]
    assert a.difference == pytest.approx([-0.1, -0.1, -0.1])
    assert (a.wins, a.losses, a.outcome) == (3, 0, "ahead")
    assert (b.wins, b.losses, b.outcome) == (1, 1, "open")
    total = overall([task], "b")
    assert (total.better, total.worse, total.ahead, total.behind) == (0, 1, 0, 0)


def test_a_run_that_is_not_finite_counts_as_infinite_and_never_wins() -> None:
    task = summarise_task("t", "", {"mezo": chosen([0.59, 0.6]), "a": chosen([0.1, math.inf])}, "mezo")
    cell = task.cells["a"]
    assert (cell.wins, cell.losses, cell.outcome, cell.divergences, cell.not_finite) == (1, 1, "behind", 1, 1)
    assert overall([task], "a").worse == 1
    assert "∞" in markdown([task], "mezo")
    both = summarise_task("t", "", {"mezo": chosen([math.inf, 0.7]), "a": chosen([0.1, math.inf])}, "mezo")
    assert both.cells["a"].outcome == "open"
    assert (overall([both], "a").better, overall([both], "a").worse) == (0, 0)


@pytest.mark.parametrize(
    ("losses", "chance", "decided"),
    [
        ([0.5, 0.52, 0.51], None, True),
        ([0.99, 0.99, 0.99], None, False),
        ([0.5, 1.4, 0.9], None, False),
        ([0.69, 0.69, 0.69], 0.693, False),
        ([0.5, 0.52, 0.51], 0.693, True),
        ([1.2, math.inf, 1.1], None, False),
    ],
)
def test_a_task_is_decided_when_a_method_leaves_zero_shot_and_guessing(
    losses: list[float], chance: float | None, decided: bool
) -> None:
    task = summarise_task("t", "development", {"mezo": chosen(losses)}, "mezo", chance)
    assert task.decided is decided
    assert ("Undecided" in markdown([task], "mezo")) is not decided


def test_a_learning_rate_that_is_not_bracketed_is_marked() -> None:
    marked = markdown([summarise_task("t", "", {"mezo": chosen([0.5, 0.6], interior=False)}, "mezo")], "mezo")
    assert "1.00e-03*" in marked
    assert "not bracketed" in marked
    assert "*:" not in markdown([summarise_task("t", "", {"mezo": chosen([0.5, 0.6])}, "mezo")], "mezo")


def test_the_verdict_says_what_was_measured() -> None:
    found = {"mezo": chosen([0.5, 0.51]), "untrained": chosen([0.5, 0.51]), "mine": chosen([0.6, 0.61])}
    said = verdict([summarise_task("t", "", found, "mezo")], "mezo", {"mine": "untrained"})
    assert "over 1 decided task: mezo and untrained (0.5050)" in said
    assert "against mezo: better on 0 (0 clear), worse on 1 (1 clear); against untrained: better on 0 of 1" in said
