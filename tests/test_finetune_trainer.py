"""The Trainer with a zeroth-order step: against the bare optimizer, resumed, and in two processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from finetune import ZOTrainer, ZOTrainerMixin, finetune
from finetune.run import _global_generators_kept
from finetune.state import generator_states, set_generator_states
from tests.test_finetune import QUIET, CountedTask, tiny_loaded, untrained, weights, write_reviews
from tests.tiny import tiny_model
from zoft import ZerothOrder, get_optimizer
from zoft.errors import Interrupted, UsageError
from zoft.models import LoadedModel
from zoft.objective import Objective
from zoft.runs.folder import claim
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.lm import LMTask
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.step_rule import StepRuleConfig


def rows(count: int = 12) -> list[dict[str, Tensor]]:
    """Examples for a language-modelling Trainer; the first half have a masked-out beginning."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(count):
        ids = torch.randint(5, 250, (6,), generator=generator)
        labels = ids.clone()
        labels[: 3 * (index % 2)] = -100
        examples.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return examples


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    """TrainingArguments that say nothing and go through the data in order."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(str(folder), **{**defaults, **values})


class Halved(Trainer):
    """Some Trainer subclass with a loss of its own."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        return model(**inputs).loss / 2


class ZOHalved(ZOTrainerMixin, Halved):
    """The mixin over it."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_training_step_is_the_optimizers_step(accumulate: int, tmp_path: Path) -> None:
    trained, expected = tiny_model("llama"), tiny_model("llama")
    method = get_optimizer("mezo", lr=1e-3)
    with _global_generators_kept():
        trainer = ZOTrainer(
            trained,
            arguments(tmp_path, gradient_accumulation_steps=accumulate),
            train_dataset=rows(16),
            zo_method=method,
        )
        trainer.train()
    optimizer = ZerothOrder(expected, method, seed=42)
    batches = [
        {name: torch.stack([row[name] for row in pair]) for name in pair[0]}
        for pair in zip(rows(16)[::2], rows(16)[1::2], strict=True)
    ]

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return model(**batch).loss

    for step in range(4):
        optimizer.step_on(Objective(expected, loss, batches[step * accumulate : (step + 1) * accumulate]))
    for name, value in weights(trained).items():
        torch.testing.assert_close(value, weights(expected)[name], rtol=0, atol=2e-7)
    assert any(not torch.equal(value, weights(tiny_model("llama"))[name]) for name, value in weights(trained).items())
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert isinstance(trainer._zeroth_order, ZerothOrder)
    assert trainer.forwards == 4 * 2


def test_a_step_size_head_by_examples_sees_them_where_the_trainer_knows_them(tmp_path: Path) -> None:
    """A Trainer's own loss is a mean over the batch; a subclass may give the losses of the examples."""

    def losses(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        tokens = torch.nn.functional.cross_entropy(
            model(batch["input_ids"]).logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
        )
        return tokens.view(len(batch["labels"]), -1).mean(1)

    for known in (True, False):
        model = tiny_model("llama")
        plain = Tuner.untrained(model, NetworkConfig(hidden=4))
        rule = StepRuleConfig(kind="gauss-newton", damping=1.0)
        tuner = Tuner(plain.config.model_copy(update={"step_rule": rule}), plain.network).bind(model)
        with _global_generators_kept():
            trainer = ZOTrainer(
                model,
                arguments(tmp_path, max_steps=1),
                train_dataset=rows(16),
                zo_method=get_optimizer("mezo", lr=0.1, tuner=tuner),
            )
            if known:
                trainer.zo_losses = losses
            trainer.train()
        assert trainer.last is not None
        assert [(len(p.curvature), p.by_batch) for p in trainer.last.probes] == [(1, not known)]


def test_the_mixin_takes_the_subclass_and_its_callbacks_and_schedule(tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    method = get_optimizer("mezo", lr=1e-6)
    with _global_generators_kept():
        args = arguments(tmp_path, lr_scheduler_type="linear")
        full = ZOTrainer(tiny_model("qwen2"), args, train_dataset=rows(), zo_method=method)
        half = ZOHalved(tiny_model("qwen2"), args, train_dataset=rows(), zo_method=method, callbacks=[Watch()])
        full.train()
        half.train()
    assert rates == pytest.approx([0.75e-6, 0.5e-6, 0.25e-6, 0.0])
    assert half.last is not None
    assert full.last is not None
    assert half.last.loss == pytest.approx(full.last.loss / 2, rel=1e-3)


def test_any_trainer_resumes_bit_for_bit_and_without_pickles(tmp_path: Path) -> None:
    method = get_optimizer("hizoo", lr=1e-4)
    values: dict[str, Any] = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "train_sampling_strategy": "random",
    }

    def trainer(folder: str, model: Any) -> ZOTrainer:
        return ZOTrainer(model, arguments(tmp_path / folder, **values), train_dataset=rows(10), zo_method=method)

    straight, resumed = tiny_model("opt"), tiny_model("opt")
    with _global_generators_kept():
        trainer("run", straight).train()
        trainer("other", resumed).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(straight).items())
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_a_trainers_parameter_groups_are_scheduled_and_resumed(tmp_path: Path) -> None:
    """The schedule scales every group's own rate; what is in no group stays; resuming keeps both."""
    method = get_optimizer("hizoo", lr=1e-3)
    values: dict[str, Any] = {"lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 2}
    rates: list[tuple[float, float]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            first, second = kwargs["optimizer"].param_groups
            rates.append((first["lr"], second["lr"]))

    def trainer(folder: str, model: Any) -> ZOTrainer:
        groups = [
            {"params": model.model.layers[0].parameters()},
            {"params": model.model.layers[1].parameters(), "lr": 1e-4, "weight_decay": 0.1},
        ]
        args = arguments(tmp_path / folder, **values)
        data = rows(16)
        return ZOTrainer(model, args, train_dataset=data, zo_method=method, zo_params=groups, callbacks=[Watch()])

    straight, resumed, before = tiny_model("llama"), tiny_model("llama"), weights(tiny_model("llama"))
    with _global_generators_kept():
        trainer("run", straight).train()
        trainer("other", resumed).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = [(1e-3 * left, 1e-4 * left) for left in (0.75, 0.5, 0.25, 0.0)]
    assert rates == [pytest.approx(pair) for pair in expected + expected[2:]]
    after = weights(straight)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in after.items())
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        name for name in after if ".layers." in name
    }


def test_a_gradient_scaler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no gradient to scale"), _global_generators_kept():
        args = arguments(tmp_path)
        args.fp16 = True
        ZOTrainer(tiny_model("llama"), args, train_dataset=rows(), zo_method=get_optimizer("mezo"))


class Interrupter:
    """A reporter that sends a signal after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.step and "train/loss" in values:
            signal.raise_signal(self.number)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("optimizer", "number", "code"),
    [("mezo", signal.SIGINT, 130), ("hizoo", signal.SIGTERM, 143), ("zo-finetuner", signal.SIGINT, 130)],
)
def test_stopped_at_ten_and_resumed_is_twenty_straight(optimizer: str, number: int, code: int, tmp_path: Path) -> None:
    data = write_reviews(tmp_path)

    def run(folder: str, **more: Any) -> Any:
        loaded = tiny_loaded()
        settings = {**QUIET, "eval_every": 5, **more}
        return finetune(
            model=loaded,
            tuner=untrained(loaded) if optimizer == "zo-finetuner" else None,
            optimizer=optimizer,
            hyper={"lr": 1e-3},
            dataset=str(data),
            steps=20,
            batch_size=3,
            schedule="cosine",
            output_dir=str(tmp_path / folder),
            **settings,
        )

    straight = run("straight")
    with pytest.raises(Interrupted, match="stopped after step 10") as caught:
        run("stopped", reporters=[Interrupter(9, number)])
    assert caught.value.exit_code == code
    with pytest.raises(UsageError, match="stopped at step 10") as offered:
        run("stopped")
    assert "--resume" in offered.value.remedy
    with pytest.raises(UsageError, match=r"another run: hyper.lr|another run: seed: 0 there, 1 here"):
        run("stopped", seed=1, resume=True)
    resumed = run("stopped", resume=True)
    for name, value in weights(straight.model.model).items():
        assert torch.equal(value, weights(resumed.model.model)[name])
    first, second = (tmp_path / name / "metrics.jsonl" for name in ("straight", "stopped"))
    assert first.read_text() == second.read_text()
    differing = {"folder", "seconds", "audits"}
    mine, other = straight.to_dict(), resumed.to_dict()
    assert {key for key in mine if mine[key] != other[key]} <= differing
    with pytest.raises(UsageError, match="finished"):
        run("stopped", resume=True)


def test_gradient_accumulation_and_batches_of_a_task(tmp_path: Path) -> None:
    task = CountedTask()
    finetune(
        model=tiny_loaded(),
        task=task,
        optimizer="mezo",
        hyper={"lr": 1e-6},
        steps=2,
        batch_size=8,
        accumulate=2,
        output_dir=str(tmp_path / "run"),
        **QUIET,
    )
    # Two forwards a step and audits, each over the two parts of the step's batch.
    pairs = list(zip(task.seen[::2], task.seen[1::2], strict=True))
    assert set(pairs) == {(0, 1), (2, 3)}
    assert pairs == sorted(pairs)
    assert min(pairs.count((0, 1)), pairs.count((2, 3))) >= 2


def test_generator_states_come_back() -> None:
    before = generator_states()
    with _global_generators_kept():
        torch.rand(3)
    after = generator_states()
    assert before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    set_generator_states(*before)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        claim(tmp_path, "finetune", {}, {})
    with pytest.raises(UsageError, match="is a file"):
        claim(tmp_path / "notes.txt", "finetune", {}, {})


def test_what_is_incidental_makes_no_other_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim(folder, "finetune", {"seed": 0, "device": "cpu", "output_dir": "a"}, {"model_revision": None})
    claim(folder, "finetune", {"seed": 0, "device": "cuda", "output_dir": "b"}, {"model_revision": None}, resume=True)
    with pytest.raises(UsageError, match="model_revision: None there, 'abc' here"):
        claim(folder, "finetune", {"seed": 0}, {"model_revision": "abc"}, resume=True)


def _rank(rank: int, port: int, folder: Path, data: Path) -> None:
    """One of two processes, forked: it joins the group as if started by torchrun, and leaves what it saw."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)
    loaded = tiny_loaded()
    task = LMTask(load_dataset_task(str(data)), loaded.tokenizer, max_length=128)
    seen: list[list[int]] = []
    original = task.loss

    def loss(model: Any, batch: Any) -> Tensor:
        seen.append(batch["input_ids"].flatten().tolist())
        return original(model, batch)

    task.loss = loss  # type: ignore[method-assign]
    run_mezo(loaded, task, folder / "run")
    save_file(
        {name: value.contiguous() for name, value in weights(loaded.model).items()}, folder / f"{rank}.safetensors"
    )
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def run_mezo(loaded: LoadedModel, task: LMTask, folder: Path) -> Any:
    """Three steps on batches of four."""
    hyper = {"lr": 1e-3}
    return finetune(
        model=loaded, task=task, optimizer="mezo", hyper=hyper, steps=3, batch_size=4, output_dir=str(folder), **QUIET
    )


def test_two_processes_share_the_batch_and_hold_the_same_weights(tmp_path: Path) -> None:
    data = write_reviews(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(rank, port, tmp_path, data)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert len(seen[0]) == len(seen[1])
    assert all(mine != other for mine, other in zip(*seen, strict=True))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 3
    # The two see in every step the examples that one process sees, so they end where it ends.
    alone = tiny_loaded()
    run_mezo(alone, LMTask(load_dataset_task(str(data)), alone.tokenizer, max_length=128), tmp_path / "alone")
    for name, value in weights(alone.model).items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=1e-5)
