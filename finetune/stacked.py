"""Runs of a comparison made many at once: stacked along a leading dimension, for small models on an accelerator.

Runs can share a stack if they differ in nothing but the method's tuner, the learning rate with its course, and the
seed. What a stack gives is what :class:`finetune.compare_run.Runner` gives for every run alone, but for the order in
which sums are taken. Runs that cannot be stacked are made one by one.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from finetune.compare_run import Runner
from finetune.run_spec import RunSpec, with_course
from finetune.stack_run import CannotStack, Stack, StackBench, method_name
from finetune.sweep import Record


def group_of(spec: RunSpec) -> str:
    """What the runs of a stack have in common, as one text."""
    hyper, _ = with_course(spec.hyper)
    apart = {"optimizer": method_name(spec), "hyper": hyper, "tuner": None, "lr": None, "seed": None}
    return json.dumps({**spec.settings, **apart}, sort_keys=True)


class StackedRuns:
    """Makes up to ``count`` runs at once in this process; see :class:`finetune.sweep.Executor`.

    Args:
        runner: makes runs that cannot be stacked, on the same bench.
        count: runs in a stack at most.
        cache_bytes: for noise that runs with the same seed share.
    """

    def __init__(self, runner: Runner, count: int, cache_bytes: int) -> None:
        self._runner, self._count = runner, count
        self._bench = StackBench(runner, cache_bytes)
        self._waiting: list[RunSpec] = []

    def has_room(self) -> bool:
        return not self._waiting

    def submit(self, queue: deque[Any]) -> None:
        """Take the largest group of waiting runs that can share a stack, or as many of it as a stack may have."""
        groups = [group_of(spec) for spec in queue]
        largest, _ = Counter(groups).most_common(1)[0]
        members = (spec for spec, group in zip(queue, groups, strict=True) if group == largest)
        self._waiting = list(islice(members, self._count))
        taken = {id(spec) for spec in self._waiting}
        rest = [spec for spec in queue if id(spec) not in taken]
        queue.clear()
        queue.extend(rest)

    def collect(self) -> list[Record]:
        waiting, self._waiting = self._waiting, []
        return self.stacked(waiting) or [self._runner(spec) for spec in waiting]

    def stacked(self, specs: Sequence[RunSpec]) -> list[Record] | None:
        """The records of runs of one group, made at once; None where they cannot be stacked."""
        self._runner.reset()
        try:
            return Stack(self._bench, specs).records()
        except CannotStack:
            return None
        finally:
            self._runner.reset()

    def close(self) -> None:
        self._waiting.clear()
