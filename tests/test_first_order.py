"""First-order baselines: the same command and folder as every run, torch's own optimizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import FinetuneConfig, finetune
from finetune.first_order import FIRST_ORDER, METHODS
from finetune.plan import plan
from tests.test_adapters import _Stop
from tests.test_finetune import QUIET, CountedTask, tiny_loaded, untrained, weights, write_reviews
from tests.tiny import CAUSAL_FAMILIES
from zoft.errors import DivergedError, UsageError
from zoft.models import load_model
from zoft.optimizers import OPTIMIZERS
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.lm import LMTask


def settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"dataset": str(write_reviews(tmp_path)), "batch_size": 4, **QUIET, **more}


def test_the_table_and_its_names() -> None:
    assert sorted(FIRST_ORDER) == ["adamw", "sgd"]
    assert METHODS.keys() == {*OPTIMIZERS, *FIRST_ORDER}
    assert not FIRST_ORDER.keys() & OPTIMIZERS.keys()
    with pytest.raises(UsageError, match="unknown optimizer 'adamv'; did you mean adamw"):
        FinetuneConfig.build({"optimizer": "adamv"})
    with pytest.raises(UsageError, match="adamw has no hyper-parameter 'epsilon'"):
        FinetuneConfig.build({"optimizer": "adamw", "hyper": {"epsilon": 1e-3}})
    assert FinetuneConfig.build({"optimizer": "sgd", "hyper": {"clip": "none"}}).hyper == {"clip": None}
    config = FinetuneConfig.build({"optimizer": "adamw", "task": "mood"})
    loaded = tiny_loaded()
    with pytest.raises(UsageError, match="a tuner for adamw, which perturbs nothing"):
        plan(config, model=loaded, tuner=untrained(loaded))
    planned = plan(config, model=loaded)
    assert planned.config.hyper == {"lr": 1e-5}
    assert planned.config.batch_size == 16


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", sorted(FIRST_ORDER))
def test_it_is_torchs_own_loop(name: str, accumulate: int, tmp_path: Path) -> None:
    """Equal to a plain loop on the same batches, clipping included."""
    hyper: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "clip": 0.5}
    hyper |= {"momentum": 0.9} if name == "sgd" else {}
    result = finetune(
        model=tiny_loaded(),
        optimizer=name,
        hyper=hyper,
        steps=5,
        schedule="linear",
        accumulate=accumulate,
        output_dir=str(tmp_path / "run"),
        **settings(tmp_path),
    )
    assert result.model is not None
    assert not result.model.model.training
    assert (result.steps, result.forwards, result.skipped, result.audits) == (5, 5, 0, 0)
    assert result.method["name"] == name
    loaded = tiny_loaded()
    task = LMTask(load_dataset_task(str(tmp_path / "reviews.jsonl")), loaded.tokenizer, max_length=128)
    kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    own = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.999), "eps": 1e-8}
    optimizer = kind(loaded.model.parameters(), lr=1e-2, weight_decay=0.1, **own)
    batches = task.train_batches(4 // accumulate, seed=0)
    for step in range(5):
        optimizer.zero_grad()
        for _ in range(accumulate):
            (task.loss(loaded.model, next(batches)) / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(loaded.model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 5)
        optimizer.step()
    for key, value in weights(loaded.model).items():
        torch.testing.assert_close(weights(result.model.model)[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*CAUSAL_FAMILIES, "roberta"])
def test_every_family_learns(family: str, tmp_path: Path) -> None:
    result = finetune(
        model=tiny_loaded(family),
        optimizer="adamw",
        hyper={"lr": 1e-2},
        steps=20,
        output_dir=str(tmp_path / "run"),
        **settings(tmp_path),
    )
    assert result.final["test"]["loss"] < result.zero_shot["test"]["loss"]
    assert load_model(str(tmp_path / "run" / "final")).kind == ("masked" if family == "roberta" else "causal")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/forwards"] for line in lines if "train/loss" in line] == list(range(1, 21))


@pytest.mark.parametrize("peft", [None, "lora"])
def test_resumption_is_bit_for_bit_and_without_pickles(peft: str | None, tmp_path: Path) -> None:
    common = settings(tmp_path, optimizer="adamw", hyper={"lr": 1e-2}, steps=4, save_every=2, peft=peft)
    straight = finetune(model=tiny_loaded(), output_dir=str(tmp_path / "straight"), **common)
    with pytest.raises(KeyboardInterrupt):
        finetune(model=tiny_loaded(), output_dir=str(tmp_path / "broken"), **{**common, "reporters": [_Stop(3)]})
    checkpoint = tmp_path / "broken" / "checkpoints" / "checkpoint-2"
    assert {"optimizer.safetensors", "optimizer.json", "scheduler.json"} <= {file.name for file in checkpoint.iterdir()}
    assert not [file for file in checkpoint.iterdir() if file.suffix in (".pt", ".pth", ".bin", ".pkl")]
    resumed = finetune(model=tiny_loaded(), resume=True, output_dir=str(tmp_path / "broken"), **common)
    assert straight.model is not None
    assert resumed.model is not None
    expected = weights(straight.model.model)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed.model.model).items())
    assert resumed.forwards == 4


def test_divergence_is_told_and_float16_refused(tmp_path: Path) -> None:
    common = {"optimizer": "sgd", "batch_size": 2, **QUIET}

    class Exploding(CountedTask):
        def loss(self, model: torch.nn.Module, batch: int) -> torch.Tensor:
            return super().loss(model, batch) * next(model.parameters()).float().mean() * float("nan")

    with pytest.raises(DivergedError, match=r"diverged at learning rate 0\.5") as caught:
        finetune(
            model=tiny_loaded(), task=Exploding(), hyper={"lr": 0.5}, steps=9, patience=3,
            output_dir=str(tmp_path / "run"), **common,
        )  # fmt: skip
    assert "0.25" in caught.value.remedy
    half = tiny_loaded()
    half.model.half()
    with pytest.raises(UsageError, match="sgd on float16 weights"):
        finetune(model=half, task=CountedTask(), steps=1, output_dir=str(tmp_path / "half"), **common)
