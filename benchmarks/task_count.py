"""Would more meta-training tasks make better scales? Answered from gradients alone, with tasks left out.

    python benchmarks/task_count.py [--base DIR] [--counts 1,2,4,8] [--draws N]

Scales of rows and columns are learned by the rule of the recipe ``default`` from the gradients of k tasks, and what
steps along them are worth is predicted (benchmarks/predicted_gain.py) on a task that is not among the k. The gain over
S = I by k, the geometric mean over sets of k tasks, says what a tuner has of one task more. Tasks of meta-training and
development alone; the weights are the base's.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.predicted_gain import BATCH, PART, gradients, kernel, predicted
from zoft.blocks import Blocks
from zoft.errors import ZoftError
from zoft.models import context_length, load_model
from zoft.tasks import get_task, tasks_with_role
from zoft.tasks.lm import LMTask

DIRECTIONS = 8

#: Exponent, floor and share of the recipe ``default``.
POWER, FLOOR, SHARE = 2.5, 0.3, 0.97

#: Of a block by row and by column: each one's part of the signal, and of signal and noise.
Moments = Mapping[str, Sequence[tuple[Tensor, Tensor]]]


def moments(found: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> Moments:
    """Of a task's gradients [M, numel] by matrix."""
    parts = {}
    for name, values in found.items():
        if len(shapes[name]) < 2:
            continue
        count = len(values)
        square = values.square().mean(0)
        signal = (values.mean(0).square() * count - square) / (count - 1)
        noisy = signal + (square - signal) * PART / BATCH
        sides = []
        for axis in (1, 0):
            g, f = (x.view(tuple(shapes[name])).double().sum(axis) for x in (signal, noisy))
            sides.append((g / g.sum().clamp(min=1e-30), f / f.sum()))
        parts[name] = sides
    return parts


def scales(tasks: Sequence[Moments], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Standard deviations of all entries from the means of several tasks' parts; vectors have 1."""
    found = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            found[name] = torch.ones(math.prod(shape))
            continue
        sides = []
        for side in (0, 1):
            g, f = (torch.stack([task[name][side][which] for task in tasks]).mean(0) for which in (0, 1))
            ratio = (g.clamp(min=0) / (f + FLOOR * f.mean())) ** POWER
            sides.append(ratio / ratio.mean() if ratio.any() else torch.ones_like(ratio))
        found[name] = (torch.outer(*sides).flatten() * SHARE + (1 - SHARE)).sqrt().float()
    return found


def subsets(names: Sequence[str], count: int, draws: int, seed: int = 0) -> list[tuple[str, ...]]:
    """At most ``draws`` different sets of ``count`` names."""
    possible = math.comb(len(names), count)
    generator, found = random.Random(seed), set()
    while len(found) < min(draws, possible):
        found.add(tuple(sorted(generator.sample(list(names), count))))
    return sorted(found)


def curve(
    name: str, of: Mapping[str, Moments], products: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]],
    counts: Sequence[int], draws: int,
) -> list[float]:  # fmt: skip
    """The gain on the task ``name`` by the number of other tasks.

    Args:
        of: moments of every task; that of ``name`` is not used. ``products``: gradients of ``name``.
    """
    plain = predicted(kernel(products), DIRECTIONS).progress
    gains = []
    for count in counts:
        sets = subsets([task for task in of if task != name], count, draws)
        logs = [
            math.log(max(predicted(kernel(products, scales([of[t] for t in one], shapes)), DIRECTIONS).progress, 1e-9))
            for one in sets
        ]
        gains.append(math.exp(sum(logs) / len(logs)) / plain)
    return gains


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Would more meta-training tasks make better scales?")
    parser.add_argument("--base", default="zoft-base")
    parser.add_argument("--counts", default="1,2,4,8")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=120)
    given = parser.parse_args(arguments)
    names = [name for role in ("meta-training", "development") for name in tasks_with_role(role)]
    counts = [int(word) for word in given.counts.split(",")]
    try:
        loaded = load_model(given.base)
        shapes = {block.name: tuple(block.parameter.shape) for block in Blocks.of(loaded.model)}
        found = {}
        for name in names:
            task = LMTask(get_task(name), loaded.tokenizer, loaded.kind, context_length(loaded.model))
            found[name] = gradients(loaded.model, task, given.minibatches)
    except ZoftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    of = {name: moments(values, shapes) for name, values in found.items()}
    rows = {name: curve(name, of, found[name], shapes, counts, given.draws) for name in names}
    print("| left out | " + " | ".join(f"{count} tasks" for count in counts) + " |")
    print("|---" * (1 + len(counts)) + "|")
    for name, gains in rows.items():
        print(f"| {name} | " + " | ".join(f"{gain:.2f}" for gain in gains) + " |")
    means = [math.exp(sum(math.log(gains[at]) for gains in rows.values()) / len(rows)) for at in range(len(counts))]
    print("| geometric mean | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
