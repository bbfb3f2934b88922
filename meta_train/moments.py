"""Learning the structure within the blocks: second moments of the gradients that meta-training backpropagates.

Each minibatch's gradient, at the weights that a lookahead ends at, is divided by its norm over the whole model,
and E[G·Gᵀ], E[Gᵀ·G] of a matrix (or their diagonals alone, for scales) are the means over all of them. So every
minibatch weighs the same, whatever its task's loss, and every task the same, because the tasks take turns.

The factor of a side of more than :data:`EXACT` rows is not kept whole: C·Ω for a few fixed random columns Ω is,
from which its leading eigenvectors come by the Nyström approximation C ≈ CΩ·(Ωᵀ·CΩ)⁻¹·(CΩ)ᵀ (Gittens and Mahoney,
arXiv 1303.1849). It is exact where C has no more than that many non-zero eigenvalues.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meta_train.config import MetaTrainConfig
from meta_train.feed import derived_seed
from zoft.blocks import Block, Blocks
from zoft.tuner.parts import LowRank, Scales
from zoft.tuner.structure import Structure, StructureConfig, factor_shapes, largest_rank, part_of

#: Sides up to so many rows keep their whole factor; larger ones a sketch.
EXACT = 512

#: Columns of a sketch beyond the rank.
_MORE = 8


class Moments:
    """Running sums of second moments, by block.

    Args:
        config: with a structure.
        blocks: the model's blocks.
    """

    def __init__(self, config: MetaTrainConfig, blocks: Blocks) -> None:
        self._config, self._blocks = config, blocks
        self.settings = settings_of(config, blocks)
        self._seed = derived_seed("sketch", config.seed)
        self._pending = self._zeros()
        self._sums = self._zeros()
        self.count = 0

    def _zeros(self) -> dict[str, Tensor]:
        """Of every block its energy, and of those with a structure what each side is summed in."""
        sums = {"energy": torch.zeros(len(self._blocks), dtype=torch.float64)}
        for block in self._blocks:
            part = part_of(self.settings, block.shape)
            for side, size in zip(SIDES, sides(block), strict=True):
                if part is Scales:
                    shape: tuple[int, ...] = (size,)
                elif part is LowRank:
                    shape = (size, size if size <= EXACT else self._columns(size))
                else:
                    continue
                dtype = torch.float64 if part is Scales else torch.float32
                sums[f"{side}/{block.name}"] = torch.zeros(shape, dtype=dtype, device=block.parameter.device)
        return sums

    def _columns(self, size: int) -> int:
        return min(size, 2 * self.settings.rank + _MORE)

    def take(self, block: Block, gradient: Tensor) -> None:
        """One block's gradient, of the block's shape."""
        matrix = gradient.detach().reshape(sides(block)).float()
        self._pending["energy"][block.index] += float(matrix.double().square().sum())
        part = part_of(self.settings, block.shape)
        if part is Scales:
            squares = matrix.double().square()
            self._pending[f"left/{block.name}"] += squares.sum(1)
            self._pending[f"right/{block.name}"] += squares.sum(0)
        elif part is LowRank:
            for side, values in (("left", matrix), ("right", matrix.T)):
                sum_ = self._pending[f"{side}/{block.name}"]
                if len(sum_) <= EXACT:
                    sum_.addmm_(values, values.T)
                else:
                    sum_.addmm_(values, values.T @ self._omega(block, side, sum_))

    def _omega(self, block: Block, side: str, like: Tensor) -> Tensor:
        """The fixed random columns that a factor is multiplied with."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, block.name, side))
        return torch.randn(like.shape, generator=generator).to(like.device)

    def commit(self) -> None:
        """Add what was taken since the last time, as one gradient of norm 1."""
        energy = float(self._pending["energy"].sum())
        if energy > 0 and math.isfinite(energy):
            for name, sum_ in self._sums.items():
                sum_.add_(self._pending[name], alpha=1 / energy)
            self.count += 1
        self.discard()

    def discard(self) -> None:
        """Forget what was taken since the last time."""
        for pending in self._pending.values():
            pending.zero_()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {**self._sums, "count": torch.tensor(self.count)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.count = int(state["count"])
        for name, sum_ in self._sums.items():
            sum_.copy_(state[name])

    def structure(self, share: float) -> Structure:
        """The structure that the moments say, with that share a. A block that had no gradient has the share 0."""
        energy = self._sums["energy"]
        shares = torch.where(energy > 0, share, 0.0).float()
        factors = {}
        for block in self._blocks:
            part, shapes = part_of(self.settings, block.shape), factor_shapes(self.settings, block.shape)
            if part is None or shapes is None:
                continue
            if not energy[block.index] > 0:
                left, right = (torch.ones(shape) for shape in shapes)
            else:
                left, right = (self._factor(block, side, shape) for side, shape in zip(SIDES, shapes, strict=True))
            factors[block.name] = (left.to(self.settings.dtype), right.to(self.settings.dtype))
        names, sizes = tuple(self._blocks.names), tuple(self._blocks.shapes)
        return Structure(self.settings, names, sizes, shares, self._weights(energy), factors)

    def _weights(self, energy: Tensor) -> Tensor:
        """ω_i ∝ (the block's mean energy)^q, with Σ d_i·ω_i = Σ d_i."""
        sizes = torch.tensor([float(block.numel) for block in self._blocks], dtype=torch.float64)
        power = self._config.structure_block_power
        weights = torch.where(energy > 0, (energy / sizes).clamp(min=1e-300) ** power, 0.0)
        total = float((sizes * weights).sum())
        return (weights * (float(sizes.sum()) / total)).float() if total else torch.ones_like(weights).float()

    def _factor(self, block: Block, side: str, shape: tuple[int, ...]) -> Tensor:
        """One side's factor, float32 on the CPU."""
        moments = self._sums[f"{side}/{block.name}"].double().cpu()
        if len(shape) == 1:
            scales = (moments / moments.mean()).add(self._config.structure_floor) ** self._config.structure_power
            return Scales.normalised(scales)
        rows = len(moments)
        if rows <= EXACT:
            values, vectors = torch.linalg.eigh(moments)
        else:
            values, vectors = nystrom(moments, self._omega(block, side, self._sums[f"{side}/{block.name}"]).double())
        values = values.flip(0)[: shape[1]].clamp(min=0)
        vectors = vectors.flip(1)[:, : shape[1]]
        weights = (values / values[0]) ** self._config.structure_power
        factor = torch.zeros(shape, dtype=torch.float64)  # a sketch may have found fewer directions than asked for
        factor[:, : len(values)] = vectors * weights.sqrt()
        return LowRank.normalised(factor)


#: A matrix's rows and columns, in the names of what is summed over them.
SIDES = ("left", "right")


def sides(block: Block) -> tuple[int, int]:
    """Rows and columns of the block as a matrix; a vector is a column, a scalar one entry."""
    rows = block.shape[0] if block.shape else 1
    return rows, block.numel // rows if rows else 0


def nystrom(product: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and orthonormal eigenvectors of the Nyström approximation from C·Ω."""
    omega = omega.to(product.device)
    core = omega.T @ product
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    usable = values > values[-1] * 1e-6
    root = product @ (vectors[:, usable] / values[usable].sqrt())
    left, singular, _ = torch.linalg.svd(root, full_matrices=False)
    return singular.square().flip(0), left.flip(1)


def settings_of(config: MetaTrainConfig, blocks: Blocks) -> StructureConfig:
    """What the structure will be; without a rank given, the largest within 2 % of the model's bytes."""
    settings = StructureConfig.build(
        {
            "kind": config.structure,
            "rank": config.structure_rank or 1,
            "vectors": config.structure_vectors,
            "storage": config.structure_storage,
        }
    )
    if config.structure != "low-rank" or config.structure_rank is not None:
        return settings
    rank = largest_rank(settings, blocks.shapes, model_bytes(blocks))
    return settings.model_copy(update={"rank": rank})


def model_bytes(blocks: Blocks) -> int:
    """Bytes of the trainable weights."""
    return sum(block.numel * block.parameter.element_size() for block in blocks)
