"""The library examples run: a plain MLP, and an encoder with a fixed output layer that is no LM head."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
from pathlib import Path

import torch
from transformers import RobertaModel

from tests.tiny import tiny_config, tiny_tokenizer

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_two_short_examples():
    files = {file.stem: len(file.read_text().splitlines()) for file in FOLDER.glob("*.py")}
    assert {"mlp", "encoder"} <= set(files)
    assert all(lines < 100 for name, lines in files.items() if name in ("mlp", "encoder"))


def test_mlp(capsys):
    results = load("mlp").main(steps=60, rate_seeds=0)
    before, *mezo, tuner = results.values()
    finite = [loss for loss in mezo if math.isfinite(loss)]
    assert min(finite) < before
    assert tuner < min(before / 4, max(finite))
    assert "tuner, lr 1: loss" in capsys.readouterr().out


def test_encoder(tmp_path, capsys):
    folder, data = tmp_path / "encoder", tmp_path / "texts.jsonl"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        RobertaModel(tiny_config("roberta")).save_pretrained(folder)
    tiny_tokenizer("masked").save_pretrained(folder)
    words = {" good": ("it was great", "it was good"), " bad": ("it was terrible", "the bad red")}
    rows = [
        {"text": f"{text} {k}", "label": label} for k in range(24) for label, pair in words.items() for text in pair
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    result = load("encoder").main(str(folder), str(data), meta_steps=3, steps=20)
    assert set(result) == {"loss", "accuracy"}
    shown = capsys.readouterr().out
    before = ast.literal_eval(shown.split("zero-shot: ")[1].splitlines()[0])
    assert result["loss"] < before["loss"]
