"""A tuner's structure in the order of a model's blocks: what a running method makes of its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoft.blocks import Block
from zoft.noise import Key, Noise, Span
from zoft.tuner.parts import Gains, LowRank, Part

#: Scales of so many entries are kept whole, which small models gain from; those of others are made chunk by chunk.
_KEEP = 1 << 24


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


def _mixes(block: Mixed) -> bool:
    """Whether a second noise is mixed in; a part without a learned share leaves only the isotropic one."""
    return block.part is not None and block.part.mixes and bool(block.learned)


class BoundStructure:
    """The structure in the order of a model's blocks: how noise becomes a direction with covariance S.

    Scales multiply entries (:meth:`deviation`), a low rank and gains mix a second noise into the first (:meth:`mixed`).
    So a method that keeps something by entry sees white noise with scales, and with the others noise whose variance by
    entry is :meth:`variance`.

    Args:
        blocks: S of every block.
    """

    def __init__(self, blocks: Sequence[Mixed]) -> None:
        self._blocks = tuple(blocks)
        #: tr S_i / d_i of every block, float32 [B].
        self.power = torch.tensor([mixed.isotropic + mixed.learned for mixed in blocks])
        self._step: tuple[str, int, int] | None = None
        self._cores: dict[tuple[int, int, int, int], Tensor] = {}
        self._kept: dict[tuple[int, int, int, torch.device], Tensor] = {}
        self._kept_size = 0

    def gains(self, block: Block) -> tuple[float, list[Tensor]]:
        """√(1 − a), and what a block's gains are made of where it has some.

        These are the standard deviations of those of rows and of columns, √(a·ω·l) and √(a·ω·r), and with offsets
        √(a·ω·o) and the axis.
        """
        mixed = self._blocks[block.index]
        if not isinstance(mixed.part, Gains):
            return math.sqrt(mixed.isotropic), []
        made = [(mixed.learned * variances).sqrt() for variances in mixed.part.variances]
        if mixed.part.offsets is not None:
            variances, axis = mixed.part.offsets
            made += [(mixed.learned * variances).sqrt(), axis]
        return math.sqrt(mixed.isotropic), made

    @property
    def low_rank(self) -> bool:
        """Whether a low rank is mixed in anywhere."""
        return any(isinstance(block.part, LowRank) and block.learned for block in self._blocks)

    @property
    def everywhere(self) -> bool:
        """Whether a direction is of every entry: none has the variance 0, or may have it where its weight is 0."""
        return all(block.isotropic or (block.learned and not isinstance(block.part, Gains)) for block in self._blocks)

    def moves(self, block: Block) -> bool:
        """Whether directions are of a block at all."""
        mixed = self._blocks[block.index]
        return bool(mixed.isotropic or mixed.learned)

    def uses_noise(self, block: Block) -> bool:
        """Whether a block's direction has something of the noise that :meth:`mixed` is given."""
        mixed = self._blocks[block.index]
        return bool(mixed.isotropic) or (bool(mixed.learned) and not _mixes(mixed))

    def mixed(self, noise: Noise, key: Key, span: Span, values: Tensor, variance: float = 1.0) -> Tensor:
        """√(1 − a)·u + √(a·ω·variance)·(what the part makes of a second noise), where it does; else ``values``.

        Where it does, ``values`` is overwritten.

        Args:
            values: u over ``span``.
            variance: of an entry of u.
        """
        block = self._blocks[span.block.index]
        if block.part is None or not _mixes(block):
            return values
        core = self._core(block.part, noise, key, span)
        return block.part.mix(core, span, values, math.sqrt(block.isotropic), math.sqrt(block.learned * variance))

    def _core(self, part: Part, noise: Noise, key: Key, span: Span) -> Tensor:
        """The second noise of a direction, kept during its step: it is small, and each span of each pass needs it."""
        if self._step != (noise.name, key.seed, key.step):
            self._step = (noise.name, key.seed, key.step)
            self._cores.clear()
        index = (key.draw, key.part, span.block.index, span.block.key)
        if index not in self._cores:
            self._cores[index] = part.core(noise, key, span)
        return self._cores[index]

    def variance(self, span: Span) -> Tensor | None:
        """The variance by entry of what :meth:`mixed` gives, [len(span)]; None where it is 1."""
        block = self._blocks[span.block.index]
        if block.part is None or not _mixes(block):
            return None
        return block.part.variance(span, block.isotropic, block.learned)

    def deviation(self, span: Span) -> Tensor | float:
        """What multiplies the noise by entry, [len(span)], or one number for all; 1 where a second noise is mixed in.

        The tensor may be kept for the next call: it is only to be read.
        """
        block = self._blocks[span.block.index]
        if _mixes(block):
            return 1.0
        if block.part is None or not block.learned:
            return math.sqrt(block.isotropic + block.learned)
        index = (span.block.index, span.start, span.stop, span.block.parameter.device)
        kept = self._kept.get(index)
        if kept is None:
            kept = block.part.variance(span, block.isotropic, block.learned).sqrt_()
            if self._kept_size + len(span) <= _KEEP:
                self._kept_size += len(span)
                self._kept[index] = kept
        return kept
