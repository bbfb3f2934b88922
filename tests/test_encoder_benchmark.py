"""The benchmark on an encoder: a tuner is learned on one labelling and compared on another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import RobertaModel

from benchmarks import encoder
from tests.tiny import tiny_config, tiny_tokenizer
from zoft.tuner import Tuner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, and two labellings of the same texts."""
    made = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        RobertaModel(tiny_config("roberta")).save_pretrained(made / "model")
    tiny_tokenizer("masked").save_pretrained(made / "model")
    texts = [f"it was {word} {k}" for k in range(20) for word in ("great", "terrible")]
    for task, labels in (("good", ("good", "bad")), ("even", ("red", "blue"))):
        for split in ("train", "validation", "test"):
            rows = [
                {"text": text, "label": labels[at % 2 if task == "good" else at // 2 % 2]}
                for at, text in enumerate(texts)
            ]
            (made / f"{task}.{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return made


def test_a_tuner_of_one_labelling_is_compared_on_another(folder: Path, tmp_path: Path) -> None:
    common = ["--encoder", str(folder / "model"), "--data", str(folder)]
    encoder.main(["learn", *common, "--task", "even", "--output-dir", str(tmp_path / "tuner"), "--steps", "2"])
    assert Tuner.from_pretrained(f"{tmp_path}/tuner").provenance["tasks"] == ["even"]
    encoder.main(
        ["compare", *common, "--task", "good", "--tuner", f"{tmp_path}/tuner", "--output-dir", str(tmp_path / "out"),
         "--controls", "untrained", "--forwards", "20", "--seeds", "2", "--workers", "1"]
    )  # fmt: skip
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    cells = content["views"][0]["tasks"][0]["cells"]
    assert list(cells) == ["mezo", "untrained", "default"]
    assert [cell["interior"] for cell in cells.values()] == [True, None, None]
    assert [cells[label]["lr"] for label in ("untrained", "default")] == [1.0, 1.0]
    assert content["views"][0]["tasks"][0]["role"] == "development"


def test_its_task_is_its_files(folder: Path) -> None:
    model, tokenizer = encoder.encoder(str(folder / "model"))
    task = encoder.LabelledTexts("good", folder, model, tokenizer)
    batches, later = task.train_batches(16, 3), task.train_batches(16, 3, start=3)
    skipped = [next(batches) for _ in range(4)][-1]
    assert torch.equal(skipped["input_ids"], next(later)["input_ids"])
    some = task.evaluate(model, "test", 10)
    batch = task._batch(sorted(task._rows["test"][:10], key=lambda row: len(row["text"])))
    with torch.no_grad():
        assert some["loss"] == pytest.approx(float(task.loss(model, batch)), rel=1e-5)
        assert task.part_losses(model, batch).shape == (10,)
        assert float(task.part_losses(model, batch).mean()) == pytest.approx(float(task.loss(model, batch)))
    assert some["accuracy"] * 10 == pytest.approx(round(some["accuracy"] * 10))
