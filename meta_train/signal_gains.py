"""Learning gains of rows and columns (:class:`zoft.tuner.parts.Gains`), and offsets, from the signal in the gradients.

The slope along the gain of a row is Σ_j θ_ij·∂L/∂θ_ij, along that of a column the sum over the rows, along that of a
vector's entry ∂L/∂θ_j in units of the vector's size (:func:`zoft.tuner.gains.unit`), along the offset of a row
Σ_j a_j·∂L/∂θ_ij in units of the weights' size, with a² 1 in the mean. Its signal G, the mean product of
two different minibatches' slopes, and its noise F, their mean square, are kept by task, and the variance of the gain is

    ratio ∝ ((G / ΣG) / (F / ΣF + floor))^p,

means over the tasks of the shares, negative ones taken as 0, and the floor ``structure_floor`` mean shares. The sums go
over all gains of the model, so that the ratios say also which blocks are worth perturbing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from meta_train.config import MetaTrainConfig
from meta_train.moments import sides
from meta_train.signal import BatchGradients, Signal
from meta_train.signal_structure import SignalStructure
from zoft.blocks import Block, Blocks
from zoft.tuner.gains import gained, gains_of, unit
from zoft.tuner.parts import GainsAndOffsets
from zoft.tuner.structure import Structure

#: Names of the axes in a checkpoint begin with this.
_AXIS = "axis/"


class SignalGains(SignalStructure):
    """The signal and the noise of every gain, and of every offset where there are axes."""

    def __init__(
        self, config: MetaTrainConfig, blocks: Blocks, signal: Signal, axes: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(config, blocks, signal, axes)
        self._places: dict[str, slice] = {}
        width = 0
        for block in gained(blocks):
            rows, columns = sides(block)
            size = (rows + columns + rows * (block.name in self._axes)) if block.is_matrix else block.numel
            self._places[block.name] = slice(width, width + size)
            width += size
        self._sums, self._squares = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
        tasks = len(signal.visits)
        self._signal, self._noise = (torch.zeros(tasks, width, dtype=torch.float64) for _ in range(2))

    def take(self, block: Block, gradient: Tensor) -> None:
        """One block's gradient of one minibatch, at the weights as they are."""
        place = self._places.get(block.name)
        if place is None:
            return
        slopes = _slopes(block, gradient.detach(), self._axes.get(block.name))
        self._sums[place] += slopes
        self._squares[place] += slopes.square()

    def commit(self, task: int, gradients: BatchGradients) -> None:
        """Add a visit of a task: everything taken since the last time is of these gradients."""
        weight, total = self._of_blocks.weight(task), float(self._squares.sum()) / gradients.count
        if total > 0:
            signal = gradients.signal(self._sums.square(), self._squares)
            self._signal[task].lerp_(signal / total, weight)
            self._noise[task].lerp_(self._squares / gradients.count / total, weight)
        self.count += gradients.count
        self.discard()

    def discard(self) -> None:
        """Forget what was taken since the last time."""
        self._sums.zero_()
        self._squares.zero_()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        axes = {f"{_AXIS}{name}": axis for name, axis in self._axes.items()}
        return {"signal": self._signal, "noise": self._noise, "count": torch.tensor(self.count), **axes}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.count = int(state["count"])
        self._signal.copy_(state["signal"])
        self._noise.copy_(state["noise"])
        for name, axis in self._axes.items():
            axis.copy_(state[f"{_AXIS}{name}"])

    def structure(self, share: float, without: int | None = None) -> Structure:
        """The gains of rows, columns and vectors that the ratios say."""
        ratios, found = self._ratios(without), {}
        for block in gained(self._blocks):
            found[block.name] = self._factors(block, ratios[self._places[block.name]])
        names, shapes = tuple(self._blocks.names), tuple(self._blocks.shapes)
        return gains_of(self.settings, names, shapes, self._blocks, found, share)

    def _factors(self, block: Block, own: Tensor) -> tuple[Tensor, Tensor]:
        """A block's ratios as :data:`zoft.tuner.gains.Ratios` has them."""
        rows, columns = sides(block) if block.is_matrix else (block.numel, 1)
        left, right = own[:rows], own[rows : rows + columns] if block.is_matrix else torch.zeros(1, dtype=own.dtype)
        if self.settings.kind != GainsAndOffsets.name:
            return left, right
        axis = self._axes.get(block.name)
        offsets = torch.zeros_like(left) if axis is None else own[rows + columns :]
        along = torch.zeros_like(right) if axis is None else axis
        return torch.stack([left, offsets], 1), torch.stack([right, along], 1)

    def _ratios(self, without: int | None) -> Tensor:
        """Of every gain, [width]; all 1 where no task has a signal."""
        totals = self._signal.sum(1)
        seen = totals > 0
        if without is not None:
            seen[without] = False
        if not bool(seen.any()):
            return torch.ones(self._signal.shape[1], dtype=torch.float64)
        signal = (self._signal[seen] / totals[seen, None]).mean(0).clamp(min=0)
        noise = (self._noise[seen] / self._noise[seen].sum(1, keepdim=True)).mean(0)
        ratios = (signal / (noise + self._config.structure_floor * noise.mean())) ** self._config.structure_power
        return ratios / ratios.mean()


def _slopes(block: Block, gradient: Tensor, axis: Tensor | None) -> Tensor:
    """The slopes along a block's gains, and its offsets where there is an axis, float64 on the CPU."""
    if not block.is_matrix:
        return gradient.flatten().double().cpu() * unit(block) ** 0.5
    weights, matrix = block.parameter.detach(), gradient.reshape(sides(block))
    products = (matrix * weights.reshape(sides(block))).double()
    slopes = [products.sum(1), products.sum(0)]
    if axis is not None:
        size = weights.double().square().mean().sqrt()
        slopes.append(matrix.double() @ axis.to(matrix.device) * size)
    return torch.cat(slopes).cpu()
