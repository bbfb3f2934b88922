"""Philox4x64-10 counter words on any device (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). On the CPU numpy makes them, on CUDA one kernel, elsewhere integer tensor operations: the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

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
    return words_of(key[:1], torch.tensor(signed(key[1]), device=device), lowest, counter[1:])[0]


def words_of(first: Sequence[int], second: Tensor, lowest: Tensor, higher: tuple[int, int, int]) -> Tensor:
    """The words of many counters at once, of streams that differ in their keys.

    On CUDA one kernel makes them (:func:`_fused`), elsewhere, or where it cannot be built, some 300 tensor operations.

    Args:
        first: the first parts of the keys. ``second``: the second, int64 bit for bit, [count] or of one entry.
        lowest: the lowest part of every counter, int64 [count]. ``higher``: the others.

    Returns:
        As :func:`words_on_device`, for every first part: [len(first), count, 4].
    """
    seeds = torch.tensor([signed(part) for part in first], device=lowest.device)[:, None]
    kernel = _fused(lowest.device) if lowest.is_cuda else None
    return torch.stack((kernel or _words)(seeds, second, lowest, *_parts(higher, lowest.device)), dim=-1)


def _parts(values: Sequence[int], device: torch.device) -> list[Tensor]:
    return list(torch.tensor([[signed(value)] for value in values], device=device))


def _words(k0: Tensor, k1: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """The four words of every counter, by tensor operations; the arguments broadcast."""
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + signed(_WEYL[0]), k1 + signed(_WEYL[1])  # int64 wraps as the words do
    return torch.broadcast_tensors(c0, c1, c2, c3)


def _source() -> str:
    """The generator for one counter, in CUDA's C++."""
    rounds = "".join(
        f"h = __umul64hi({_MULTIPLIERS[0]}ull, a); l = a * {_MULTIPLIERS[0]}ull;"
        f"a = __umul64hi({_MULTIPLIERS[1]}ull, c) ^ b ^ x; b = c * {_MULTIPLIERS[1]}ull;"
        f"c = h ^ d ^ y; d = l; x += {_WEYL[0]}ull; y += {_WEYL[1]}ull;"
        for _ in range(_ROUNDS)
    )
    return (
        "template <typename T> void philox(T k0, T k1, T c0, T c1, T c2, T c3, T& w0, T& w1, T& w2, T& w3) {"
        "unsigned long long x = k0, y = k1, a = c0, b = c1, c = c2, d = c3, h, l;"
        f"{rounds} w0 = a; w1 = b; w2 = c; w3 = d; }}"
    )


@cache
def _fused(device: torch.device) -> Callable[..., tuple[Tensor, ...]] | None:
    """The generator as one kernel on a CUDA device; None where it cannot be built or gives other words than numpy's.

    torch's own run-time compiler makes it, which needs no other compiler, but whose interface may still change.
    """
    key, counter, count = (2**64 - 5, 12345678901234567), (2**40 - 3, 6, 2**63 + 3, 1), 67
    try:
        kernel = cast(
            "Callable[..., tuple[Tensor, ...]]",
            torch.cuda.jiterator._create_multi_output_jit_fn(_source(), num_outputs=4),
        )
        seeds, second = torch.tensor([[signed(key[0])]], device=device), torch.tensor(signed(key[1]), device=device)
        lowest = torch.arange(count, dtype=torch.int64, device=device) + counter[0]
        made = torch.stack(kernel(seeds, second, lowest, *_parts(counter[1:], device)), dim=-1)
        right = np.array_equal(made.cpu().numpy().reshape(-1), words(key, counter, count).view(np.int64))
    except Exception:
        return None
    return kernel if right else None


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
