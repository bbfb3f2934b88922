"""The learned part of a block's direction: scales by entry, or a second noise of few numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from zoft.noise import Key, Noise, Span, working_dtype

#: The noise that is mixed in is this part of a direction's key, and on; those below are the methods' own.
NOISE_PART = 16

#: Entries of the rows that are multiplied at once. The tiles are the same whatever span is asked for, so that no
#: entry depends on how a block is cut.
_TILE = 1 << 17


class Part(ABC):
    """L of one block of [m, n], with trace m·n, from two factors.

    Class attributes:
        mixes: whether a second noise is mixed in (:meth:`core`, :meth:`mix`), where other parts scale entries.
        vectors: whether blocks of one dimension have it too, whatever the configuration says of vectors.

    Args:
        left: float32 [m] or [m, r].
        right: float32 [n] or [n, r].
    """

    name: ClassVar[str]
    mixes: ClassVar[bool] = False
    vectors: ClassVar[bool] = False

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

    def core(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """The second noise of a direction, of a block as a whole."""
        raise NotImplementedError(f"{self.name} scales the entries of a direction")

    def mix(self, core: Tensor, span: Span, values: Tensor, isotropic: float, learned: float) -> Tensor:
        """isotropic·values + learned·(what the second noise makes), over ``span``, in place."""
        raise NotImplementedError(f"{self.name} scales the entries of a direction")

    def to(self, span: Span) -> Self:
        """Itself, with its factors where ``span`` is."""
        parameter = span.block.parameter
        device, dtype = parameter.device, working_dtype(parameter.dtype)
        if self.left.device != device or self.left.dtype != dtype:
            self.left, self.right = self.left.to(device, dtype), self.right.to(device, dtype)
        return self


class _TwoVectors(Part):
    """Given by a number for every row and one for every column."""

    @staticmethod
    def sizes(rows: int, columns: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[m] and [n]."""
        return (rows,), (columns,)

    @staticmethod
    def random_like(factor: Tensor, generator: torch.Generator) -> Tensor:
        """The same numbers in another order."""
        return factor[torch.randperm(len(factor), generator=generator)]

    @staticmethod
    def resized(left: Tensor, rows: int) -> Tensor:
        """New rows have the mean."""
        return torch.cat([left[:rows], left.mean(0, keepdim=True).expand(max(0, rows - len(left)), *left.shape[1:])])


class Scales(_TwoVectors):
    """L = diag(r_i·c_j), with means 1 of r and c: a standard deviation √(r_i·c_j), as Adafactor factors it."""

    name = "scales"

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
    mixes = True

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

    def core(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """Z of a direction, [r₁, r₂]."""
        here = self.to(span)
        ranks = (here.left.shape[1], here.right.shape[1])
        count = Span(span.block, 0, math.prod(ranks))
        return noise(key._replace(part=key.part + NOISE_PART), count, here.left.device).to(here.left.dtype).view(ranks)

    def mix(self, core: Tensor, span: Span, values: Tensor, isotropic: float, learned: float) -> Tensor:
        """isotropic·values + learned·A·Z·Bᵀ over ``span``, in place."""
        here = self.to(span)
        left, right = here.left, here.right
        columns, (first, last) = len(right), span.rows
        height = max(1, _TILE // columns)
        for top in range(first - first % height, last, height):
            rows = left[top : top + height] @ core
            begin, end = max(top * columns, span.start), min((top + len(rows)) * columns, span.stop)
            part = values[begin - span.start : end - span.start]
            whole = len(part) == len(rows) * columns
            tile = part.view(-1, columns) if whole else values.new_zeros(len(rows), columns)
            if not whole:
                inside = tile.view(-1)[begin - top * columns : end - top * columns]
                inside.copy_(part)
            tile.addmm_(rows, right.T, beta=isotropic, alpha=learned)
            if not whole:
                part.copy_(inside)
        return values


class Gains(_TwoVectors):
    """The direction z_ij = (g_i + h_j)·θ_ij of a matrix with g_i ~ N(0, l_i), h_j ~ N(0, r_j): its rows and columns
    are made larger or smaller as they are, as if what goes into the layer, or comes out, were rescaled. A vector has
    z_j = g_j, and makes no use of the right factor.

    So a block of [m, n] moves in m + n dimensions. (IA)³ (Liu et al., arXiv 2205.05638) trains such gains of keys,
    values and hidden units alone, by backpropagation; here all of a model's matrices have them, nothing is added to the
    model, and θ is that of the step. tr L = m·n is exact for the weights that the factors were made for.
    """

    name = "gains"
    mixes = True
    vectors = True

    @staticmethod
    def problem(left: Tensor, right: Tensor) -> str | None:
        """Variances are not negative, and not all of them 0."""
        if any(bool((factor < 0).any()) for factor in (left, right)):
            return "has negative variances"
        return None if bool(left.any()) or bool(right.any()) else "has only zeros"

    @staticmethod
    def normalised(factor: Tensor) -> Tensor:
        """As it is: the trace is that of both, and of the weights."""
        return factor.float()

    @property
    def variances(self) -> tuple[Tensor, Tensor]:
        """l and r, of the gains of rows and of columns."""
        return self.left, self.right

    @property
    def offsets(self) -> tuple[Tensor, Tensor] | None:
        """Variances of offsets by row and the axis that they are along; None where there are none."""
        return None

    def variance(self, span: Span, isotropic: float, learned: float) -> Tensor:
        """(1 − a) + a·ω·((l_i + r_j)·θ_ij² + o_i·a_j²)."""
        here = self.to(span)
        values = _by_entry(span, *here.variances)
        if span.block.is_matrix:
            values = values * _weights(span).square()
            if here.offsets is not None:
                values = values + _outer(span, here.offsets[0], here.offsets[1].square())
        return values.mul(learned).add_(isotropic)

    def core(self, noise: Noise, key: Key, span: Span) -> Tensor:
        """g, h and, where there are offsets, e of a direction, one after the other, [m + n] or [2·m + n]."""
        here, found = self.to(span), []
        for number, factor in enumerate((*here.variances, *(here.offsets or ())[:1])):
            its = key._replace(part=key.part + (1 + number) * NOISE_PART)
            values = noise(its, Span(span.block, 0, len(factor)), factor.device)
            found.append(values.to(factor.dtype) * factor.sqrt())
        return torch.cat(found)

    def mix(self, core: Tensor, span: Span, values: Tensor, isotropic: float, learned: float) -> Tensor:
        """isotropic·values + learned·((g_i + h_j)·θ_ij + e_i·a_j) over ``span``, in place."""
        here, rows, columns = self.to(span), len(self.left), len(self.right)
        part = _by_entry(span, core[:rows], core[rows : rows + columns])
        if not span.block.is_matrix:
            return values.mul_(isotropic).add_(part, alpha=learned)
        values.mul_(isotropic).addcmul_(part, _weights(span), value=learned)
        if here.offsets is not None:
            values.add_(_outer(span, core[rows + columns :], here.offsets[1]), alpha=learned)
        return values


class GainsAndOffsets(Gains):
    """Gains, and of a matrix also z_ij = e_i·a_j with e_i ~ N(0, o_i): what comes out of row i is shifted by e_i·a·x.

    a is a fixed axis along which all that goes into the layer has something in common, so that the e_i act as a bias
    does; models of today mostly have none. Both factors have two columns: l and o, [m, 2], and r and a, [n, 2]. Where a
    is 0 there are gains alone, and a vector has no use for either second column.
    """

    name = "gains-and-offsets"

    @staticmethod
    def sizes(rows: int, columns: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[m, 2] and [n, 2]."""
        return (rows, 2), (columns, 2)

    @staticmethod
    def problem(left: Tensor, right: Tensor) -> str | None:
        """Variances are not negative, and not all of them 0; an axis has any sign."""
        return Gains.problem(left.flatten(), right[:, 0])

    @property
    def variances(self) -> tuple[Tensor, Tensor]:
        """l and r, of the gains of rows and of columns."""
        return self.left[:, 0], self.right[:, 0]

    @property
    def offsets(self) -> tuple[Tensor, Tensor] | None:
        """o [m] and a [n]; None where a is 0."""
        return (self.left[:, 1], self.right[:, 1]) if self._has_axis else None

    @cached_property
    def _has_axis(self) -> bool:
        return bool(self.right[:, 1].any())


def _by_entry(span: Span, left: Tensor, right: Tensor) -> Tensor:
    """left_i + right_j over ``span`` of a matrix, left_j of a vector."""
    if not span.block.is_matrix:
        return left[span.start : span.stop]
    first, last = span.rows
    return span.of_rows(left[first:last, None] + right)


def _outer(span: Span, left: Tensor, right: Tensor) -> Tensor:
    """left_i·right_j over ``span`` of a matrix."""
    first, last = span.rows
    return span.of_rows(torch.outer(left[first:last], right))


def _weights(span: Span) -> Tensor:
    """θ over ``span`` in the dtype of directions."""
    parameter = span.block.parameter
    return span.of(parameter.detach().contiguous()).to(working_dtype(parameter.dtype))


#: Kinds of learned parts by name.
PARTS: dict[str, type[Part]] = {part.name: part for part in (Scales, LowRank, Gains, GainsAndOffsets)}
