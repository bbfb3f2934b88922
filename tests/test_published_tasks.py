"""The published tasks: real schemas, splits, few-shot sampling, awkward rows, and every method on every task."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import FinetuneConfig, finetune
from finetune.evaluate import EvaluateConfig, evaluate
from finetune.task import in_context
from tests.published_rows import LONG, MAKERS, rows, write, write_all, write_task
from tests.test_finetune import tiny_loaded, untrained
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer
from zoft.errors import ArtifactError, UsageError
from zoft.models import LoadedModel, new_causal_lm
from zoft.optimizers import ZerothOrder
from zoft.tasks import ROLES, SPLITS, TASKS, Example, get_task, tasks_with_role
from zoft.tasks.fitting import fitted
from zoft.tasks.lm import LMTask
from zoft.tasks.published import PUBLISHED_TASKS, PublishedTask, tables
from zoft.tasks.published.family import SIZES

ROOT = Path(__file__).parents[1]

each_task = pytest.mark.parametrize("task", PUBLISHED_TASKS, ids=[task.name for task in PUBLISHED_TASKS])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_all(tmp_path_factory.mktemp("published")))


def first(task: str, data_dir: str, split: str = "test") -> Any:
    return get_task(task, data_dir).examples(split)[0]


def test_the_registry_has_fifteen_of_every_kind_and_role() -> None:
    assert len(PUBLISHED_TASKS) == 15 == len(MAKERS)
    assert set(MAKERS) == {task.name for task in PUBLISHED_TASKS}
    roles = {role: [task.name for task in PUBLISHED_TASKS if task.role == role] for role in ROLES}
    assert roles["meta-training"] == ["sst2", "copa", "squad"]  # those of arXiv 2510.00419
    assert roles["development"] == ["sst5", "trec", "rte"]
    assert len(roles["held-out"]) == 9
    for role in ROLES:  # no default needs the Hub
        assert not set(tasks_with_role(role)) & set(MAKERS)
        assert set(roles[role]) < set(tasks_with_role(role, offline=False))
    for task in PUBLISHED_TASKS:
        assert re.fullmatch(r"[0-9a-f]{40}", task.hub.revision), task.name
        assert TASKS[task.name] is task


@each_task
def test_splits_are_disjoint_seeded_and_name_their_rows(task: type[PublishedTask], data: str) -> None:
    one, again, other = (get_task(task.name, data, seed=seed) for seed in (0, 0, 1))
    splits = {split: one.examples(split) for split in SPLITS}
    assert all(again.examples(split) == splits[split] for split in SPLITS)
    assert other.examples("train") != splits["train"]
    found = [example.where for split in SPLITS for example in splits[split]]
    assert len(set(found)) == len(found)
    source = r"(parquet|jsonl), row \d+$"
    assert all(re.search(rf"/{task.name}/train\.{source}", example.where) for example in splits["train"])
    assert all(re.search(rf"/{task.name}/{task.test_rows}\.{source}", e.where) for e in splits["test"])
    labelled = sum(row.get(task.gold) != -1 for row in rows(task.name, 24))
    assert len(splits["train"]) + len(splits["validation"]) == labelled
    for example in splits["train"]:
        assert not example.prompt.endswith(" ")
        assert 0 <= example.label < len(example.candidates)
        end = len(example.prompt) - example.follows
        assert not example.passage or example.prompt[end - len(example.passage) : end] == example.passage


def test_prompts_are_the_papers(data: str, tmp_path: Path) -> None:
    """Appendix, tables 13 and 14 of arXiv 2305.17333, on one row each."""
    expected: dict[str, tuple[str, tuple[str, ...], str | None]] = {
        "sst2": ("a dull lamp It was", (" terrible", " great"), "a dull lamp It was <mask>."),
        "sst5": (
            "the lamp , again It was",
            (" terrible", " bad", " okay", " good", " great"),
            "the lamp , again It was <mask>.",
        ),
        "trec": (
            "What is a lamp ?\nWhat is asked for? Expression, Entity, Description, Human, Location, or Number?\n",
            ("Expression", "Entity", "Description", "Human", "Location", "Number"),
            "<mask>: What is a lamp ?",
        ),
        "snli": (
            'Suppose The lamp is red. Can we infer that "The lamp has a colour."? Yes, No, or Maybe?\n',
            ("Yes", "Maybe", "No"),
            "The lamp is red? <mask>, the lamp has a colour.",
        ),
        "mnli": (
            'Suppose The lamp is red. Can we infer that "The lamp has a colour."? Yes, No, or Maybe?\n',
            ("Yes", "Maybe", "No"),
            "The lamp is red? <mask>, the lamp has a colour.",
        ),
        "rte": (
            'The lamp is red.\nDoes this mean that "The lamp has a colour." is true? Yes or No?\n',
            ("Yes", "No"),
            "The lamp is red? <mask>, the lamp has a colour.",
        ),
        "cb": (
            'Suppose The lamp is red. Can we infer that "The lamp has a colour."? Yes, No, or Maybe?\n',
            ("Yes", "No", "Maybe"),
            "The lamp is red? <mask>, the lamp has a colour.",
        ),
        "boolq": ("A lamp that is red. Is the lamp red?\n", ("No", "Yes"), None),
        "wsc": (
            "The lamp fell on Ann and she cried.\nIn the previous sentence, does the pronoun"
            ' "she" refer to Ann? Yes or No?\n',
            ("No", "Yes"),
            None,
        ),
        "wic": (
            'Does the word "lamp" have the same meaning in these two sentences? Yes, No?\n'
            "A lamp stood there.\nNo lamp!\n",
            ("No", "Yes"),
            None,
        ),
        "copa": ("The lamp broke because", (" I dropped it.", " it was mended."), None),
        "multirc": (
            "The lamp is red.\nQuestion: Which colour has the lamp?\n"
            'I found this answer "red". Is that correct? Yes or No?\n',
            ("No", "Yes"),
            None,
        ),
        "record": (
            "Ann met Bob and Cleo in Rome.\n- A lamp was found\n-",
            (" It was Ann who found the lamp", " It was Bob who found the lamp", " It was Cleo who found the lamp"),
            None,
        ),
        "squad": (
            "Title: Things\nContext: The lamp is red.\nQuestion: Which colour has the lamp?\nAnswer:",
            (" red\n",),
            None,
        ),
        "drop": ("Passage: Ann had 2 apples and ate one.\nQuestion: How many are left?\nAnswer:", (" Ann\n",), None),
    }
    assert set(expected) == set(MAKERS)
    for task in PUBLISHED_TASKS:
        write(tmp_path / task.name, task.test_rows, rows(task.name, 1))
        example = first(task.name, str(tmp_path))
        prompt, candidates, masked = expected[task.name]
        assert (example.prompt, example.candidates) == (prompt, candidates)
        if masked is None:
            assert example.cloze is None
            continue
        words = example.cloze.candidates or example.candidates
        assert words == tuple(f" {word.strip()}" for word in candidates)
        assert f"{example.cloze.before} <mask>{example.cloze.after}".strip() == masked


@pytest.mark.parametrize(
    ("task", "classes"), [("sst5", 5), ("trec", 6), ("snli", 3), ("mnli", 3), ("rte", 2), ("cb", 3), ("boolq", 2)]
)
def test_k_examples_of_each_class(task: str, classes: int, tmp_path: Path) -> None:
    folder = str(write_task(tmp_path, TASKS[task], count=90))  # type: ignore[arg-type]
    drawn = {seed: get_task(task, folder, per_class=2, seed=seed) for seed in (0, 1)}
    for split in ("train", "validation"):
        assert Counter(example.label for example in drawn[0].examples(split)) == dict.fromkeys(range(classes), 2)
    train, validation = ({e.where for e in drawn[0].examples(split)} for split in ("train", "validation"))
    assert not train & validation
    assert train != {example.where for example in drawn[1].examples("train")}
    assert drawn[0].examples("test") == get_task(task, folder).examples("test")


def test_a_class_with_too_few_examples_is_halved(tmp_path: Path) -> None:
    content = [{**row, "coarse_label": 5 if index > 2 else 0} for index, row in enumerate(rows("trec", 40))]
    write(tmp_path / "trec", "train", content)
    task = get_task("trec", str(tmp_path), per_class=16)
    assert Counter(example.label for example in task.examples("train")) == {0: 2, 5: 16}
    assert Counter(example.label for example in task.examples("validation")) == {0: 1, 5: 16}


def test_the_sizes_of_the_paper(tmp_path: Path) -> None:
    write(tmp_path, "train", rows("sst2", 1600))
    write(tmp_path, "validation", rows("sst2", 1100))
    task = get_task("sst2", str(tmp_path))
    assert {split: len(task.examples(split)) for split in SPLITS} == SIZES
    assert SIZES == {"train": 1000, "validation": 500, "test": 1000}
    write(tmp_path, "train", rows("sst2", 400))  # COPA has as many
    small = get_task("sst2", str(tmp_path))
    assert [len(small.examples(split)) for split in ("train", "validation")] == [300, 100]


def test_answers_that_are_missing_or_several(data: str) -> None:
    assert all(row["label"] != -1 for row in rows("mnli"))
    assert sum(row["label"] == -1 for row in rows("snli")) == 4
    assert len(get_task("snli", data).examples("train")) + len(get_task("snli", data).examples("validation")) == 20
    squad = get_task("squad", data).examples("train")
    assert {len(example.references) for example in squad} == {1, 2}  # duplicates count once
    assert all(example.candidates == (f" {example.references[0]}\n",) for example in squad)
    drop = get_task("drop", data).examples("train")
    assert ("Ann", "apples") in {example.references for example in drop}
    record = get_task("record", data).examples("train")
    several = next(example for example in record if len(example.references) == 2)
    assert several.names == ("Ann", "Bob", "Cleo")  # the entity that was there twice counts once
    assert several.references == ("Cleo", "Ann")
    assert several.names[several.label] in several.references


def test_questions_of_multirc_are_drawn_whole(data: str) -> None:
    task = get_task("multirc", data)
    groups = [{example.group for example in task.examples(split)} for split in ("train", "validation")]
    assert not groups[0] & groups[1]
    for split in SPLITS:
        assert set(Counter(example.group for example in task.examples(split)).values()) == {3}


@each_task
def test_long_passages_are_cut_and_nothing_else(task: type[PublishedTask], tmp_path: Path) -> None:
    lengthy = [name for name in rows(task.name, 1)[0] if name in ("premise", "passage", "context", "paragraph")]
    content = rows(task.name, 1)
    for name in lengthy if task.name != "copa" else ():
        content[0][name] = LONG + content[0][name]
    if task.name in ("sst2", "sst5", "trec", "wsc"):
        name = "sentence" if task.name == "sst2" else "text"
        content[0][name] = LONG + content[0][name]
    write(tmp_path / task.name, task.test_rows, content)
    example = first(task.name, str(tmp_path))
    tokenizer = tiny_tokenizer()
    (encoded,) = LMTask(get_task(task.name, str(tmp_path)), tokenizer, max_length=250).dataset("test")
    if task.name in ("copa", "wic"):
        assert example.passage == ""
        return
    assert len(example.prompt) > 900
    assert 180 < encoded.length <= 250
    text = tokenizer.decode(encoded.context, skip_special_tokens=True)
    end = len(example.prompt) - example.follows
    before, after = example.prompt[: end - len(example.passage)], example.prompt[end:]
    assert text.startswith(before + "They walked on")
    assert text.endswith(after)
    kept = text[len(before) : len(text) - len(after)]
    assert example.passage.startswith(kept)
    assert example.passage[len(kept)].isspace()  # between two words
    tail = tuple(tokenizer.decode(candidate) for candidate in encoded.candidates)
    assert tail == example.candidates
    if task.kind == "completion":
        assert len(encoded.context) + 50 <= 250  # room for the answer
    with pytest.raises(UsageError, match=r"row 1: \d+ tokens, and the model takes at most 4 "):
        LMTask(get_task(task.name, str(tmp_path)), tokenizer, max_length=4).dataset("test")


@pytest.mark.parametrize(
    ("name", "column", "start", "end"),
    [
        ("sst2", "sentence", "They walked", " It was."),
        ("trec", "text", ": They walked", "on."),
        ("mnli", "premise", "They walked", "?, the lamp has a colour."),
        ("boolq", "passage", "They walked", " Is the lamp red?"),
    ],
)
def test_a_cloze_is_cut_where_its_prompt_is(name: str, column: str, start: str, end: str, tmp_path: Path) -> None:
    content = rows(name, 1)
    content[0][column] = LONG + content[0][column]
    write(tmp_path / name, TASKS[name].test_rows, content)  # type: ignore[attr-defined]
    example = first(name, str(tmp_path))

    def shown(one: Example) -> str:
        return one.cloze.before + one.cloze.after if one.cloze else one.prompt.rstrip()

    cut = shown(fitted(example, lambda one: len(shown(one)) <= 80))
    assert 70 <= len(cut) <= 80
    assert cut.startswith(start)
    assert cut.endswith(end) or cut.rsplit(" ", 1)[1] in ("on", "and", "walked", "They", "on.")


def test_a_passage_that_the_question_repeats_is_the_one_that_is_cut(tmp_path: Path) -> None:
    content = [{**rows("rte", 1)[0], "premise": LONG.strip(), "hypothesis": f"It is said: {LONG.strip()[:-1]}"}]
    write(tmp_path / "rte", "validation", content)
    example = first("rte", str(tmp_path))
    cut = fitted(example, lambda one: len(one.prompt) < len(example.prompt) - 100)
    assert example.prompt.endswith(cut.prompt[len(cut.prompt) - cut.follows :])
    assert content[0]["hypothesis"] in cut.prompt
    # Demonstrations before the prompt do not move the cut.
    more = replace(example, prompt=f"{example.prompt}Yes\n\n{example.prompt}")
    shorter = fitted(more, lambda one: len(one.prompt) < len(more.prompt) - 100)
    assert shorter.prompt.startswith(f"{example.prompt}Yes\n\n")
    assert shorter.prompt.endswith(cut.prompt[len(cut.prompt) - cut.follows :])


def test_where_local_copies_are_looked_for(tmp_path: Path) -> None:
    whole = rows("rte", 20)
    layouts = {
        "task": lambda root: write(root / "rte", "validation", whole),
        "bare": lambda root: write(root, "validation", whole, "jsonl"),
        "shards": lambda root: [
            write(root / "rte", f"validation-0000{part}-of-00002", whole[part * 10 : part * 10 + 10]) for part in (0, 1)
        ],
        "converted": lambda root: write(root / "rte" / "validation", "0000", whole),
    }
    found = {}
    for name, lay in layouts.items():
        lay(tmp_path / name)
        found[name] = get_task("rte", str(tmp_path / name)).examples("test")
    assert all(examples == found["task"] for examples in found.values())
    write(tmp_path / "configuration" / "wsc.fixed", "validation", rows("wsc", 3))
    assert len(get_task("wsc", str(tmp_path / "configuration")).examples("test")) == 3
    write(tmp_path / "task" / "rte", "validation", whole, "jsonl")
    with pytest.raises(UsageError, match="several kinds"):
        get_task("rte", str(tmp_path / "task")).examples("test")


def test_what_cannot_be_read_or_used(tmp_path: Path) -> None:
    def refused(task: str, content: list[dict[str, Any]], suffix: str = "jsonl") -> str:
        write(tmp_path / task, TASKS[task].test_rows, content, suffix)  # type: ignore[attr-defined]
        with pytest.raises(UsageError) as caught:
            get_task(task, str(tmp_path)).examples("test")
        assert caught.value.exit_code == 2
        return str(caught.value)

    bad = rows("sst2", 3)
    assert "validation.jsonl, row 2: label is 7" in refused("sst2", [bad[0], {**bad[1], "label": 7}])
    assert "validation.jsonl, row 1: there is no column 'sentence' (there are: 'text', 'label')" in refused(
        "sst2", [{"text": "x", "label": 0}]
    )
    assert "row 1: no sentence" in refused("sst2", [{"sentence": None, "label": 0}])
    assert "no validation row has an answer" in refused("sst2", [{**bad[0], "label": -1}])
    assert "question is 'why'" in refused("copa", [{**rows("copa", 1)[0], "question": "why"}])
    assert "0 of them right" in refused("record", [{**rows("record", 1)[0], "answers": ["Dora"]}])
    assert "every answer is empty" in refused("drop", [{**rows("drop", 1)[0], "answers_spans": {"spans": [" "]}}])
    (tmp_path / "cb").mkdir()
    (tmp_path / "cb" / "validation.parquet").write_text("nothing of the kind")
    with pytest.raises(UsageError, match=r"validation.parquet cannot be read"):
        get_task("cb", str(tmp_path)).examples("test")
    with pytest.raises(ArtifactError, match=r"no train.parquet or train.jsonl in .*/cb and"):
        get_task("cb", str(tmp_path)).examples("train")
    write(tmp_path / "cb", "train", rows("cb", 1))
    with pytest.raises(UsageError, match="too few train rows"):
        get_task("cb", str(tmp_path)).examples("train")
    with pytest.raises(UsageError, match="has no classes"):
        get_task("squad", str(tmp_path), per_class=16)
    with pytest.raises(UsageError, match="--data-dir and --per-class have no use"):
        get_task(tasks_with_role("held-out")[0], str(tmp_path), per_class=2)


def test_the_hub_is_asked_for_the_pinned_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(repo: str, config: str | None, revision: str, split: str) -> Any:
        asked.append((repo, config, revision, split))
        return datasets.Dataset.from_list(rows("mnli", 30))

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = get_task("mnli")
    assert len(task.examples("train")) == 18
    assert len(task.examples("validation")) == 12
    assert task.examples("test")[0].where.startswith("nyu-mll/glue:mnli (validation_matched), row ")
    commit = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    assert asked == [("nyu-mll/glue", "mnli", commit, split) for split in ("train", "validation_matched")]

    def offline(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ArtifactError, match="the Hub cannot be reached"):
        get_task("sst2").examples("train")


@cache
def tiny_wide() -> LoadedModel:
    """A tiny model with more positions than the others."""
    config = {**tiny_config("llama").to_dict(), "max_position_embeddings": 2048}
    return replace(tiny_loaded(), model=new_causal_lm(config, 0))


@each_task
def test_every_task_runs_zero_shot_in_context_with_and_without_a_tuner(task: type[PublishedTask], data: str) -> None:
    loaded = tiny_loaded()
    lm = LMTask(get_task(task.name, data), loaded.tokenizer, max_length=128)
    zero = lm.evaluate(loaded.model, "test", 4)
    names = {task.metric, *task.more_metrics}
    assert set(zero) == {"loss", *names}
    assert 0 < zero["loss"] < 100
    assert all(0 <= zero[name] <= 1 for name in names)
    # Some fixtures take most of the 128 tokens that other tests give them, and a demonstration has to fit.
    wide = LMTask(lm.text_task, loaded.tokenizer, max_length=2000)
    shown = in_context(wide, 2, seed=0)
    assert shown.evaluate(tiny_wide().model, "test", 2).keys() == zero.keys()
    assert shown.text_task.used["test"] == 2
    batch = next(lm.train_batches(2, seed=0))
    predicted, accepted = lm.predict(loaded.model, batch), lm.accepted(batch)
    assert len(predicted) == len(accepted) == 2
    assert all(accepted)
    tuner = untrained(loaded).bind(loaded.model, 2)
    for method, options in (("mezo", {}), ("zo-finetuner", {"tuner": tuner})):
        before = [parameter.clone() for parameter in loaded.model.parameters()]
        optimizer = ZerothOrder(loaded.model, method, lr=1e-3, **options)
        loss = optimizer.step(lambda: lm.loss(loaded.model, batch))
        assert loss is not None
        assert 0 < float(loss) < 100
        after = loaded.model.parameters()
        assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["boolq", "record", "squad"])
def test_a_task_of_each_kind_is_fine_tuned_and_evaluated_alike(name: str, data: str, tmp_path: Path) -> None:
    loaded = tiny_loaded()
    config = FinetuneConfig(
        optimizer="mezo",
        hyper={"lr": 1e-3},
        task=name,
        data_dir=data,
        per_class=3 if name == "boolq" else None,
        steps=1,
        batch_size=2,
        eval_limit=3,
        eval_every=0,
        save_every=0,
        device="cpu",
        output_dir=str(tmp_path / "run"),
    )
    result = finetune(config, model=loaded, reporters=[])
    again = evaluate(EvaluateConfig(task=name, data_dir=data, splits=["test"], limit=3), model=loaded)["test"]
    assert result.final["test"] == {key: value for key, value in again.items() if key != "examples"}
    assert again["examples"] == 3


def test_masked_models_score_label_words_at_the_mask(data: str) -> None:
    model, tokenizer = tiny_model("roberta"), tiny_tokenizer("masked")
    lm = LMTask(get_task("sst2", data), tokenizer, "masked")
    encoded = lm.dataset("test")[0]
    assert tokenizer.decode(encoded.context).endswith(" It was<mask>.</s>")
    assert set(lm.evaluate(model)) == {"loss", "accuracy"}
    with pytest.raises(UsageError, match=r"row \d+: candidate ' Yes' is 4 tokens"):
        LMTask(get_task("mnli", data), tokenizer, "masked").dataset("test")
    with pytest.raises(UsageError, match="is a completion"):
        LMTask(get_task("squad", data), tokenizer, "masked")


def test_choices_are_scored_by_the_mean_and_learned_by_teacher_forcing(data: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    lm = LMTask(get_task("copa", data), tokenizer)
    example = get_task("copa", data).examples("test")[0]
    means = []
    for candidate in example.candidates:
        context = tokenizer(example.prompt)["input_ids"]
        tokens = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + tokens])).logits[0].double().log_softmax(-1)
        scores = [float(logits[len(context) + at - 1, token]) for at, token in enumerate(tokens)]
        means.append(sum(scores) / len(scores))
    found = lm.evaluate(model, limit=1)
    assert found["loss"] == pytest.approx(-means[example.label], abs=1e-5)
    assert found["accuracy"] == float(means[example.label] == max(means))
    batch = next(lm.train_batches(3, seed=0))
    assert batch["targets"].shape[:2] == (3, 1)
    members = [lm.dataset("train")[index] for index in batch["indices"].tolist()]
    whole = lm.loss(model, lm.collate(members)).detach()
    assert float(lm.loss(model, batch).detach()) == pytest.approx(float(whole), abs=1e-5)


def test_fixture_rows_survive_both_file_kinds(tmp_path: Path) -> None:
    for task in PUBLISHED_TASKS:
        for suffix in ("parquet", "jsonl"):
            write_task(tmp_path / suffix, task, suffix=suffix)
        one, other = (get_task(task.name, str(tmp_path / suffix)) for suffix in ("parquet", "jsonl"))
        assert all(one.examples(split) == other.examples(split) for split in SPLITS)
    lines = (tmp_path / "jsonl" / "squad" / "train.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {"id", "title", "context", "question", "answers"}
    assert tables.SUFFIXES == (".parquet", ".jsonl")


def test_the_page_is_current(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "published-tasks.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks" / "published_table.py"
    spec = importlib.util.spec_from_file_location("published_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert page == module.page(tmp_path), "run python benchmarks/published_table.py"
    assert all(f"**{task.name}**" in page for task in PUBLISHED_TASKS)


def test_a_task_is_a_class_of_sixty_lines_at_most() -> None:
    for task in PUBLISHED_TASKS:
        assert len(inspect.getsource(task).splitlines()) <= 60
