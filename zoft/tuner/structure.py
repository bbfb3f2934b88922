"""Structure finer than a block: what a tuner stores of the covariance S_i of each block's direction.

    S_i = (1 − a_i)·I + a_i·ω_i·L_i,    tr L_i = d_i,    Σ d_i·a_i·ω_i = Σ d_i·a_i

a_i is the share of the learned part, ω_i its weight among the blocks, and L_i one of :data:`zoft.tuner.parts.PARTS`:
row and column scales, a low rank, or gains of rows and columns. Each is given by two factors of a matrix, so that a
block of [m, n] takes m + n numbers, or (m + n)·r. Tensors of more dimensions are matrices of their first dimension by
the others.

The traces are made exact when the structure is bound, so that rounding in the file changes no norm: then
E|z|² = Σ d_i, that of N(0, I), before σ and ν; see :class:`zoft.tuner.bound.BoundTuner` for these. Those of gains are
as stored, for the weights that they were made for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from zoft.config import Config
from zoft.tuner.bound_structure import BoundStructure, Mixed
from zoft.tuner.parts import PARTS, Part

StructureKind = Literal["scales", "low-rank", "gains", "gains-and-offsets"]

#: Names of the structure's tensors in the tuner's file begin with this.
PREFIX = "structure."

#: Largest part of the model's bytes that a structure is to take.
BUDGET = 0.02

_DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: Below float16's largest number: scales have mean 1, and one row of a large vocabulary may have almost all of it.
_LARGEST = 60000.0


class StructureConfig(Config):
    """What the learned part of a tuner's structure is."""

    kind: StructureKind = Field(
        description="Row and column scales of every matrix (m + n numbers), a low rank ((m + n)·rank numbers), or"
        " gains of rows and columns (m + n), or these and offsets of the rows (2·(m + n))."
    )
    rank: int = Field(1, ge=1, le=2**12, description="Rank of each side of a low-rank part; 1 for the others.")
    vectors: Literal["isotropic", "elementwise"] = Field(
        "isotropic",
        description="Whether vectors (biases, norms) are isotropic or have a scale by entry (always with gains).",
    )
    storage: Literal["float16", "float32"] = Field("float16", description="How the factors are stored.")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factors in the file."""
        return _DTYPES[self.storage]


def part_of(config: StructureConfig, shape: Sequence[int]) -> type[Part] | None:
    """The kind of learned part that a block of this shape has; None where it stays isotropic."""
    if not math.prod(shape) or not shape:
        return None
    if len(shape) > 1 or PARTS[config.kind].vectors:
        return PARTS[config.kind]
    return PARTS["scales"] if config.vectors == "elementwise" else None


def factor_shapes(config: StructureConfig, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shapes of a block's two factors, [m] and [n] or [m, r] and [n, r]; None where it stays isotropic."""
    part = part_of(config, shape)
    if part is None:
        return None
    return part.sizes(shape[0], math.prod(shape) // shape[0], config.rank)


def stored_tensors(
    config: StructureConfig, shapes: Sequence[Sequence[int]]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of every tensor of a structure in the tuner's file, without making one.

    ``structure.share`` and ``structure.weight`` are a_i and ω_i, float32 [B]; ``structure.left`` and
    ``structure.right`` are the factors of all blocks, flattened one after the other.
    """
    both = [sizes for shape in shapes if (sizes := factor_shapes(config, shape)) is not None]
    count = len(shapes)
    return {
        f"{PREFIX}share": (torch.float32, (count,)),
        f"{PREFIX}weight": (torch.float32, (count,)),
        f"{PREFIX}left": (config.dtype, (sum(math.prod(left) for left, _ in both),)),
        f"{PREFIX}right": (config.dtype, (sum(math.prod(right) for _, right in both),)),
    }


def stored_bytes(config: StructureConfig, shapes: Sequence[Sequence[int]]) -> int:
    """Bytes of a structure in the tuner's file."""
    return sum(dtype.itemsize * math.prod(size) for dtype, size in stored_tensors(config, shapes).values())


def largest_rank(config: StructureConfig, shapes: Sequence[Sequence[int]], model_bytes: int) -> int:
    """The largest rank whose structure takes at most 2 % of the model's bytes; 1 where none does."""
    rank = 1
    while rank < 2**12:
        wider = config.model_copy(update={"rank": rank + 1})
        if stored_bytes(wider, shapes) > BUDGET * model_bytes or wider_than_any(wider, shapes):
            break
        rank += 1
    return rank


def wider_than_any(config: StructureConfig, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether the rank exceeds both sides of every matrix."""
    return all(config.rank > max(shape[0], math.prod(shape[1:])) for shape in shapes if len(shape) > 1)


def described(config: StructureConfig, shapes: Sequence[Sequence[int]]) -> str:
    """Kind, rank and size in a few words, for a reader."""
    rank = f" of rank {config.rank}" if config.kind == "low-rank" else ""
    size, weights = stored_bytes(config, shapes), 4 * sum(map(math.prod, shapes))
    return f"{config.kind}{rank}, {size / 1024:,.1f} KiB, {size / weights:.2%} of the base's weights in float32"


@dataclass(frozen=True, eq=False)
class Structure:
    """The learned part of a tuner's directions, by block of its base.

    Attributes:
        config: what it is.
        names: canonical names of the blocks, in the order of the tuner's rows.
        shapes: their shapes.
        share: a_i, float32 [B].
        weight: ω_i, float32 [B].
        factors: by block name the two factors; blocks that stay isotropic are not in it.
    """

    config: StructureConfig
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    share: Tensor
    weight: Tensor
    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def kind(self) -> StructureKind:
        """One of :data:`zoft.tuner.parts.PARTS`."""
        return self.config.kind

    @property
    def nbytes(self) -> int:
        """Bytes in the tuner's file."""
        return stored_bytes(self.config, self.shapes)

    @classmethod
    def from_tensors(
        cls,
        config: StructureConfig,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        tensors: Mapping[str, Tensor],
    ) -> Structure:
        """From the tensors of a file, whose names, dtypes and shapes are those of :func:`stored_tensors`."""
        left, right = (iter(_split(config, shapes, tensors[f"{PREFIX}{side}"], at)) for at, side in _SIDES)
        factors = {
            name: (next(left), next(right))
            for name, shape in zip(names, shapes, strict=True)
            if part_of(config, shape) is not None
        }
        sizes = tuple(tuple(shape) for shape in shapes)
        return cls(config, tuple(names), sizes, tensors[f"{PREFIX}share"], tensors[f"{PREFIX}weight"], factors)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file, by name; see :func:`stored_tensors`."""
        flat: dict[str, Tensor] = {f"{PREFIX}share": self.share.float(), f"{PREFIX}weight": self.weight.float()}
        for at, side in _SIDES:
            pieces = [both[at].reshape(-1) for both in self.factors.values()]
            values = torch.cat(pieces) if pieces else torch.zeros(0)
            flat[f"{PREFIX}{side}"] = values.clamp(-_LARGEST, _LARGEST).to(self.config.dtype)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in flat.items()}

    def problem(self) -> str | None:
        """What makes it no structure, in a few words; None if nothing does."""
        if not bool(((self.share >= 0) & (self.share <= 1)).all()):
            return f"{PREFIX}share has values outside 0 to 1"
        if not bool((self.weight >= 0).all()):
            return f"{PREFIX}weight has negative values"
        if float((self.share * self.weight).sum()) <= 0 < float(self.share.sum()):
            return f"{PREFIX}weight is 0 wherever the share is not"
        for name, shape in zip(self.names, self.shapes, strict=True):
            part = part_of(self.config, shape)
            reason = part.problem(*self.factors[name]) if part is not None else None
            if reason:
                return f"the {PREFIX}left or {PREFIX}right of {name} {reason}"
        return None

    def digest(self, digest: hashlib._Hash) -> None:
        """Add everything that it computes with to a hash."""
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())

    def random_like(self, seed: int) -> Structure:
        """The control: scales or gains permuted within each block, or a random basis of the same rank and spectrum.

        Args:
            seed: of the permutations or the bases.
        """
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name, shape in zip(self.names, self.shapes, strict=True):
            part = part_of(self.config, shape)
            if part is not None:
                left, right = self.factors[name]
                factors[name] = (part.random_like(left, generator), part.random_like(right, generator))
        return replace(self, factors=factors)

    def bind(self, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> BoundStructure:
        """Fit it to a model's blocks, which the tuner was matched with.

        A table or head whose vocabulary was resized keeps the rows that it has; new ones get the mean scale,
        or no learned part of low rank.
        """
        row_of = {name: row for row, name in enumerate(self.names)}
        rows = torch.tensor([row_of[name] for name in names])
        sizes = torch.tensor([float(math.prod(shape)) for shape in shapes], dtype=torch.float64)
        share, weight = self.share[rows].double(), self.weight[rows].double()
        learned = share * weight
        total = float((sizes * learned).sum())
        learned = learned * (float((sizes * share).sum()) / total) if total else share
        blocks = []
        for at, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            part, factors = part_of(self.config, shape), None
            if part is not None:
                left, right = self.factors[name]
                factors = part(part.resized(left.float(), shape[0]), right.float())
            blocks.append(Mixed(1 - float(share[at]), float(learned[at]), factors))
        return BoundStructure(blocks)


_SIDES = ((0, "left"), (1, "right"))


def _split(config: StructureConfig, shapes: Sequence[Sequence[int]], flat: Tensor, at: int) -> Iterator[Tensor]:
    """One side's factors, block after block."""
    start = 0
    for shape in shapes:
        both = factor_shapes(config, shape)
        if both is not None:
            stop = start + math.prod(both[at])
            yield flat[start:stop].view(both[at])
            start = stop
