"""Philox4x64-10 counter words on any device (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). On the CPU numpy's generator makes them; elsewhere integer tensor operations make the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_MASK = (1 << 64) - 1

#: Words that one counter value gives.
WORDS_PER_COUNTER = 4


def words(key: tuple[int, int], counter: tuple[int, int, int, int], count: int) -> np.ndarray:
    """``4 * count`` words of the stream of ``key``, beginning at ``counter``.

    Args:
        key: two 64-bit integers.
        counter: four 64-bit integers, the lowest first; consecutive values of the lowest follow.
        count: how many counter values.

    Returns:
        uint64 array of shape [4 * count] in little-endian order.
    """
    # numpy advances the counter before it produces: begin one earlier.
    previous = (sum(part << (64 * i) for i, part in enumerate(counter)) - 1) % (1 << 256)
    start = np.array([(previous >> (64 * i)) & _MASK for i in range(4)], dtype=np.uint64)
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=start)
    return generator.random_raw(WORDS_PER_COUNTER * count).astype("<u8", copy=False)


def words_on_device(
    key: tuple[int, int], counter: tuple[int, int, int, int], count: int, device: torch.device
) -> Tensor:
    """The same words as :func:`words`, computed on ``device``.

    Returns:
        int64 tensor of shape [count, 4] that holds the unsigned words bit for bit.
    """
    lowest = torch.arange(count, dtype=torch.int64, device=device) + signed(counter[0])
    return words_of(key[0], torch.tensor(signed(key[1]), device=device), lowest, counter[1:])


def words_of(first: int, second: Tensor, lowest: Tensor, higher: tuple[int, int, int]) -> Tensor:
    """The words of many counters at once, of streams that differ in the second part of their keys.

    Args:
        first: the first part of all keys. ``second``: the second, int64 bit for bit, [count] or of one entry.
        lowest: the lowest part of every counter, int64 [count]. ``higher``: the others.

    Returns:
        As :func:`words_on_device`.
    """
    c0, k0, k1 = lowest, first, second
    c1, c2, c3 = (torch.full_like(c0, signed(part)) for part in higher)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ signed(k0), low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, k1 + signed(_WEYL[1])  # int64 wraps as the words do
    return torch.stack((c0, c1, c2, c3), dim=1)


def signed(value: int) -> int:
    """The int64 with the bits of the unsigned ``value``."""
    return value - (1 << 64) if value >> 63 else value


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the unsigned product, from 32-bit halves."""
    m_low, m_high = multiplier & _LOW, multiplier >> 32
    a_low, a_high = a & _LOW, (a >> 32) & _LOW
    low_low, low_high = a_low * m_low, a_low * m_high
    high_low, high_high = a_high * m_low, a_high * m_high
    middle = ((low_low >> 32) & _LOW) + (low_high & _LOW) + (high_low & _LOW)
    high = high_high + ((low_high >> 32) & _LOW) + ((high_low >> 32) & _LOW) + ((middle >> 32) & _LOW)
    return high, a * signed(multiplier)
