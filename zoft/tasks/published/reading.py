"""Questions about a passage: BoolQ, MultiRC, ReCoRD, SQuAD, DROP."""

from __future__ import annotations

from typing import Any, ClassVar

from zoft.errors import UsageError
from zoft.tasks.base import Example
from zoft.tasks.published.family import PublishedTask, class_of
from zoft.tasks.published.pairs import SUPERGLUE
from zoft.tasks.published.tables import Hub
from zoft.tasks.rows import Row


class BoolQ(PublishedTask):
    """Is the answer to a question about a passage yes? (Clark et al., 2019.) Prompt: MeZO, table 14."""

    name: ClassVar[str] = "boolq"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"
    hub: ClassVar[Hub] = Hub("google/boolq", "35b264d03638db9f4ce671b711558bf7ff0f80d5")
    columns: ClassVar[tuple[str, ...]] = ("passage", "question", "answer")
    gold: ClassVar[str] = "answer"
    prompt: ClassVar[str] = "{passage} {question}?\n"
    words: ClassVar[tuple[str, ...]] = ("No", "Yes")

    def example(self, row: Row) -> Example:
        passage, question = row.values["passage"].strip(), row.values["question"].strip().removesuffix("?")
        prompt = self.prompt.format(passage=passage, question=question[:1].upper() + question[1:])
        return Example(prompt, self.words, class_of(row, "answer", 2), passage=passage)


class MultiRC(PublishedTask):
    """Is this an answer to the question about the paragraph? (Khashabi et al., 2018; SuperGLUE's MultiRC.)

    Prompt: MeZO, table 14. Accuracy over single answers is what the MeZO repository computes; F1a and the
    exact match over a question's answers are the data set's own.

    Note: all answers of a question are drawn together, so that the exact match over a question means what
    it says; the MeZO repository draws single answers.
    """

    name: ClassVar[str] = "multirc"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"
    more_metrics: ClassVar[tuple[str, ...]] = ("f1a", "question_em")
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "multirc")
    columns: ClassVar[tuple[str, ...]] = ("paragraph", "question", "answer", "idx", "label")
    groups: ClassVar[str | None] = "idx"
    prompt: ClassVar[str] = (
        '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n'
    )
    words: ClassVar[tuple[str, ...]] = ("No", "Yes")

    def group_of(self, value: Any) -> str:
        return f"{value['paragraph']}-{value['question']}" if isinstance(value, dict) else str(value)

    def example(self, row: Row) -> Example:
        values = {name: row.values[name] for name in ("paragraph", "question", "answer")}
        label, group = class_of(row, "label", 2), self.group_of(row.values["idx"])
        return Example(self.prompt.format(**values), self.words, label, passage=values["paragraph"], group=group)


class ReCoRD(PublishedTask):
    """Which entity of the passage stands in the query's gap? (Zhang et al., 2018; SuperGLUE's ReCoRD.)

    Prompt: MeZO, table 14, laid out as in its repository: the whole query is scored with each entity in its
    gap. Training is by teacher forcing on the first right one (appendix E.4).
    """

    name: ClassVar[str] = "record"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "choice"
    metric: ClassVar[str] = "f1"
    more_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    teacher_forcing: ClassVar[bool] = True
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "record")
    columns: ClassVar[tuple[str, ...]] = ("passage", "query", "entities", "answers")
    gold: ClassVar[str] = "answers"
    prompt: ClassVar[str] = "{passage}\n-"

    def example(self, row: Row) -> Example:
        passage = row.values["passage"].replace("@highlight\n", "- ").strip()
        entities = tuple(dict.fromkeys(row.values["entities"]))
        right = [entity for entity in entities if entity in row.values["answers"]]
        if not right or len(entities) < 2:
            raise UsageError(f"{row.where}: {len(entities)} entities, {len(right)} of them right", "Correct the row.")
        queries = tuple(f" {row.values['query'].replace('@placeholder', entity)}" for entity in entities)
        label, references = entities.index(right[0]), tuple(dict.fromkeys(row.values["answers"]))
        return Example(f"{passage}\n-", queries, label, references, passage=passage, names=entities)


class Squad(PublishedTask):
    """Answer a question by a span of a passage of Wikipedia (Rajpurkar et al., 2016, SQuAD 1.1).

    Prompt: MeZO, table 14. The first answer is learned, every one is accepted; 50 tokens are generated at most.
    """

    name: ClassVar[str] = "squad"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "f1"
    more_metrics: ClassVar[tuple[str, ...]] = ("squad_em",)
    max_new_tokens: ClassVar[int | None] = 50
    hub: ClassVar[Hub] = Hub("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f")
    columns: ClassVar[tuple[str, ...]] = ("title", "context", "question", "answers")
    gold: ClassVar[str] = "answers"
    prompt: ClassVar[str] = "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"

    def example(self, row: Row) -> Example:
        values = {name: row.values[name].strip() for name in ("title", "context", "question")}
        return answered(self.prompt.format(**values), row.values["answers"]["text"], values["context"], row)


class Drop(PublishedTask):
    """Answer a question that asks for counting, comparing or adding over a passage (Dua et al., 2019).

    Prompt: MeZO, table 14. As there, every span of an answer is accepted alone; 50 tokens at most.
    """

    name: ClassVar[str] = "drop"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "f1"
    more_metrics: ClassVar[tuple[str, ...]] = ("squad_em",)
    max_new_tokens: ClassVar[int | None] = 50
    hub: ClassVar[Hub] = Hub("ucinlp/drop", "95cda593fae71b60b5b19f82de3fcf3298c1239c")
    columns: ClassVar[tuple[str, ...]] = ("passage", "question", "answers_spans")
    gold: ClassVar[str] = "answers_spans"
    prompt: ClassVar[str] = "Passage: {passage}\nQuestion: {question}\nAnswer:"

    def example(self, row: Row) -> Example:
        values = {name: row.values[name].strip() for name in ("passage", "question")}
        return answered(self.prompt.format(**values), row.values["answers_spans"]["spans"], values["passage"], row)


def answered(prompt: str, answers: list[str], passage: str, row: Row) -> Example:
    """A completion with its first answer, which ends in a line break so that the model learns to stop."""
    texts = tuple(dict.fromkeys(text.strip() for text in answers if text and text.strip()))
    if not texts:
        raise UsageError(f"{row.where}: every answer is empty", "Complete the row or remove it.")
    return Example(prompt, (f" {texts[0]}\n",), 0, texts, passage=passage)
