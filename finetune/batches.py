"""A task's training batches as the sequence that a DataLoader reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import Dataset

from zoft.tasks.base import Task


class TaskBatches(Dataset[Any]):
    """The training batches of a task as a sequence: this process's share, in the task's own seeded order.

    Batch ``i`` of rank ``r`` is number ``i·world + r`` of ``task.train_batches``, so two processes with
    half the batch size see in every step the examples that one process would see.

    Args:
        batch_size: examples a batch.
        seed: of the order.
        count: number of batches of this process.
    """

    def __init__(self, task: Task, batch_size: int, seed: int, count: int, rank: int = 0, world: int = 1) -> None:
        self._task, self._batch_size, self._seed, self._count = task, batch_size, seed, count
        self._rank, self._world = rank, world
        self._next, self._stream = -1, iter(())  # type: tuple[int, Iterator[Any]]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        if index != self._next:  # the first one, or after skipping to where a run resumes
            stream = from_step(self._task, self._batch_size, self._seed, index * self._world)
            self._stream = islice(stream, self._rank, None, self._world)
        self._next = index + 1
        return next(self._stream)


def from_step(task: Task, batch_size: int, seed: int, start: int) -> Iterator[Any]:
    """The task's training batches from number ``start`` on; those before are not made, where the task can skip them."""
    batches: Any = task.train_batches
    if "start" in inspect.signature(batches).parameters:
        stream: Iterator[Any] = batches(batch_size, seed, start=start)
        return stream
    return islice(batches(batch_size, seed), start, None)
