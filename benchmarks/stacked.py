"""The time of a run in a stack beside the same run alone, in one run, on the embedded base.

    python benchmarks/stacked.py [--counts 4,10] [--forwards 90] [--repeats 5] [--device cpu]

Whole runs on one task that differ in their seeds, of MeZO and of the shipped tuner, as ``zoft compare`` makes them with
and without ``runs_at_once``. One run alone and stacks of several are timed in turn, again and again; reported is the
median over the repeats of (time of the run alone) / (time of the stack, by its runs). One thread, as every process of a
comparison has. Writes benchmarks/stacked.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune.compare_run import Runner, language_model_bench
from finetune.run_spec import Bench, RunSpec, TunerSource
from finetune.stacked import Stacker
from zoft.tuner import Tuner

OUTPUT = Path(__file__).with_name("stacked.json")
SHIPPED = Path(__file__).resolve().parents[1] / "pretrained_tuners" / "zoft-base-default"
TASK, BASE = "review-negation", "zoft-base"

#: What is timed: the method, and its learning rate.
METHODS = {"mezo": ("mezo", 1e-4), "the shipped tuner": ("zo-finetuner", 1.0)}
KEEP_BYTES = 64 << 20


def runs(bench: Bench, method: str, count: int, forwards: int) -> list[RunSpec]:
    """Runs of a method that differ in their seeds."""
    optimizer, lr = METHODS[method]
    tuner, hyper = None, {}
    if optimizer == "zo-finetuner":
        source = TunerSource(str(SHIPPED))
        tuner = replace(source, digest=source.load(bench.model).digest)
        hyper = dict(Tuner.from_pretrained(str(SHIPPED)).config.recommended.usage)
    first = RunSpec(
        fingerprint=bench.fingerprint, data=bench.data[TASK], task=TASK, optimizer=optimizer, hyper=hyper, tuner=tuner,
        lr=lr, epsilon=1e-3, seed=0, forwards=forwards, batch_size=16, eval_points=1, validation_examples=16,
        test=False, test_examples=None, noise="gaussian-table",
    )  # fmt: skip
    return [replace(first, seed=seed) for seed in range(count)]


def measure(method: str, counts: Sequence[int], forwards: int, repeats: int, device: str) -> dict[str, Any]:
    """How many times faster a run is in a stack, by the runs of the stack, and the range over the repeats."""
    bench = language_model_bench(BASE, [TASK], device)
    runner = Runner(bench, keep_bytes=KEEP_BYTES, threads=1)
    stacker = Stacker(runner)
    (one,) = runs(bench, method, 1, forwards)
    stacks = {count: runs(bench, method, count, forwards) for count in counts}
    runner(one)  # batches and the zero-shot loss are kept
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        alone = runner(one)["seconds"]
        for count, specs in stacks.items():
            records = stacker.stacked(specs)
            if records is None:
                raise RuntimeError(f"{method} cannot be stacked")
            found[count].append(alone / records[0]["seconds"])
    return {
        str(count): {
            "times faster": round(statistics.median(ratios), 2),
            "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        }
        for count, ratios in found.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The time of a run in a stack beside the same run alone.")
    parser.add_argument("--counts", default="4,10", help="runs of a stack, with commas between")
    parser.add_argument("--forwards", type=int, default=90, help="forward passes of a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts = [int(count) for count in given.counts.split(",")]
    content = {
        "command": f"python benchmarks/stacked.py {' '.join(sys.argv[1:])}".strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.machine(),
        "forwards": given.forwards,
        "runs": {name: measure(name, counts, given.forwards, given.repeats, given.device) for name in METHODS},
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["runs"], indent=1))


if __name__ == "__main__":
    main()
