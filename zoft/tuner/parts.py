"""The learned part of a block's direction while a method runs: scales by entry, or a second noise of low rank."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from zoft.noise import Key, Noise, Span, working_dtype

#: The noise of low-rank parts is this part of a direction's key, and on; those below are the methods' own.
NOISE_PART = 16

#: Entries of the rows that are multiplied at once. The tiles are the same whatever span is asked for, so that no
#: entry depends on how a block is cut.
_TILE = 1 << 15


class Part(ABC):
    """L of one block of [m, n], with trace m·n, from two factors.

    Args:
        left: float32 [m] or [m, r].
        right: float32 [n] or [n, r].
    """

    name: ClassVar[str]

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = self.normalised(left), self.normalised(right)

    @staticmethod
    @abstractmethod
    def sizes(rows: int, columns: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the factors."""

    @staticmethod
    @abstractmethod
    def problem(left: Tensor, right: Tensor) -> str | None:
        """What is wrong with finite factors; None if nothing is."""

    @staticmethod
    @abstractmethod
    def normalised(factor: Tensor) -> Tensor:
        """The factor with which its share of the trace is its number of rows."""

    @staticmethod
    @abstractmethod
    def random_like(factor: Tensor, generator: torch.Generator) -> Tensor:
        """A random factor in its place, in the same dtype."""

    @staticmethod
    @abstractmethod
    def resized(left: Tensor, rows: int) -> Tensor:
        """The left factor for another number of rows."""

    @abstractmethod
    def variance(self, span: Span, isotropic: float, learned: float) -> Tensor:
        """The diagonal of isotropic·I + learned·L over ``span``, [len(span)]."""

    def to(self, span: Span) -> Self:
        """Itself, with its factors where ``span`` is."""
        parameter = span.block.parameter
        device, dtype = parameter.device, working_dtype(parameter.dtype)
        if self.left.device != device or self.left.dtype != dtype:
            self.left, self.right = self.left.to(device, dtype), self.right.to(device, dtype)
        return self


class Scales(Part):
    """L = diag(r_i·c_j), with means 1 of r and c: a standard deviation √(r_i·c_j), as Adafactor factors it."""

    name = "scales"

    @staticmethod
    def sizes(rows: int, columns: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[m] and [n]."""
        return (rows,), (columns,)

    @staticmethod
    def problem(left: Tensor, right: Tensor) -> str | None:
        """Scales are not negative, and not all of them 0."""
        for factor in (left, right):
            if bool((factor < 0).any()):
                return "has negative scales"
            if not bool((factor > 0).any()):
                return "has only zeros"
        return None

    @staticmethod
    def normalised(factor: Tensor) -> Tensor:
        """Mean 1."""
        return (factor.double() / factor.double().mean()).float()

    @staticmethod
    def random_like(factor: Tensor, generator: torch.Generator) -> Tensor:
        """The same scales in another order."""
        return factor[torch.randperm(len(factor), generator=generator)]

    @staticmethod
    def resized(left: Tensor, rows: int) -> Tensor:
        """New rows have the mean scale."""
        return torch.cat([left[:rows], left.mean().expand(max(0, rows - len(left)))])

    def variance(self, span: Span, isotropic: float, learned: float) -> Tensor:
        """(1 − a) + a·ω·r_i·c_j."""
        here = self.to(span)
        first, last = span.rows
        return span.of_rows(torch.outer(here.left[first:last] * learned, here.right)).add_(isotropic)


class LowRank(Part):
    """L = (A·Aᵀ) ⊗ (B·Bᵀ) with |A|² = m, |B|² = n: the direction A·Z·Bᵀ with Z [r₁, r₂] of N(0, 1).

    A and B are the leading eigenvectors of E[G·Gᵀ] and E[Gᵀ·G], each times the root of its weight.
    """

    name = "low-rank"

    @staticmethod
    def sizes(rows: int, columns: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[m, r₁] and [n, r₂], where no rank exceeds its side."""
        return (rows, min(rank, rows)), (columns, min(rank, columns))

    @staticmethod
    def problem(left: Tensor, right: Tensor) -> str | None:
        """A basis is not 0."""
        return None if all(bool(factor.any()) for factor in (left, right)) else "has only zeros"

    @staticmethod
    def normalised(factor: Tensor) -> Tensor:
        """A squared norm of the number of rows."""
        values = factor.double()
        return (values * (math.sqrt(len(factor)) / values.norm())).float()

    @staticmethod
    def random_like(factor: Tensor, generator: torch.Generator) -> Tensor:
        """Another basis with the same spectrum (the same AᵀA)."""
        random = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(random)
        _, triangle = torch.linalg.qr(factor.double())
        return (basis @ triangle).to(factor.dtype)

    @staticmethod
    def resized(left: Tensor, rows: int) -> Tensor:
        """New rows are 0: they have the isotropic part alone."""
        return torch.cat([left[:rows], left.new_zeros(max(0, rows - len(left)), left.shape[1])])

    def variance(self, span: Span, isotropic: float, learned: float) -> Tensor:
        """(1 − a) + a·ω·|A_i|²·|B_j|²."""
        here = self.to(span)
        first, last = span.rows
        rows = here.left[first:last].square().sum(1)
        return span.of_rows(torch.outer(rows * learned, here.right.square().sum(1))).add_(isotropic)

    def drawn(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """A·Z·Bᵀ over ``span``."""
        here = self.to(span)
        left, right = here.left, here.right
        ranks = (left.shape[1], right.shape[1])
        core = noise(key._replace(part=key.part + NOISE_PART), Span(span.block, 0, math.prod(ranks)), left.device)
        core = core.to(left.dtype).view(ranks)
        height = max(1, _TILE // len(right))
        first, last = span.rows
        begin, end = first - first % height, min(len(left), last + -last % height)
        rows = left.new_empty(end - begin, len(right))
        for at in range(begin, end, height):
            stop = min(at + height, end)
            torch.mm(left[at:stop] @ core, right.T, out=rows[at - begin : stop - begin])
        return span.of_rows(rows[first - begin :])


#: Kinds of learned parts by name.
PARTS: dict[str, type[Part]] = {part.name: part for part in (Scales, LowRank)}


@dataclass(frozen=True, eq=False)
class Mixed:
    """S of one block.

    Attributes:
        isotropic: 1 − a.
        learned: a·ω.
        part: L; None is the identity.
    """

    isotropic: float
    learned: float
    part: Part | None


class BoundStructure:
    """The structure in the order of a model's blocks: how noise becomes a direction with covariance S.

    Scales multiply entries (:meth:`deviation`), a low rank mixes a second noise into the first (:meth:`mixed`). So
    a method that keeps something by entry sees white noise with scales, and with a low rank noise whose variance by
    entry is :meth:`variance`.

    Args:
        blocks: S of every block.
    """

    def __init__(self, blocks: Sequence[Mixed]) -> None:
        self._blocks = tuple(blocks)
        #: tr S_i / d_i of every block, float32 [B].
        self.power = torch.tensor([mixed.isotropic + mixed.learned for mixed in blocks])

    def mixed(self, noise: Noise, key: Key, span: Span, values: Tensor, variance: float = 1.0) -> Tensor:
        """√(1 − a)·u + √(a·ω·variance)·A·Z·Bᵀ where the part is a low rank, else ``values``, which is overwritten.

        Args:
            values: u over ``span``.
            variance: of an entry of u.
        """
        block = self._blocks[span.block.index]
        if not isinstance(block.part, LowRank) or not block.learned:
            return values
        learned = block.part.drawn(noise, key, span)
        return values.mul_(math.sqrt(block.isotropic)).add_(learned, alpha=math.sqrt(block.learned * variance))

    def variance(self, span: Span) -> Tensor | None:
        """The variance by entry of what :meth:`mixed` gives, [len(span)]; None where it is 1."""
        block = self._blocks[span.block.index]
        if not isinstance(block.part, LowRank) or not block.learned:
            return None
        return block.part.variance(span, block.isotropic, block.learned)

    def deviation(self, span: Span) -> Tensor | float:
        """What multiplies the noise by entry, [len(span)], or one number for all; 1 where the part is a low rank."""
        block = self._blocks[span.block.index]
        if isinstance(block.part, LowRank):
            # A low rank without a learned share has only the isotropic one.
            return 1.0 if block.learned else math.sqrt(block.isotropic)
        if block.part is None or not block.learned:
            return math.sqrt(block.isotropic + block.learned)
        return block.part.variance(span, block.isotropic, block.learned).sqrt_()
