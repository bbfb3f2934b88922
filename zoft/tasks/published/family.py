"""What the published tasks share: where their rows are from, and how splits are drawn from them.

The splits are those of the MeZO paper (arXiv 2305.17333, appendix E.1): 1,000 training and 500 validation
examples from the data set's training rows, and 1,000 test examples from its validation rows (from its test
rows where those have labels). Or, as there for RoBERTa, k examples of each class to train on and k others
to validate on. Everything is drawn with a seed, and nothing else decides what is drawn.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.tasks.base import SPLITS, Cloze, Example, TextTask
from zoft.tasks.published.tables import Hub, Table, hub_table, local_table
from zoft.tasks.rows import Row

SIZES = {"train": 1000, "validation": 500, "test": 1000}

#: Validation examples of a data set with fewer rows than training and validation take: the MeZO
#: repository's setting for COPA and CB; at most two fifths of the rows.
FEW = 100


class PublishedTask(TextTask):
    """A task of the literature over a data set of the Hub, or a local copy of it.

    Candidates are compared by the mean log-likelihood of their tokens (MeZO, appendix E.4), which for
    label words of one token is their log-likelihood.

    Attributes:
        hub: where the data set is.
        columns: the columns that the task reads.
        gold: the column with the answer; a row whose value is -1 or missing has none, and is left out.
        test_rows: the data set's split that the test examples are from.
        prompt: the prompt, as documentation shows it.
        groups: a column whose equal values make rows one unit that is never divided.

    Args:
        data_dir: a folder with local copies: ``<data_dir>/<task>/``, ``<data_dir>/<configuration>/`` or
            itself has ``train.parquet`` or ``train.jsonl`` and so on. None: the Hub.
        seed: of what is drawn.
        per_class: examples of each class to train on, and as many others to validate on; None: the sizes
            of :data:`SIZES`.

    Raises:
        UsageError: ``per_class`` for a task without classes.
    """

    length_normalized: ClassVar[bool] = True
    hub: ClassVar[Hub]
    columns: ClassVar[tuple[str, ...]]
    gold: ClassVar[str] = "label"
    test_rows: ClassVar[str] = "validation"
    prompt: ClassVar[str]
    groups: ClassVar[str | None] = None

    def __init__(self, data_dir: str | None = None, seed: int = 0, per_class: int | None = None) -> None:
        if per_class is not None and self.kind != "classification":
            raise UsageError(
                f"task {self.name!r} is a {self.kind}, which has no classes to draw {per_class} examples of",
                "Leave --per-class out.",
            )
        self._data_dir, self._seed, self._per_class = data_dir, seed, per_class
        self._made: dict[str, list[Example]] = {}

    @abstractmethod
    def example(self, row: Row) -> Example:
        """The example of a row with an answer. Raises a UsageError that names the row."""

    def examples(self, split: str) -> list[Example]:
        """The examples of ``split``, drawn once.

        Raises:
            ArtifactError: the data cannot be had.
            UsageError: an unknown split, a missing column, a value that cannot be used, too few rows.
        """
        if split not in SPLITS:
            raise UsageError(unknown("split", split, SPLITS), f"Use one of {', '.join(SPLITS)}.")
        if split not in self._made:
            self._made.update(self._test() if split == "test" else self._training())
        return list(self._made[split])

    def _test(self) -> dict[str, list[Example]]:
        test, _ = _filled(self._units(self.test_rows), SIZES["test"])
        if not test:
            raise UsageError(f"task {self.name!r}: no {self.test_rows} row has an answer", "Give labelled rows.")
        return {"test": test}

    def _training(self) -> dict[str, list[Example]]:
        if self._per_class is not None:
            train, validation = _by_class(chain.from_iterable(self._units("train")), self._per_class)
        else:
            wanted = SIZES["train"] + SIZES["validation"]
            drawn, complete = _filled(self._units("train"), wanted)
            few = min(FEW, max(1, 2 * len(drawn) // 5))
            size = SIZES["validation"] if complete else few
            units = _units_of(drawn)
            validation, _ = _filled(iter(units), size)
            train, _ = _filled(iter(units[len(_units_of(validation)) :]), SIZES["train"])
        if not train or not validation:
            raise UsageError(
                f"task {self.name!r}: too few train rows have an answer to train and to validate on",
                "Give more labelled rows.",
            )
        return {"train": train, "validation": validation}

    def _units(self, rows: str) -> Iterator[list[Example]]:
        """What is drawn, in its drawn order: single examples, or all examples of a group."""
        table = self._table(rows)
        members: dict[Any, list[int]] = defaultdict(list)
        values = table.column(self.groups) if self.groups else range(table.size)
        for index, value in enumerate(values):
            members[self.group_of(value) if self.groups else value].append(index)
        units = list(members.values())
        source = (self._seed, zlib.crc32(f"{self.name} {rows}".encode()))
        for at in np.random.default_rng(source).permutation(len(units)).tolist():
            made = [example for index in units[at] for example in self._made_of(table.get(index))]
            if made:
                yield made

    def group_of(self, value: Any) -> str:
        """The group that a value of the column ``groups`` stands for."""
        return str(value)

    def _table(self, rows: str) -> Table:
        if self._data_dir is None:
            return hub_table(self.hub, rows)
        folder = Path(self._data_dir).expanduser()
        names = dict.fromkeys([self.name, self.hub.config or self.name])
        return local_table([*(folder / name for name in names), folder], rows)

    def _made_of(self, row: Row) -> list[Example]:
        """The row's example; none where the answer is hidden or missing."""
        for column in self.columns:
            if column not in row.values:
                there = ", ".join(map(repr, row.values))
                raise UsageError(
                    f"{row.where}: there is no column {column!r} (there are: {there})",
                    f"Task {self.name!r} reads the columns of {self.hub.name}: {', '.join(self.columns)}.",
                )
            if row.values[column] is None and column != self.gold:
                raise UsageError(f"{row.where}: no {column}", "Complete the row or remove it.")
        if not has_answer(row.values[self.gold]):
            return []
        example = self.example(row)
        # The prompts begin with their passage, so its first occurrence is the passage itself.
        after = example.prompt.partition(example.passage)[2] if example.passage else ""
        return [replace(example, where=row.where, follows=len(after))]


def has_answer(value: Any) -> bool:
    """Whether a gold value is there: not -1, not missing, and no answers without a text."""
    if isinstance(value, dict):
        value = next(iter(value.values()), None)
    return value is not None and value != -1 and value != []


def class_of(row: Row, column: str, count: int) -> int:
    """The class in ``column``: a number below ``count``, or a truth value.

    Raises:
        UsageError: something else; names the row.
    """
    value = row.values[column]
    if not isinstance(value, int) or not 0 <= value < count:
        raise UsageError(f"{row.where}: {column} is {value!r}", f"Give a number from 0 to {count - 1}, or -1 for none.")
    return int(value)


def pair_cloze(one: str, two: str, words: tuple[str, ...]) -> Cloze:
    """``<one>? [MASK], <two>``, as for sentence pairs in the MeZO paper's table 13 (after LM-BFF, 2012.15723).

    The first sentence loses its final mark, the second one its first capital.
    """
    return Cloze(f"{one.rstrip('.,;:!? ')}?", f", {two[:1].lower()}{two[1:]}", words)


def _units_of(examples: list[Example]) -> list[list[Example]]:
    """Neighbours of one group together; without groups every example alone."""
    units: list[list[Example]] = []
    for example in examples:
        if units and example.group and units[-1][0].group == example.group:
            units[-1].append(example)
        else:
            units.append([example])
    return units


def _filled(units: Iterable[list[Example]], size: int) -> tuple[list[Example], bool]:
    """Whole units up to ``size`` examples, and whether there were more than enough to fill it."""
    kept: list[Example] = []
    for unit in units:
        if kept and len(kept) + len(unit) > size:
            return kept, True
        kept.extend(unit)
        if len(kept) == size:
            return kept, True
    return kept, False


def _by_class(examples: Iterable[Example], count: int) -> tuple[list[Example], list[Example]]:
    """``count`` of each class to train on and as many others to validate on; a rarer class is halved."""
    if count < 1:
        raise UsageError(f"{count} examples of each class", "Give 1 or more.")
    drawn: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        if len(drawn[example.label]) < 2 * count:
            drawn[example.label].append(example)
        if all(len(drawn[label]) == 2 * count for label in range(len(example.candidates))):
            break
    halves = {label: (len(members) + 1) // 2 for label, members in drawn.items()}
    train = [example for label in sorted(drawn) for example in drawn[label][: halves[label]]]
    validation = [example for label in sorted(drawn) for example in drawn[label][halves[label] :]]
    return train, validation
