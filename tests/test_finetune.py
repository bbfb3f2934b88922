"""Fine-tuning from end to end on tiny models: results, what is saved, and what is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from finetune import FinetuneConfig, finetune
from finetune.plan import plan
from tests.tiny import CAUSAL_FAMILIES, family_kind, family_tokenizer, save_tiny, tiny_model
from zoft.errors import DivergedError, IncompatibleError, UsageError
from zoft.models import LoadedModel
from zoft.optimizers import OPTIMIZERS
from zoft.tasks import tasks_with_role
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.lm import LMTask
from zoft.tuner import Tuner
from zoft.tuner.step_rule import StepRuleConfig

HELD_OUT = tasks_with_role("held-out")[0]

QUIET: dict[str, Any] = {"reporters": [], "eval_limit": 8, "save_every": 0, "eval_every": 0, "device": "cpu"}


def write_reviews(folder: Path, count: int = 24) -> Path:
    """A data set of two labels, each a single token of the tiny tokenizer."""
    file = folder / "reviews.jsonl"
    rows = [
        {"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "great" if i % 2 else "terrible"}
        for i in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def tiny_loaded(family: str = "llama", seed: int = 0) -> LoadedModel:
    """A tiny model in memory."""
    return LoadedModel(tiny_model(family, seed=seed), family_tokenizer(family), family_kind(family), f"tiny-{family}")


def untrained(loaded: LoadedModel, **recommended: Any) -> Tuner:
    """A tuner for ``loaded`` at its initial values, that recommends something."""
    tuner = Tuner.untrained(loaded.model, base_model_name_or_path=loaded.name)
    return tuner.recommending(**recommended)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class CountedTask:
    """A task in memory whose loss at every call is what a list says, or a simple function of the weights."""

    name = "counted"

    def __init__(self, losses: list[float] | None = None, evaluations: list[float] | None = None) -> None:
        self.losses, self.evaluations = list(losses or []), list(evaluations or [])
        self.seen: list[int] = []

    def train_batches(self, batch_size: int, seed: int) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def loss(self, model: torch.nn.Module, batch: int) -> Tensor:
        self.seen.append(batch)
        if self.losses:
            return torch.tensor(self.losses.pop(0))
        return torch.stack([p.float().square().mean() for p in model.parameters()]).mean()

    def evaluate(self, model: torch.nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        return {"loss": self.evaluations.pop(0) if self.evaluations else 1.0}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", [*CAUSAL_FAMILIES, "roberta"])
def test_from_a_folder_to_a_folder(family: str, tied: bool, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base", tied)
    data = write_reviews(tmp_path)
    result = finetune(
        model=str(base),
        dataset=str(data),
        template="{text} it was",
        optimizer="mezo",
        hyper={"lr": 1e-3},
        steps=3,
        batch_size=4,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    auto = AutoModelForMaskedLM if family == "roberta" else AutoModelForCausalLM
    saved = auto.from_pretrained(tmp_path / "run" / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    task = LMTask(
        load_dataset_task(str(data), template="{text} it was"), tokenizer, "masked" if family == "roberta" else "causal"
    )
    for split in ("validation", "test"):
        assert task.evaluate(saved, split, 8) == result.final[split]
    moved = weights(auto.from_pretrained(base))
    assert any(not torch.equal(value, moved[name]) for name, value in weights(saved).items())
    assert saved.config.use_cache == auto.from_pretrained(base).config.use_cache
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["final"] == result.final
    assert record["steps"] == 3
    assert record["forwards"] == 6
    assert record["method"]["lr"] == 1e-3


def test_objects_in_memory_and_names_take_one_path(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    data = write_reviews(tmp_path)
    common: dict[str, Any] = {"optimizer": "mezo", "steps": 2, "batch_size": 4, "hyper": {"lr": 1e-3}, **QUIET}
    by_name = finetune(model=str(base), dataset=str(data), output_dir=str(tmp_path / "a"), **common)
    loaded = tiny_loaded()
    task = LMTask(load_dataset_task(str(data)), loaded.tokenizer, max_length=128)
    in_memory = finetune(model=loaded, task=task, output_dir=str(tmp_path / "b"), **common)
    assert by_name.final == in_memory.final
    assert in_memory.model is loaded
    assert by_name.model is not None
    assert all(torch.equal(value, weights(loaded.model)[k]) for k, value in weights(by_name.model.model).items())


def test_a_config_file_and_settings_on_top(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"dataset: {write_reviews(tmp_path)}\noptimizer: hizoo\nsteps: 9\nhyper: {{lr: 1e-4}}\nbatch_size: 2\n"
    )
    result = finetune(file, model=tiny_loaded(), steps=1, output_dir=str(tmp_path / "run"), **QUIET)
    assert result.steps == 1
    assert result.method["name"] == "hizoo"
    assert result.method["lr"] == 1e-4
    saved = FinetuneConfig.build(json.loads((tmp_path / "run" / "run.json").read_text())["config"] | {"model": None})
    assert saved.hyper["epsilon"] == 1e-3


def test_the_tuner_brings_method_base_and_settings(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    folder = untrained(loaded, lr=2e-5, epsilon=2e-3, batch_size=4).save_pretrained(tmp_path / "tuner")
    planned = plan(FinetuneConfig.build({"tuner": str(folder), "task": HELD_OUT, "model": "zoft-base"}))
    assert planned.config.optimizer == "zo-finetuner"
    assert planned.config.hyper == {"lr": 2e-5, "epsilon": 2e-3}
    assert planned.config.batch_size == 4
    assert planned.describe()[0] == "lr 2e-05: recommended by the tuner"
    several = untrained(loaded, lr=2e-5, directions=3, estimator="one-sided")
    settings = {"task": HELD_OUT, "model": "zoft-base"}
    planned = plan(FinetuneConfig.build(settings), tuner=several)
    assert planned.config.hyper == {"lr": 2e-5, "epsilon": 1e-3, "directions": 3, "estimator": "one-sided"}
    assert "estimator one-sided: recommended by the tuner" in planned.describe()
    given = plan(FinetuneConfig.build({**settings, "hyper": {"directions": 5}}), tuner=several)
    assert (given.config.hyper["directions"], given.config.hyper["estimator"]) == (5, "one-sided")
    other = plan(FinetuneConfig.build({**settings, "optimizer": "hizoo"}), tuner=several)
    assert "directions" not in other.config.hyper  # another method's estimator is its own
    falling = several.recommending(schedule="linear")
    planned = plan(FinetuneConfig.build(settings), tuner=falling)
    assert planned.config.schedule == "linear"
    assert "schedule linear: recommended by the tuner" in planned.describe()
    assert plan(FinetuneConfig.build({**settings, "schedule": "constant"}), tuner=falling).config.schedule == "constant"
    assert plan(FinetuneConfig.build({**settings, "optimizer": "hizoo"}), tuner=falling).config.schedule == "constant"
    given = plan(
        FinetuneConfig.build({"tuner": str(folder), "task": HELD_OUT, "hyper": {"lr": "3e-5"}, "optimizer": "mezo"})
    )
    assert given.config.hyper["lr"] == 3e-5
    assert given.sources["lr"] == "as given"
    assert given.config.optimizer == "mezo"
    assert given.config.model == "tiny-llama"


def test_an_update_rule_of_its_own_keeps_its_learning_rate(tmp_path: Path) -> None:
    """A tuner's learning rate is for plain steps; its ε, and a schedule's length, go with every method."""
    folder = untrained(tiny_loaded(), lr=2e-5, epsilon=2e-3, batch_size=4).save_pretrained(tmp_path / "tuner")
    values = {"tuner": str(folder), "task": HELD_OUT, "model": "zoft-base", "steps": 70}
    schedule = {"epsilon_schedule": "linear", "epsilon_end": 1e-4}
    adam = plan(FinetuneConfig.build({**values, "optimizer": "zo-adam", "hyper": schedule}))
    assert adam.config.hyper == {"lr": 1e-6, "epsilon": 2e-3, "schedule_steps": 70, **schedule}
    assert adam.sources["lr"] == "the method's default"
    with pytest.raises(UsageError, match="hizoo cannot use the estimator one-sided: "):
        plan(FinetuneConfig.build({**values, "optimizer": "hizoo", "hyper": {"estimator": "one-sided"}}))
    with pytest.raises(UsageError, match=r"hizoo\+lozo cannot be composed: hizoo and lozo both shape"):
        FinetuneConfig.build({**values, "optimizer": "hizoo+lozo"})
    lozo = plan(FinetuneConfig.build({**values, "optimizer": "lozo"}))
    assert lozo.config.hyper == {"lr": 2e-5, "epsilon": 2e-3}


def test_a_rate_without_units_is_not_for_steps_that_measure_no_examples(tmp_path: Path) -> None:
    rule = StepRuleConfig(kind="gauss-newton", damping=1.0, decay=0.9)
    tuner = untrained(tiny_loaded(), lr=1.0)
    tuner = replace(tuner, config=tuner.config.model_copy(update={"step_rule": rule}))
    values = {"tuner": str(tuner.save_pretrained(tmp_path / "tuner")), "task": HELD_OUT, "model": "zoft-base"}
    for optimizer, hyper, lr in (
        ("mezo", {}, 1.0),
        ("mezo", {"estimator": "derivative"}, 1e-6),
        ("forward-grad", {}, 1e-6),
    ):
        made = plan(FinetuneConfig.build({**values, "optimizer": optimizer, "hyper": hyper}))
        assert made.config.hyper["lr"] == lr


@pytest.mark.parametrize("optimizer", ["zo-adam", "hizoo-l+zo-sgd-mmt", "lozo+fzoo", "forward-grad"])
def test_fine_tuning_with_a_tuner_and_another_method(tmp_path: Path, optimizer: str) -> None:
    loaded = tiny_loaded()
    before = [p.detach().clone() for p in loaded.model.parameters()]
    result = finetune(
        model=loaded,
        tuner=untrained(loaded, epsilon=1e-3, batch_size=4),
        optimizer=optimizer,
        hyper={"lr": 1e-7},
        dataset=str(write_reviews(tmp_path)),
        steps=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert result.method["name"] == optimizer
    assert result.forwards == 2 * OPTIMIZERS[optimizer]().forwards
    assert any(not torch.equal(p, kept) for p, kept in zip(loaded.model.parameters(), before, strict=True))


def test_fine_tuning_with_a_tuner(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    result = finetune(
        model=loaded,
        tuner=untrained(loaded, lr=1e-4, batch_size=4),
        dataset=str(write_reviews(tmp_path)),
        steps=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert result.method["name"] == "zo-finetuner"
    assert result.sources == dict.fromkeys(("lr", "epsilon", "batch_size"), "recommended by the tuner")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(run["inputs"]["tuner_sha256"]) == 64
    assert run["versions"]["torch"] == torch.__version__


def test_a_tuner_of_another_base(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"\d+ of \d+ blocks match; .*; .*; ") as caught:
        finetune(
            model=tiny_loaded("gpt2"),
            tuner=untrained(tiny_loaded("llama")),
            dataset=str(write_reviews(tmp_path)),
            output_dir=str(tmp_path / "run"),
            **QUIET,
        )
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        plan(FinetuneConfig())
    assert [word in caught.value.cause for word in ("method", "model", "task")] == [True] * 3
    with pytest.raises(UsageError, match="needs a tuner"):
        plan(FinetuneConfig.build({"optimizer": "zo-finetuner", "model": "zoft-base", "task": HELD_OUT}))
    with pytest.raises(UsageError, match="both a task and a data set"):
        plan(FinetuneConfig.build({"optimizer": "mezo", "model": "zoft-base", "task": HELD_OUT, "dataset": "x.jsonl"}))
    with pytest.raises(UsageError, match="template given without"):
        plan(FinetuneConfig.build({"optimizer": "mezo", "model": "zoft-base", "task": HELD_OUT, "template": "{text}"}))


def test_wrong_names_and_values_are_all_said_at_once() -> None:
    values = {
        "model": "zoft-bas",
        "task": HELD_OUT + HELD_OUT[-1],
        "optimizer": "mezoo",
        "noise": "gaussian",
        "stepz": 3,
        "steps": 0,
    }
    with pytest.raises(UsageError) as caught:
        FinetuneConfig.build(values)
    for hint in ("zoft-base", HELD_OUT, "mezo", "gaussian-table", "steps?", "greater than or equal to 1"):
        assert hint in caught.value.cause


def test_hyper_parameters_are_checked_by_the_method() -> None:
    with pytest.raises(UsageError, match="did you mean epsilon"):
        FinetuneConfig.build({"optimizer": "mezo", "hyper": {"epsilonn": 1}})
    with pytest.raises(UsageError, match="it is one of hizoo"):
        FinetuneConfig.build({"optimizer": "mezo", "hyper": {"smooth_scale": 1e-6}})
    with pytest.raises(UsageError, match=r"greater than or equal to 0.*greater than 0"):
        FinetuneConfig.build({"optimizer": "mezo", "hyper": {"lr": -1, "epsilon": 0}})
    with pytest.raises(UsageError, match="lr"):
        FinetuneConfig.build({"tuner": "./somewhere", "hyper": {"lr": "fast"}})
    assert FinetuneConfig.build({"optimizer": "mezo", "hyper": {"lr": "1e-4"}}).hyper == {"lr": 1e-4}


def test_a_step_without_finite_loss_is_skipped_and_recorded(tmp_path: Path) -> None:
    # The first step makes an audit forward besides its two.
    task = CountedTask([1.0, 1.0, 2.0, float("nan"), 1.0])
    loaded = tiny_loaded()
    result = finetune(
        model=loaded,
        task=task,
        optimizer="mezo",
        hyper={"lr": 1e-6},
        steps=4,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert result.skipped == 1
    assert "1 of 4 steps were skipped" in result.warnings[0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/skipped"] for line in lines] == [0, 1, 1, 1]
    assert lines[1]["train/loss"] is None


@pytest.mark.parametrize("losses", [[float("inf")] * 99, [1.0, 1.0, 1.1, *([50.0, 51.0] * 40)], [0.7] * 99])
def test_lost_steps_in_a_row_end_the_run_after_saving(losses: list[float], tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"learning rate 0\.001") as caught:
        finetune(
            model=tiny_loaded(),
            task=CountedTask(losses),
            optimizer="mezo",
            hyper={"lr": 1e-3},
            steps=30,
            patience=3,
            output_dir=str(tmp_path / "run"),
            **QUIET,
        )
    assert "0.0005" in caught.value.remedy
    assert caught.value.exit_code == 5
    saved = next((tmp_path / "run" / "checkpoints").iterdir())
    assert str(saved) in caught.value.cause
    AutoModelForCausalLM.from_pretrained(saved)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_that_ends_worse_than_zero_shot_warns(tmp_path: Path) -> None:
    result = finetune(
        model=tiny_loaded(),
        task=CountedTask(evaluations=[1.0, 1.0, 3.0, 3.0]),
        optimizer="mezo",
        steps=1,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    assert "worse than before" in result.warnings[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["warnings"] == result.warnings


def test_an_example_longer_than_the_context_is_named_before_any_step(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    rows = [{"text": "x " * (200 if i == 7 else 2), "label": "ab"[i % 2]} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="example"):
        finetune(model=tiny_loaded(), dataset=str(file), optimizer="mezo", output_dir=str(tmp_path / "run"), **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not divide into 3 parts"):
        finetune(
            model=tiny_loaded(),
            task=CountedTask(),
            optimizer="mezo",
            batch_size=8,
            accumulate=3,
            output_dir=str(tmp_path / "run"),
            **QUIET,
        )


def test_evaluation_and_tensorboard_are_written(tmp_path: Path) -> None:
    settings = {**QUIET, "eval_every": 2, "save_every": 2}
    finetune(
        model=tiny_loaded(),
        dataset=str(write_reviews(tmp_path)),
        optimizer="mezo",
        steps=4,
        batch_size=2,
        output_dir=str(tmp_path / "run"),
        **settings,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/loss" in line] == [2, 4]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert list((tmp_path / "run" / "tb").glob("events*"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
