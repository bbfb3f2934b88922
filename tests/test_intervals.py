"""The intervals: as wide as they have to be, deterministic, and honest about what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.intervals import Interval, differences, interval, student

INF = math.inf


def test_quantiles_of_student_s_t() -> None:
    # Table values of t at 0.975; 15 and more are beyond the stored table.
    for freedom, value in ((1, 12.706), (4, 2.776), (14, 2.145), (15, 2.131), (20, 2.086), (30, 2.042), (120, 1.980)):
        assert student(freedom) == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20])
def test_no_side_is_nearer_than_student_s(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    found = interval(values)
    half = student(count - 1) * values.std(ddof=1) / math.sqrt(count)
    assert found.mean == pytest.approx(values.mean())
    assert found.low <= found.mean - half
    assert found.high >= found.mean + half
    assert found.high - found.low < 2.6 * half
    assert interval(values) == found


def test_the_bootstrap_reaches_further_where_values_are_skewed() -> None:
    values = np.array([-0.1, -0.1, -0.12, -0.1, -0.11, -0.1, -0.1, -0.1, -0.12, 0.6])
    half = student(9) * values.std(ddof=1) / math.sqrt(10)
    assert interval(values).high > values.mean() + half


def test_two_sided_errors_keep_to_their_level() -> None:
    generator = np.random.default_rng(0)
    for count in (5, 10):
        found = [interval(generator.normal(size=count)) for _ in range(400)]
        wrong = sum(one.below or one.above for one in found)
        assert 4 <= wrong <= 33  # 5 % of 400 is 20; three standard deviations are 13


def test_one_value_says_nothing_and_equal_ones_everything() -> None:
    assert interval([-1.0]) == Interval(-1.0, -INF, INF)
    assert interval([0.0] * 5) == Interval(0.0, 0.0, 0.0)
    same = interval([-0.25] * 5)
    assert same.below
    assert (same.low, same.high) == (-0.25, -0.25)
    assert not interval([0.0] * 5).below
    assert not interval([0.0] * 5).above


def test_values_that_are_not_finite() -> None:
    once = interval([-INF, 0.1, 0.1, 0.1, 0.1])  # the rival diverged once, and is ahead otherwise
    assert (once.mean, once.low) == (-INF, -INF)
    assert not once.below
    assert interval([-INF, -0.1, -0.1, -0.1, -0.1]).below
    assert interval([-INF] * 5).below
    mine = interval([INF, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1])
    assert mine.above
    assert not mine.below
    both = interval([INF, -INF, -0.1, -0.1, -0.1])
    assert math.isnan(both.mean)
    assert (both.low, both.high) == (-INF, INF)
    assert not both.below
    assert not both.above


def test_tuner_seeds_widen_the_interval_and_are_paired_with_the_same_run_seeds() -> None:
    seeds = np.linspace(-0.2, 0.2, 10)
    alike = np.stack([seeds - 0.5] * 3)
    apart = alike + np.array([[-0.4], [0.0], [0.4]])
    assert interval(alike).mean == pytest.approx(interval(apart).mean)
    one, three, spread = interval(alike[0]), interval(alike), interval(apart)
    assert three.high == pytest.approx(one.high, abs=0.01)
    assert spread.high > three.high + 0.1
    # Run seeds are drawn for all tuners at once: what is common to them does not average out.
    assert three.high - three.low > 0.9 * (one.high - one.low)


def test_tasks_are_the_units_where_they_are_said_to_be() -> None:
    tasks = np.tile(np.array([[-0.1], [-0.2], [-0.3], [-0.25]]), (1, 10))
    found = interval(tasks, unit="rows")
    half = student(3) * np.std([-0.1, -0.2, -0.3, -0.25], ddof=1) / 2
    assert found.low <= found.mean - 0.999 * half
    assert found.high >= found.mean + 0.999 * half
    assert interval(tasks[:1], unit="rows") == Interval(pytest.approx(-0.1), -INF, INF)


def test_differences_are_paired_by_run_seed() -> None:
    made = differences([1.0, 2.0, 3.0, 4.0], [1.0, 5.0], 2)
    assert made.tolist() == [[0.0, -3.0], [2.0, -1.0]]
    assert differences([INF, 1.0], [INF, INF], 2).tolist() == [[0.0, -INF]]
    assert differences([1.0, 2.0], [1.0, 2.0, 0.0, 5.0], 2).tolist() == [[0.0, 0.0], [1.0, -3.0]]
