"""Can a run find out from its own forwards which rows want larger scales? Answered from gradients alone.

    python benchmarks/online_adaptation.py [--tuner NAME] [--base DIR] [--tasks NAME,...]

All that a zeroth-order run learns of the gradient g are its projected gradients c_k = g_bᵀz_k. Their best linear use is
the sum Σ c_k·z_k, which is how far the weights went. In coordinates where the covariance S of z is I, a row with n
entries and the part q of the signal gSg has in it the energy

    q·N²·gᵀSg + n·Σ c_k²

after N directions: it stands out of the noise where q·N is well above √(2n). From what stands out the rows' scales are
made larger,

    r_j ← r_j · (max(0, E_j/(n·Σ c_k²) − 1) + κ)^p

and what steps along the new directions are worth is predicted by benchmarks/predicted_gain.py, on other minibatches
than those of the run. The weights do not move meanwhile, which is in favour of the adaptation. Beside it the same for
scales that are learned by the recipe's own rule from true gradients of the very task, which no run of forwards has.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.predicted_gain import BATCH, PART, deviations, gradients, kernel, predicted
from zoft.blocks import Blocks
from zoft.errors import ZoftError
from zoft.models import context_length, load_model
from zoft.tasks import get_task, tasks_with_role
from zoft.tasks.lm import LMTask
from zoft.tuner import Tuner

#: Directions of a step, which share a minibatch and cost one forward more than they are.
DIRECTIONS = 8

#: κ and p of the rules that are tried.
RULES = ((0.3, 1.0), (0.3, 2.0))

_Sizes = Mapping[str, Sequence[int]]


def walk(white: Tensor, directions: int, seed: int) -> tuple[Tensor, float]:
    """Σ c_k·w_k and Σ c_k² of so many directions.

    Args:
        white: gradients of minibatches in coordinates where S = I, float32 [M, P]; used in turn, a step each.
    """
    generator = torch.Generator().manual_seed(seed)
    total, energy = torch.zeros(white.shape[1]), 0.0
    for index in range(directions):
        noise = torch.randn(white.shape[1], generator=generator)
        projected = float(white[index // DIRECTIONS % len(white)] @ noise)
        total.add_(noise, alpha=projected)
        energy += projected**2
    return total, energy


def adapted(
    scales: Mapping[str, Tensor], total: Tensor, energy: float, shapes: _Sizes, floor: float, power: float
) -> dict[str, Tensor]:
    """The scales (standard deviations) after the rule; those of vectors stay."""
    found, at = {}, 0
    for name, old in scales.items():
        here = total[at : at + len(old)]
        at += len(old)
        rows = shapes[name][0]
        if len(shapes[name]) < 2:
            found[name] = old
            continue
        excess = here.view(rows, -1).square().mean(1) / energy - 1
        factor = (excess.clamp(min=0) + floor) ** (power / 2)
        found[name] = (old.view(rows, -1) * factor[:, None]).flatten()
    return found


def learned(
    found: Mapping[str, Tensor], shapes: _Sizes, power: float = 2.5, floor: float = 0.3, share: float = 0.97
) -> dict[str, Tensor]:
    """Scales by the rule of the recipe ``default`` (meta_train/signal_scales.py) from true gradients."""
    scales = {}
    for name, values in found.items():
        count, shape = len(values), shapes[name]
        if len(shape) < 2:
            scales[name] = torch.ones(values.shape[1])
            continue
        square = values.square().mean(0)
        signal = (values.mean(0).square() * count - square) / (count - 1)
        noisy = signal + (square - signal) * PART / BATCH
        sides = []
        for axis in (1, 0):
            g, f = (x.view(shape[0], -1).double().mean(axis) for x in (signal, noisy))
            ratio = (g.clamp(min=0) / (f + floor * f.mean()).clamp(min=1e-30)) ** power
            sides.append(ratio / ratio.mean() if ratio.any() else torch.ones_like(ratio))
        scales[name] = (torch.outer(*sides).flatten() * share + (1 - share)).sqrt().float()
    return scales


def row(
    found: Mapping[str, Tensor], scales: Mapping[str, Tensor], shapes: _Sizes, forwards: Sequence[int], seeds: int
) -> list[str]:
    """Cells of a task: gain over S = I of the tuner, of what it becomes, and of scales from true gradients."""
    count = len(next(iter(found.values()))) // 2
    rest = {name: values[:count] for name, values in found.items()}
    own = {name: values[count:] for name, values in found.items()}
    steps = count * PART // BATCH
    batches = [v[: steps * BATCH // PART].view(steps, BATCH // PART, -1).mean(1) * scales[n] for n, v in own.items()]
    white = torch.cat(batches, 1)
    plain = predicted(kernel(rest), DIRECTIONS).progress

    def gain(of: Mapping[str, Tensor]) -> float:
        return predicted(kernel(rest, of), DIRECTIONS).progress / plain

    cells = [f"{gain(scales):.2f}"]
    for budget in forwards:
        walks = [walk(white, budget * DIRECTIONS // (DIRECTIONS + 1), seed) for seed in range(seeds)]
        for floor, power in RULES:
            logs = [math.log(gain(adapted(scales, *one, shapes, floor, power))) for one in walks]
            cells.append(f"{math.exp(sum(logs) / len(logs)):.2f}")
    return [*cells, f"{gain(learned(own, shapes)):.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Can forwards alone find the rows that want larger scales?")
    parser.add_argument("--base", default="zoft-base")
    parser.add_argument("--tuner", default="zoft-base-scales")
    parser.add_argument("--tasks", help="by default those of development")
    parser.add_argument("--forwards", default="200,600,2000", help="forward passes until the scales are adapted")
    parser.add_argument("--minibatches", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    names = given.tasks.split(",") if given.tasks else tasks_with_role("development")
    budgets = [int(word) for word in given.forwards.split(",")]
    try:
        loaded = load_model(given.base)
        scales = deviations(Tuner.from_pretrained(given.tuner), loaded.model)
        shapes = {block.name: tuple(block.parameter.shape) for block in Blocks.of(loaded.model)}
        columns = [f"after {budget:,} forwards, p = {power:g}" for budget in budgets for _, power in RULES]
        print("| task | " + " | ".join(["as it is", *columns, "scales from the task's gradients"]) + " |")
        print("|---" * (3 + len(columns)) + "|")
        for name in names:
            task = LMTask(get_task(name), loaded.tokenizer, loaded.kind, context_length(loaded.model))
            found = gradients(loaded.model, task, given.minibatches)
            print(f"| {name} | " + " | ".join(row(found, scales, shapes, budgets, given.seeds)) + " |", flush=True)
    except ZoftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
