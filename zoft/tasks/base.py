"""What a task is: to the library a small protocol, and for text a list of examples.

A :class:`Task` is all that meta-training and fine-tuning know: batches, a loss, an evaluation. It
knows no optimizer, and nothing in it assumes a language model. A :class:`TextTask` is data only:
examples in three splits; ``zoft.tasks.lm.LMTask`` turns one into a :class:`Task` for a tokenizer and
a causal or masked language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

#: What a task may be used for. Fixed in code, so that no figure is ever reported on a task that
#: something was chosen on (meta-training learns on it, development chooses on it, held-out reports).
ROLES = ("meta-training", "development", "held-out")

SPLITS = ("train", "validation", "test")


@runtime_checkable
class Task(Protocol):
    """What meta-training, fine-tuning and comparisons need of a task."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Any]:
        """Endless training batches in an order that is a pure function of ``seed``."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of ``batch``: a float32 scalar, differentiable when gradients are on."""
        ...

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        """Mean ``loss`` and, where there is one, the task's metric by its name, on ``split``."""
        ...


@dataclass(frozen=True)
class Example:
    """One example of a text task.

    Attributes:
        prompt: the text before what is scored; it does not end in white space.
        candidates: what may follow, each beginning with the white space it needs (`` great``); at
            least two for a classification or a multiple choice, exactly one (the answer) for a
            completion.
        label: index of the right candidate; 0 for a completion.
        references: every accepted answer, without leading white space (completions only).
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int = 0
    references: tuple[str, ...] = ()


class TextTask(ABC):
    """A named text data set. Subclasses are the entries of ``zoft.tasks.TASKS``.

    Attributes:
        name: the registry key, lower case with hyphens.
        role: one of :data:`ROLES`.
        kind: ``classification`` (fixed candidates), ``choice`` (candidates differ by example) or
            ``completion`` (an answer is generated or scored by teacher forcing).
        metric: ``accuracy`` or, for completions, ``exact_match``.
    """

    name: ClassVar[str]
    role: ClassVar[str]
    kind: ClassVar[str]
    metric: ClassVar[str] = "accuracy"

    @abstractmethod
    def examples(self, split: str) -> list[Example]:
        """All examples of ``split`` (one of :data:`SPLITS`), the same at every call."""
