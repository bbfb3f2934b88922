"""TRL's SFTTrainer under the mixin, where TRL is installed: its own collation and loss, our step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from finetune import ZOTrainerMixin
from finetune.run import _global_generators_kept
from tests.test_finetune import weights
from tests.tiny import tiny_model, tiny_tokenizer
from zoft import ZerothOrder, get_optimizer
from zoft.objective import Objective

trl = pytest.importorskip("trl")


class ZOSFTTrainer(ZOTrainerMixin, trl.SFTTrainer):
    """TRL's supervised fine-tuning with forward passes alone."""


def trainer(folder: Path, model: Any, **values: Any) -> ZOSFTTrainer:
    """A trainer on 16 prompts and completions, in order."""
    rows = [{"prompt": f"was it {word}?", "completion": answer} for word in "ab" for answer in (" yes", " no")]
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
    }
    return ZOSFTTrainer(
        model=model,
        args=trl.SFTConfig(str(folder), **{**defaults, **values}),
        train_dataset=Dataset.from_list(rows * 4),
        processing_class=tiny_tokenizer(),
        zo_method=get_optimizer("mezo", lr=1e-3),
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_step_is_on_trls_batches_and_loss(tmp_path: Path) -> None:
    trained, expected = tiny_model("llama"), tiny_model("llama")
    with _global_generators_kept():
        made = trainer(tmp_path, trained)
        batches = [dict(batch) for batch in made.get_train_dataloader()]
        made.train()
    optimizer = ZerothOrder(expected, get_optimizer("mezo", lr=1e-3), seed=42)
    wanted = ("input_ids", "attention_mask", "labels")

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return model(**{name: batch[name] for name in wanted if name in batch}).loss

    losses = [optimizer.step_on(Objective(expected, loss, [batch])).loss for batch in batches]
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-5)
    assert made.forwards == 8
    assert all(parameter.grad is None for parameter in trained.parameters())
    moved = 0.0
    for name, value in weights(trained).items():
        torch.testing.assert_close(value, weights(expected)[name], rtol=0, atol=5e-6)
        moved = max(moved, float((value - weights(tiny_model("llama"))[name]).abs().max()))
    assert moved > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_resumes_bit_for_bit_and_without_pickles(tmp_path: Path) -> None:
    straight, resumed = tiny_model("llama"), tiny_model("llama")
    values = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "train_sampling_strategy": "random"}
    with _global_generators_kept():
        trainer(tmp_path / "run", straight, **values).train()
        checkpoint = tmp_path / "run" / "checkpoint-4"
        trainer(tmp_path / "other", resumed, **values).train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(straight).items())
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
