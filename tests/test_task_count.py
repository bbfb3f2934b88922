"""Scales by the number of tasks: planted rows are found, a left-out task is not looked at, and sets are sets."""

from __future__ import annotations

import pytest
import torch

from benchmarks.task_count import curve, moments, scales, subsets

SHAPES = {"matrix": (8, 16), "vector": (4,)}


def planted(row: int, seed: int = 0, count: int = 60) -> dict[str, torch.Tensor]:
    """Gradients of minibatches whose mean is in one row of the matrix."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(count, torch.Size(shape).numel(), generator=generator)
             for name, shape in SHAPES.items()}  # fmt: skip
    found["matrix"][:, 16 * row : 16 * (row + 1)] += 2.0
    return found


def test_the_row_that_holds_the_signal_gets_the_scale() -> None:
    found = scales([moments(planted(3), SHAPES)], SHAPES)
    rows = found["matrix"].view(8, 16).square().mean(1)
    assert int(rows.argmax()) == 3
    assert float(rows[3]) > 10 * float(rows[torch.arange(8) != 3].max())
    assert float(rows.mean()) == pytest.approx(1.0, rel=1e-4)  # the block's norm stays
    assert torch.equal(found["vector"], torch.ones(4))


def test_tasks_alike_teach_each_other_and_others_mislead() -> None:
    of = {"left-out": moments(planted(5, 1), SHAPES), "alike": moments(planted(5, 2), SHAPES),
          "other": moments(planted(2, 3), SHAPES)}  # fmt: skip
    gradients = planted(5, 4, count=120)
    alike = curve("left-out", {name: of[name] for name in ("left-out", "alike")}, gradients, SHAPES, [1], 4)
    other = curve("left-out", {name: of[name] for name in ("left-out", "other")}, gradients, SHAPES, [1], 4)
    assert alike[0] > 1.5
    assert other[0] < 0.1
    both = curve("left-out", of, gradients, SHAPES, [2], 4)
    assert other[0] < both[0] < alike[0]


def test_sets_are_different_and_no_more_than_there_are() -> None:
    assert subsets(["a", "b", "c"], 2, 10) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(set(subsets([str(n) for n in range(8)], 4, 6))) == 6
    assert subsets(["a", "b", "c"], 1, 2, seed=1) == subsets(["a", "b", "c"], 1, 2, seed=1)
