"""A text task for a language model: batches of token ids, the loss, and the metric."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoft.errors import UsageError
from zoft.objective import evaluating
from zoft.tasks.base import SPLITS, Example
from zoft.tasks.encoding import Encoded, TextSource, check_lengths, collate, encode_causal, encode_masked
from zoft.tasks.scoring import (
    candidate_scores,
    check_context,
    greedy,
    on_device,
    token_log_likelihoods,
)

MODEL_KINDS = ("causal", "masked")

#: A tokenizer without a limit of its own states a huge number.
_NO_LIMIT = 10**9


class LMTask:
    """A :class:`~zoft.tasks.base.Task` made of a text task, a tokenizer and a kind of language model.

    **Loss.** Classification and multiple choice: the cross-entropy over the candidates, whose scores are
    their summed log-likelihoods given the prompt. Completion: the negative log-likelihood of the answer
    by teacher forcing, the mean over each example's tokens and then over the examples. All in float32
    whatever the weights are.

    **Metric.** ``accuracy``: how often the right candidate has the highest score. ``exact_match``: how
    often greedy continuation gives one of the references. Where the task's answers end in a line break
    (so that the model learns to stop), the stripped continuation up to a line break must be a reference;
    where they do not, it must begin with one, as whole words.

    A causal model runs one row for each candidate, and one row for all the single-token candidates of an
    example together; only the logits at the candidates' positions are computed. A masked model sees the
    prompt with the mask token in the candidate's place.

    Args:
        text_task: the examples; one of ``zoft.tasks.TASKS`` or ``load_dataset_task(...)``.
        tokenizer: a transformers tokenizer.
        model_kind: ``causal`` or ``masked``.
        max_length: the longest sequence in tokens; None is the tokenizer's own limit, if it states one.
            Give it the model's context length.

    Raises:
        UsageError: an unknown ``model_kind``, or a completion for a masked model. Data is checked when a
            split is first used: no examples, an example that is too long, a candidate without tokens.
    """

    def __init__(
        self, text_task: TextSource, tokenizer: Any, model_kind: str = "causal", max_length: int | None = None
    ) -> None:
        if model_kind not in MODEL_KINDS:
            raise UsageError(f"unknown kind of model {model_kind!r}", f"Use one of {', '.join(MODEL_KINDS)}.")
        if model_kind == "masked" and text_task.kind == "completion":
            raise UsageError(
                f"task {text_task.name!r} is a completion, which a masked language model cannot give",
                "Use a causal language model, or a classification task.",
            )
        self.text_task = text_task
        self.tokenizer = tokenizer
        self.model_kind = model_kind
        own = int(min(getattr(tokenizer, "model_max_length", _NO_LIMIT), _NO_LIMIT))
        self.max_length = max_length if max_length is not None else (own if own < _NO_LIMIT else None)
        pad = tokenizer.pad_token_id
        # Padding is masked out, so any valid id will do where the tokenizer defines none.
        self._pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)
        self._datasets: dict[str, list[Encoded]] = {}

    @property
    def name(self) -> str:
        """The text task's name."""
        return self.text_task.name

    def dataset(self, split: str) -> list[Encoded]:
        """The encoded examples of ``split``, encoded once.

        Raises:
            UsageError: an unknown or empty split, or an example that cannot be used; names it.
        """
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r}", f"Use one of {', '.join(SPLITS)}.")
        if split not in self._datasets:
            where = f"task {self.name!r}, split {split!r}"
            examples = self.text_task.examples(split)
            if self.model_kind == "masked":
                encoded = encode_masked(examples, self.tokenizer, where)
            else:
                encoded = encode_causal(examples, self.tokenizer, where)
            check_lengths(encoded, self.max_length, where)
            self._datasets[split] = encoded
        return self._datasets[split]

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch of ``dataset`` entries; for its tensors see :func:`zoft.tasks.encoding.collate`."""
        return collate(examples, self._pad_id)

    def train_batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Endless full batches of the training split, a pure function of ``seed``.

        Every epoch is a new permutation; a batch may begin in one epoch and end in the next.

        Args:
            start: number of batches to skip, without making them (for resuming).

        Raises:
            UsageError: ``batch_size`` below 1, or whatever :meth:`dataset` raises.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is below 1", "Use a batch size of 1 or more.")
        return self._train_batches(self.dataset("train"), batch_size, seed, start)

    def _train_batches(
        self, examples: list[Encoded], batch_size: int, seed: int, start: int
    ) -> Iterator[dict[str, Tensor]]:
        epoch, skipped = divmod(start * batch_size, len(examples))
        order = islice(_epochs(len(examples), seed, epoch), skipped, None)
        while True:
            yield self.collate([examples[index] for index in islice(order, batch_size)])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of ``batch``: a float32 scalar, differentiable when gradients are on.

        The model's mode is left alone: call it in evaluation mode for a loss without dropout.
        """
        check_context(model, batch["input_ids"].shape[1], self.name)
        losses, _ = self._scored(model, on_device(batch, model))
        return losses.mean()

    def evaluate(
        self, model: nn.Module, split: str = "test", limit: int | None = None, batch_size: int = 64
    ) -> dict[str, float]:
        """Mean ``loss`` and the task's metric, by its name, on the first ``limit`` examples of ``split``.

        Runs in evaluation mode and restores the mode after it; draws no random numbers.
        """
        examples = self.dataset(split)[:limit]
        if not examples:
            raise UsageError(f"task {self.name!r}: limit {limit} leaves no examples", "Raise the limit.")
        losses, hits = 0.0, 0
        # Neighbours in length share a batch: less padding, the same result.
        ordered = sorted(examples, key=lambda example: (example.length, example.index))
        with torch.inference_mode(), evaluating(model):
            for first in range(0, len(ordered), batch_size):
                members = ordered[first : first + batch_size]
                batch = self.collate(members)
                check_context(model, batch["input_ids"].shape[1], self.name)
                batch_losses, right = self._scored(model, on_device(batch, model))
                losses += float(batch_losses.double().sum())
                if self.text_task.kind == "completion":
                    hits += self._exact_matches(model, members, split)
                else:
                    hits += int(right.sum())
        return {"loss": losses / len(examples), self.text_task.metric: hits / len(examples)}

    def _scored(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of each example, float32 [B], and whether its right candidate scores highest, bool [B]."""
        if self.text_task.kind == "completion":
            log_likelihoods, present = token_log_likelihoods(model, batch)
            summed = log_likelihoods.masked_fill(~present, 0.0).sum((1, 2))
            losses = -summed / present.sum((1, 2))
            return losses, torch.ones_like(losses, dtype=torch.bool)
        scores = candidate_scores(model, batch)
        losses = F.cross_entropy(scores, batch["labels"], reduction="none")
        return losses, scores.argmax(-1) == batch["labels"]

    def _exact_matches(self, model: nn.Module, members: Sequence[Encoded], split: str) -> int:
        """How many of ``members`` are answered exactly by the greedy continuation of their context."""
        longest = max(len(candidate) for example in self.dataset(split) for candidate in example.candidates)
        prompts = [Encoded(member.context, ((0,),), 0, member.index) for member in members]
        batch = on_device(self.collate(prompts), model)
        # One token more than the longest answer shows whether the last word ends there.
        longest += 1
        if self.max_length is not None:
            longest = min(longest, self.max_length - batch["input_ids"].shape[1] + 1)
        continued = greedy(model, batch, longest, self.tokenizer.eos_token_id)
        texts = self.tokenizer.batch_decode(continued, skip_special_tokens=True)
        examples = self.text_task.examples(split)
        return sum(_answers(text, examples[member.index]) for member, text in zip(members, texts, strict=True))


def _answers(text: str, example: Example) -> bool:
    """Whether the continuation ``text`` gives one of the references of ``example``."""
    references = {reference.strip() for reference in example.references or example.candidates}
    text = text.strip()
    if example.candidates[example.label].endswith("\n"):
        lines = text.split("\n")
        return any("\n".join(lines[: ref.count("\n") + 1]).strip() == ref for ref in references)
    return any(re.match(re.escape(ref) + r"(?!\w)", text) for ref in references)


def _epochs(count: int, seed: int, epoch: int) -> Iterator[int]:
    """Indices below ``count``, one permutation an epoch, from ``epoch`` on."""
    while True:
        yield from np.random.default_rng((seed, epoch)).permutation(count).tolist()
        epoch += 1
