"""LMTask: batches, losses and metrics agree with plain forwards, for every model family."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import CAUSAL_FAMILIES, tiny_model, tiny_tokenizer
from zoft.errors import UsageError
from zoft.tasks import TASKS, get_task, tasks_with_role
from zoft.tasks.base import ROLES, Example, Task, TextTask
from zoft.tasks.encoding import ABSENT, collate
from zoft.tasks.lm import LMTask
from zoft.tasks.scoring import greedy

FEELINGS = (" great", " terrible")


class Toy(TextTask):
    """A text task over examples given in the test."""

    name: ClassVar[str] = "toy"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def __init__(self, examples: list[Example]) -> None:
        self.given = examples

    def examples(self, split: str) -> list[Example]:
        return list(self.given)


class ToyChoice(Toy):
    kind: ClassVar[str] = "choice"


class ToyCompletion(Toy):
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"


SINGLE = Toy(
    [
        Example("It was", FEELINGS, 0),
        Example("A long and winding text, it was", FEELINGS, 1),
        Example("no: it", FEELINGS, 1),
    ]
)
CHOICE = ToyChoice(
    [
        Example("The sky is", (" blue", " red"), 0),
        Example("Because it rained, the street", (" was wet", " was", " the"), 2),
        Example("It", (" was a good day", " sang"), 1),
    ]
)
COMPLETION = ToyCompletion(
    [
        Example("The sky is", (" blue",), 0, ("blue",)),
        Example("Question: where is the dog? Answer:", (" in the garden",), 0, ("in the garden",)),
    ]
)


def plain_log_likelihood(model: nn.Module, context: list[int], candidate: list[int]) -> list[float]:
    """Log-likelihood of each candidate token: one row, no padding, no options."""
    with torch.no_grad():
        log_softmax = model(input_ids=torch.tensor([context + candidate])).logits[0].double().log_softmax(-1)
    return [float(log_softmax[len(context) + at - 1, token]) for at, token in enumerate(candidate)]


def plain_losses(model: nn.Module, task: TextTask) -> list[float]:
    tokenizer = tiny_tokenizer()
    losses = []
    for example in task.examples("train"):
        context = tokenizer(example.prompt)["input_ids"]
        tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in example.candidates]
        likelihoods = [plain_log_likelihood(model, context, candidate) for candidate in tokens]
        if task.kind == "completion":
            losses.append(-float(np.mean(likelihoods[0])))
        else:
            scores = torch.tensor([sum(values) for values in likelihoods])
            losses.append(-float(scores.log_softmax(0)[example.label]))
    return losses


@pytest.mark.parametrize("task", [SINGLE, CHOICE, COMPLETION], ids=lambda task: type(task).__name__)
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_batch_loss_equals_single_examples_without_padding(family: str, task: TextTask) -> None:
    model = tiny_model(family)
    lm = LMTask(task, tiny_tokenizer())
    examples = lm.dataset("train")
    expected = plain_losses(model, task)
    loss = lm.loss(model, lm.collate(examples))
    assert loss.dtype == torch.float32
    assert loss.requires_grad
    assert float(loss.detach()) == pytest.approx(np.mean(expected), abs=1e-5)
    for example, one in zip(examples, expected, strict=True):
        assert float(lm.loss(model, lm.collate([example])).detach()) == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_shared_rows_equal_a_row_for_each_candidate(family: str) -> None:
    model = tiny_model(family)
    for task in (SINGLE, CHOICE):
        lm = LMTask(task, tiny_tokenizer())
        shared = lm.collate(lm.dataset("train"))
        expanded = collate(lm.dataset("train"), 1, share=False)
        assert len(shared["input_ids"]) < len(expanded["input_ids"])
        assert float(lm.loss(model, shared).detach()) == pytest.approx(
            float(lm.loss(model, expanded).detach()), abs=1e-5
        )
    assert len(LMTask(SINGLE, tiny_tokenizer()).collate(lm.dataset("train")[:1])["input_ids"]) == 1


def test_only_the_needed_logits_are_computed() -> None:
    model = tiny_model("llama")
    widths: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    lm = LMTask(SINGLE, tiny_tokenizer())
    lm.loss(model, lm.collate(lm.dataset("train")))
    lm = LMTask(CHOICE, tiny_tokenizer())
    batch = lm.collate(lm.dataset("train"))
    lm.loss(model, batch)
    assert widths == [1, batch["targets"].shape[-1]]
    masked, lm = tiny_model("roberta"), LMTask(SINGLE, tiny_tokenizer("masked"), "masked")
    masked.lm_head.dense.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    lm.loss(masked, lm.collate(lm.dataset("train")))
    assert widths[2:] == [1]
    assert masked(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits.shape[1] == 5


class Plain(nn.Module):
    """A model that takes neither position ids nor ``logits_to_keep``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model("opt")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def test_a_model_without_the_options_gives_the_same_loss() -> None:
    plain = Plain()
    for task in (SINGLE, CHOICE, COMPLETION):
        lm = LMTask(task, tiny_tokenizer())
        batch = lm.collate(lm.dataset("train"))
        with torch.no_grad():
            assert float(lm.loss(plain, batch)) == pytest.approx(float(lm.loss(plain.inner, batch)), abs=1e-5)
    lm = LMTask(COMPLETION, tiny_tokenizer())
    assert lm.evaluate(plain) == pytest.approx(lm.evaluate(plain.inner), abs=1e-5)


def test_bfloat16_weights_give_a_float32_loss() -> None:
    lm = LMTask(CHOICE, tiny_tokenizer())
    batch = lm.collate(lm.dataset("train"))
    loss = lm.loss(tiny_model("llama").bfloat16(), batch).detach()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(lm.loss(tiny_model("llama"), batch).detach()), rel=0.1)


def test_masked_model_scores_candidates_at_the_mask() -> None:
    model, tokenizer = tiny_model("roberta"), tiny_tokenizer("masked")
    lm = LMTask(SINGLE, tokenizer, "masked")
    expected = []
    for example in SINGLE.examples("train"):
        ids = tokenizer(f"{example.prompt} <mask>")["input_ids"]
        candidates = [tokenizer.convert_tokens_to_ids("Ġ" + text.strip()) for text in example.candidates]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, ids.index(tokenizer.mask_token_id)]
        expected.append(-float(logits[candidates].double().log_softmax(0)[example.label]))
    assert float(lm.loss(model, lm.collate(lm.dataset("train"))).detach()) == pytest.approx(np.mean(expected), abs=1e-5)
    assert lm.evaluate(model)["loss"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_masked_model_refuses_what_it_cannot_score() -> None:
    tokenizer = tiny_tokenizer("masked")
    with pytest.raises(UsageError, match="completion"):
        LMTask(COMPLETION, tokenizer, "masked")
    with pytest.raises(UsageError, match="example 1: candidate ' was wet' is"):
        LMTask(CHOICE, tokenizer, "masked").dataset("train")
    with pytest.raises(UsageError, match="holds the mask token"):
        LMTask(Toy([Example("a <mask> b", FEELINGS)]), tokenizer, "masked").dataset("train")


def test_a_merge_across_the_boundary_is_scored_given_what_all_candidates_share() -> None:
    tokenizer = tiny_tokenizer()
    lm = LMTask(ToyChoice([Example("It was gr", ("eat", "im"))]), tokenizer)
    (encoded,) = lm.dataset("train")
    for text, candidate in zip(("eat", "im"), encoded.candidates, strict=True):
        assert [*encoded.context, *candidate] == tokenizer("It was gr" + text)["input_ids"]
    assert tokenizer.decode(list(encoded.candidates[0])) == " great"


def test_the_first_token_is_the_tokenizers_own() -> None:
    with_bos = LMTask(SINGLE, tiny_tokenizer()).dataset("train")[0].context
    without = LMTask(SINGLE, tiny_tokenizer(add_bos=False)).dataset("train")[0].context
    assert with_bos == (0, *without)
    empty = LMTask(Toy([Example("", FEELINGS)]), tiny_tokenizer(add_bos=False)).dataset("train")[0]
    assert empty.context == (0,)


def test_padding_and_targets() -> None:
    lm = LMTask(CHOICE, tiny_tokenizer())
    batch = lm.collate(lm.dataset("train"))
    mask = batch["attention_mask"]
    assert bool((mask.diff(dim=1) >= 0).all())  # left padding
    assert bool((mask.sum(1).max() == mask.shape[1]).all())  # right-sized
    assert bool((batch["position_ids"][:, -1] + 1 == mask.sum(1)).all())
    assert batch["targets"].shape[:2] == (3, 3)
    assert bool((batch["targets"][0, 2] == ABSENT).all())
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_greedy_continuation_of_a_padded_batch_equals_row_by_row(family: str) -> None:
    model, lm = tiny_model(family), LMTask(SINGLE, tiny_tokenizer())
    batch = lm.collate(lm.dataset("test"))
    expected = []
    for encoded in lm.dataset("test"):
        ids = list(encoded.context)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(encoded.context) :])
    with torch.no_grad():
        assert greedy(model, batch, 6, None) == expected
        stop = expected[0][2]
        stopped = [row[: row.index(stop)] if stop in row else row for row in expected]
        assert greedy(model, batch, 6, stop) == stopped
        assert greedy(model, batch, 0, None) == [[], [], []]


class Scripted(nn.Module):
    """Always continues with the tokens of ``text``, whatever the prompt."""

    def __init__(self, text: str, start: int) -> None:
        super().__init__()
        self.tokens = [*tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], 2]
        self.start = start

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        logits = torch.zeros(*input_ids.shape, len(tiny_tokenizer()))
        at = min(input_ids.shape[1] - self.start, len(self.tokens) - 1)
        logits[:, -1, self.tokens[max(at, 0)]] = 1.0
        return type("Output", (), {"logits": logits})()


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        (" red", " red", True),
        (" red", " red.", True),
        (" red", " reddish", False),
        (" red", " blue", False),
        (" red", "\n red", True),
        (" red\n", " red\nand more", True),
        (" red\n", " red and more", False),
        (" one\ntwo\n", " one\ntwo\nthree", True),
    ],
)
def test_what_counts_as_an_exact_match(answer: str, said: str, right: bool) -> None:
    end = "\n" if answer.endswith("\n") else ""
    long_one = Example("x", (f" a rather long answer{end}",), 0, ("a rather long answer",))
    example = Example("x", (answer,), 0, (answer.strip(), "another"))
    lm = LMTask(ToyCompletion([example, long_one]), tiny_tokenizer())
    start = len(lm.dataset("test")[0].context)
    assert lm.evaluate(Scripted(said, start), limit=1)["exact_match"] == float(right)


def test_evaluate_restores_modes_draws_nothing_and_ignores_dropout() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    lm = LMTask(SINGLE, tiny_tokenizer())
    first, second = lm.evaluate(model), lm.evaluate(model, batch_size=1)
    assert first == pytest.approx(second, abs=1e-6)
    assert set(first) == {"loss", "accuracy"}
    assert [module.training for module in model.modules()] == before
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (random.getstate(), repr(np.random.get_state()))
    assert first["loss"] == pytest.approx(np.mean(plain_losses(model.eval(), SINGLE)), abs=1e-5)
    assert lm.evaluate(model, limit=1)["loss"] == pytest.approx(plain_losses(model, SINGLE)[0], abs=1e-5)


def test_accuracy_counts_the_highest_candidate() -> None:
    model, lm = tiny_model("llama"), LMTask(SINGLE, tiny_tokenizer())
    right = 0
    for encoded in lm.dataset("test"):
        scores = [sum(plain_log_likelihood(model, [*encoded.context], [*item])) for item in encoded.candidates]
        right += int(np.argmax(scores)) == encoded.label
    assert lm.evaluate(model)["accuracy"] == pytest.approx(right / 3)


def test_train_batches_are_epochs_and_a_function_of_the_seed() -> None:
    task = Toy([Example(f"number {number}", FEELINGS, number % 2) for number in range(7)])
    lm = LMTask(task, tiny_tokenizer())

    def drawn(seed: int, count: int, start: int = 0) -> list[list[str]]:
        batches = lm.train_batches(3, seed, start)
        return [lm.tokenizer.batch_decode(next(batches)["input_ids"], skip_special_tokens=True) for _ in range(count)]

    one = drawn(5, 14)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        assert drawn(5, 14) == one
    assert drawn(6, 14) != one
    assert drawn(5, 4, start=10) == one[10:]
    flat = [text for batch in one for text in batch]
    epochs = [flat[first : first + 7] for first in range(0, 42, 7)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert all(len(batch) == 3 for batch in one)


def test_errors_name_task_split_and_example() -> None:
    tokenizer = tiny_tokenizer()
    long_one = Toy([SINGLE.given[0], Example("word " * 40, FEELINGS)])
    with pytest.raises(UsageError, match=r"'toy', split 'train', example 1: 163 tokens.* at most 128"):
        LMTask(long_one, tokenizer).dataset("train")
    with pytest.raises(UsageError, match=r"example 0: 5 tokens.* at most 3 \(2 of 2"):
        LMTask(long_one, tokenizer, max_length=3).dataset("test")
    with pytest.raises(UsageError, match="no examples"):
        LMTask(Toy([]), tokenizer).dataset("train")
    with pytest.raises(UsageError, match="example 0: candidate '' has no tokens"):
        LMTask(Toy([Example("It was", ("", " great"))]), tokenizer).dataset("train")
    with pytest.raises(UsageError, match="example 0: label 2 with 2 candidates"):
        LMTask(Toy([Example("It was", FEELINGS, 2)]), tokenizer).dataset("train")
    with pytest.raises(UsageError, match="unknown split"):
        LMTask(SINGLE, tokenizer).dataset("dev")
    with pytest.raises(UsageError, match="kind of model"):
        LMTask(SINGLE, tokenizer, "seq2seq")
    with pytest.raises(UsageError, match="batch size"):
        LMTask(SINGLE, tokenizer).train_batches(0, 0)
    unlimited = LMTask(long_one, tokenizer, max_length=1000)
    with pytest.raises(UsageError, match=r"rows of 162 tokens.* at most 128"):
        unlimited.loss(tiny_model("opt"), unlimited.collate(unlimited.dataset("train")))


def test_the_registry() -> None:
    assert len(TASKS) == 28
    assert sorted(name for role in ROLES for name in tasks_with_role(role, offline=False)) == sorted(TASKS)
    assert sum(len(tasks_with_role(role)) for role in ROLES) == 13
    for name in TASKS:
        task = get_task(name)
        assert task.name == name
        assert isinstance(LMTask(task, tiny_tokenizer(), max_length=1000), Task)
    with pytest.raises(UsageError, match="did you mean mood"):
        get_task("moods")
    with pytest.raises(UsageError, match="unknown role"):
        tasks_with_role("training")
