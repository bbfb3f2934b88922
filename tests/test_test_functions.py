"""HiZOO against MeZO where the curvature differs between the axes, and the page of docs/ that shows it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import test_functions as functions

ROOT = Path(__file__).parents[1]
RECORD = json.loads((ROOT / "docs" / "test-functions.json").read_text(encoding="utf-8"))

QUADRATIC = functions.FUNCTIONS["quadratic"]

#: Seeds that the learning rates are chosen on, and those that are judged.
CHOSEN_ON, JUDGED = range(51, 53), range(2)


def bracketed(method: str, around: float, reach: int, **hyper: float) -> dict[float, list[float]]:
    """Final values by learning rate on a √2 grid; the best, by the worst seed, has worse ones on both sides."""
    rates = [around * math.sqrt(2) ** step for step in range(-reach, reach + 1)]
    found = {rate: [functions.final(QUADRATIC, method, rate, seed, **hyper) for seed in CHOSEN_ON] for rate in rates}
    worst = [max(found[rate]) for rate in rates]
    best = worst.index(min(worst))
    assert 0 < best < len(rates) - 1
    return {rates[best]: found[rates[best]], **found}


def test_hizoo_reaches_a_loss_on_the_ill_conditioned_quadratic_that_mezo_reaches_at_no_rate() -> None:
    mezo = bracketed("mezo", 4e-5, 3)
    hizoo = bracketed("hizoo", 0.14, 2, smooth_scale=0.3)
    lr = next(iter(hizoo))
    reached = [functions.final(QUADRATIC, "hizoo", lr, seed, smooth_scale=0.3) for seed in JUDGED]
    missed = [value for values in mezo.values() for value in values]
    missed += [functions.final(QUADRATIC, "mezo", next(iter(mezo)), seed) for seed in JUDGED]
    assert max(reached) < 1e-6 < 0.1 < min(missed)


def test_both_make_the_same_number_of_forwards_and_start_alike() -> None:
    for method, steps in (("mezo", 450), ("hizoo", 300), ("adam", 300)):
        path = functions.trajectory(QUADRATIC, method, 0.0, seed=0, forwards=functions.FORWARDS // 10)
        assert len(path) == steps // 10 + 1
        assert path[-1][0] == functions.FORWARDS // 10
        assert {point[1:3] for point in path} == {QUADRATIC.start}


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_the_functions_have_their_minimum_where_they_say(name: str) -> None:
    function = functions.FUNCTIONS[name]
    point = functions.Point(function)
    assert point().item() > 1
    least = functions.trajectory(replace(function, start=function.minimum), "adam", 1e-9, 0, forwards=3)
    assert least[0][-1] == 0
    assert least[1][-1] < 1e-6


def test_the_page_is_of_the_record_and_what_it_says_holds() -> None:
    page = (ROOT / "docs" / "test-functions.md").read_text(encoding="utf-8")
    assert page == functions.page(RECORD)
    assert list(RECORD["functions"]) == list(functions.FUNCTIONS)
    assert not set(RECORD["selection_seeds"]) & set(functions.REPORTED)
    for record in RECORD["functions"].values():
        assert list(record) == list(functions.METHODS)
        assert all(chosen["interior"] for chosen in record.values())
    assert (ROOT / "docs" / "test-functions.png").stat().st_size < 300_000


@pytest.mark.parametrize(("method", "seed"), [("mezo", 1), ("hizoo", 2), ("adam", 0)])
def test_the_record_can_be_made_again(method: str, seed: int) -> None:
    chosen = RECORD["functions"]["quadratic"][method]
    value = functions.final(QUADRATIC, method, chosen["lr"], seed, **chosen["hyper"])
    assert value == pytest.approx(chosen["final"][seed], rel=1e-3)
