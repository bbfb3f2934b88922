"""Candidates that share their prompt's computation score as they do in rows of their own, to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.test_lm_tasks import CHOICE, SINGLE, Plain, Toy, ToyChoice, ToyCompletion, plain_losses
from tests.tiny import CAUSAL_FAMILIES, tiny_model, tiny_tokenizer
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import Key, Span, get_noise
from zoft.perturb import Perturber, shifted
from zoft.tasks.base import Example
from zoft.tasks.encoding import collate
from zoft.tasks.lm import LMTask
from zoft.tasks.scoring import reuses_keys, token_log_likelihoods

#: Prompts long enough for sharing to be chosen by itself.
LONG = ToyChoice(
    [
        Example("It was the day after the long rain, and the street", (" was wet", " sang", " the", " red car"), 1),
        Example("The good dog, who had seen it, said that it", (" was", " terrible news", " ran off"), 2),
        Example("no: the blue one said that the yes was great and the", (" red", " blue", " yes"), 0),
    ]
)


def scored(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-likelihood of each candidate [B, C], by the batch's own layout."""
    log_likelihoods, present = token_log_likelihoods(model, batch)
    return log_likelihoods.masked_fill(~present, 0.0).sum(-1)


@pytest.mark.parametrize("task", [CHOICE, LONG, SINGLE], ids=["mixed", "long", "single"])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_shared_equals_unshared(family: str, task: Toy) -> None:
    model, lm = tiny_model(family), LMTask(task, tiny_tokenizer())
    encoded = lm.dataset("train")
    shared, apart = collate(encoded, 1, share=True), collate(encoded, 1, share=False)
    assert ("suffix_ids" in shared) == (task is not SINGLE)
    with torch.no_grad():
        torch.testing.assert_close(scored(model, shared), scored(model, apart), atol=1e-5, rtol=0)
    loss = lm.loss(model, shared)
    assert float(loss.detach()) == pytest.approx(sum(plain_losses(model, task)) / 3, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_gradient_is_the_same(family: str) -> None:
    model, lm = tiny_model(family), LMTask(LONG, tiny_tokenizer())
    found = []
    for share in (True, False):
        model.zero_grad()
        lm.loss(model, collate(lm.dataset("train"), 1, share=share)).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_prompt_is_run_once_for_all_candidates() -> None:
    model, lm = tiny_model("llama"), LMTask(LONG, tiny_tokenizer())
    seen: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda module, args, options: seen.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    batch = lm.collate(lm.dataset("train"))
    lm.loss(model, batch)
    suffixes = batch["suffix_ids"].shape
    assert seen == [tuple(batch["input_ids"].shape), tuple(suffixes)]
    assert seen[0][0] == 3  # one row for each example
    assert suffixes[0] == 3 + 2 + 1  # one for each candidate of several tokens, one for the third example
    seen.clear()
    lm.loss(model, collate(lm.dataset("train"), 1, share=False))
    assert len(seen) == 1
    assert sum(a * b for a, b in [tuple(batch["input_ids"].shape), tuple(suffixes)]) < seen[0][0] * seen[0][1] / 2


def test_sharing_is_chosen_where_it_saves_half_of_the_tokens() -> None:
    tokenizer = tiny_tokenizer()
    for task, shared in ((LONG, True), (CHOICE, False), (SINGLE, False)):
        lm = LMTask(task, tokenizer)
        assert ("suffix_ids" in lm.collate(lm.dataset("train"))) == shared
    completion = LMTask(ToyCompletion([Example("The sky is", (" blue",), 0, ("blue",))]), tokenizer)
    assert "suffix_ids" not in completion.collate(completion.dataset("train"))


class Prompted(nn.Module):
    """As PEFT's models with a prefix: keys and values of the caller's would be in its way."""

    class active_peft_config:  # noqa: N801 (PEFT's name)
        is_prompt_learning = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model("llama")

    def forward(self, **options: Any) -> Any:
        assert "past_key_values" not in options
        return self.inner(**{name: value for name, value in options.items() if name != "use_cache"})


def test_models_without_keys_and_values_run_whole_rows() -> None:
    lm = LMTask(LONG, tiny_tokenizer())
    batch = lm.collate(lm.dataset("train"))
    assert "suffix_ids" in batch
    for wrapped in (Plain(), Prompted()):
        assert not reuses_keys(wrapped)
        with torch.no_grad():
            expected = scored(wrapped.inner, collate(lm.dataset("train"), 1, share=False))
            torch.testing.assert_close(scored(wrapped, batch), expected, atol=1e-5, rtol=0)
    model = tiny_model("llama")
    assert reuses_keys(model)
    model.activation_checkpointing_enable()
    assert reuses_keys(model)
    assert not reuses_keys(model.train())


def test_keys_and_values_are_those_of_the_perturbed_weights() -> None:
    """Each evaluation makes its own: at θ + s and at θ − s the loss is that of a copy with these weights."""
    model, lm = tiny_model("llama"), LMTask(LONG, tiny_tokenizer())
    batch, noise = lm.collate(lm.dataset("train")), get_noise("gaussian-table")
    assert "suffix_ids" in batch
    perturber = Perturber(model, Blocks.of(model))
    losses = []
    for scale in (0.05, -0.05):

        def shift(span: Span, scale: float = scale) -> torch.Tensor:
            return noise(Key(1, 2), span) * scale

        moved = tiny_model("llama")
        with torch.no_grad():
            for block in Blocks.of(moved):
                block.parameter.copy_(shifted(block, shift))
            with perturber(shift):
                losses.append(float(lm.loss(model, batch)))
        assert losses[-1] == pytest.approx(sum(plain_losses(moved, LONG)) / 3, abs=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_one_token_scoring() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    choice = ToyChoice([Example("It was", (" great news", " terrible", " red"), 0)])
    lm = LMTask(choice, tokenizer, one_token=True)
    batch = lm.collate(lm.dataset("train"))
    assert batch["targets"].shape == (1, 3, 1)
    assert len(batch["input_ids"]) == 1
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[0, -1].double()
        words = [tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in ("great", "terrible", "red")]
        assert float(lm.loss(model, batch)) == pytest.approx(-float(logits[words].log_softmax(0)[0]), abs=1e-5)
    alike = ToyChoice([Example("It was", (" great", " terrible"), 0), Example("It was", (" red car", " red"), 0)])
    with pytest.raises(UsageError, match=r"example 1: ' red car' and ' red' begin with the same token ' red'"):
        LMTask(alike, tokenizer, one_token=True).dataset("train")
    LMTask(alike, tokenizer).dataset("train")  # whole candidates can be told apart
    masked = LMTask(choice, tiny_tokenizer("masked"), "masked", one_token=True)
    assert [len(candidate) for candidate in masked.dataset("train")[0].candidates] == [1, 1, 1]
    with pytest.raises(UsageError, match="one-token scoring is for candidates"):
        LMTask(ToyCompletion([]), tokenizer, one_token=True)
