"""Learning row and column scales from the signal in the gradients, not from their energy.

A row's gradients may be large on every minibatch and cancel over them, as those of the rows that decide between
labels do: they add much to the variance of the projected gradient and to the curvature, and nothing to the slope. So
the scale of a row is by its part of the signal over its part of the noise,

    r_j ∝ ((G_j / ΣG) / (F_j / ΣF))^p,

G_j and F_j as in :mod:`meta_train.signal` for the row's entries, means over the tasks of their shares, and a column's
likewise. A part of the block's mean noise (``structure_floor``) is added to F_j, and no ratio is further than 20 from
the block's own. A row that the tasks never touched has neither, and so a small scale.

The blocks' own ratios, to the power ``structure_block_power``, are the weights ω of their learned parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from meta_train.config import MetaTrainConfig
from meta_train.moments import SIDES, sides
from meta_train.signal import BatchGradients, Signal
from meta_train.signal_structure import SignalStructure
from zoft.blocks import Block, Blocks
from zoft.tuner.parts import Scales
from zoft.tuner.structure import Structure, factor_shapes

#: The largest ratio of a row to its block's own, and of a block to the model's.
_REACH, _BLOCK_REACH = 20.0, 10.0


class SignalScales(SignalStructure):
    """The signal and the noise of every row and column."""

    def __init__(
        self, config: MetaTrainConfig, blocks: Blocks, signal: Signal, axes: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(config, blocks, signal, axes)
        tasks = len(signal.visits)
        self._pending: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        for block in self._covered():
            for side, size in zip(SIDES, sides(block), strict=True):
                self._pending[f"{side}/{block.name}"] = torch.zeros(size, dtype=torch.float64)
                for kind in ("signal", "noise"):
                    self._means[f"{kind}/{side}/{block.name}"] = torch.zeros(tasks, size, dtype=torch.float64)

    def _covered(self) -> list[Block]:
        return [block for block in self._blocks if factor_shapes(self.settings, block.shape) is not None]

    def take(self, block: Block, gradient: Tensor) -> None:
        """One block's gradient of one minibatch."""
        if f"left/{block.name}" not in self._pending:
            return
        squares = gradient.detach().reshape(sides(block)).double().square()
        self._pending[f"left/{block.name}"] += squares.sum(1).cpu()
        self._pending[f"right/{block.name}"] += squares.sum(0).cpu()

    def commit(self, task: int, gradients: BatchGradients) -> None:
        """Add a visit of a task: everything taken since the last time is of these gradients."""
        weight, total = self._of_blocks.weight(task), float(gradients.squares.sum()) / gradients.count
        for block in self._covered():
            sum_ = gradients.sums.get(block.name)
            if sum_ is None:
                continue
            squares = sum_.reshape(sides(block)).double().square()
            for dim, side in ((1, "left"), (0, "right")):
                noise = self._pending[f"{side}/{block.name}"]
                signal = gradients.signal(squares.sum(dim).cpu(), noise)
                self._means[f"signal/{side}/{block.name}"][task].lerp_(signal / total, weight)
                self._means[f"noise/{side}/{block.name}"][task].lerp_(noise / gradients.count / total, weight)
        self.count += gradients.count
        self.discard()

    def discard(self) -> None:
        """Forget what was taken since the last time."""
        for pending in self._pending.values():
            pending.zero_()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {**self._means, "count": torch.tensor(self.count)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.count = int(state["count"])
        for name, mean in self._means.items():
            mean.copy_(state[name])

    def structure(self, share: float, without: int | None = None) -> Structure:
        """The scales that the ratios say. A block that had no signal has the share 0."""
        shares, weights = torch.zeros(len(self._blocks)), torch.ones(len(self._blocks))
        of_blocks, factors = self._weights(without), {}
        for block in self._covered():
            both = [self._ratios(block, side, without) for side in SIDES]
            found = all(ratios is not None for ratios in both)
            if found:
                shares[block.index], weights[block.index] = share, of_blocks[block.index]
            left, right = (
                Scales.normalised(ratios**self._config.structure_power)
                if found and ratios is not None
                else torch.ones(size)
                for ratios, size in zip(both, sides(block), strict=True)
            )
            factors[block.name] = (left.to(self.settings.dtype), right.to(self.settings.dtype))
        names, sizes = tuple(self._blocks.names), tuple(self._blocks.shapes)
        return Structure(self.settings, names, sizes, shares, weights, factors)

    def _weights(self, without: int | None) -> Tensor:
        """ω by block [B], where it has signal: its share of the signal over that of the noise, to a power."""
        both = (self._of_blocks.signal, self._of_blocks.noise)
        signal, noise = (self._shares(means, means, without) for means in both)
        return (signal / noise).clamp(1 / _BLOCK_REACH, _BLOCK_REACH) ** self._config.structure_block_power

    def _ratios(self, block: Block, side: str, without: int | None) -> Tensor | None:
        """Signal over noise by row or column, relative to the block's own; None where the block has no signal."""
        signal = self._shares(self._means[f"signal/{side}/{block.name}"], self._of_blocks.signal, without)
        noise = self._shares(self._means[f"noise/{side}/{block.name}"], self._of_blocks.noise, without)
        own = float(signal.sum() / noise.sum()) if float(noise.sum()) > 0 else 0.0
        if not own > 0:
            return None
        floor = self._config.structure_floor * noise.mean()
        return (signal / (noise + floor) / own).clamp(1 / _REACH, _REACH)

    def _shares(self, means: Tensor, of_blocks: Tensor, without: int | None) -> Tensor:
        """Means over the tasks of each one's share of the whole model."""
        totals = of_blocks.sum(1)
        seen = totals > 0
        if without is not None:
            seen[without] = False
        return (means[seen] / totals[seen, None]).mean(0) if bool(seen.any()) else torch.zeros(means.shape[1])
