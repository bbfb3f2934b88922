"""The expected meta-objective: how much a step of given scales lowers the loss, from minibatch gradients, not samples.

A step θ − η·c·z with z of covariance diag(s), c = g_bᵀz, g_b the minibatch's gradient, g its mean and H the Hessian,
changes the loss in expectation by −η·Σ s_i·G_i + ½·η²·Σ s_i·F_i·Σ s_i·T_i, up to terms that are small where no single
direction has much of the curvature, with G_i = |g_i|², F_i = E|g_b,i|² and T_i = tr H_i by block. At the best η that is

    −½·(Σ s_i·G_i)² / (Σ s_i·F_i · Σ s_i·T_i)

and T_i ∝ F_i is assumed: near a trained model the Hessian of a cross-entropy is close to its Fisher matrix, and most of
E|g_b|² is that matrix's trace over the batch size. So what the networks are to raise is the logarithm of

    gain(s) = (Σ s_i·G_i / Σ s_i·F_i)² · (Σ F_i / Σ G_i)²

the signal's part of the slope's variance against that of an isotropic direction. It is what the loss after a
lookahead of one step has in its mean over directions and minibatches, without the noise of sampling either.

G_i comes from M minibatches at the same weights: the mean inner product of the gradients of two different ones, which
is unbiased, where the square of their mean is not. It is noisy nevertheless, so G and F are means over the last visits
of a task.

Note:
    A step's best scales are not a run's: alone, the gain is greatest with everything in one block, which a run soon
    exhausts. Bounds on σ, or an isotropic part of the structure, keep away from that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meta_train.meta_gradient import backward_reduced
from zoft.blocks import Block, Blocks

#: Visits of a task over which its G and F are means.
WINDOW = 100

#: Least part of the slope's variance that counts as signal: a smaller or negative estimate is noise.
_LEAST = 0.01


class BatchGradients:
    """Gradients of several minibatches at the same weights, as they arrive block by block.

    Attributes:
        count: minibatches M that are complete.
        sums: Σ_b g_b by the block's name, float32.
        squares: Σ_b |g_b,i|² [B], float64.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.squares = torch.zeros(len(blocks), dtype=torch.float64)

    def take(self, block: Block, gradient: Tensor) -> None:
        """One block's gradient of the minibatch that is under way."""
        values = gradient.detach().float()
        self.squares[block.index] += float(values.double().square().sum())
        if block.name in self.sums:
            self.sums[block.name] += values
        else:
            self.sums[block.name] = values.clone()

    def signal(self, of_sum: Tensor, squares: Tensor) -> Tensor:
        """Mean products of two different minibatches' gradients, from |Σ_b g_b|² and Σ_b |g_b|² of anything."""
        return (of_sum - squares) / (self.count * (self.count - 1))

    @property
    def of_blocks(self) -> tuple[Tensor, Tensor]:
        """G and F, [B] each, float64; G may be negative."""
        of_sum = torch.zeros_like(self.squares)
        for block in self.blocks:
            if block.name in self.sums:
                of_sum[block.index] = self.sums[block.name].double().square().sum()
        return self.signal(of_sum, self.squares), self.squares / self.count


def batch_gradients(
    model: nn.Module,
    blocks: Blocks,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    observe: Callable[[Block, Tensor], None] | None = None,
) -> tuple[float, BatchGradients]:
    """The mean loss of minibatches at the weights as they are, and their gradients.

    Costs a backward pass a minibatch and one gradient of the model's size, in float32.

    Args:
        observe: also sees every block's gradient of every minibatch.

    Returns:
        The loss is not finite where one minibatch's was; the gradients then are of no use.
    """
    gradients = BatchGradients(blocks)

    def reduce(block: Block, gradient: Tensor) -> None:
        gradients.take(block, gradient)
        if observe is not None:
            observe(block, gradient)

    losses = []
    for batch in batches:
        losses.append(backward_reduced(model, blocks, loss, batch, reduce))
        if not math.isfinite(losses[-1]):
            return math.nan, gradients
        gradients.count += 1
    return math.fsum(losses) / len(losses), gradients


class Signal:
    """Running means of G and F by task and block, and the gain's gradient with respect to the scales.

    Args:
        tasks: their number.
        blocks: number of blocks.
    """

    def __init__(self, tasks: int, blocks: int) -> None:
        self.signal = torch.zeros(tasks, blocks, dtype=torch.float64)
        self.noise = torch.zeros(tasks, blocks, dtype=torch.float64)
        self.visits = torch.zeros(tasks, dtype=torch.int64)

    def after(self, task: int, gradients: BatchGradients) -> Signal | None:
        """The means with one more visit of a task; None where that is not finite or has no gradient at all."""
        signal, noise = gradients.of_blocks
        total = float(noise.sum())
        if not (math.isfinite(total) and total > 0 and bool(torch.isfinite(signal).all())):
            return None
        after = Signal(*self.signal.shape)
        after.load({name: tensor.clone() for name, tensor in self.state().items()})
        after.visits[task] += 1
        # By the visit's own noise, so that a visit of steep losses weighs no more than another.
        after.signal[task].lerp_(signal / total, after.weight(task))
        after.noise[task].lerp_(noise / total, after.weight(task))
        return after

    def weight(self, task: int) -> float:
        """Of the latest visit in the running means."""
        return 1 / min(int(self.visits[task]), WINDOW)

    def gain(self, task: int, scales: Tensor) -> float:
        """gain(s) of a task at scales ν·σ [B], s their squares."""
        squares = scales.detach().double().square()
        ratio = self._ratio(task, squares) / self._ratio(task, torch.ones_like(squares))
        return ratio * ratio

    def _ratio(self, task: int, squares: Tensor) -> float:
        signal, noise = float((squares * self.signal[task]).sum()), float((squares * self.noise[task]).sum())
        return max(signal, _LEAST * noise) / noise

    def gradient(self, task: int, scales: Tensor) -> Tensor:
        """∂(−log gain)/∂(ν·σ), float64 [1, B]."""
        scales = scales.detach().double()
        squares = scales.square()
        noise = (squares * self.noise[task]).sum()
        signal = (squares * self.signal[task]).sum().clamp(min=_LEAST * float(noise))
        by_square = self.signal[task] / signal - self.noise[task] / noise
        return (-4 * scales * by_square)[None]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"signal": self.signal, "noise": self.noise, "visits": self.visits}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.signal, self.noise, self.visits = state["signal"], state["noise"], state["visits"]
