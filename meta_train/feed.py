"""Which task and which batches a meta-step sees: a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from zoft.errors import UsageError
from zoft.tasks.base import Task


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from anything that can be written down."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class Feed:
    """Batches of interleaved tasks: every round visits each task once.

    Args:
        tasks: the tasks, with different names.
        batch_size: examples a batch.
        seed: the run's seed; every task's data order is derived from it and the task's name.
        per_visit: batches that a meta-step takes.
        shuffled: whether the order within a round is shuffled by the seed.

    Raises:
        UsageError: no task, or two of the same name.
    """

    def __init__(
        self, tasks: Sequence[Task], batch_size: int, seed: int, per_visit: int, shuffled: bool = False
    ) -> None:
        if not tasks:
            raise UsageError("meta-training needs a task", "Give at least one.")
        self.names = [task.name for task in tasks]
        if len(set(self.names)) < len(self.names):
            raise UsageError(f"two tasks have the same name: {', '.join(self.names)}", "Give every task its own name.")
        self._tasks, self._batch_size, self._seed = tasks, batch_size, seed
        self._per_visit, self._shuffled = per_visit, shuffled
        self._streams: dict[int, tuple[int, Iterator[Any]]] = {}

    def task_at(self, step: int) -> int:
        """Index of the task that meta-step ``step`` works on."""
        round_number, place = divmod(step, len(self._tasks))
        if not self._shuffled:
            return place
        rng = np.random.default_rng((derived_seed("task order", self._seed), round_number))
        return int(rng.permutation(len(self._tasks))[place])

    def batches(self, step: int) -> list[Any]:
        """The batches of meta-step ``step``.

        Raises:
            UsageError: the task's batches end.
        """
        index = self.task_at(step)
        start = step // len(self._tasks) * self._per_visit
        position, stream = self._streams.get(index, (-1, iter(())))
        if position != start:
            stream = self._open(self._tasks[index], start)
        batches = list(islice(stream, self._per_visit))
        if len(batches) < self._per_visit:
            raise UsageError(f"the training batches of task {self.names[index]!r} end", "Make them endless.")
        self._streams[index] = (start + self._per_visit, stream)
        return batches

    def _open(self, task: Task, start: int) -> Iterator[Any]:
        """The task's batches from ``start`` on: directly where the task can, else by going through them."""
        seed = derived_seed("batches", self._seed, task.name)
        if "start" in inspect.signature(task.train_batches).parameters:
            return task.train_batches(self._batch_size, seed, start=start)  # type: ignore[call-arg]
        return islice(task.train_batches(self._batch_size, seed), start, None)
