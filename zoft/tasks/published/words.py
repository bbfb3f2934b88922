"""Judgements of words and of plausibility: WSC, WiC, COPA."""

from __future__ import annotations

from typing import ClassVar

from zoft.errors import UsageError
from zoft.tasks.base import Example
from zoft.tasks.published.family import PublishedTask, class_of
from zoft.tasks.published.pairs import SUPERGLUE
from zoft.tasks.published.tables import Hub
from zoft.tasks.rows import Row

NO_YES = ("No", "Yes")


class Wsc(PublishedTask):
    """Does a pronoun refer to a noun? (Levesque et al., 2012; SuperGLUE's WSC, with the spans corrected.)

    Prompt: MeZO, table 14.
    """

    name: ClassVar[str] = "wsc"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "wsc.fixed")
    columns: ClassVar[tuple[str, ...]] = ("text", "span1_text", "span2_text", "label")
    prompt: ClassVar[str] = (
        '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}? Yes or No?\n'
    )

    def example(self, row: Row) -> Example:
        values = {name: row.values[name] for name in self.columns}
        values["span2_text"] = values["span2_text"].lower()
        return Example(self.prompt.format(**values), NO_YES, class_of(row, "label", 2), passage=values["text"])


class Wic(PublishedTask):
    """Has a word the same meaning in two sentences? (Pilehvar and Camacho-Collados, 2019; SuperGLUE's WiC.)

    Prompt: MeZO, table 14. Neither sentence may be cut: it might lose the word.
    """

    name: ClassVar[str] = "wic"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "wic")
    columns: ClassVar[tuple[str, ...]] = ("word", "sentence1", "sentence2", "label")
    prompt: ClassVar[str] = (
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n'
    )

    def example(self, row: Row) -> Example:
        values = {name: row.values[name] for name in self.columns}
        return Example(self.prompt.format(**values), NO_YES, class_of(row, "label", 2))


class Copa(PublishedTask):
    """Which of two alternatives is the cause or the effect of a premise? (Roemmele et al., 2011.)

    Prompt: MeZO, table 14. Training is by teacher forcing on the right alternative (appendix E.4).
    """

    name: ClassVar[str] = "copa"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"
    teacher_forcing: ClassVar[bool] = True
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "copa")
    columns: ClassVar[tuple[str, ...]] = ("premise", "choice1", "choice2", "question", "label")
    prompt: ClassVar[str] = "{premise} so|because"
    joints: ClassVar[dict[str, str]] = {"effect": "so", "cause": "because"}

    def example(self, row: Row) -> Example:
        if row.values["question"] not in self.joints:
            raise UsageError(f"{row.where}: question is {row.values['question']!r}", "Give 'cause' or 'effect'.")
        premise = row.values["premise"].rstrip().removesuffix(".")
        choices = [row.values[name].strip() for name in ("choice1", "choice2")]
        # In the middle of a sentence only "I" keeps its capital.
        followers = tuple(f" {c if c.split(' ')[0] == 'I' else c[:1].lower() + c[1:]}" for c in choices)
        prompt = f"{premise} {self.joints[row.values['question']]}"
        return Example(prompt, followers, class_of(row, "label", 2))
