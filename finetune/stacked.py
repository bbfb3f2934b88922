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

import torch

from finetune.compare_run import BenchFactory, Runner, make_runner
from finetune.processes import Record
from finetune.run_spec import RunSpec, with_course
from finetune.stack_bench import CannotStack, StackBench
from finetune.stack_run import Stack, method_name


def group_of(spec: RunSpec) -> str:
    """What the runs of a stack have in common, as one text."""
    hyper, _ = with_course(spec.hyper)
    apart = {"optimizer": method_name(spec), "hyper": hyper, "tuner": None, "lr": None, "seed": None}
    return json.dumps({**spec.settings, **apart}, sort_keys=True)


def take_group(queue: deque[Any], count: int) -> list[RunSpec]:
    """Take up to ``count`` runs of the largest group that can share a stack out of the queue."""
    groups = [group_of(spec) for spec in queue]
    largest, _ = Counter(groups).most_common(1)[0]
    members = list(islice((spec for spec, group in zip(queue, groups, strict=True) if group == largest), count))
    taken = {id(spec) for spec in members}
    rest = [spec for spec in queue if id(spec) not in taken]
    queue.clear()
    queue.extend(rest)
    return members


class Stacker:
    """Makes runs of one group at once.

    Args:
        runner: makes those that cannot be stacked, on the same bench.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._bench = StackBench(runner)

    def __call__(self, specs: Sequence[RunSpec]) -> list[Record]:
        """Their records."""
        return self.stacked(specs) or [self._runner(spec) for spec in specs]

    def stacked(self, specs: Sequence[RunSpec]) -> list[Record] | None:
        """Their records; None where they cannot be stacked. A stack that the memory does not hold is made in halves.

        Raises:
            torch.OutOfMemoryError: it does not hold a single run.
        """
        self._runner.reset()
        try:
            with self._runner.own_threads():
                return Stack(self._bench, specs).records()
        except CannotStack:
            return None
        except torch.OutOfMemoryError:
            if len(specs) == 1:
                raise
        finally:
            self._runner.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # other processes may share the device
        half = len(specs) // 2
        return [*self(specs[:half]), *self(specs[half:])]


class InStacks:
    """Makes one stack after the other in this process; see :class:`finetune.processes.Executor`."""

    def __init__(self, stacker: Stacker, count: int) -> None:
        self._stacker, self._count = stacker, count
        self._waiting: list[RunSpec] = []

    def has_room(self) -> bool:
        return not self._waiting

    def submit(self, queue: deque[Any]) -> None:
        self._waiting = take_group(queue, self._count)

    def collect(self) -> list[Record]:
        waiting, self._waiting = self._waiting, []
        return self._stacker(waiting)

    def close(self) -> None:
        self._waiting.clear()


def make_stacker(
    factory: BenchFactory, arguments: Sequence[Any], keep_bytes: int, threads: int, cache_bytes: int
) -> Stacker:
    """What every process that makes stacks prepares once."""
    return Stacker(make_runner(factory, arguments, keep_bytes, threads, cache_bytes))
