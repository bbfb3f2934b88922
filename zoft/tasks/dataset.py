"""A data set of one's own as a text task: a file, a folder, or a data set on the Hub."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.tasks.base import SPLITS, Example
from zoft.tasks.chat import chat_example, check_template
from zoft.tasks.rows import Row, read_splits

#: What a column may be used as. ``columns`` maps these to the names that the data has.
COLUMN_ROLES = ("text", "prompt", "label", "candidates", "completion", "references", "messages")

#: With more distinct labels than this, a label column is taken for free text.
MANY_LABELS = 256


class DatasetTask:
    """A text task (see :class:`zoft.tasks.base.TextTask`) over one's own data; made by ``load_dataset_task``.

    Attributes:
        name: short name of the data set, lower case with hyphens.
        kind: ``classification``, ``choice`` or ``completion``.
        metric: ``accuracy``, or ``exact_match`` for completions.
        sources: for each split, where its examples are from, in words.
    """

    role = "held-out"

    def __init__(
        self, name: str, kind: str, splits: Mapping[str, Sequence[Example]], sources: Mapping[str, str]
    ) -> None:
        self.name = name
        self.kind = kind
        self.metric = "exact_match" if kind == "completion" else "accuracy"
        self.sources = dict(sources)
        self._splits = {split: tuple(examples) for split, examples in splits.items()}

    def examples(self, split: str) -> list[Example]:
        """All examples of ``split``, the same at every call."""
        if split not in self._splits:
            raise UsageError(unknown("split", split, SPLITS))
        return list(self._splits[split])


def load_dataset_task(
    path_or_hub_id: str,
    template: str | None = None,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    validation_fraction: float = 0.1,
    tokenizer: Any = None,
) -> DatasetTask:
    """Make a task of one's own data.

    **Where from.** A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file; a folder with files
    whose names begin with ``train``, ``validation`` and ``test``; or ``user/name[:config][@revision]`` on
    the Hub. Next to ``X.train.jsonl``, the files ``X.validation.jsonl`` and ``X.test.jsonl`` are used
    where they exist. A missing validation or test split is drawn from the training rows, by ``seed``. A
    test split on the Hub whose labels are all hidden counts as missing.

    **Rows.** Either ``text`` or ``prompt`` with ``label``: the label is one of the data's labels, or, with
    a ``candidates`` column (a list; in CSV a JSON list or ``a|b|c``), one of the row's candidates or its
    index. Or ``prompt`` (or ``text``) with ``completion``, and optionally ``references``, a list of all
    accepted answers. A candidate is put after the prompt with a space, unless it begins with white space;
    a completion ends with a line break, so that the model learns to stop. Or ``messages``, a list of
    ``{"role": ..., "content": ...}`` (in CSV as JSON): the assistant's last message is a completion of what
    the tokenizer's chat template makes of those before it.

    Args:
        template: the prompt as a format string over the columns, such as ``"{text}\\nSection:"``; None is
            ``"{prompt}"``, or ``"{text}"`` where there is no such column. White space at its end is dropped.
        labels: the texts that stand for the labels: a list (the data's labels are among them, or index
            them), or a mapping from each of the data's labels to its text. None: the distinct labels of
            the training split, sorted.
        columns: the data's names for ``text``, ``prompt``, ``label``, ``candidates``, ``completion``,
            ``references``, ``messages``, where they differ.
        seed: of the split, where one is drawn.
        validation_fraction: the share of the training rows that a missing split gets; each of the two.
        tokenizer: the model's; chat messages need one.

    Raises:
        ArtifactError: there is no such file, folder or data set.
        UsageError: a file that cannot be read, a row that cannot be used (named by file and row), an
            empty split, a template or ``columns`` that names a missing column.
    """
    if not 0 < validation_fraction < 0.5:
        raise UsageError(f"validation fraction {validation_fraction}", "Use a share between 0 and 0.5.")
    names = _columns(columns)
    base, found = read_splits(path_or_hub_id)
    maker = _Maker(found["train"], names, template, labels, tokenizer)
    if maker.kind in ("classification", "choice") and all(
        _missing(row.values.get(names["label"])) for row in found.get("test", [])
    ):
        found.pop("test", None)
    complete, sources = _complete(found, seed, validation_fraction, path_or_hub_id)
    splits = {split: [maker.example(row) for row in complete[split]] for split in SPLITS}
    name = re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-") or "dataset"
    return DatasetTask(name, "completion" if maker.kind == "chat" else maker.kind, splits, sources)


class _Maker:
    """Makes examples of rows: what the columns mean is settled once, by the training rows."""

    def __init__(
        self,
        rows: Sequence[Row],
        names: Mapping[str, str],
        template: str | None,
        labels: Sequence[str] | Mapping[str, str] | None,
        tokenizer: Any,
    ) -> None:
        self.names = names
        self.columns = tuple(rows[0].values)
        self.kind = self._kind(rows[0])
        self.tokenizer = tokenizer
        if labels is not None and self.kind != "classification":
            raise UsageError(f"labels were given, and the data is a {self.kind}", "Leave them out.")
        if self.kind == "chat":
            check_template(tokenizer, rows[0].source)
            if template is not None:
                raise UsageError(
                    "a template was given, and the data is chat messages, for which the model has its own",
                    "Leave --template out.",
                )
        self.template = self._parsed(template, rows[0]) if self.kind != "chat" else []
        self.texts = self._label_texts(rows, labels) if self.kind == "classification" else {}
        self.candidates = tuple(dict.fromkeys(self.texts.values()))

    def example(self, row: Row) -> Example:
        """The example of one row; raises a UsageError that names the row."""
        if self.kind == "chat":
            return replace(chat_example(self._value(row, "messages"), self.tokenizer, row.where), where=row.where)
        return replace(self._made(row), where=row.where)

    def _made(self, row: Row) -> Example:
        prompt = self._prompt(row)
        if self.kind == "completion":
            return self._completion(prompt, row)
        label = self._value(row, "label")
        if self.kind == "choice":
            return self._choice(prompt, label, row)
        key = _key(label)
        if key not in self.texts:
            cause = unknown("label", key, self.texts)
            raise UsageError(f"{row.where}: {cause}", "Correct the row, or map every label to its text.")
        return Example(prompt, self.candidates, self.candidates.index(self.texts[key]))

    def _kind(self, row: Row) -> str:
        if self.names["label"] in self.columns:
            return "choice" if self.names["candidates"] in self.columns else "classification"
        if self.names["completion"] in self.columns:
            return "completion"
        if self.names["messages"] in self.columns:
            return "chat"
        raise UsageError(
            f"{row.where}: there is no {self.names['label']!r} and no {self.names['completion']!r} column"
            f" (there are: {', '.join(map(repr, self.columns))})",
            "Rename a column, or say which one is the label with columns={'label': NAME}.",
        )

    def _parsed(self, template: str | None, row: Row) -> list[tuple[str, str | None]]:
        """The template as (text, column that follows it) pairs; checks that the columns are there."""
        if template is None:
            usable = [self.names[role] for role in ("prompt", "text") if self.names[role] in self.columns]
            if not usable:
                raise UsageError(
                    f"{row.where}: there is no {self.names['prompt']!r} and no {self.names['text']!r} column"
                    f" (there are: {', '.join(map(repr, self.columns))})",
                    "Rename a column, or give a template over the columns, such as '{question} {answer}'.",
                )
            return [("", usable[0])]
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UsageError(f"template {template!r}: {error}", "Write {{ and }} for braces.") from None
        for _, column, layout, conversion in parsed:
            if column is not None and column not in self.columns:
                cause = unknown("column", column, self.columns)
                raise UsageError(f"{row.where}: template {template!r}: {cause}", "Name the data's columns in braces.")
            if layout or conversion:
                raise UsageError(f"template {template!r}: a format after {column!r}", f"Write {{{column}}} only.")
        return [(text, column) for text, column, _, _ in parsed]

    def _label_texts(self, rows: Sequence[Row], labels: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
        """From each label as it stands in the data to its candidate."""
        if isinstance(labels, Mapping):
            texts = {_key(label): text for label, text in labels.items()}
        elif labels is not None:
            texts = {str(index): text for index, text in enumerate(labels)}
            texts.update({text: text for text in labels})
        else:
            found = {_key(self._value(row, "label")) for row in rows}
            numbers = all(key.lstrip("-").isdigit() for key in found)
            texts = {key: key for key in sorted(found, key=int if numbers else None)}
            if len(found) > MANY_LABELS:
                raise UsageError(
                    f"{rows[0].source}: {len(found)} different labels",
                    "Call the column 'completion' if it is free text, or give the labels.",
                )
        if len(set(texts.values())) < 2:
            raise UsageError(
                f"{rows[0].source}: only one label, {next(iter(texts.values()), '')!r}", "Give at least two labels."
            )
        empty = [key for key, text in texts.items() if not text.strip()]
        if empty:
            raise UsageError(
                f"{rows[0].source}: the label {empty[0]!r} has an empty text, so nothing of it could be scored",
                "Give every label some text.",
            )
        return {key: _spaced(text) for key, text in texts.items()}

    def _value(self, row: Row, role: str) -> Any:
        """The value of the column for ``role``; raises a UsageError where there is none."""
        value = row.values.get(self.names[role])
        if _missing(value):
            raise UsageError(f"{row.where}: no {self.names[role]}", "Complete the row or remove it.")
        return value

    def _prompt(self, row: Row) -> str:
        parts = []
        for text, column in self.template:
            parts.append(text)
            if column is not None:
                value = row.values.get(column)
                if value is None:
                    raise UsageError(f"{row.where}: no {column}", "Complete the row or remove it.")
                parts.append(str(value))
        return "".join(parts).rstrip()

    def _choice(self, prompt: str, label: Any, row: Row) -> Example:
        texts = _texts(self._value(row, "candidates"))
        key = _key(label)
        if key not in texts and not (key.isdigit() and int(key) < len(texts)):
            raise UsageError(f"{row.where}: {unknown('label', key, texts)}", "Give a candidate or its index.")
        if len(texts) < 2:
            raise UsageError(f"{row.where}: fewer than two candidates", "Give at least two.")
        if "" in texts:
            raise UsageError(
                f"{row.where}: candidate {texts.index('')} is empty, so nothing of it could be scored",
                "Give every candidate some text.",
            )
        index = texts.index(key) if key in texts else int(key)
        return Example(prompt, tuple(map(_spaced, texts)), index)

    def _completion(self, prompt: str, row: Row) -> Example:
        right = str(self._value(row, "completion"))
        given = row.values.get(self.names["references"])
        accepted = dict.fromkeys([right.strip(), *(text.strip() for text in _texts(given or []))])
        return Example(prompt, (_spaced(right.rstrip()) + "\n",), 0, tuple(accepted))


def _columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The column of every role: its own name unless ``columns`` says otherwise."""
    for role in columns or {}:
        if role not in COLUMN_ROLES:
            raise UsageError(unknown("use of a column", role, COLUMN_ROLES))
    return {role: role for role in COLUMN_ROLES} | dict(columns or {})


def _complete(
    found: Mapping[str, list[Row]], seed: int, fraction: float, name: str
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """All three splits, the missing ones drawn from the training rows, and where each is from, in words."""
    rows = {split: list(found[split]) for split in found}
    sources = {split: f"{len(found[split])} rows of {found[split][0].source}" for split in found}
    absent = [split for split in SPLITS if split not in found]
    if not absent:
        return rows, sources
    train = found["train"]
    size = max(1, round(fraction * len(train)))
    if size * len(absent) >= len(train):
        raise UsageError(
            f"{name}: {len(train)} training rows are too few to draw {' and '.join(absent)} from",
            "Give more rows, or a file for each split.",
        )
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    for number, split in enumerate(absent):
        rows[split] = [train[index] for index in order[number * size : (number + 1) * size]]
        sources[split] = f"{size} of {len(train)} rows of {train[0].source}, drawn with seed {seed}"
    # In the order of the file, so that the training split reads like its source.
    rows["train"] = [train[index] for index in sorted(order[len(absent) * size :])]
    sources["train"] = f"the other {len(rows['train'])} rows of {train[0].source}"
    return rows, sources


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _key(label: Any) -> str:
    """A label as text: ``1``, ``1.0`` and ``"1"`` are the same label, ``true`` is ``True``'s."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


def _texts(value: Any) -> list[str]:
    """A cell that holds several texts: a list, a JSON list, or ``a|b|c``."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return [_key(item) for item in json.loads(value)]
            except ValueError:
                pass
        return [item.strip() for item in value.split("|")]
    return ["" if item is None else _key(item) for item in value]


def _spaced(text: str) -> str:
    """``text`` as it follows a prompt: after a space, unless it begins with white space."""
    return text if text[:1].isspace() else f" {text}"
