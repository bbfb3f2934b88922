"""Objectives without a gradient: accuracy, F1, exact match and functions of one's own, with every method."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import FinetuneConfig, finetune
from finetune.plan import plan
from tests.models import bits, same_bits
from tests.test_finetune import QUIET, CountedTask, tiny_loaded, untrained, write_reviews
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import Key, get_noise
from zoft.objective import Objective
from zoft.optimizers import OPTIMIZERS, ZerothOrder, get_optimizer
from zoft.perturb import Perturber
from zoft.step import zo_step
from zoft.tasks.base import Example, TextTask
from zoft.tasks.lm import LMTask
from zoft.tasks.metrics import METRICS
from zoft.tasks.objectives import OBJECTIVES, MetricTask, with_objective


class Places(TextTask):
    """Where somebody is: an answer to be generated."""

    name = "places"
    role = "development"
    kind = "completion"
    metric = "exact_match"

    def examples(self, split: str) -> list[Example]:
        return [Example(f"no {k} it was", (" the red" if k % 2 else " great",), 0) for k in range(12)]


def places() -> tuple[Any, LMTask]:
    loaded = tiny_loaded()
    return loaded, LMTask(Places(), loaded.tokenizer, max_length=128)


def test_the_names() -> None:
    assert ("loss", *METRICS) == OBJECTIVES
    assert {"accuracy", "f1", "exact_match"} <= set(OBJECTIVES)


def test_generation_draws_the_noise_once_for_an_evaluation() -> None:
    loaded, task = places()
    work = with_objective(task, "f1")
    assert isinstance(work, MetricTask)
    assert work.held
    blocks = Blocks.of(loaded.model)
    perturber, before = Perturber(loaded.model, blocks), bits(loaded.model)
    made: Counter[str] = Counter()
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    def shift(span: Any) -> torch.Tensor:
        made[span.block.name] += 1
        return torch.full((len(span),), 1e-3)

    handle = loaded.model.register_forward_pre_hook(count)
    batch = next(work.train_batches(4, seed=0))
    objective = Objective(loaded.model, work.loss, [batch], held=True)
    held = perturber.evaluate(shift, objective)
    assert objective.calls == 1
    assert forwards > 2  # a token each
    assert made == dict.fromkeys(blocks.names, 1)
    made.clear()
    # Without holding, the noise is made for every forward, and the value is the same.
    assert perturber.evaluate(shift, Objective(loaded.model, work.loss, [batch])) == held
    assert max(made.values()) > 2
    handle.remove()
    assert same_bits(loaded.model, before)


def test_a_held_evaluation_leaves_the_bits_when_it_is_broken_off() -> None:
    loaded, _ = places()
    perturber, before = Perturber(loaded.model, Blocks.of(loaded.model)), bits(loaded.model)

    def broken(model: Any, batch: Any) -> float:
        assert not same_bits(loaded.model, before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perturber.evaluate(lambda span: torch.ones(len(span)), Objective(loaded.model, broken, [0], held=True))
    assert same_bits(loaded.model, before)

    def nested(model: Any, batch: Any) -> float:
        return perturber.evaluate(lambda span: torch.ones(len(span)), lambda: 0.0)

    with pytest.raises(RuntimeError, match="nested"):
        perturber.evaluate(lambda span: torch.ones(len(span)), Objective(loaded.model, nested, [0], held=True))


@pytest.mark.parametrize("objective", ["accuracy", "f1", "exact_match"])
@pytest.mark.parametrize("kind", ["completion", "classification"])
def test_the_value_is_one_minus_the_metric_of_the_answers(kind: str, objective: str, tmp_path: Path) -> None:
    from zoft.tasks.dataset import load_dataset_task

    loaded, task = places()
    if kind == "classification":
        task = LMTask(load_dataset_task(str(write_reviews(tmp_path))), loaded.tokenizer, max_length=128)
    work = with_objective(task, objective)
    batch = next(work.train_batches(6, seed=1))
    value = float(work.loss(loaded.model, batch))
    answers, accepted = task.predict(loaded.model, batch), task.accepted(batch)
    assert value == 1 - METRICS[objective](answers, accepted)
    assert objective in work.evaluate(loaded.model, "validation")


#: All but those whose default takes exact derivatives of the loss.
BY_DIFFERENCES = sorted(
    name for name in OPTIMIZERS if OPTIMIZERS[name].model_fields["estimator"].default != "derivative"
)


def test_a_derivative_of_a_metric_is_refused() -> None:
    assert set(OPTIMIZERS) - set(BY_DIFFERENCES) == {"forward-grad"}
    loaded, _ = places()
    for optimizer, hyper in (("forward-grad", {}), ("mezo", {"estimator": "derivative"})):
        values = {"optimizer": optimizer, "hyper": hyper, "objective": "f1", "task": "question-colour"}
        with pytest.raises(UsageError, match=f"{optimizer} needs a gradient, and f1 has none"):
            plan(FinetuneConfig.build(values), model=loaded)


@pytest.mark.parametrize("kind", ["completion", "classification"])
def test_a_metric_has_no_derivative_however_a_step_comes_to_it(kind: str, tmp_path: Path) -> None:
    """Below the configuration, as from a Trainer or a loop of one's own: never a derivative of 0."""
    from zoft.tasks.dataset import load_dataset_task

    loaded, task = places()
    if kind == "classification":
        task = LMTask(load_dataset_task(str(write_reviews(tmp_path))), loaded.tokenizer, max_length=128)
    work = with_objective(task, "f1")
    before = bits(loaded.model)
    objective = Objective(loaded.model, work.loss, [next(work.train_batches(2, seed=1))])
    with pytest.raises(UsageError, match="the loss has no derivative with respect to what is trained: it is a metric"):
        ZerothOrder(loaded.model, "forward-grad", lr=1e-2).step_on(objective)
    assert same_bits(loaded.model, before)


@pytest.mark.parametrize("method", BY_DIFFERENCES)
def test_every_method_takes_a_step_on_f1(method: str) -> None:
    loaded, task = places()
    work = with_objective(task, lambda predictions, references: float(len(predictions[0]) % 7) / 7)
    blocks = Blocks.of(loaded.model)
    tuner = untrained(loaded).bind(loaded.model, 4) if method == "zo-finetuner" else None
    chosen = get_optimizer(method, lr=1e-2, epsilon=1e-1, tuner=tuner)
    state, before = chosen.init(blocks), bits(loaded.model)
    results = []
    for step, batch in zip(range(6), work.train_batches(1, seed=0), strict=False):
        objective = Objective(loaded.model, work.loss, [batch], held=True)
        results.append(
            zo_step(
                chosen,
                state,
                blocks,
                Perturber(loaded.model, blocks),
                objective,
                get_noise("gaussian-table"),
                Key(0, step),
                1e-2,
            )
        )
        assert results[-1].forwards == chosen.forwards
    assert any(result.projected_gradient != 0 for result in results)
    assert not same_bits(loaded.model, before)


class AlwaysBlue(TextTask):
    """The tiny model says red to all of these at first."""

    name = "always-blue"
    role = "development"
    kind = "classification"

    def examples(self, split: str) -> list[Example]:
        first = {"train": 0, "validation": 40, "test": 80}[split]
        return [Example(f"no {k} it was", (" red", " blue"), 1) for k in range(first, first + 40)]


def test_f1_is_learned_from_its_value_alone(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    result = finetune(
        model=loaded,
        task=LMTask(AlwaysBlue(), loaded.tokenizer, max_length=128),
        optimizer="mezo",
        objective="f1",
        hyper={"lr": 1e-2, "epsilon": 1e-1},
        steps=40,
        batch_size=20,
        output_dir=str(tmp_path / "run"),
        **{**QUIET, "eval_limit": 40},
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5
    assert result.zero_shot["test"]["f1"] == 0
    assert result.final["test"]["f1"] > 0.9
    assert not result.warnings


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[tuple[str, ...]]]] = []

    def first_letters(predictions: list[str], references: list[tuple[str, ...]]) -> float:
        seen.append((predictions, references))
        return sum(p[:1] == r[0][:1] for p, r in zip(predictions, references, strict=True)) / len(predictions)

    loaded, task = places()
    result = finetune(
        model=loaded,
        task=task,
        optimizer="mezo",
        objective=first_letters,
        steps=12,
        patience=3,
        batch_size=4,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    # Equal values at both sides, as most are here, are no lost steps.
    assert result.steps == 12
    assert "first_letters" in result.final["test"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]["objective"] == "first_letters"
    assert {len(predictions) for predictions, _ in seen} == {4, 8}


def test_what_cannot_be_an_objective(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown objective 'f2'; did you mean f1"):
        FinetuneConfig.build({"objective": "f2"})
    loaded, task = places()
    with pytest.raises(UsageError, match="no text task"):
        with_objective(CountedTask(), "f1")
    with pytest.raises(UsageError, match="takes 1 arguments"):
        with_objective(task, lambda predictions: 1.0)

    def failing(predictions: list[str], references: list[str]) -> float:
        raise ValueError("no such thing")

    with pytest.raises(UsageError, match="failing failed on a batch: no such thing"):
        work = with_objective(task, failing)
        work.loss(loaded.model, next(work.train_batches(2, seed=0)))
    config = FinetuneConfig.build({"optimizer": "adamw", "objective": "f1", "task": "question-colour"})
    with pytest.raises(UsageError, match="adamw needs a gradient, and f1 has none"):
        plan(config, model=loaded)
