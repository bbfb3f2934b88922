"""The steps of a short run in one piece, as comparisons and searches make them by the hundred."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from zoft.optimizers import ZerothOrder
from zoft.optimizers.schedule import Schedule, scheduled
from zoft.step import StepResult
from zoft.tasks.base import Task, objective_on

#: A run ends early after so many steps in a row whose losses are not finite.
GIVE_UP = 10


def run_steps(
    optimizer: ZerothOrder, task: Task, batches: Iterable[Any], steps: int, lr: float, course: Schedule
) -> Iterator[tuple[StepResult, bool]]:
    """Make so many steps, a batch each, and yield what each did, and whether the run is lost and ends with it.

    Args:
        steps: at most; fewer where the batches end, or after :data:`GIVE_UP` skipped ones in a row.
        lr: η at first.
        course: how it goes to 0 over the run.
    """
    in_a_row = 0
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = scheduled(course, lr, 0.0, step, steps)
        result = optimizer.step_on(objective_on(task, optimizer.model, [batch]))
        in_a_row = in_a_row + 1 if result.skipped else 0
        lost = in_a_row == GIVE_UP
        yield result, lost
        if lost:
            return
