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

#: Exponent, floor, share and reach of the recipe ``default`` (meta_train/signal_scales.py).
POWER, FLOOR, SHARE, REACH = 2.5, 0.3, 0.97, 20.0

#: Of a matrix by row and by column: each one's part of the whole model's signal, and of its mean square.
Moments = Mapping[str, Sequence[tuple[Tensor, Tensor]]]


def moments(found: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> Moments:
    """Of a task's gradients [M, numel] by block; nothing of a task without signal."""
    of_entries = {name: _signal_and_square(values) for name, values in found.items()}
    totals = [sum(float(pair[which].sum()) for pair in of_entries.values()) for which in (0, 1)]
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, pair in of_entries.items():
        if len(shapes[name]) < 2 or totals[0] <= 0:
            continue
        matrices = [x.view(tuple(shapes[name])).double() for x in pair]
        g, f = (matrix / total for matrix, total in zip(matrices, totals, strict=True))
        parts[name] = [(g.sum(axis), f.sum(axis)) for axis in (1, 0)]
    return parts


def _signal_and_square(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of every entry g², unbiased, and E[g_b²] for a step's minibatch."""
    count = len(values)
    square = values.square().mean(0)
    signal = (values.mean(0).square() * count - square) / (count - 1)
    return signal, signal + (square - signal) * PART / BATCH


def scales(tasks: Sequence[Moments], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Standard deviations of all entries from the means of several tasks' parts; 1 where there is no signal."""
    found = {}
    seen = [task for task in tasks if task]
    for name, shape in shapes.items():
        found[name] = torch.ones(math.prod(shape))
        if len(shape) < 2 or not seen:
            continue
        means = [
            [torch.stack([task[name][side][which] for task in seen]).mean(0) for which in (0, 1)] for side in (0, 1)
        ]
        own = float(means[0][0].sum() / means[0][1].sum())
        if own > 0:
            ratios = [(g / (f + FLOOR * f.mean()) / own).clamp(1 / REACH, REACH) ** POWER for g, f in means]
            outer = torch.outer(*(ratio / ratio.mean() for ratio in ratios)).flatten()
            found[name] = (outer * SHARE + (1 - SHARE)).sqrt().float()
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
