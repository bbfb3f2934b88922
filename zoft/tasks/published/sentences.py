"""Classification of a sentence: SST-2, SST-5, TREC."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.base import Cloze, Example
from zoft.tasks.published.family import PublishedTask, class_of
from zoft.tasks.published.tables import Hub
from zoft.tasks.rows import Row


class Sst2(PublishedTask):
    """Is a sentence of a film review positive? (Socher et al., 2013; GLUE's SST-2.)

    Prompts: MeZO, tables 13 and 14.
    """

    name: ClassVar[str] = "sst2"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"
    hub: ClassVar[Hub] = Hub("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "sst2")
    columns: ClassVar[tuple[str, ...]] = ("sentence", "label")
    prompt: ClassVar[str] = "{sentence} It was"
    words: ClassVar[tuple[str, ...]] = (" terrible", " great")

    def example(self, row: Row) -> Example:
        text = row.values["sentence"].strip()
        label = class_of(row, "label", len(self.words))
        return Example(f"{text} It was", self.words, label, passage=text, cloze=Cloze(f"{text} It was", "."))


class Sst5(PublishedTask):
    """How positive is a sentence of a film review, in five steps? (Socher et al., 2013.)

    Its sentences are among those of SST-2, on which tuners are learned: it can be no held-out task.

    Prompts: MeZO, table 13. Note: that is for masked models; the same words are used for causal ones.
    """

    name: ClassVar[str] = "sst5"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"
    hub: ClassVar[Hub] = Hub("SetFit/sst5", "e51bdcd8cd3a30da231967c1a249ba59361279a3")
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    test_rows: ClassVar[str] = "test"
    prompt: ClassVar[str] = "{text} It was"
    words: ClassVar[tuple[str, ...]] = (" terrible", " bad", " okay", " good", " great")

    def example(self, row: Row) -> Example:
        text = row.values["text"].strip()
        label = class_of(row, "label", len(self.words))
        return Example(f"{text} It was", self.words, label, passage=text, cloze=Cloze(f"{text} It was", "."))


class Trec(PublishedTask):
    """What does a question ask for? (Voorhees and Tice, 2000; Li and Roth, 2002: six coarse classes.)

    Prompts: MeZO, table 13. Note: that is for masked models; a causal one, which has nothing but what
    comes before, is asked after the question.
    """

    name: ClassVar[str] = "trec"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"
    hub: ClassVar[Hub] = Hub("CogComp/trec", "65752bf53af25bc935a0dce92fb5b6c930728450")
    columns: ClassVar[tuple[str, ...]] = ("text", "coarse_label")
    gold: ClassVar[str] = "coarse_label"
    test_rows: ClassVar[str] = "test"
    prompt: ClassVar[str] = "{text}\nWhat is asked for? Expression, Entity, Description, Human, Location, or Number?\n"
    #: In the order of the data set's classes: ABBR, ENTY, DESC, HUM, LOC, NUM.
    words: ClassVar[tuple[str, ...]] = ("Expression", "Entity", "Description", "Human", "Location", "Number")

    def example(self, row: Row) -> Example:
        text = row.values["text"].strip()
        label = class_of(row, "coarse_label", len(self.words))
        cloze = Cloze("", f": {text}", tuple(f" {word}" for word in self.words))
        return Example(self.prompt.format(text=text), self.words, label, passage=text, cloze=cloze)
