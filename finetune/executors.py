"""Where the runs of a comparison or a search are made: in this process, or in one a core."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from finetune.compare_config import CompareConfig
from finetune.compare_run import BenchFactory, Runner, make_runner
from finetune.oracle_config import OracleConfig
from finetune.processes import Executor, InProcess, Processes
from finetune.run_cache import cache_size
from finetune.run_spec import Bench
from finetune.stacked import InStacks, Stacker, make_stacker, take_group

#: The settings that say where and on what runs are made.
Settings = CompareConfig | OracleConfig


def bench_arguments(settings: Settings, tasks: Sequence[str]) -> tuple[Any, ...]:
    """What a bench is made from, in every process."""
    further = (settings.data_dir,) if settings.data_dir else ()
    return (settings.base, tuple(tasks), settings.device, settings.dtype, *further)


def process_count(settings: Settings) -> int:
    """The processes asked for, or one a core, one on an accelerator."""
    return settings.workers or (len(os.sched_getaffinity(0)) if settings.device == "cpu" else 1)


def make_executor(settings: Settings, bench: Bench, factory: BenchFactory, arguments: tuple[Any, ...]) -> Executor:
    """What makes the runs.

    Args:
        bench: for runs in this process; ``factory`` and ``arguments`` make it again in others.
    """
    count, at_once = process_count(settings), getattr(settings, "runs_at_once", 1)
    cache = cache_size(count) if settings.cache_bytes is None else settings.cache_bytes
    prepared = (factory, arguments, settings.keep_bytes, settings.threads, cache)
    if count == 1:
        runner = Runner(bench, settings.keep_bytes, settings.threads, cache)
        return InProcess(runner) if at_once == 1 else InStacks(Stacker(runner), at_once)
    if at_once > 1:
        return Processes(count, make_stacker, prepared, partial(take_group, count=at_once))
    return Processes(count, make_runner, prepared)
