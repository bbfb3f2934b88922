"""The time of making noise beside torch's own, and of a zeroth-order step beside two forwards, on any device.

    python benchmarks/noise.py [--device cuda] [--entries 16777216] [--model llama-97m] [--dtype float32] [--repeats 9]

On CUDA everything is timed twice: with the one kernel that makes a counter's words, and with tensor operations in its
place. As in step.py the variants take turns, and what is reported are ratios within the run. Writes
benchmarks/noise.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from step import LLAMAS, RATE, bare, prepared, structured
from torch import nn

from zoft import philox
from zoft.blocks import Block
from zoft.noise import NOISES, Key, get_noise
from zoft.objective import Objective
from zoft.optimizers import ZerothOrder
from zoft.tuner import Tuner

OUTPUT = Path(__file__).with_name("noise.json")


@contextmanager
def without_kernel() -> Iterator[None]:
    """Within: words are made by tensor operations."""
    fused, philox._fused = philox._fused, lambda device: None
    try:
        yield
    finally:
        philox._fused = fused


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done it."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(floor: Callable[[], Any], calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> Any:
    """Of every call the median, least and greatest time over that of ``floor``."""
    kinds = {"": calls, **({", tensor operations": calls} if device.type == "cuda" else {})}
    found: dict[str, list[float]] = {name + kind: [] for kind in kinds for name in calls}
    for at in range(repeats + 1):
        base = timed(floor, device)
        for kind, several in kinds.items():
            for name, call in several.items():
                if kind:
                    with without_kernel():
                        taken = timed(call, device)
                else:
                    taken = timed(call, device)
                if at:  # the first time is for compiling and caches
                    found[name + kind].append(taken / base)
    return {
        name: [round(value, 3) for value in (statistics.median(v), min(v), max(v))] for name, v in found.items() if v
    }


def of_noise(entries: int, device: torch.device, repeats: int) -> Any:
    """Making a block of noise, over ``torch.randn`` of its size."""
    block = Block(0, "weight", nn.Parameter(torch.empty(entries, device=device), requires_grad=False))
    calls = {name: lambda name=name: get_noise(name).block(Key(1, 2), block, device) for name in NOISES}
    return ratios(lambda: torch.randn(entries, device=device), calls, device, repeats)


def of_steps(name: str, dtype: torch.dtype, device: torch.device, repeats: int) -> Any:
    """A step, over two bare forwards."""
    model, tokens = prepared(name)
    model, tokens = model.to(device, dtype), tokens.to(device)
    objective = Objective(model, lambda model, ids: model(input_ids=ids, labels=ids, use_cache=False).loss, [tokens])
    tuned = structured(model, "scales", len(tokens))
    optimizers = {
        "mezo": ZerothOrder(model, "mezo", lr=RATE),
        "mezo, noise kept": ZerothOrder(model, "mezo", lr=RATE, keep_bytes=1 << 32),
        "zo-finetuner": ZerothOrder(model, "zo-finetuner", lr=RATE, tuner=Tuner.untrained(model).bind(model, 16)),
        "zo-finetuner, scales": ZerothOrder(model, "zo-finetuner", lr=RATE, tuner=tuned),
    }
    calls = {label: lambda one=one: one.step_on(objective) for label, one in optimizers.items()}
    return ratios(lambda: bare(objective), calls, device, repeats)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--entries", type=int, default=1 << 24)
    parser.add_argument("--model", default="llama-24m", help=f"of {', '.join(LLAMAS)}")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.model not in LLAMAS:
        parser.error(f"unknown model {given.model!r}; known: {', '.join(LLAMAS)}")
    content = {
        "command": "python benchmarks/noise.py " + " ".join(f"--{name} {value}" for name, value in vars(given).items()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "ratio_to_randn": of_noise(given.entries, device, given.repeats),
        "ratio_to_two_forwards": of_steps(given.model, getattr(torch, given.dtype), device, given.repeats),
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for title in ("ratio_to_randn", "ratio_to_two_forwards"):
        print(title.replace("_", " "))
        for name, (median, low, high) in content[title].items():
            print(f"  {name:44} {median:8.2f}   ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
