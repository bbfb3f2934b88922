"""What an oracle search would cost, before it is started."""

from __future__ import annotations

from finetune.compare_run import BenchFactory, Runner, language_model_bench
from finetune.executors import process_count
from finetune.oracle import Plan, prepared
from finetune.oracle_config import OracleConfig


def cost(config: OracleConfig, *, factory: BenchFactory = language_model_bench) -> list[str]:
    """What a search would cost, in a few lines: numbers of runs, and hours by two short runs made now on each task."""
    config, bench, _ = prepared(config, factory)
    plan, runner = Plan(config, bench, print), Runner(bench, config.keep_bytes, config.threads)
    short = config.model_copy(update={"forwards": 20}), config.model_copy(update={"forwards": 80})
    center = plan.decoded([*plan.space.start, 0.0])
    seconds = 0.0
    for at in range(len(config.tasks)):
        specs = [Plan(each, bench, print).specs(center, [config.seed])[at] for each in (short[0], *short)]
        _, less, more = (float(runner(spec)["seconds"]) for spec in specs)
        slope = max(more - less, 0.0) / 60
        seconds += less + slope * (config.forwards - 20)
    each = config.generations * config.population * config.candidate_seeds
    runs = 2 * (config.searching_runs + config.seeds)
    workers = process_count(config)
    return [
        f"search {config.search}: {len(plan.space.names)} coordinates ({', '.join(plan.space.names)}) and log lr",
        f"{config.generations} generations of {config.population} on {', '.join(config.tasks)}: "
        f"{each * len(config.tasks)} runs; finalists {config.finalists * config.final_seeds * len(config.tasks)}; "
        f"MeZO about as many; reported {2 * config.seeds * len(config.tasks)}",
        f"in all about {runs * len(config.tasks)} runs of {config.forwards} forward passes; one run takes "
        f"{seconds / len(config.tasks):.1f} s here, now; with {workers} processes "
        f"{runs * seconds / workers / 3600:.1f} hours",
    ]
