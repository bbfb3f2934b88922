"""Where runs are made: one after the other in this process, or in several processes."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Collection
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from zoft.errors import ZoftError

#: What a finished run is kept as: JSON-able, with its ``key``.
Record = dict[str, Any]


class Executor(Protocol):
    """Something that makes runs."""

    def has_room(self) -> bool:
        """Whether another run can be submitted now."""

    def submit(self, queue: deque[Any]) -> None:
        """Begin one of the waiting runs and take it out of the queue."""

    def collect(self) -> list[Record]:
        """Wait until at least one submitted run is finished."""

    def close(self) -> None:
        """End without waiting for runs that are under way."""


#: How far ahead in the queue a process looks for a run like its last one.
LOOKAHEAD = 512


def take(queue: deque[Any], last: Any, others: Collection[Any]) -> Any:
    """Take the next run of a process out of the queue: one with the seed of its last run, which shares its cache.

    Where there is none, one with a seed that no other process is at; else the first.

    Args:
        last: the seed of the process's last run; ``others``: those of the other processes' last runs.
    """
    groups = [_group(spec) for spec in islice(queue, LOOKAHEAD)]
    at = next((at for at, group in enumerate(groups) if group == last), None)
    if at is None:
        at = next((at for at, group in enumerate(groups) if group not in others), 0)
    spec = queue[at]
    del queue[at]
    return spec


def _group(spec: Any) -> Any:
    return getattr(spec, "seed", None)


class InProcess:
    """Makes one run after the other in this process."""

    def __init__(self, run: Callable[[Any], Record]) -> None:
        self._run = run
        self._waiting: list[Any] = []
        self._last: Any = None

    def has_room(self) -> bool:
        return not self._waiting

    def submit(self, queue: deque[Any]) -> None:
        self._waiting.append(take(queue, self._last, ()))
        self._last = _group(self._waiting[-1])

    def collect(self) -> list[Record]:
        return [self._run(self._waiting.pop())]

    def close(self) -> None:
        self._waiting.clear()


class Processes:
    """Makes runs in several processes, each of which prepares itself once.

    Args:
        count: number of processes.
        prepare: an importable function that makes the function that makes runs; called in every process.
        arguments: its arguments.
        choose: takes several waiting runs out of the queue, where a process makes several at once and gives a list.
    """

    def __init__(
        self,
        count: int,
        prepare: Callable[..., Callable[[Any], Any]],
        arguments: tuple[Any, ...],
        choose: Callable[[deque[Any]], list[Any]] | None = None,
    ) -> None:
        self._choose = choose
        context = multiprocessing.get_context("spawn")
        self._busy: set[Connection] = set()
        self._last: dict[Connection, Any] = {}
        self._idle: list[Connection] = []
        self._processes = []
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, prepare, arguments), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._idle.append(mine)

    def has_room(self) -> bool:
        return bool(self._idle)

    def submit(self, queue: deque[Any]) -> None:
        pipe = self._idle.pop()
        self._busy.add(pipe)
        if self._choose is not None:
            pipe.send(self._choose(queue))
            return
        spec = take(queue, self._last.get(pipe), [group for other, group in self._last.items() if other is not pipe])
        self._last[pipe] = _group(spec)
        pipe.send(spec)

    def collect(self) -> list[Record]:
        records = []
        ready = wait(list(self._busy))
        for pipe in [pipe for pipe in self._busy if pipe in ready]:
            try:
                answer = pipe.recv()
            except EOFError:
                raise RuntimeError("a process that makes runs has died; is there enough memory?") from None
            if isinstance(answer, ZoftError):
                raise answer
            if isinstance(answer, str):
                raise RuntimeError(f"a run failed:\n{answer}")
            self._busy.remove(pipe)
            self._idle.append(pipe)
            records += answer if isinstance(answer, list) else [answer]
        return records

    def close(self) -> None:
        for pipe in (*self._idle, *self._busy):
            pipe.close()
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(pipe: Connection, prepare: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    """A process's life: prepare, then make runs until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    run: Callable[[Any], Any] | None = None
    while True:
        try:
            spec = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Record | list[Record] | ZoftError | str
        try:
            run = run or prepare(*arguments)
            answer = run(spec)
        except ZoftError as error:
            answer = error
        except Exception:
            answer = traceback.format_exc()
        try:
            pipe.send(answer)
        except OSError:
            return
