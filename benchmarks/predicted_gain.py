"""How much a tuner's directions should gain on a task, from gradients alone: minutes where runs take hours.

    python benchmarks/predicted_gain.py [--tuner NAME ...] [--base DIR] [--tasks NAME,...] [--directions N]

An average of n one-sided directions z of covariance S gives the estimate e = (1/n)·Σ (g_bᵀz)·z with the minibatch's
gradient g_b, whose mean is g. To second order a step −η·e lowers the loss, at the best η, by

    ½ · (gᵀSg)² / E[eᵀHe],    E[eᵀHe] = (1/n)·F·T + (1 + 1/n)·Q

    F = E[g_bᵀSg_b],  T = tr(SH),  Q = E[g_bᵀSHSg_b]

for Gaussian z, and costs n + 1 forwards. H is taken to be E[g_e·g_eᵀ] over single examples e, which is the Fisher
matrix of a model that is right about its labels. Then all of it follows from the products K_ab = g_aᵀSg_b of the
gradients of disjoint minibatches; products of two different ones are unbiased for the signal. What is printed is the
ratio to the same with S = I, ρ = gᵀSg / F, the part of c's variance that is signal, and F·T/Q, in how many directions
the noise is.

It says how a run begins, not how it ends: directions that gain much may be exhausted soon.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from finetune.controls import CONTROLS
from zoft.blocks import Blocks
from zoft.errors import UsageError, ZoftError
from zoft.models import context_length, load_model
from zoft.noise import spans
from zoft.optimizers import get_optimizer
from zoft.tasks import get_task, tasks_with_role
from zoft.tasks.lm import LMTask
from zoft.tuner import Tuner

#: Examples of a minibatch whose gradient is taken, and of a step.
PART, BATCH = 4, 16


@dataclass(frozen=True)
class Predicted:
    """What a step along directions of a covariance S is worth.

    Attributes:
        signal: gᵀSg. ``square``: F. ``trace``: T. ``quartic``: Q.
        directions: n.
    """

    signal: float
    square: float
    trace: float
    quartic: float
    directions: int

    @property
    def progress(self) -> float:
        """The decrease of the loss by a forward pass, at the best learning rate."""
        n = self.directions
        curvature = self.square * self.trace / n + (1 + 1 / n) * self.quartic
        return max(self.signal, 0.0) ** 2 / (2 * curvature * (n + 1))

    @property
    def part(self) -> float:
        """ρ."""
        return self.signal / self.square

    @property
    def rank(self) -> float:
        """F·T/Q."""
        return self.square * self.trace / self.quartic


def predicted(products: Tensor, directions: int = 1, part: int = PART, batch: int = BATCH) -> Predicted:
    """From K [M, M], the products gᵀSg of the gradients of M disjoint minibatches of ``part`` examples.

    With N the covariance of a single example's gradient, E[K_ab²] over a ≠ b is
    (gᵀSg)² + 2·gᵀSNSg/part + tr(SNSN)/part², and the variance of a row's mean over the others is
    gᵀSNSg/part + tr(SNSN)/(part²·(M − 1)): two equations for what Q needs.
    """
    kernel, count = products.double(), len(products)
    pairs, own = count * (count - 1), kernel.diagonal()
    signal = float((kernel.sum() - own.sum()) / pairs)
    noise = (float(own.mean()) - signal) * part
    rows = float(((kernel.sum(1) - own) / (count - 1)).var())
    squares = float((kernel.square().sum() - own.square().sum()) / pairs)
    of_noise = (squares - signal**2 - 2 * rows) / (1 - 2 / (count - 1))
    mixed = (rows - of_noise / (count - 1)) * part
    of_noise *= part**2
    quartic = signal**2 + mixed * (1 + 1 / batch) + of_noise / batch
    return Predicted(signal, signal + noise / batch, signal + noise, quartic, directions)


def deviations(tuner: Tuner, model: nn.Module) -> dict[str, Tensor]:
    """The standard deviation of every entry of a tuner's first direction, by block.

    Raises:
        UsageError: the tuner's directions are correlated within a block: a low rank, or gains.
    """
    if tuner.structure is not None and tuner.structure.kind != "scales":
        raise UsageError(
            f"the structure {tuner.structure.kind} has no scale for every entry", "Give a tuner of scales, or without."
        )
    blocks = Blocks.of(model)
    method = get_optimizer("zo-finetuner", tuner=tuner.bind(model))
    state = method.init(blocks)
    method.begin(state, blocks)
    found = {}
    for block in blocks:
        parts = [method.direction(state, span, torch.ones(span.stop - span.start)) for span in spans(block)]
        found[block.name] = torch.cat(parts)
    return found


def gradients(model: nn.Module, task: LMTask, count: int) -> dict[str, Tensor]:
    """Gradients of ``count`` minibatches of ``PART`` examples, float32 [count, numel] by block."""
    blocks = Blocks.of(model)
    found = {block.name: torch.empty(count, block.numel) for block in blocks}
    parameters = [block.parameter for block in blocks]
    for row, batch in enumerate(islice(task.train_batches(PART, 0), count)):
        for block, values in zip(blocks, torch.autograd.grad(task.loss(model, batch), parameters), strict=True):
            found[block.name][row] = values.flatten()
    return found


def kernel(found: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None = None) -> Tensor:
    """K of gradients, with S the squares of ``scales``; None is I."""
    count = len(next(iter(found.values())))
    total = torch.zeros(count, count, dtype=torch.float64)
    for name, values in found.items():
        scaled = values if scales is None else values * scales[name]
        total += (scaled @ scaled.T).double()
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="What a tuner's directions should gain, from gradients alone.")
    parser.add_argument("--base", default="zoft-base")
    parser.add_argument("--tuner", action="append", help="by default zoft-base-scales")
    parser.add_argument("--tasks", help="by default those of meta-training and development")
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=120)
    given = parser.parse_args(arguments)
    roles = ("meta-training", "development")
    names = given.tasks.split(",") if given.tasks else [name for role in roles for name in tasks_with_role(role)]
    try:
        print(table(given.base, given.tuner or ["zoft-base-scales"], names, given.directions, given.minibatches))
    except ZoftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def table(base: str, tuners: Sequence[str], tasks: Sequence[str], directions: int, minibatches: int) -> str:
    """The Markdown table: of every tuner, and of its scales in another order, the gain over S = I by task."""
    loaded = load_model(base)
    scales: dict[str, dict[str, Tensor]] = {}
    for name in tuners:
        tuner = Tuner.from_pretrained(name)
        other = CONTROLS["random-basis"](tuner, loaded.model, 0)
        if isinstance(other, Tuner):
            scales[f"{name}, in another order"] = deviations(other, loaded.model)
        scales[name] = deviations(tuner, loaded.model)
    columns = " | ".join(f"{name}: gain | ρ | F·T/Q" for name in scales)
    lines = [f"| task | role | ρ | F·T/Q | {columns} |", "|---" * (4 + 3 * len(scales)) + "|"]
    for name in tasks:
        text = get_task(name)
        found = gradients(
            loaded.model, LMTask(text, loaded.tokenizer, loaded.kind, context_length(loaded.model)), minibatches
        )
        plain = predicted(kernel(found), directions)
        cells = [name, text.role, f"{plain.part:.3f}", f"{plain.rank:.0f}"]
        for values in scales.values():
            mine = predicted(kernel(found, values), directions)
            cells += [f"{mine.progress / plain.progress:.2f}", f"{mine.part:.3f}", f"{mine.rank:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
