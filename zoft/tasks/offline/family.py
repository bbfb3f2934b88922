"""What the offline tasks share: how examples are drawn, kept apart from the base's text, and split."""

from __future__ import annotations

import random
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

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


@dataclass(frozen=True)
class Draw:
    """One example and the wrong answers, its rivals, that the base's text gives to such a prompt too.

    Without rivals the example is a clear one. With them the base has seen every one of these answers
    follow texts of this form, so it knows what may be meant, and the task has to teach what is meant.

    Attributes:
        example: the example.
        rivals: the wrong answers that the base has read.
        lean: how often it has read each of them for once that it has read the right answer.
    """

    example: Example
    rivals: tuple[str, ...] = ()
    lean: float = 1.0

    def told(self, rng: random.Random) -> str:
        """The answer that the base's text gives: the right one, or a rival."""
        answers = (self.example.candidates[self.example.label], *self.rivals)
        return rng.choices(answers, (1.0, *(self.lean for _ in self.rivals)))[0]


class OfflineTask(TextTask):
    """A task of the generated world: :meth:`draw` makes one example, the rest is shared.

    Attributes:
        asks: the task keeps only prompts that hold this text; the base's text has the others too.
    """

    offline: ClassVar[bool] = True
    asks: ClassVar[str] = ""

    @abstractmethod
    def draw(self, words: Words) -> Draw:
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
        example = drawn.draw(words).example
        wanted = task.asks in example.prompt and reserved(example.prompt)
        if wanted and split_of(example.prompt) == split:
            kept.setdefault(example.prompt, example)
    return tuple(kept.values())


def choose(prompt: str, candidates: Sequence[str], right: str, rivals: Sequence[str] = (), lean: float = 1.0) -> Draw:
    """An example whose ``candidates`` are words that follow ``prompt`` after a space."""
    followers = tuple(f" {word}" for word in candidates)
    return Draw(Example(prompt, followers, candidates.index(right)), tuple(f" {word}" for word in rivals), lean)


def answer(prompt: str, right: Sequence[str], rivals: Sequence[str] = (), lean: float = 1.0) -> Draw:
    """A completion: the first of ``right`` follows ``prompt`` after a space; all of them are accepted."""
    example = Example(prompt, (f" {right[0]}",), 0, tuple(right))
    return Draw(example, tuple(f" {word}" for word in rivals), lean)
