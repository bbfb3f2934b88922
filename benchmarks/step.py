"""The time of a zeroth-order step beside two bare forwards and a plain MeZO loop, in one run.

    python benchmarks/step.py [--models base,llama-24m] [--repeats 7] [--threads N]

Every variant is timed in turn, again and again, so that whatever else the machine does falls on all of
them alike. Reported is the median over the repeats of (time of the variant) / (time of two bare forwards
of the same repeat); no absolute times, which say more about a machine than about a program. Writes
benchmarks/step.json.

The plain loop is Algorithm 1 of the MeZO paper (arXiv 2305.17333): θ + εz, θ − 2εz, θ + εz and the
update, in place, with ``torch.normal`` from the same seed each time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meta_train import MetaTrainConfig
from meta_train.moments import Moments
from meta_train.signal import Signal
from meta_train.structure_learner import FROM_SIGNAL
from zoft.blocks import Blocks
from zoft.models import load_model, new_causal_lm
from zoft.objective import Objective
from zoft.optimizers import ZerothOrder
from zoft.tuner import BoundTuner, Tuner
from zoft.tuner.gains import gained
from zoft.tuner.parts import PARTS, Gains

OUTPUT = Path(__file__).with_name("step.json")

#: Random Llama models: (configuration, batch, tokens a row).
LLAMAS: dict[str, tuple[dict[str, int], int, int]] = {
    "llama-24m": (
        {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 6,
         "num_key_value_heads": 6, "vocab_size": 8192},
        8, 64,
    ),
    "llama-97m": (
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
         "num_key_value_heads": 12, "vocab_size": 8192},
        16, 64,
    ),
}  # fmt: skip
BASE = "base"

#: What a structure of every kind is made from here.
SOURCES = {kind: "signal" if issubclass(part, Gains) else "energy" for kind, part in PARTS.items()}

EPSILON, RATE = 1e-3, 1e-7


def bare(objective: Objective) -> None:
    """Two forwards under ``inference_mode``: what no step can be faster than."""
    objective()
    objective()


def plain_mezo(model: nn.Module, objective: Objective, seed: int) -> None:
    """One step of MeZO's Algorithm 1, in place."""

    def move(scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                z = torch.normal(0.0, 1.0, size=parameter.shape, generator=generator)
                parameter.add_(scale * z)

    move(EPSILON)
    plus = objective()
    move(-2 * EPSILON)
    minus = objective()
    move(EPSILON)
    move(-RATE * (plus - minus) / (2 * EPSILON))


def variants(model: nn.Module, objective: Objective, batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: one step each."""
    seeds = iter(range(1 << 30))
    tuner = Tuner.untrained(model).bind(model, batch)
    big = 1 << 30
    optimizers = {
        "mezo": ZerothOrder(model, "mezo", lr=RATE),
        "mezo, noise kept": ZerothOrder(model, "mezo", lr=RATE, keep_bytes=big),
        "mezo, rademacher": ZerothOrder(model, "mezo", lr=RATE, noise="rademacher"),
        "hizoo (3 forwards)": ZerothOrder(model, "hizoo", lr=RATE),
        "zo-finetuner": ZerothOrder(model, "zo-finetuner", lr=RATE, tuner=tuner),
        **{
            f"zo-finetuner, {kind}": ZerothOrder(model, "zo-finetuner", lr=RATE, tuner=structured(model, kind, batch))
            for kind in SOURCES
        },
    }
    steps: dict[str, Callable[[], Any]] = {
        f"zoft {name}": lambda optimizer=optimizer: optimizer.step_on(objective)
        for name, optimizer in optimizers.items()
    }
    return {"plain MeZO loop": lambda: plain_mezo(model, objective, next(seeds)), **steps}


def structured(model: nn.Module, kind: str, batch: int) -> BoundTuner:
    """A tuner with a structure, a low rank of 2 % of the model; what its directions are does not matter to the time."""
    blocks, config = Blocks.of(model), MetaTrainConfig.build({"structure": kind, "structure_from": SOURCES[kind]})
    if SOURCES[kind] == "signal":
        matrices = [block for block in gained(blocks) if block.is_matrix]
        axes = {block.name: torch.ones(block.columns, dtype=torch.float64) for block in matrices}
        alike = FROM_SIGNAL[kind](config, blocks, Signal(1, len(blocks)), axes).structure(1.0)
        return Tuner.untrained(model).structured(alike).bind(model, batch)
    moments = Moments(config, blocks)
    for block in blocks:
        moments.take(block, block.parameter)
    moments.commit()
    return Tuner.untrained(model).structured(moments.structure(0.5)).bind(model, batch)


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """A model and token ids [batch, tokens]."""
    if name == BASE:
        model, batch, length = load_model("zoft-base").model, 16, 32
    else:
        settings, batch, length = LLAMAS[name]
        model = new_causal_lm(settings, seed=0)
    size = model.config.vocab_size
    return model, torch.randint(0, size, (batch, length), generator=torch.Generator().manual_seed(0))


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Ratios for one model."""
    model, tokens = prepared(name)
    objective = Objective(model, lambda model, ids: model(input_ids=ids, labels=ids, use_cache=False).loss, [tokens])
    steps = variants(model, objective, len(tokens))
    bare(objective)
    for step in steps.values():
        step()  # the audit of a run's first step is not timed
    ratios: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(repeats):
        floor = _time(lambda: bare(objective))
        for label, step in steps.items():
            ratios[label].append(_time(step) / floor)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": tokens.numel(),
        "ratio_to_two_forwards": {label: round(statistics.median(values), 3) for label, values in ratios.items()},
        "spread": {label: [round(min(values), 3), round(max(values), 3)] for label, values in ratios.items()},
    }


def _time(step: Callable[[], Any]) -> float:
    """Processor seconds of this process's threads: what else the machine runs counts less than on a clock."""
    started = time.process_time()
    step()
    return time.process_time() - started


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Time of a ZO step, as a ratio to two bare forwards.")
    parser.add_argument("--models", default=f"{BASE},llama-24m", help=f"of {BASE}, {', '.join(LLAMAS)}")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = given.models.split(",")
    for name in names:
        if name != BASE and name not in LLAMAS:
            parser.error(f"unknown model {name!r}; known: {BASE}, {', '.join(LLAMAS)}")
    found = {name: measure(name, given.repeats) for name in names}
    content = {
        "command": f"python benchmarks/step.py --models {given.models} --repeats {given.repeats}"
        f" --threads {given.threads}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": given.threads,
        "models": found,
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, result in found.items():
        print(f"{name}: {result['parameters'] / 1e6:.1f}M parameters, {result['tokens']} tokens a batch")
        for label, ratio in result["ratio_to_two_forwards"].items():
            low, high = result["spread"][label]
            print(f"  {label:28} {ratio:6.2f} x two forwards   ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
