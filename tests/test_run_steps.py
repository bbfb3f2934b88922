"""The steps of a short run: how the learning rate falls, and when a run is lost."""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import build
from zoft.optimizers import ZerothOrder, get_optimizer
from zoft.runs.steps import GIVE_UP, run_steps
from zoft.tasks.function import FunctionTask


def optimizer() -> ZerothOrder:
    return ZerothOrder(build(lambda: nn.Linear(2, 1)), get_optimizer("mezo"), seed=0)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    found: torch.Tensor = model(batch).square().mean()
    return found


def test_the_rate_falls_along_its_course() -> None:
    made, rates = optimizer(), []

    for _, lost in run_steps(
        made, FunctionTask("t", [torch.ones(1, 2)], loss), repeat(torch.ones(1, 2)), 4, 0.8, "linear"
    ):
        rates.append(made.param_groups[0]["lr"])
        assert not lost
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_run_is_lost_after_so_many_skipped_steps_in_a_row() -> None:
    fine = [GIVE_UP - 1]  # a finite step between, so that the count begins again
    batches = [torch.full((1, 2), 1.0 if at in fine else math.nan) for at in range(3 * GIVE_UP)]

    found = list(
        run_steps(optimizer(), FunctionTask("t", batches, loss), iter(batches), len(batches), 1e-3, "constant")
    )
    assert [result.skipped for result, _ in found] == [at not in fine for at in range(2 * GIVE_UP)]
    assert [lost for _, lost in found] == [False] * (2 * GIVE_UP - 1) + [True]


def test_a_run_ends_with_its_batches() -> None:
    batches = [torch.ones(1, 2)] * 3
    assert len(list(run_steps(optimizer(), FunctionTask("t", batches, loss), iter(batches), 5, 1e-3, "constant"))) == 3
