"""Adapters, subsets of the parameters, and quantised bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from finetune import finetune
from meta_train import MetaTrainConfig, meta_train
from tests.test_finetune import QUIET, tiny_loaded, weights, write_reviews
from tests.test_meta_language_models import Colours
from tests.tiny import CAUSAL_FAMILIES, save_tiny, tiny_model
from zoft.adapters import TrainableConfig, is_adapted, prepare, quantised, select, virtual_tokens
from zoft.blocks import Blocks
from zoft.errors import ArtifactError, IncompatibleError, UsageError
from zoft.models import load_model, save_model
from zoft.optimizers import OPTIMIZERS
from zoft.tasks.lm import LMTask
from zoft.tuner import Tuner

KINDS = ("lora", "ia3", "prefix", "prompt")


def adapted(kind: str, family: str = "llama", seed: int = 0, **settings: Any) -> Any:
    return prepare(tiny_loaded(family), TrainableConfig(peft=kind, **settings), seed)


def frozen(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [*CAUSAL_FAMILIES, "roberta"])
def test_only_the_adapter_is_trainable_and_padding_plays_no_part(family: str, kind: str) -> None:
    if family == "roberta" and kind in ("prefix", "prompt"):
        with pytest.raises(UsageError, match="PEFT has none for masked"):
            adapted(kind, family)
        return
    loaded = adapted(kind, family)
    marks = {"lora": "lora_", "ia3": "ia3_l"}
    assert all(marks.get(kind, "prompt_encoder") in name for name in Blocks.of(loaded.model).names)
    assert not any(name.startswith("base_model") for name in Blocks.of(loaded.model).names)
    assert virtual_tokens(loaded.model) == (5 if kind in ("prefix", "prompt") else 0)
    task = LMTask(Colours(), loaded.tokenizer, loaded.kind)
    examples = task.dataset("test")[8:12]  # rows of two lengths
    assert len({example.length for example in examples}) == 2
    with torch.inference_mode():
        together = float(task.loss(loaded.model, task.collate(examples)))
        alone = [float(task.loss(loaded.model, task.collate([example]))) for example in examples]
    assert together == pytest.approx(sum(alone) / len(alone), abs=1e-5)


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_a_prefix_begins_as_real_tokens_in_front(family: str) -> None:
    loaded = adapted("prefix", family, seed=3)
    base, ids = loaded.model.get_base_model(), torch.tensor([[40, 41, 42]])
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    # The generator's first draws, as the adapter made them: its random initial values, then the tokens.
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.nn.Embedding(*loaded.model.prompt_encoder["default"].embedding.weight.shape)
        usable = torch.tensor([i for i in range(len(loaded.tokenizer)) if i not in loaded.tokenizer.all_special_ids])
        chosen = usable[torch.randint(len(usable), (5,))]
    with torch.inference_mode():
        expected = base(input_ids=torch.cat([chosen[None], ids], 1)).logits[:, 5:]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_is_a_function_of_the_seed_and_leaves_the_generators_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (weights(adapted("lora", seed=seed).model) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", sorted(OPTIMIZERS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_trains_every_adapter_and_saves_it_as_peft_does(kind: str, method: str, tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    loaded = prepare(load_model(str(base)), TrainableConfig(peft=kind))
    before, start = frozen(loaded.model), weights(loaded.model)
    assert before
    tuner = Tuner.untrained(loaded.model) if method == "zo-finetuner" else None
    result = finetune(
        model=loaded,
        dataset=str(write_reviews(tmp_path)),
        optimizer=method,
        tuner=tuner,
        hyper={"lr": 1e-2},
        steps=2,
        batch_size=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert all(torch.equal(value, before[name]) for name, value in frozen(loaded.model).items())
    trained = weights(loaded.model)
    assert any(not torch.equal(value, start[name]) for name, value in trained.items() if name not in before)
    final = tmp_path / "run" / "final"
    files = {file.name for file in final.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert not any(name.startswith("model") or name.endswith((".bin", ".pt")) for name in files)
    assert json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert result.parameters == sum(p.numel() for name, p in trained.items() if name not in before)
    again = load_model(str(final))
    with torch.random.fork_rng():
        theirs = PeftModel.from_pretrained(tiny_model("llama"), str(final)).eval()
    ids = {"input_ids": torch.tensor([[40, 41, 42]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.inference_mode():
        expected = loaded.model(**ids).logits
        assert torch.equal(again.model(**ids).logits, expected)
        assert torch.equal(theirs(**ids).logits, expected)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_run_on_an_adapter_resumes_bit_for_bit(kind: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "dataset": str(write_reviews(tmp_path)),
        "optimizer": "mezo",
        "hyper": {"lr": 1e-2},
        "peft": kind,
        "steps": 4,
        "batch_size": 2,
        **{**QUIET, "save_every": 2},
    }
    straight = finetune(model=tiny_loaded(), output_dir=str(tmp_path / "straight"), **common)
    with pytest.raises(KeyboardInterrupt):
        broken = {**common, "reporters": [_Stop(3)]}
        finetune(model=tiny_loaded(), output_dir=str(tmp_path / "broken"), **broken)
    checkpoint = tmp_path / "broken" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not list(checkpoint.glob("*.bin")) + list(checkpoint.glob("*.pt"))
    result = finetune(model=tiny_loaded(), resume=True, output_dir=str(tmp_path / "broken"), **common)
    assert straight.model is not None
    assert result.model is not None
    expected = weights(straight.model.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(result.model.model).items())


class _Stop:
    """A reporter that breaks the run off at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if step >= self.step and "train/loss" in values:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_a_tuner_is_learned_on_an_adapter_and_fits_that_alone() -> None:
    loaded = adapted("lora")
    task = LMTask(Colours(), loaded.tokenizer)
    settings = {"steps": 2, "batch_size": 4, "lookahead_lr": 1e-2, "lookahead_steps": 2, "network": {"hidden": 4}}
    before = weights(loaded.model)
    tuner = meta_train(loaded.model, [task], MetaTrainConfig.build(settings))
    assert all(torch.equal(value, before[name]) for name, value in weights(loaded.model).items())
    assert tuner.config.blocks.names == Blocks.of(loaded.model).names
    assert any("lora_A" in name for name in tuner.config.blocks.names)
    assert len(tuner.bind(adapted("lora", seed=9).model).network.hidden.weight) == len(tuner.config.blocks.names)
    with pytest.raises(IncompatibleError) as caught:
        tuner.bind(tiny_loaded().model)
    assert "give the same --peft options" in caught.value.remedy
    with pytest.raises(IncompatibleError) as caught:
        Tuner.untrained(tiny_loaded().model).bind(loaded.model)
    assert "meta-train a tuner with the same --peft options" in caught.value.remedy


def test_what_an_adapter_folder_may_lack(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    loaded = prepare(load_model(str(base)), TrainableConfig(peft="lora"))
    folder = save_model(loaded, tmp_path / "adapter")
    assert is_adapted(load_model(str(folder)).model)
    file = folder / "adapter_model.safetensors"
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(ArtifactError, match="pickles are never read"):
        load_model(str(folder))
    (folder / "adapter_model.bin").rename(file)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ArtifactError, match="names no base model"):
        load_model(str(folder))
    other = save_tiny("opt", tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(IncompatibleError, match="does not fit"):
        load_model(str(folder))


def test_modules_that_the_model_does_not_have() -> None:
    with pytest.raises(UsageError, match="cannot have a lora adapter") as caught:
        adapted("lora", peft_targets=["no_such_projection"])
    assert "--peft-targets" in caught.value.remedy
    assert [n for n in Blocks.of(adapted("lora", peft_targets=["up_proj"]).model).names if "up_proj" not in n] == []


def test_patterns_choose_what_is_trained() -> None:
    model = tiny_model("llama")
    names = select(model, ["layers.*.mlp"])
    assert len(names) == 6
    assert all(".mlp." in name for name in names)
    assert Blocks.of(model).names == names
    assert select(tiny_model("llama"), ["layers.1"]) == [n for n in Blocks.of(tiny_model("llama")).names if ".1." in n]
    assert select(tiny_model("llama"), ["layers.**.weight"])[0] == "model.layers.0.self_attn.q_proj.weight"
    assert select(tiny_model("llama"), ["*_proj", "norm"])[-1] == "model.norm.weight"
    # A tied tensor answers to both of its names.
    assert select(tiny_model("llama", tied=True), ["lm_head"]) == ["model.embed_tokens.weight"]
    with pytest.raises(UsageError, match=r"matches 'layer\.\*\.mlp'; did you mean layers\.\*\.mlp"):
        select(tiny_model("llama"), ["norm", "layer.*.mlp"])
    lora = adapted("lora", train_only=["lora_B"])
    assert all("lora_B" in name for name in Blocks.of(lora.model).names)


def test_a_subset_alone_moves(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    before = weights(loaded.model)
    finetune(
        model=loaded,
        dataset=str(write_reviews(tmp_path)),
        optimizer="mezo",
        hyper={"lr": 1e-2},
        train_only=["layers.*.mlp"],
        steps=2,
        batch_size=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    moved = [name for name, value in weights(loaded.model).items() if not torch.equal(value, before[name])]
    assert len(moved) == 6
    assert all(".mlp." in name for name in moved)
    # The whole model is saved.
    assert load_model(str(tmp_path / "run" / "final")).model.num_parameters() == loaded.model.num_parameters()


class StandIn(torch.nn.Module):
    """Stands in for a quantised layer: int8 weights and a scale, as such libraries keep them."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().max() / 127
        whole = (linear.weight / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def quantised_stand_in() -> Any:
    loaded = tiny_loaded()
    for layer in loaded.model.model.layers:
        layer.mlp.up_proj = StandIn(layer.mlp.up_proj)
    return loaded


def test_a_quantised_base_takes_adapters_only(tmp_path: Path) -> None:
    loaded = quantised_stand_in()
    assert quantised(loaded.model) == "model.layers.0.mlp.up_proj.weight holds int8"
    with pytest.raises(UsageError, match=r"is quantised \(model\..*\.weight holds int8\)") as caught:
        prepare(loaded, TrainableConfig())
    assert "--peft lora" in caught.value.remedy
    result = finetune(
        model=loaded,
        dataset=str(write_reviews(tmp_path)),
        optimizer="mezo",
        peft="lora",
        hyper={"lr": 1e-2},
        steps=2,
        batch_size=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert result.steps == 2
    assert result.model is not None
    assert all("lora_" in name for name in Blocks.of(result.model.model).names)


def test_a_quantisation_is_found_by_configuration_and_by_class() -> None:
    model = tiny_model("llama")
    assert quantised(model) is None
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert quantised(model) == "bitsandbytes"
    model = tiny_model("llama")
    kind = type("Linear4bit", (torch.nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    with torch.random.fork_rng():
        model.model.layers[0].mlp.up_proj = kind(16, 32)
    assert quantised(model) == "model.layers.0.mlp.up_proj is a Linear4bit of bitsandbytes"
