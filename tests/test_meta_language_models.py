"""Meta-training on tiny language models of several families: both ways of the meta-gradient agree."""

from __future__ import annotations

import pytest
import torch

from meta_train import MetaTrainConfig, meta_train, recipe
from tests.tiny import tiny_model, tiny_tokenizer
from zoft.tasks.base import Example, TextTask
from zoft.tasks.lm import LMTask


class Colours(TextTask):
    name = "colours"
    role = "meta-training"
    kind = "classification"

    def examples(self, split: str) -> list[Example]:
        return [Example(f"it was {k}", (" red", " blue"), k % 2) for k in range(24)]


def learn(family: str, tied: bool, way: str) -> list[torch.Tensor]:
    model = tiny_model(family, tied)
    kind = "masked" if family == "roberta" else "causal"
    task = LMTask(Colours(), tiny_tokenizer(kind), kind)
    config = MetaTrainConfig.build(
        {
            **recipe("lookahead"),
            "steps": 4,
            "batch_size": 4,
            "lookahead_steps": 3,
            "lookahead_lr": 1e-3,
            "network": {"hidden": 6},
            "network_optimizer": "sgd",
            "gradient_scale": "none",
            "network_lr": 10.0,
            "meta_gradient": way,
        }
    )
    tuner = meta_train(model, [task], config)
    assert all(parameter.grad is None for parameter in model.parameters())
    return list(tuner.network.parameters())


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("roberta", True)])
def test_closed_form_and_higher_learn_the_same(family, tied):
    closed, unrolled = learn(family, tied, "closed-form"), learn(family, tied, "higher")
    assert any(float(parameter.abs().max()) > 0 for parameter in closed)
    for left, right in zip(closed, unrolled, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
