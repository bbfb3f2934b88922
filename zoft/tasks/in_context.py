"""In-context learning: demonstrations in front of every prompt, nothing trained."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from zoft.errors import UsageError
from zoft.tasks.base import Example
from zoft.tasks.encoding import TextSource

#: Between two demonstrations, as [MeZO] sets them apart (its ``train_sep``).
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class _Demonstration:
    """An answered example, as a causal and as a masked model reads it, each with the separator after it."""

    index: int
    text: str
    cloze: str

    @classmethod
    def of(cls, example: Example, index: int) -> _Demonstration:
        """The example answered by its right candidate."""
        text = (example.prompt + example.candidates[example.label]).strip()
        cloze = text
        if example.cloze is not None:
            words = example.cloze.candidates or example.candidates
            cloze = (example.cloze.before + words[example.label] + example.cloze.after).strip()
        return cls(index, text + SEPARATOR, cloze + SEPARATOR)


class InContext:
    """A text task with demonstrations from its train split in front of every prompt.

    The demonstrations are drawn once, by the seed, without regard to their labels, and are the same ones in
    the same order for every example; one that is itself evaluated is not shown to itself. Each is its prompt
    with its right candidate, stripped. **What fits**: of the N demonstrations an example has the last k, with
    k the largest number for which demonstrations, prompt and longest candidate (and ``room`` tokens for an
    answer) are within ``max_length``; the first ones, which are furthest from the prompt, go first, and only
    whole ones.

    Note: the public code of MeZO instead cuts the joined text at its beginning, in mid-demonstration.

    Args:
        task: the text task.
        tokenizer: of the model that is asked.
        shots: demonstrations N; [MeZO, section 3] uses 32.
        seed: of the draw.
        max_length: tokens of the longest sequence; None: every demonstration fits.
        room: tokens kept free for an answer that is generated.

    Attributes:
        used: for each split read so far, the mean number of demonstrations that fit.

    Raises:
        UsageError: fewer than 1 demonstration, or more than the train split has.

    Reference: Brown et al., arXiv 2005.14165. [MeZO] Malladi et al., arXiv 2305.17333.
    """

    def __init__(
        self,
        task: TextSource,
        tokenizer: Any,
        shots: int,
        seed: int = 0,
        max_length: int | None = None,
        room: int = 0,
    ) -> None:
        train = task.examples("train")
        if not 1 <= shots <= len(train):
            raise UsageError(
                f"{shots} demonstrations from a train split of {len(train)} examples",
                f"Use between 1 and {len(train)}.",
            )
        self._task, self._tokenizer, self._max_length, self._room = task, tokenizer, max_length, room
        chosen = random.Random(f"zoft demonstrations {seed}").sample(range(len(train)), shots)
        self._chosen = [_Demonstration.of(train[index], index) for index in chosen]
        self._lengths = {one.index: max(map(self._count, (one.text, one.cloze))) for one in self._chosen}
        self._splits: dict[str, list[Example]] = {}
        self.used: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        # What else a text task tells: kind, metric, whether scores are normalised.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)

    @property
    def name(self) -> str:
        """The task's name."""
        return self._task.name

    @property
    def kind(self) -> str:
        """The task's kind."""
        return self._task.kind

    @property
    def metric(self) -> str:
        """The task's metric."""
        return self._task.metric

    def examples(self, split: str) -> list[Example]:
        """The examples of ``split`` with their demonstrations, the same at every call."""
        if split not in self._splits:
            shown = [
                self._with_demonstrations(one, index, split) for index, one in enumerate(self._task.examples(split))
            ]
            self._splits[split] = [example for example, _ in shown]
            self.used[split] = sum(count for _, count in shown) / max(len(shown), 1)
        return list(self._splits[split])

    def _with_demonstrations(self, example: Example, index: int, split: str) -> tuple[Example, int]:
        others = [one for one in self._chosen if split != "train" or one.index != index]
        if self._max_length is not None:
            left = self._max_length - self._length(example)
            first = len(others)
            while first and self._lengths[others[first - 1].index] <= left:
                first -= 1
                left -= self._lengths[others[first].index]
            others = others[first:]
            # Joined texts may have a token more than their parts.
            while others and self._length(_joined(others, example)) > self._max_length:
                others = others[1:]
        return _joined(others, example), len(others)

    def _length(self, example: Example) -> int:
        """Tokens of the longest sequence that an example stands for, with the special ones and an answer's room."""
        prompt = self._count(example.prompt)
        longest = max(self._count(example.prompt + candidate) for candidate in example.candidates)
        masked = self._count(example.cloze.before + example.cloze.after) + 2 if example.cloze else 0
        return max(longest, masked, prompt + self._room) + 2

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _joined(demonstrations: list[_Demonstration], example: Example) -> Example:
    if not demonstrations:
        return example
    cloze = example.cloze
    if cloze is not None:
        cloze = replace(cloze, before="".join(one.cloze for one in demonstrations) + cloze.before)
    return replace(example, prompt="".join(one.text for one in demonstrations) + example.prompt, cloze=cloze)
