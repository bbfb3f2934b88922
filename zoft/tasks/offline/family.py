"""What the offline tasks share: how examples are drawn, kept apart from the base's text, and split."""

from __future__ import annotations

import random
import zlib
from abc import abstractmethod
from functools import cache

from zoft.errors import UsageError
from zoft.tasks.base import SPLITS, Example, TextTask
from zoft.tasks.offline.grammar import Words

SIZES = {"train": 1000, "validation": 300, "test": 500}

#: One prompt in RESERVED belongs to the tasks; the text of the base never contains it.
RESERVED = 4
#: A reserved prompt's share decides its split.
_SHARES = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}


def reserved(prompt: str) -> bool:
    """Whether ``prompt`` belongs to the tasks, and so never occurs in the text of the base."""
    return zlib.crc32(prompt.encode()) % RESERVED == 0


def split_of(prompt: str) -> str:
    """The split that a reserved prompt belongs to."""
    share = zlib.crc32(prompt.encode()) // RESERVED % 5
    return next(split for split, shares in _SHARES.items() if share in shares)


class OfflineTask(TextTask):
    """A task of the generated world: :meth:`draw` makes one example, the rest is shared."""

    @abstractmethod
    def draw(self, words: Words) -> Example:
        """One example, of any prompt; the label is drawn first, so that labels are balanced."""

    def examples(self, split: str) -> list[Example]:
        """The fixed examples of ``split``: 1,000 to train, 300 to validate, 500 to test."""
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r} of {self.name}", f"Use one of {', '.join(SPLITS)}.")
        return list(_examples(type(self), split))


@cache
def _examples(task: type[OfflineTask], split: str) -> tuple[Example, ...]:
    words = Words(random.Random(f"zoft offline {task.name} {split}"), even=True)
    drawn = task()
    kept: dict[str, Example] = {}
    while len(kept) < SIZES[split]:
        example = drawn.draw(words)
        if reserved(example.prompt) and split_of(example.prompt) == split:
            kept.setdefault(example.prompt, example)
    return tuple(kept.values())


def choose(prompt: str, candidates: tuple[str, ...], right: str) -> Example:
    """An example whose ``candidates`` are words that follow ``prompt`` after a space."""
    return Example(prompt, tuple(f" {word}" for word in candidates), candidates.index(right))


def answer(prompt: str, right: str, *also: str) -> Example:
    """A completion: ``right`` follows ``prompt`` after a space; ``also`` is accepted too."""
    return Example(prompt, (f" {right}",), 0, (right, *also))
