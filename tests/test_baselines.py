"""What needs no training: demonstrations in the prompt, and a linear classifier on frozen features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.evaluate import EvaluateConfig, evaluate
from finetune.linear_probe import fit, probe
from finetune.task import in_context
from tests.models import bits, same_bits
from tests.test_finetune import tiny_loaded, write_reviews
from tests.tiny import FAMILIES
from zoft.errors import UsageError
from zoft.tasks.base import Cloze, Example, TextTask
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.in_context import SEPARATOR, InContext
from zoft.tasks.lm import LMTask


class Numbers(TextTask):
    name = "numbers"
    role = "development"
    kind = "classification"

    def examples(self, split: str) -> list[Example]:
        return [Example(f"{split} {k} it was", (" great", " terrible"), k % 2) for k in range(8)]


class Passages(Numbers):
    def examples(self, split: str) -> list[Example]:
        return [Example(f"{'x ' * 20 * (k + 1)}it was", (" great", " no")) for k in range(6)]


def test_demonstrations_are_seeded_whole_and_answered() -> None:
    tokenizer = tiny_loaded().tokenizer
    shown = InContext(Numbers(), tokenizer, 3, seed=1)
    (first, *_) = shown.examples("test")
    *demonstrations, prompt = first.prompt.split(SEPARATOR)
    assert prompt == "test 0 it was"
    answered = {example.prompt + example.candidates[example.label] for example in Numbers().examples("train")}
    assert len(set(demonstrations)) == 3
    assert set(demonstrations) <= answered
    assert shown.used == {"test": 3.0}
    assert (shown.kind, shown.metric, shown.name) == ("classification", "accuracy", "numbers")
    again, other = InContext(Numbers(), tokenizer, 3, seed=1), InContext(Numbers(), tokenizer, 3, seed=2)
    assert again.examples("test") == shown.examples("test")
    assert other.examples("test") != shown.examples("test")
    # All of the train split: no example is shown to itself.
    every = InContext(Numbers(), tokenizer, 8)
    for example in every.examples("train"):
        *before, own = example.prompt.split(SEPARATOR)
        assert len(before) == 7
        assert not [text for text in before if text.startswith(own)]
    for shots in (0, 9):
        with pytest.raises(UsageError, match=f"{shots} demonstrations from a train split of 8"):
            InContext(Numbers(), tokenizer, shots)


def test_what_does_not_fit_goes_from_the_front() -> None:
    tokenizer = tiny_loaded().tokenizer
    free = InContext(Passages(), tokenizer, 6)
    tight = InContext(Passages(), tokenizer, 6, max_length=260, room=4)
    for whole, cut in zip(free.examples("test"), tight.examples("test"), strict=True):
        assert whole.prompt.endswith(cut.prompt)
        length = len(tokenizer(cut.prompt, add_special_tokens=False)["input_ids"])
        assert length + 4 + 2 <= 260 or SEPARATOR not in cut.prompt
        # One more, the next from the front, would not have fitted.
        rest = whole.prompt.removesuffix(cut.prompt).removesuffix(SEPARATOR).split(SEPARATOR)
        if rest != [""]:
            more = rest[-1] + SEPARATOR + cut.prompt
            assert len(tokenizer(more, add_special_tokens=False)["input_ids"]) + 4 + 2 > 260
    assert 0 < tight.used["test"] < 6
    task = LMTask(tight, tokenizer, max_length=260)
    assert max(example.length for example in task.dataset("test")) <= 260


def test_a_cloze_gets_clozes_as_demonstrations() -> None:
    class Cloz(Numbers):
        def examples(self, split: str) -> list[Example]:
            return [
                Example(
                    f"{split} {k}?", (" yes", " no"), k % 2, cloze=Cloze(f"{split} {k}? It was", ".", (" good", " bad"))
                )
                for k in range(4)
            ]

    (example, *_) = InContext(Cloz(), tiny_loaded("roberta").tokenizer, 2).examples("test")
    assert example.cloze is not None
    *shown, before = example.cloze.before.split(SEPARATOR)
    assert before == "test 0? It was"
    assert len(shown) == 2
    assert all(text.endswith((" good.", " bad.")) for text in shown)


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_evaluation_in_context(family: str, tmp_path: Path) -> None:
    data = str(write_reviews(tmp_path))
    loaded = tiny_loaded(family)
    before = bits(loaded.model)
    config = {"dataset": data, "splits": ["test"], "shots": 3, "limit": 5}
    figures = evaluate(EvaluateConfig.build(config), model=loaded)
    assert figures["test"]["examples"] == len(load_dataset_task(data).examples("test")[:5])
    assert figures["test"]["shots"] == 3
    task = in_context(LMTask(load_dataset_task(data), loaded.tokenizer, loaded.kind, 128), 3, 0)
    assert task.evaluate(loaded.model, "test", 5)["loss"] == figures["test"]["loss"]
    zero = evaluate(EvaluateConfig.build({**config, "shots": 0}), model=loaded)
    assert zero["test"]["loss"] != figures["test"]["loss"]
    assert same_bits(loaded.model, before)
    with pytest.raises(UsageError, match="both demonstrations and a linear probe"):
        evaluate(EvaluateConfig.build({**config, "linear_probe": True}), model=loaded)


def test_the_fit_is_at_the_minimum() -> None:
    """The gradient of the penalised loss, by hand in float64, vanishes at the fit."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] + 0.5 * torch.randn(60, generator=generator, dtype=torch.float64) > 0).long()
    labels[features[:, 1] > 1] = 2
    weights = fit(features, labels, 3, 0.1)
    inputs = torch.cat([features, torch.ones(60, 1, dtype=torch.float64)], 1)
    wrong = (inputs @ weights).softmax(-1) - torch.nn.functional.one_hot(labels, 3)
    gradient = inputs.T @ wrong / 60
    gradient[:-1] += 0.1 * weights[:-1]
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_probe_finds_what_the_features_hold(family: str, tmp_path: Path) -> None:
    data = load_dataset_task(str(write_reviews(tmp_path, 60)))
    loaded = tiny_loaded(family)
    before = bits(loaded.model)
    figures = probe(loaded.model, LMTask(data, loaded.tokenizer, loaded.kind, 128), ["test"])
    # "good" or "bad" stands in every prompt, a few tokens before the end.
    assert figures["test"]["accuracy"] >= 0.8
    assert figures["test"]["examples"] == len(data.examples("test"))
    assert set(figures["test"]) == {"loss", "accuracy", "strength", "examples"}
    assert same_bits(loaded.model, before)


class Pairs(Numbers):
    """The right one of two or three candidates is the one that says so, and stands anywhere."""

    kind = "choice"

    def examples(self, split: str) -> list[Example]:
        first = {"train": 0, "validation": 60, "test": 90}[split]
        made = []
        for k in range(first, first + (60 if split == "train" else 30)):
            candidates = [f" a {k % 7} bad", f" the {k % 5} bad", " bad"][: 2 + k % 2]
            candidates[(k // 2) % 2] = f" it {k % 3} good"
            made.append(Example(f"no {k} was", tuple(candidates), (k // 2) % 2))
        return made


def test_a_probe_of_a_choice_scores_candidates() -> None:
    loaded = tiny_loaded()
    figures = probe(loaded.model, LMTask(Pairs(), loaded.tokenizer), ["test"])["test"]
    assert figures["accuracy"] == 1
    assert figures["loss"] < 0.1
    masked = tiny_loaded("roberta")
    with pytest.raises(UsageError, match="is a choice for a masked model, and a linear probe"):
        probe(masked.model, LMTask(Pairs(), masked.tokenizer, "masked"), ["test"])


def test_a_probe_needs_classes() -> None:
    class Free(Numbers):
        kind = "completion"

        def examples(self, split: str) -> list[Example]:
            return [Example("it was", (" great",))]

    loaded = tiny_loaded()
    with pytest.raises(UsageError, match="is a completion, and a linear probe needs classes or candidates"):
        probe(loaded.model, LMTask(Free(), loaded.tokenizer), ["test"])
