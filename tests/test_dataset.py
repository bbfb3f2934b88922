"""One's own data: rows, templates, labels, splits, and errors that name file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from zoft.errors import ArtifactError, UsageError
from zoft.tasks.base import SPLITS, Example
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.lm import LMTask

ROWS = [{"text": f"text {number}", "label": ("game", "tool")[number % 2]} for number in range(40)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refused(*args: Any, error: type[Exception] = UsageError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        load_dataset_task(*args, **options)
    return str(caught.value)


def test_labelled_text_with_a_template(tmp_path: Path) -> None:
    task = load_dataset_task(write(tmp_path / "My data.jsonl", ROWS), template="{text}\nSection:")
    assert (task.name, task.kind, task.metric) == ("my-data", "classification", "accuracy")
    assert [len(task.examples(split)) for split in SPLITS] == [32, 4, 4]
    by_prompt = {example.prompt: example for split in SPLITS for example in task.examples(split)}
    assert len(by_prompt) == 40
    assert by_prompt["text 3\nSection:"] == Example("text 3\nSection:", (" game", " tool"), 1)
    assert "drawn with seed 0" in task.sources["test"]


def test_a_drawn_split_is_a_function_of_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    one, again, other = (load_dataset_task(path, seed=seed) for seed in (1, 1, 2))
    assert all(one.examples(split) == again.examples(split) for split in SPLITS)
    assert one.examples("test") != other.examples("test")
    assert len(load_dataset_task(path, validation_fraction=0.25).examples("validation")) == 10


def test_siblings_and_folders_are_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for prefix in ("", "topic."):
        train = write(folder / f"{prefix}train.jsonl", ROWS)
        write(folder / f"{prefix}dev.jsonl", ROWS[:3])
        write(folder / f"{prefix}test.jsonl", ROWS[:5])
        task = load_dataset_task(train)
        assert task.name == ("topic" if prefix else "data")
        assert [len(task.examples(split)) for split in SPLITS] == [40, 3, 5]
    task = load_dataset_task(str(folder))
    assert [len(task.examples(split)) for split in SPLITS] == [40, 3, 5]
    (folder / "test.jsonl").unlink()
    assert [len(load_dataset_task(str(folder)).examples(split)) for split in SPLITS] == [36, 3, 4]
    assert len(load_dataset_task(str(folder / "topic.dev.jsonl"), validation_fraction=0.3).examples("test")) == 1


def test_csv_tsv_json_and_parquet_give_the_same_task(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    expected = load_dataset_task(write(tmp_path / "a.jsonl", ROWS)).examples("train")
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        lines = [mark.join(("text", "label")), *(mark.join(row.values()) for row in ROWS)]
        (tmp_path / f"a.{suffix}").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for suffix in ("csv", "tsv", "json", "parquet"):
        assert load_dataset_task(str(tmp_path / f"a.{suffix}")).examples("train") == expected


def test_labels_by_index_by_name_and_by_mapping(tmp_path: Path) -> None:
    numbered = [{"text": str(number % 3), "label": number % 3} for number in range(30)]
    path = write(tmp_path / "a.jsonl", numbered)
    assert load_dataset_task(path).examples("train")[0].candidates == (" 0", " 1", " 2")
    named = load_dataset_task(path, labels=["bad", "fair", "\tgood"]).examples("train")
    assert all(
        example == Example(example.prompt, (" bad", " fair", "\tgood"), int(example.prompt)) for example in named
    )
    merged = load_dataset_task(path, labels={"0": "bad", "1": "bad", "2": "good"}).examples("train")
    assert {(example.prompt, example.label) for example in merged} == {("0", 0), ("1", 0), ("2", 1)}
    assert merged[0].candidates == (" bad", " good")


def test_choice_from_a_candidates_column(tmp_path: Path) -> None:
    rows = [{"prompt": "The sky is", "candidates": ["blue", "red"], "label": label} for label in (1, "blue", "1")]
    path = write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    task = load_dataset_task(path)
    assert task.kind == "choice"
    assert [example.label for example in task.examples("test")] == [1, 0, 1]
    assert task.examples("test")[0].candidates == (" blue", " red")
    rows[1]["label"] = "green"
    write(tmp_path / "test.jsonl", rows)
    assert "test.jsonl, row 2: unknown label 'green'" in refused(path)


def test_prompt_and_completion_end_in_a_line_break(tmp_path: Path) -> None:
    rows = [{"question": f"Q{number}? ", "answer": "yes \n", "all": ["yes", "y"]} for number in range(20)]
    task = load_dataset_task(
        write(tmp_path / "a.jsonl", rows), columns={"prompt": "question", "completion": "answer", "references": "all"}
    )
    assert (task.kind, task.metric) == ("completion", "exact_match")
    example = task.examples("train")[0]
    assert (example.candidates, example.references) == ((" yes\n",), ("yes", "y"))
    assert not example.prompt.endswith(" ")
    lm = LMTask(task, tiny_tokenizer())
    assert set(lm.evaluate(tiny_model("llama"))) == {"loss", "exact_match"}


def test_a_dataset_task_runs(tmp_path: Path) -> None:
    lm = LMTask(load_dataset_task(write(tmp_path / "a.jsonl", ROWS)), tiny_tokenizer())
    batch = next(lm.train_batches(4, seed=0))
    assert batch["targets"].shape[:2] == (4, 2)
    assert float(lm.loss(tiny_model("gpt2"), batch).detach()) > 0


def test_errors_name_the_row(tmp_path: Path) -> None:
    def rows_with(**changed: Any) -> str:
        return write(tmp_path / "a.jsonl", [*ROWS[:6], {**ROWS[6], **changed}, *ROWS[7:]])

    assert "a.jsonl, row 7: no label" in refused(rows_with(label=None))
    assert "a.jsonl, row 7: no label" in refused(rows_with(label=" "))
    assert "a.jsonl, row 7: no text" in refused(rows_with(text=None))
    assert "row 7: unknown label 'toll'; did you mean tool?" in refused(
        rows_with(label="toll"), labels=["game", "tool"]
    )
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text() + "\n{broken\n")
    assert "a.jsonl, row 42: not valid JSON" in refused(str(path))
    path.write_text('["text", "label"]\n')
    assert "a.jsonl, row 1: not an object" in refused(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(str(path))
    (tmp_path / "a.csv").write_text("text,label\none,game\ntwo,with,tool\n")
    assert "a.csv, row 3: more fields than columns" in refused(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("text,label\none,game\ntwo\n")
    assert "a.csv, row 3: no label" in refused(str(tmp_path / "a.csv"))
    (tmp_path / "a.parquet").write_text("nothing of the kind")
    assert "a.parquet cannot be read" in refused(str(tmp_path / "a.parquet"))


def test_errors_of_columns_and_templates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    assert "unknown column 'txt'; did you mean text?" in refused(path, template="{txt}:")
    assert "expected '}'" in refused(path, template="{text")
    assert "a format after 'text'" in refused(path, template="{text!r}")
    assert "no 'section' and no 'completion' column (there are: 'text', 'label')" in refused(
        path, columns={"label": "section"}
    )
    assert "no 'prompt' and no 'body' column" in refused(path, columns={"text": "body"})
    assert "unknown use of a column 'labels'" in refused(path, columns={"labels": "label"})
    assert "only one label" in refused(write(tmp_path / "b.jsonl", ROWS[::2]))
    assert "300 different labels" in refused(
        write(tmp_path / "b.jsonl", [{"text": "x", "label": f"free text {number}"} for number in range(300)])
    )
    completions = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}] * 9)
    assert "the data is a completion" in refused(completions, labels=["a", "b"])


def test_errors_of_files_and_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "x.train.jsonl", ROWS)
    write(tmp_path / "x.test.jsonl", [])
    assert "the test split is empty" in refused(path)
    assert "too few" in refused(write(tmp_path / "y.jsonl", ROWS[:2]))
    assert "validation fraction" in refused(path, validation_fraction=0.6)
    assert "has no train file" in refused(str(tmp_path))
    (tmp_path / "a.txt").touch()
    assert "unknown kind of file" in refused(str(tmp_path / "a.txt"))
    for missing in (str(tmp_path / "no.jsonl"), "no.jsonl", "folder/no.csv", "./user/name", "bare-name"):
        assert "there is no file or folder" in refused(missing, error=ArtifactError)
    assert UsageError.exit_code == 2
    assert ArtifactError.exit_code == 3


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["game", "tool"])}
    )
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(40)]
    hidden = [{"text": "x", "label": -1}] * 3
    asked: list[Any] = []

    def load(repo: str, config: str | None, revision: str | None) -> Any:
        asked.append((repo, config, revision))
        parts = {"train": rows, "validation": rows[:8], "test": hidden}
        return {split: datasets.Dataset.from_list(part, features=features) for split, part in parts.items()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = load_dataset_task("user/packages:small@v1")
    assert asked == [("user/packages", "small", "v1")]
    assert task.name == "packages"
    assert task.examples("train")[0].candidates == (" game", " tool")
    # The labels of the test split are hidden, so a test split is drawn.
    assert len(task.examples("test")) == 4

    def offline(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert "the Hub cannot be reached" in refused("user/packages", error=ArtifactError)

    def without_config(*args: Any, **options: Any) -> None:
        raise ValueError("Config name is missing. Please pick one: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", without_config)
    assert "user/packages:NAME" in refused("user/packages")
