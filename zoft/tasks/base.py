"""What a task is: to the library a small protocol, and for text a list of examples.

A :class:`Task` is all that meta-training and fine-tuning know: batches, a loss, an evaluation. It
knows no optimizer, and nothing in it assumes a language model. A :class:`TextTask` is data only:
examples in three splits; ``zoft.tasks.lm.LMTask`` turns one into a :class:`Task` for a tokenizer and
a causal or masked language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from zoft.objective import Objective

#: What a task may be used for. Fixed in code, so that no figure is ever reported on a task that
#: something was chosen on (meta-training learns on it, development chooses on it, held-out reports).
ROLES = ("meta-training", "development", "held-out")

SPLITS = ("train", "validation", "test")


@runtime_checkable
class Task(Protocol):
    """What meta-training, fine-tuning and comparisons need of a task.

    A task may also have ``part_losses(model, batch)``, what ``loss`` is the mean of, [B], or [B, T] for tokens and −∞
    where there are no more: the step-size head ``gauss-newton`` takes the curvature from it. Without it a batch counts
    as one example, and steps are shorter.
    """

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
class Cloze:
    """How a masked language model is asked, where that is not the prompt followed by the mask token.

    Attributes:
        before: the text before the mask token, without the space between the two.
        after: the text after it.
        candidates: the label words, each beginning with a space; empty: the example's own.
    """

    before: str
    after: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Example:
    """One example of a text task.

    Attributes:
        prompt: the text before what is scored; it does not end in a space.
        candidates: what may follow, each beginning with the white space it needs (`` great``); at
            least two for a classification or a multiple choice, exactly one (the answer) for a
            completion.
        label: index of the right candidate; 0 for a completion.
        references: every accepted answer, without leading white space (completions; choices with
            several right candidates).
        passage: the part of the prompt that may be cut at its end where the example is too long for
            a model; empty: nothing may.
        follows: how many characters of the prompt follow the passage; more may be put before the prompt.
        cloze: how a masked language model is asked; None: the prompt, then the mask token.
        names: the candidates as metrics see them; empty: the candidates themselves, stripped.
        group: what a metric over groups of examples groups by (the question of an answer).
        where: file and row that the example is from, for errors; no part of its identity.
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int = 0
    references: tuple[str, ...] = ()
    passage: str = ""
    follows: int = 0
    cloze: Cloze | None = None
    names: tuple[str, ...] = ()
    group: str = ""
    where: str = field(default="", compare=False)

    def __repr__(self) -> str:
        """The first four fields, and the others where they are given: digests of data rest on it."""
        shown = ["prompt", "candidates", "label", "references"]
        shown += [name for name in ("passage", "follows", "cloze", "names", "group") if getattr(self, name)]
        return f"Example({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def named(self) -> tuple[str, ...]:
        """The candidates as metrics see them."""
        return self.names or tuple(candidate.strip() for candidate in self.candidates)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every text that a metric accepts."""
        return self.references or (self.named[self.label],)


class TextTask(ABC):
    """A named text data set. Subclasses are the entries of ``zoft.tasks.TASKS``.

    Attributes:
        name: the registry key, lower case with hyphens.
        role: one of :data:`ROLES`.
        kind: ``classification`` (fixed candidates), ``choice`` (candidates differ by example) or
            ``completion`` (an answer is generated or scored by teacher forcing).
        metric: the main metric, a name in ``zoft.tasks.metrics.METRICS``.
        more_metrics: further ones that an evaluation reports.
        offline: whether the examples come with the package; tasks are a default only where they do.
        length_normalized: a candidate's score is the mean of its tokens' log-likelihoods, not their sum.
        teacher_forcing: the loss of a choice is that of its right candidate alone.
        max_new_tokens: the longest answer that is generated; None: one token more than the split's longest.
    """

    name: ClassVar[str]
    role: ClassVar[str]
    kind: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    more_metrics: ClassVar[tuple[str, ...]] = ()
    offline: ClassVar[bool] = False
    length_normalized: ClassVar[bool] = False
    teacher_forcing: ClassVar[bool] = False
    max_new_tokens: ClassVar[int | None] = None

    @abstractmethod
    def examples(self, split: str) -> list[Example]:
        """All examples of ``split`` (one of :data:`SPLITS`), the same at every call."""


def objective_on(task: Task, model: nn.Module, batches: Sequence[Any]) -> Objective:
    """A step's objective on a task, with what its loss is a mean of where the task gives it (``part_losses``)."""
    held = getattr(task, "held", False)
    return Objective(model, task.loss, batches, held, getattr(task, "part_losses", None))
