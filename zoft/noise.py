"""Noise: random directions as a pure function of (seed, step, draw, block, element index).

The same key gives the same bits whatever the order of the blocks, the chunk size, the number of
threads, the device or the state of any global generator, so a direction is never stored: it is made
again wherever it is needed. The stream is Philox4x64-10, keyed by (seed, block) with the counter
(element, step, draw, stream); kinds differ in how they turn its words into numbers.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoft import philox
from zoft.blocks import Block, Blocks
from zoft.config import unknown
from zoft.errors import ArtifactError, UsageError

#: Entries handled at once: on the CPU few enough to stay in a core's cache, on accelerators, where every call costs the
#: same, enough to hide the calls. What is needed besides is some 30 bytes an entry.
CHUNK, CHUNK_ON_DEVICE = 1 << 18, 1 << 22

#: On the CPU numpy takes as long to begin a stream as tensor operations for the words of so many counters.
_FEW = 40
#: Quantiles that numpy looks up at once, so that what it makes of their places stays in a core's cache.
_LOOK_UP = 1 << 15
_DIRECTION, _ROUNDING = 0, 1
_TABLE_FILE = "gaussian-table-1.npy"
_TABLE_SHA256 = "b5d193788f8dbaca5f2b783ecc573e6cb85521b702952d959068ad27fa8dd491"


class Key(NamedTuple):
    """What a direction is a function of, besides the block and the element.

    Attributes:
        seed: the run's seed, a 64-bit integer.
        step: the step, from 0.
        draw: which of the step's directions, from 0.
        part: which of a direction's independent noises, from 0; most methods need one.
    """

    seed: int
    step: int
    draw: int = 0
    part: int = 0


@dataclass(frozen=True)
class Span:
    """A run of entries of a block, in the order of its flattened tensor."""

    block: Block
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> tuple[int, int]:
        """The rows of the block's matrix that it touches, as a half-open range."""
        return self.start // self.block.columns, -(-self.stop // self.block.columns)

    def of_rows(self, rows: Tensor) -> Tensor:
        """Its entries of a contiguous matrix [..., m, n] that holds :attr:`rows` whole (a view)."""
        start = self.start - self.rows[0] * self.block.columns
        return rows.view(*rows.shape[:-2], -1)[..., start : start + len(self)]

    def of(self, tensor: Tensor) -> Tensor:
        """The entries of a contiguous ``tensor`` of the block's shape, or of several [..., *shape] (a view)."""
        several = tensor.shape[: tensor.ndim - self.block.parameter.ndim]
        flat = tensor.view(*several, -1)
        return flat if len(self) == flat.shape[-1] else flat[..., self.start : self.stop]


class Counters(NamedTuple):
    """The counters of several blocks, one block after the other.

    Attributes:
        keys: of every counter the key of its block, int64.
        numbers: its number within the block, int64.
        per_block: how many of every block.
        starts: where the values of every block begin, one block after the other.
    """

    keys: Tensor
    numbers: Tensor
    per_block: list[int]
    starts: list[int]


class Layout:
    """Blocks one after the other in a row, each beginning where a counter of the noise does.

    Args:
        blocks: the blocks.
        per_counter: how many values a counter gives.

    Attributes:
        starts: where in the row every block begins.
        width: entries of a row.
    """

    def __init__(self, blocks: Blocks, per_counter: int) -> None:
        self.blocks = blocks
        ends = list(accumulate(per_counter * -(-block.numel // per_counter) for block in blocks))
        self.starts, self.width = [0, *ends[:-1]], ends[-1]
        self._per_counter = per_counter
        self._kept: dict[tuple[torch.device, tuple[int, ...]], Counters] = {}

    def of(self, rows: Tensor, block: Block) -> Tensor:
        """The block in every row of ``rows`` [..., width]: a view [..., *shape]."""
        start = self.starts[block.index]
        return rows[..., start : start + block.numel].unflatten(-1, block.shape or (1,))

    def on(self, device: torch.device, lengths: Sequence[int] | None = None) -> Counters:
        """The counters that give the first entries of every block.

        Args:
            lengths: how many entries of every block; by default all.
        """
        wanted = tuple(lengths or (block.numel for block in self.blocks))
        if (device, wanted) not in self._kept:
            counts = [-(-length // self._per_counter) for length in wanted]
            keys = torch.tensor([philox.signed(block.key) for block in self.blocks])
            starts = [0, *accumulate(self._per_counter * count for count in counts[:-1])]
            self._kept[device, wanted] = Counters(
                keys.repeat_interleave(torch.tensor(counts)).to(device),
                torch.cat([torch.arange(count) for count in counts]).to(device),
                counts,
                starts,
            )
        return self._kept[device, wanted]


def spans(block: Block, chunk: int | None = None) -> Iterator[Span]:
    """The block's entries in chunks of at most ``chunk``, by default what suits its device."""
    size = chunk or (CHUNK if block.parameter.device.type == "cpu" else CHUNK_ON_DEVICE)
    for start in range(0, block.numel, size):
        yield Span(block, start, min(start + size, block.numel))


class Noise(ABC):
    """A kind of noise with zero mean and unit second moment.

    Attributes:
        name: the name in :data:`NOISES`, in tuners and in configurations.
        version: changes whenever the same key would give other bits.

    Args:
        keep_bytes: keep the chunks of the latest step up to so many bytes instead of making them
            again (same bits, less time). 0 keeps nothing, which is what large models want.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    _per_counter: ClassVar[int]

    def __init__(self, keep_bytes: int = 0) -> None:
        self._keep_bytes = keep_bytes
        self._kept: dict[tuple[Key, int, int, int, str], Tensor] = {}
        self._kept_size = 0
        self._kept_step: tuple[int, int] | None = None

    def __call__(self, key: Key, span: Span, device: torch.device | str = "cpu") -> Tensor:
        """The direction's entries over ``span``.

        Returns:
            A new float32 tensor of shape [len(span)] on ``device``; the caller may overwrite it.
        """
        if not self._keep_bytes:
            return self._make(key, span, torch.device(device))
        if self._kept_step != key[:2]:
            self._kept.clear()
            self._kept_size, self._kept_step = 0, (key.seed, key.step)
        index = (key, span.block.key, span.start, span.stop, str(device))
        kept = self._kept.get(index)
        if kept is None:
            kept = self._make(key, span, torch.device(device))
            if self._kept_size + 4 * len(span) <= self._keep_bytes:
                self._kept_size += 4 * len(span)
                self._kept[index] = kept
        return kept.clone()

    def fresh(self, key: Key, span: Span, device: torch.device | str = "cpu") -> Tensor:
        """The same bits made anew, neither kept nor looked up: for noise of another step's key."""
        return self._make(key, span, torch.device(device))

    def joined(
        self,
        key: Key,
        seeds: Sequence[int],
        layout: Layout,
        device: torch.device | str = "cpu",
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """The directions of all blocks of a layout in a row, of several runs at once: the same bits.

        Args:
            key: of the direction; its seed is of no meaning.
            seeds: the runs' seeds.
            lengths: how many entries of every block are wanted, from its first; by default all.

        Returns:
            float32 [len(seeds), layout.width], or as wide as what is wanted, where the blocks then begin at
            ``layout.on(device, lengths).starts``; what lies between the blocks is of no meaning.
        """
        target, higher = torch.device(device), (key.step, key.draw, _stream(key))
        first = [seed & (1 << 64) - 1 for seed in seeds]
        counters = layout.on(target, lengths)
        if target.type != "cpu" or len(counters.keys) < _FEW * len(layout.blocks):
            return self._from_tensor(philox.words_of(first, counters.keys, counters.numbers, higher))
        words = [
            philox.words((seed, block.key), (0, *higher), count)
            for seed in first
            for block, count in zip(layout.blocks, counters.per_block, strict=True)
            if count
        ]
        return torch.from_numpy(self._from_words(np.concatenate(words))).view(len(first), -1)

    def may_keep(self, count: int) -> bool:
        """Whether ``keep_bytes`` leaves room for ``count`` float32 values."""
        return 4 * count <= self._keep_bytes

    def block(self, key: Key, block: Block, device: torch.device | str = "cpu") -> Tensor:
        """The whole direction of a block, float32 of the block's shape."""
        return self(key, Span(block, 0, block.numel), device).view(block.shape)

    def _make(self, key: Key, span: Span, device: torch.device) -> Tensor:
        first = span.start // self._per_counter
        count = -(-span.stop // self._per_counter) - first
        counter = (first, key.step, key.draw, _stream(key))
        skip = span.start - first * self._per_counter
        stream = (key.seed & (1 << 64) - 1, span.block.key)
        if device.type == "cpu":
            values = torch.from_numpy(self._from_words(philox.words(stream, counter, count)))
        else:
            values = self._from_tensor(philox.words_on_device(stream, counter, count, device))
        return values[skip : skip + len(span)]

    def layout(self, blocks: Blocks) -> Layout:
        """Where the blocks lie in :meth:`joined`."""
        return Layout(blocks, self._per_counter)

    @abstractmethod
    def _from_words(self, words: np.ndarray) -> np.ndarray:
        """float32 values from little-endian uint64 words, ``_per_counter`` for every four words."""

    @abstractmethod
    def _from_tensor(self, words: Tensor) -> Tensor:
        """The same from int64 words of shape [..., count, 4] on any device, [..., _per_counter * count]."""


def _stream(key: Key) -> int:
    """The highest part of a counter: which of a direction's noises; rounding has the one between."""
    return _ROUNDING + key.part if key.part else _DIRECTION


class GaussianTable(Noise):
    """Normal quantiles looked up by 16-bit words: N(0, 1) to a kurtosis of 2.999, |u| <= 4.32."""

    name = "gaussian-table"
    version = 1
    _per_counter = 16

    def _from_words(self, words: np.ndarray) -> np.ndarray:
        table, places = _table(), words.view("<u2")
        values = np.empty(len(places), dtype=np.float32)
        for start in range(0, len(places), _LOOK_UP):
            part = slice(start, start + _LOOK_UP)
            # There is a quantile for every 16-bit word, so nothing is clipped; without the check it is faster.
            np.take(table, places[part], out=values[part], mode="clip")
        return values

    def _from_tensor(self, words: Tensor) -> Tensor:
        return _table_on(words.device)[_sixteen_bits(words)]


class Rademacher(Noise):
    """Signs, +1 or -1 with equal probability, one bit each."""

    name = "rademacher"
    version = 1
    _per_counter = 256

    def _from_words(self, words: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        values = bits.astype(np.float32)
        values *= 2
        values -= 1
        return values

    def _from_tensor(self, words: Tensor) -> Tensor:
        shifts = torch.arange(64, device=words.device)
        bits = (words[..., None] >> shifts) & 1
        return bits.flatten(-3).to(torch.float32).mul_(2).sub_(1)


NOISES: dict[str, type[Noise]] = {kind.name: kind for kind in (GaussianTable, Rademacher)}


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of directions, updates and state for parameters of ``dtype``: float32 or wider."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def get_noise(name: str, keep_bytes: int = 0) -> Noise:
    """The noise of that name.

    Raises:
        UsageError: there is none; the nearest names are given.
    """
    if name not in NOISES:
        raise UsageError(unknown("noise kind", name, NOISES))
    return NOISES[name](keep_bytes)


def rounding_bits(key: Key, span: Span, device: torch.device | str = "cpu") -> Tensor:
    """Uniform 16-bit integers for stochastic rounding, from a stream apart from every direction.

    Returns:
        int32 tensor of shape [len(span)], values 0..65535.
    """
    first = span.start // 16
    count = -(-span.stop // 16) - first
    counter = (first, key.step, key.draw, _ROUNDING)
    stream = (key.seed & (1 << 64) - 1, span.block.key)
    target = torch.device(device)
    if target.type == "cpu":
        values = torch.from_numpy(philox.words(stream, counter, count).view("<u2").astype(np.int32))
    else:
        values = _sixteen_bits(philox.words_on_device(stream, counter, count, target)).to(torch.int32)
    skip = span.start - first * 16
    return values[skip : skip + len(span)]


def _sixteen_bits(words: Tensor) -> Tensor:
    """The four 16-bit parts of each int64 word [..., count, 4], the lowest first: int64 [..., 16 * count]."""
    shifts = torch.arange(0, 64, 16, device=words.device)
    return ((words[..., None] >> shifts) & 0xFFFF).flatten(-3)


@cache
def _table() -> np.ndarray:
    content = resources.files("zoft.assets").joinpath(_TABLE_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != _TABLE_SHA256:
        raise ArtifactError(f"zoft's own file assets/{_TABLE_FILE} is damaged", "Install zoft again.")
    return np.load(io.BytesIO(content), allow_pickle=False)


@cache
def _table_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_table()).to(device)
