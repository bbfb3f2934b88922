"""Families of models beyond those that every other test runs: each through meta-training, fine-tuning, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from finetune import finetune
from finetune.evaluate import EvaluateConfig, evaluate
from meta_train import MetaTrainConfig, meta_train
from tests.test_finetune import QUIET, tiny_loaded, weights, write_reviews
from tests.test_meta_language_models import Colours
from tests.tiny import FAMILIES, MASKED_FAMILIES, MORE_CAUSAL_FAMILIES, MORE_FAMILIES, save_tiny, tiny_model
from zoft.adapters import TrainableConfig, prepare
from zoft.blocks import Blocks
from zoft.models import context_length, load_model
from zoft.perturb import Perturber, displaced
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.lm import LMTask


def test_the_families() -> None:
    assert len({*FAMILIES, *MORE_FAMILIES}) == 12
    assert set(MASKED_FAMILIES) < {*FAMILIES, *MORE_FAMILIES}


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_every_parameter_is_perturbed_where_it_is_used(family: str) -> None:
    """The same loss as when θ + shift is put into the model at once, for models that scale, tie and normalise."""
    loaded = tiny_loaded(family)
    task = LMTask(Colours(), loaded.tokenizer, loaded.kind)
    batch = next(task.train_batches(4, seed=0))
    blocks = Blocks.of(loaded.model)
    shifts = {
        block.name: 0.05 * torch.randn(block.numel, generator=torch.Generator().manual_seed(i))
        for i, block in enumerate(blocks)
    }

    def shift(span: Any) -> torch.Tensor:
        return shifts[span.block.name][span.start : span.stop].clone()

    def objective() -> float:
        with torch.inference_mode():
            return float(task.loss(loaded.model, batch))

    at_once: float
    with displaced(blocks, shift):
        at_once = objective()
    assert Perturber(loaded.model, blocks).evaluate(shift, objective) == at_once
    assert at_once != objective()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_from_a_folder_to_a_folder(family: str, tied: bool, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base", tied)
    loaded = load_model(str(base))
    assert loaded.kind == ("masked" if family in MASKED_FAMILIES else "causal")
    assert context_length(loaded.model) == 128
    data = str(write_reviews(tmp_path))
    template = "{text} it was"
    common: dict[str, Any] = {
        "dataset": data, "template": template, "optimizer": "mezo", "hyper": {"lr": 1e-3}, "steps": 2, "batch_size": 4,
    }  # fmt: skip
    result = finetune(model=str(base), output_dir=str(tmp_path / "run"), **common, **QUIET)
    final = tmp_path / "run" / "final"
    auto = AutoModelForMaskedLM if loaded.kind == "masked" else AutoModelForCausalLM
    saved = auto.from_pretrained(final).eval()
    task = LMTask(load_dataset_task(data, template=template), loaded.tokenizer, loaded.kind)
    assert task.evaluate(saved, "test", 8) == result.final["test"]
    assert any(not torch.equal(value, weights(loaded.model)[name]) for name, value in weights(saved).items())
    config = {"model": str(final), "dataset": data, "template": template, "splits": ["test"], "limit": 8}
    figures = evaluate(EvaluateConfig.build(config))["test"]
    assert {name: figures[name] for name in ("loss", "accuracy")} == result.final["test"]
    assert "shots" in evaluate(EvaluateConfig.build({**config, "shots": 2}))["test"]


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_padding_and_batching_change_nothing(family: str) -> None:
    loaded = tiny_loaded(family)
    task = LMTask(Colours(), loaded.tokenizer, loaded.kind)
    examples = task.dataset("test")[8:12]
    assert len({example.length for example in examples}) == 2
    with torch.inference_mode():
        together = float(task.loss(loaded.model, task.collate(examples)))
        alone = [float(task.loss(loaded.model, task.collate([example]))) for example in examples]
    assert together == pytest.approx(sum(alone) / 4, abs=1e-5)


@pytest.mark.parametrize("peft", [None, "lora"])
@pytest.mark.parametrize("family", [*MORE_CAUSAL_FAMILIES, "phi", "gpt2", "opt"])
def test_a_tuner_is_learned_and_used(family: str, peft: Any, tmp_path: Path) -> None:
    loaded = prepare(tiny_loaded(family), TrainableConfig(peft=peft))
    before = weights(loaded.model)
    settings = {"steps": 2, "batch_size": 4, "lookahead_lr": 1e-3, "lookahead_steps": 2, "network": {"hidden": 4}}
    tuner = meta_train(loaded.model, [LMTask(Colours(), loaded.tokenizer)], MetaTrainConfig.build(settings))
    assert all(torch.equal(value, before[name]) for name, value in weights(loaded.model).items())
    assert tuner.config.blocks.names == Blocks.of(loaded.model).names
    result = finetune(
        model=loaded,
        tuner=tuner,
        dataset=str(write_reviews(tmp_path)),
        steps=1,
        batch_size=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert result.method["name"] == "zo-finetuner"
    assert any(not torch.equal(value, before[name]) for name, value in weights(loaded.model).items())


@pytest.mark.parametrize("family", MORE_CAUSAL_FAMILIES)
def test_generation_with_keys_of_earlier_tokens_is_that_without(family: str) -> None:
    from zoft.tasks.scoring import greedy

    model = tiny_model(family)
    ids = torch.arange(40, 60)[None]  # longer than a sliding window
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(20)[None]}
    with torch.inference_mode():
        cached = greedy(model, batch, 6, None)
        expected = ids
        for _ in range(6):
            expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], 1)
    assert cached == expected[:, 20:].tolist()
