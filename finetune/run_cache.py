"""What runs with the same seed share: their noise and their training batches, kept in memory between them.

The runs of a comparison at one seed see the same batches and draw the same noise, whatever the method and the
learning rate. Both are pure functions of their keys, so that what is kept has the bits of what is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.batches import from_step
from zoft.noise import Key, Noise, Span, get_noise
from zoft.tasks.base import Task

#: Most that a process keeps by default, and the part of the free memory that all processes take together.
LARGEST, SHARE = 1 << 30, 4


def cache_size(processes: int) -> int:
    """Bytes for every process: 1 GiB, or less where a quarter of the free memory is less; 0 where it is not known."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    return min(LARGEST, free // (SHARE * processes))


class RunCache:
    """Values by seed and key up to a number of bytes.

    When it is full, values of the seed that was used longest ago make room; those of the present seed never do: a run
    reads them in order, and what comes after them would only push out what the next run reads first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._values: dict[int, dict[Hashable, Any]] = {}
        self._sizes: dict[int, int] = {}

    def use(self, seed: int) -> None:
        """A run with ``seed`` begins."""
        self._values[seed] = self._values.pop(seed, {})
        self._sizes.setdefault(seed, 0)

    def get(self, seed: int, key: Hashable) -> Any:
        """The value, or None."""
        return self._values.get(seed, {}).get(key)

    def put(self, seed: int, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of ``size`` bytes, if there is room or can be made."""
        while self._size + size > self._limit:
            oldest = next(iter(self._values), seed)
            if oldest == seed or not self._limit:
                return
            self._size -= self._sizes.pop(oldest)
            del self._values[oldest]
        self._values.setdefault(seed, {})[key] = value
        self._sizes[seed] = self._sizes.get(seed, 0) + size
        self._size += size


class CachedNoise(Noise):
    """A kind of noise whose values are looked up in a cache first: the same bits."""

    def __init__(self, kind: str, keep_bytes: int, cache: RunCache) -> None:
        super().__init__(keep_bytes)
        self._inner = get_noise(kind, keep_bytes)
        self._kind, self._cache = kind, cache
        self.name, self.version = self._inner.name, self._inner.version  # type: ignore[misc]

    def __call__(self, key: Key, span: Span, device: torch.device | str = "cpu") -> Tensor:
        """As of the kind itself."""
        index = ("noise", self._kind, key[1:], span.block.key, span.start, span.stop, str(device))
        kept = self._cache.get(key.seed, index)
        if kept is None:
            made = self._inner(key, span, device)
            self._cache.put(key.seed, index, made.clone(), made.numel() * made.element_size())
            return made
        copy: Tensor = kept.clone()
        return copy

    def fresh(self, key: Key, span: Span, device: torch.device | str = "cpu") -> Tensor:
        """As of the kind itself."""
        return self._inner.fresh(key, span, device)

    def _from_words(self, words: np.ndarray) -> np.ndarray:
        return self._inner._from_words(words)

    def _from_tensor(self, words: Tensor) -> Tensor:
        return self._inner._from_tensor(words)


def cached_batches(task: Task, batch_size: int, seed: int, cache: RunCache) -> Iterator[Any]:
    """The task's training batches in their order, from the cache where they are kept."""
    stream: Iterator[Any] | None = None
    index = 0
    while True:
        key = ("batch", task.name, batch_size, index)
        batch = cache.get(seed, key)
        if batch is not None:
            stream = None
        else:
            stream = stream if stream is not None else from_step(task, batch_size, seed, index)
            batch = next(stream, None)
            if batch is None:
                return
            size = _bytes(batch)
            if size is not None:
                cache.put(seed, key, batch, size)
        yield batch
        index += 1


def _bytes(batch: Any) -> int | None:
    """Bytes of the tensors in a batch; None for a batch of anything else, which is not kept."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, Mapping):
        sizes = [_bytes(value) for value in batch.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    return None
