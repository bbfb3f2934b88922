"""Searching learning rates and scheduling many small runs over processes.

A search, and everything else that needs runs, is a generator: it yields the runs that it needs and is
sent their records. :func:`drive` advances many of them at once, makes no run twice, and keeps every
record in a file, so that a later call goes on from there.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from finetune.compare_config import LR_RATIO
from finetune.processes import Executor, Record
from zoft.errors import UsageError

_T = TypeVar("_T")


class Spec(Protocol):
    """The settings of a run."""

    @property
    def key(self) -> str:
        """A hash of everything that the run's result depends on."""


_S = TypeVar("_S", bound=Spec)

#: Yields runs that it needs, is sent their records in the same order, returns its result.
Job = Generator[Sequence[_S], Sequence[Record], _T]

#: Stages of the search: spacing on the grid in factors of √2, and points to either side of the best. The
#: loss need not have one minimum: often it is flat at small rates and dips just below the divergence. So
#: factor 2 for a factor of 4 to either side, then the √2-neighbours.
STAGES = ((2, 2), (1, 1))


@dataclass(frozen=True)
class Search:
    """What a search on the grid found.

    Attributes:
        values: loss by grid index; the learning rate at index k is lr_start·√2^k.
        best: the index with the least loss.
        interior: whether both neighbours of the best were evaluated. It is False only where the best
            lies at the end of the reach.
    """

    values: Mapping[int, float]
    best: int
    interior: bool


def grid_lr(start: float, index: int) -> float:
    """The learning rate at a grid index: start·√2^index."""
    return float(start * LR_RATIO**index)


def nearest_index(start: float, lr: float) -> int:
    """The grid index of the learning rate nearest to ``lr``."""
    return round(math.log(lr / start, LR_RATIO))


def search_grid(reach: int, first: int = 0) -> Generator[list[int], Mapping[int, float], Search]:
    """Find the grid index of the least loss, with both its √2-neighbours evaluated.

    From index ``first`` the points of :data:`STAGES` around the best so far are evaluated, and the bracket moves
    with the best until none is missing. A loss that is not finite counts as infinite.

    Args:
        reach: indices beyond ``first`` ± reach are not tried.
        first: where to begin; the search goes as far as it must.

    Yields:
        indices to evaluate; is sent their losses by index.
    """
    values: dict[int, float] = {}
    best = first
    for stride, points in STAGES:
        while True:
            around = range(best - stride * points, best + stride * points + 1, stride)
            wanted = [index for index in around if abs(index - first) <= reach and index not in values]
            if not wanted:
                break
            found = yield wanted
            values.update({index: _infinite(found[index]) for index in wanted})
            best = _least(values)
    return Search(values, best, all(index in values for index in (best - 1, best + 1)))


def searched(
    reach: int, specs: Callable[[int], Sequence[_S]], score: Callable[[Sequence[Record]], float], first: int = 0
) -> Job[_S, Search]:
    """Search the grid by the score of every index's runs.

    Args:
        specs: the runs of a grid index, as many for each.
        score: of their records; the least is the best.
        first: the index to begin at.
    """
    search = search_grid(reach, first)
    wanted = next(search)
    while True:
        groups = [specs(index) for index in wanted]
        records = yield [spec for group in groups for spec in group]
        size = len(groups[0])
        values = {index: score(records[at * size : (at + 1) * size]) for at, index in enumerate(wanted)}
        try:
            wanted = search.send(values)
        except StopIteration as end:
            found: Search = end.value
            return found


def _infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _least(values: Mapping[int, float]) -> int:
    """Index of the least value; of equals the larger index, but the smaller one where nothing is finite."""
    return min(values, key=lambda index: (values[index], -index if math.isfinite(values[index]) else index))


class RunStore:
    """The records of finished runs: one JSON object a line, appended as each run ends.

    A line that a kill cut off is dropped when the file is read.

    Raises:
        UsageError: the file cannot be read or written, or holds something else.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records: dict[str, Record] = {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes() if file.is_file() else b""
            whole, newline, rest = content.rpartition(b"\n")
            for line in whole.splitlines():
                record = json.loads(line)
                self._records[record["key"]] = record
            if rest:
                with file.open("r+b") as stream:
                    stream.truncate(len(whole) + len(newline))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} cannot be used: {error}", "Give another output folder.") from error

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> Record | None:
        """The record of the run with that key, or None."""
        return self._records.get(key)

    def add(self, record: Record) -> None:
        """Keep a record: in the file, and so safe from a kill of this process, before this returns."""
        with self._file.open("ab") as stream:
            stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._records[record["key"]] = record


def drive(
    jobs: Sequence[Job[_S, _T]],
    executor: Executor,
    store: RunStore,
    progress: Callable[[int, int, Record], None] | None = None,
) -> list[_T]:
    """Advance all jobs until each has returned.

    A run that is in ``store``, or that another job is already waiting for, is not made again.

    Args:
        progress: called after every run that was made, with the number made so far, the number known
            to be outstanding, and the record.

    Returns:
        What the jobs returned, in their order.
    """
    state = _Drive(jobs, store)
    for index in range(len(jobs)):
        state.advance(index, None)
    made = 0
    while state.outstanding:
        while state.queue and executor.has_room():
            executor.submit(state.queue)
        for record in executor.collect():
            made += 1
            store.add(record)
            if progress is not None:
                progress(made, state.outstanding - 1, record)
            state.finished(record["key"])
    return [state.results[index] for index in range(len(jobs))]


def all_there(job: Job[Any, Any], store: RunStore) -> bool:
    """Whether every run that a job needs, to its end, is in ``store``."""
    state = _Drive([job], store)
    state.advance(0, None)
    return not state.outstanding


class _Drive:
    """Which job waits for which runs."""

    def __init__(self, jobs: Sequence[Job[Any, Any]], store: RunStore) -> None:
        self._jobs = jobs
        self._store = store
        self._wanted: dict[int, list[str]] = {}
        self._waiting: dict[str, list[int]] = {}
        self.queue: deque[Any] = deque()
        self.results: dict[int, Any] = {}

    @property
    def outstanding(self) -> int:
        return len(self._waiting)

    def advance(self, index: int, records: list[Record] | None) -> None:
        """Send a job what it waited for, until it waits for a run that is still to be made."""
        while True:
            try:
                specs = next(self._jobs[index]) if records is None else self._jobs[index].send(records)
            except StopIteration as end:
                self.results[index] = end.value
                return
            self._wanted[index] = [spec.key for spec in specs]
            missing = {spec.key: spec for spec in specs if self._store.get(spec.key) is None}
            for key, spec in missing.items():
                if key not in self._waiting:
                    self._waiting[key] = []
                    self.queue.append(spec)
                self._waiting[key].append(index)
            if missing:
                return
            records = self._records(index)

    def finished(self, key: str) -> None:
        """A run's record is in the store."""
        for index in self._waiting.pop(key):
            if all(self._store.get(wanted) is not None for wanted in self._wanted[index]):
                self.advance(index, self._records(index))

    def _records(self, index: int) -> list[Record]:
        found = (self._store.get(key) for key in self._wanted[index])
        return [record for record in found if record is not None]
