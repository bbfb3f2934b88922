"""Made-up rows in the published data sets' real schemas: small, of the project's own making, with their awkward cases.

Every task has training and test rows, and ``LONG`` puts one passage into the reading tasks that is too long
for a tiny model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from zoft.tasks.published import PUBLISHED_TASKS, PublishedTask

Rows = list[dict[str, Any]]

THINGS = ("lamp", "kettle", "bridge", "garden", "violin", "harbour", "bakery", "saddle")
COLOURS = ("red", "blue", "green", "grey")

#: Longer than a tiny model's context.
LONG = "They walked on and on. " * 40


def thing(index: int) -> str:
    return THINGS[index % len(THINGS)]


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def sst2(index: int) -> dict[str, Any]:
    return {"sentence": f"a {('dull', 'fine')[index % 2]} {thing(index)} ", "label": index % 2, "idx": index}


def sst5(index: int) -> dict[str, Any]:
    names = ("very negative", "negative", "neutral", "positive", "very positive")
    return {"text": f"the {thing(index)} , again", "label": index % 5, "label_text": names[index % 5]}


def trec(index: int) -> dict[str, Any]:
    return {"text": f"What is a {thing(index)} ?", "coarse_label": index % 6, "fine_label": index % 6}


def entailment(classes: int) -> Callable[[int], dict[str, Any]]:
    def row(index: int) -> dict[str, Any]:
        premise = f"The {thing(index)} is {colour(index)}."
        if index == 5:
            premise = LONG + premise
        return {
            "premise": premise,
            "hypothesis": f"The {thing(index)} has a colour.",
            "label": index % classes,
            "idx": index,
        }

    return row


def snli(index: int) -> dict[str, Any]:
    row = entailment(3)(index)
    del row["idx"]
    return {**row, "label": -1 if index % 5 == 4 else row["label"]}


def boolq(index: int) -> dict[str, Any]:
    passage = f"A {thing(index)} that is {colour(index)}."
    return {
        "question": f"is the {thing(index)} {colour(index)}",
        "answer": index % 3 != 0,
        "passage": LONG + passage if index == 3 else passage,
    }


def wsc(index: int) -> dict[str, Any]:
    return {
        "text": f"The {thing(index)} fell on Ann and she cried.",
        "span1_index": 1,
        "span2_index": 6,
        "span1_text": ("Ann", thing(index))[index % 2],
        "span2_text": "She",
        "idx": index,
        "label": 1 - index % 2,
    }


def wic(index: int) -> dict[str, Any]:
    return {
        "word": thing(index),
        "sentence1": f"A {thing(index)} stood there.",
        "sentence2": f"No {thing(index)}!",
        "start1": 2,
        "start2": 3,
        "end1": 5,
        "end2": 6,
        "idx": index,
        "label": index % 2,
    }


def copa(index: int) -> dict[str, Any]:
    return {
        "premise": f"The {thing(index)} broke.",
        "choice1": "I dropped it.",
        "choice2": "It was mended.",
        "question": ("cause", "effect")[index % 2],
        "idx": index,
        "label": index % 2,
    }


def multirc(index: int) -> dict[str, Any]:
    question, answer = divmod(index, 3)
    paragraph = f"The {thing(question)} is {colour(question)}."
    return {
        "paragraph": LONG + paragraph if question == 2 else paragraph,
        "question": f"Which colour has the {thing(question)}?",
        "answer": colour(question + answer),
        "idx": {"paragraph": question // 2, "question": question, "answer": index},
        "label": int(answer == 0),
    }


def record(index: int) -> dict[str, Any]:
    passage = f"Ann met Bob and Cleo in Rome.\n@highlight\nA {thing(index)} was found"
    return {
        "passage": LONG + passage if index == 4 else passage,
        "query": f"It was @placeholder who found the {thing(index)}",
        "entities": ["Ann", "Bob", "Cleo", "Ann"],
        "entity_spans": {"text": ["Ann", "Bob", "Cleo"], "start": [0, 8, 16], "end": [3, 11, 20]},
        "answers": [["Bob"], ["Cleo", "Ann"]][index % 2],
        "idx": {"passage": index, "query": index},
    }


def squad(index: int) -> dict[str, Any]:
    context = f"The {thing(index)} is {colour(index)}."
    answers = [colour(index), f"the {colour(index)}", colour(index)][: 1 + index % 3]
    return {
        "id": f"{index:08x}",
        "title": "Things",
        "context": LONG + context if index == 6 else context,
        "question": f" Which colour has the {thing(index)}?",
        "answers": {"text": answers, "answer_start": [0] * len(answers)},
    }


def drop(index: int) -> dict[str, Any]:
    passage = f"Ann had {index + 2} apples and ate one."
    spans = [str(index + 1)] if index % 2 else ["Ann", "apples"]
    return {
        "section_id": "made_up",
        "query_id": f"{index:08x}",
        "passage": LONG + passage if index == 7 else passage,
        "question": "How many are left?",
        "answers_spans": {"spans": spans, "types": ["number" if index % 2 else "span"] * len(spans)},
    }


MAKERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "sst2": sst2,
    "sst5": sst5,
    "trec": trec,
    "snli": snli,
    "mnli": entailment(3),
    "rte": entailment(2),
    "cb": entailment(3),
    "boolq": boolq,
    "wsc": wsc,
    "wic": wic,
    "copa": copa,
    "multirc": multirc,
    "record": record,
    "squad": squad,
    "drop": drop,
}


def rows(task: str, count: int = 24, first: int = 0) -> Rows:
    """``count`` rows of the task's data set."""
    return [MAKERS[task](index) for index in range(first, first + count)]


def write(folder: Path, name: str, content: Rows, suffix: str = "parquet") -> Path:
    """One file of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def write_task(folder: Path, task: type[PublishedTask], count: int = 24, suffix: str = "parquet") -> Path:
    """The files of a task's data set in ``folder/<task>``."""
    write(folder / task.name, "train", rows(task.name, count), suffix)
    write(folder / task.name, task.test_rows, rows(task.name, count // 2, first=count), suffix)
    return folder


def write_all(folder: Path) -> Path:
    """Every task's files, parquet and JSON Lines in turn."""
    for number, task in enumerate(PUBLISHED_TASKS):
        write_task(folder, task, suffix=("parquet", "jsonl")[number % 2])
    return folder
