"""A text task for a language model: batches of token ids, the loss, and the metric."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoft.errors import UsageError
from zoft.objective import evaluating
from zoft.tasks.base import SPLITS, Example
from zoft.tasks.encoding import (
    Encoded,
    TextSource,
    check_lengths,
    collate,
    encode_causal,
    encode_masked,
    first_tokens,
)
from zoft.tasks.fitting import fitted
from zoft.tasks.metrics import Metric, get_metric, measure
from zoft.tasks.scoring import check_context, greedy, on_device, summed_scores, token_log_likelihoods

MODEL_KINDS = ("causal", "masked")

#: A tokenizer without a limit of its own states a huge number.
_NO_LIMIT = 10**9


class LMTask:
    """A :class:`~zoft.tasks.base.Task` made of a text task, a tokenizer and a kind of language model.

    **Loss.** Classification and multiple choice: the cross-entropy over the candidates, whose scores are
    their summed (or, where the task says so, mean) log-likelihoods given the prompt. Completion, and choices
    that are learned by teacher forcing: the negative log-likelihood of the right answer, the mean over each
    example's tokens and then over the examples. All in float32 whatever the weights are.

    **Metric.** A function of predictions and references (:mod:`zoft.tasks.metrics`). The prediction is the
    candidate with the highest score, or the greedy continuation: up to its line break where the task's
    answers end in one (so that the model learns to stop). Where the answers have no end that could be
    learned, a continuation that begins with a reference, as whole words, is that reference.

    A causal model runs one row for each candidate, and one row for all the single-token candidates of an
    example together; only the logits at the candidates' positions are computed. Where it saves half of the
    tokens, longer candidates share their prompt's keys and values. A masked model sees the prompt, or the
    example's own cloze, with the mask token in the candidate's place.

    Args:
        text_task: the examples; one of ``zoft.tasks.TASKS`` or ``load_dataset_task(...)``.
        tokenizer: a transformers tokenizer.
        model_kind: ``causal`` or ``masked``.
        max_length: the longest sequence in tokens; None is the tokenizer's own limit, if it states one.
            Give it the model's context length. The passage of a longer example is cut.
        one_token: the first token of each candidate alone is scored and stands for it.

    Raises:
        UsageError: an unknown ``model_kind``, a completion for a masked model or for one-token scoring. Data
            is checked when a split is first used: no examples, an example that is too long, a candidate
            without tokens, candidates that one-token scoring cannot tell apart.
    """

    def __init__(
        self,
        text_task: TextSource,
        tokenizer: Any,
        model_kind: str = "causal",
        max_length: int | None = None,
        one_token: bool = False,
    ) -> None:
        if model_kind not in MODEL_KINDS:
            raise UsageError(f"unknown kind of model {model_kind!r}", f"Use one of {', '.join(MODEL_KINDS)}.")
        if model_kind == "masked" and text_task.kind == "completion":
            raise UsageError(
                f"task {text_task.name!r} is a completion, which a masked language model cannot give",
                "Use a causal language model, or a classification task.",
            )
        if one_token and text_task.kind == "completion":
            raise UsageError(
                f"task {text_task.name!r} is a completion, and one-token scoring is for candidates",
                "Leave one-token out.",
            )
        self.text_task = text_task
        self.one_token = one_token
        self.tokenizer = tokenizer
        self.model_kind = model_kind
        own = int(min(getattr(tokenizer, "model_max_length", _NO_LIMIT), _NO_LIMIT))
        self.max_length = max_length if max_length is not None else (own if own < _NO_LIMIT else None)
        pad = tokenizer.pad_token_id
        # Padding is masked out, so any valid id will do where the tokenizer defines none.
        self.pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)
        self._datasets: dict[str, list[Encoded]] = {}
        #: Metrics that an evaluation gives besides the task's own, by their names.
        self.further_metrics: dict[str, Metric] = {}

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
            encoded = self._cut(examples, self._encoded(examples, where), where)
            check_lengths(encoded, examples, self.max_length, where)
            self._datasets[split] = encoded
        return self._datasets[split]

    def _encoded(self, examples: Sequence[Example], where: str) -> list[Encoded]:
        if self.model_kind == "masked":
            encoded = encode_masked(examples, self.tokenizer, where, self.one_token)
        else:
            encoded = encode_causal(examples, self.tokenizer, where)
        return first_tokens(encoded, examples, self.tokenizer, where) if self.one_token else encoded

    def _cut(self, examples: Sequence[Example], encoded: list[Encoded], where: str) -> list[Encoded]:
        """``encoded`` with the passages of those examples cut that would not fit, nor leave room for an answer."""
        if self.max_length is None:
            return encoded
        limit = self.max_length
        # Half of the context at most is kept for an answer, so that some of the passage is left.
        room = min(self._longest(encoded), limit // 2) if self.text_task.kind == "completion" else 0

        def fits(example: Example) -> bool:
            (one,) = self._encoded([example], where)
            return max(one.length, len(one.context) + room) <= limit

        return [
            replace(self._encoded([fitted(examples[one.index], fits)], where)[0], index=one.index)
            if examples[one.index].passage and max(one.length, len(one.context) + room) > limit
            else one
            for one in encoded
        ]

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch of ``dataset`` entries; for its tensors see :func:`zoft.tasks.encoding.collate`."""
        return collate(examples, self.pad_id)

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
        for indices in self.train_order(batch_size, seed, start):
            yield self.collate(self.trained_on([examples[index] for index in indices]))

    def train_order(self, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Which examples of the training split the batches of :meth:`train_batches` are made of."""
        count = len(self.dataset("train"))
        epoch, skipped = divmod(start * batch_size, count)
        order = islice(_epochs(count, seed, epoch), skipped, None)
        while True:
            yield list(islice(order, batch_size))

    def trained_on(self, members: Sequence[Encoded]) -> list[Encoded]:
        """The examples as they are trained on: where the right answer alone is, without the other candidates."""
        if not self._teacher_forcing:
            return list(members)
        return [replace(one, candidates=(one.candidates[one.label],), label=0) for one in members]

    @property
    def _teacher_forcing(self) -> bool:
        """Whether the loss is that of the right answer alone."""
        by_choice = getattr(self.text_task, "teacher_forcing", False) and self.model_kind == "causal"
        return self.text_task.kind == "completion" or (by_choice and not self.one_token)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of ``batch``: a float32 scalar, differentiable when gradients are on.

        The model's mode is left alone: call it in evaluation mode for a loss without dropout.
        """
        return self.losses(model, batch).mean()

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Loss of each example of ``batch``, float32 [B]."""
        check_context(model, batch, self.name)
        return self._losses(*token_log_likelihoods(model, on_device(batch, model)), batch["labels"])

    def part_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the loss of ``batch`` is a mean of, float32.

        The :meth:`losses` [B]; where the right answer is learned by teacher forcing the losses of its tokens [B, T],
        −∞ where an example has no more of them.
        """
        if not self._teacher_forcing:
            return self.losses(model, batch)
        check_context(model, batch, self.name)
        log_likelihoods, present = token_log_likelihoods(model, on_device(batch, model))
        labels = batch["labels"].to(log_likelihoods.device)
        right = torch.arange(len(labels), device=labels.device), labels
        return (-log_likelihoods[right]).masked_fill(~present[right], -math.inf)

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], split: str = "train") -> list[str]:
        """The model's answer to each example of a batch: its best candidate, or what it generates.

        Runs in evaluation mode, without gradients. A candidate is given as ``Example.named`` has it.

        Args:
            split: that the batch is of; :meth:`train_batches` are of ``train``.
        """
        members = [self.dataset(split)[index] for index in batch["indices"].tolist()]
        with torch.inference_mode(), evaluating(model):
            if self.text_task.kind == "completion":
                return self._continued(model, members, split, self.collate(self.prompts(members)))
            whole = on_device(self.collate(members), model)
            check_context(model, whole, self.name)
            return self._best(self._scores(*token_log_likelihoods(model, whole)), members, split)

    def accepted(self, batch: Mapping[str, Tensor], split: str = "train") -> list[tuple[str, ...]]:
        """Every answer that a metric accepts, for each example of a batch."""
        examples = self.text_task.examples(split)
        return [examples[index].accepted for index in batch["indices"].tolist()]

    def evaluate(
        self, model: nn.Module, split: str = "test", limit: int | None = None, batch_size: int = 64
    ) -> dict[str, float]:
        """Mean ``loss`` and the task's metrics, by their names, on the first ``limit`` examples of ``split``.

        Runs in evaluation mode and restores the mode after it; draws no random numbers.
        """
        encoded = self.dataset(split)[:limit]
        if not encoded:
            raise UsageError(f"task {self.name!r}: limit {limit} leaves no examples", "Raise the limit.")
        losses = 0.0
        predictions: dict[int, str] = {}
        # Neighbours in length share a batch: less padding, the same result.
        ordered = sorted(encoded, key=lambda example: (example.length, example.index))
        with torch.inference_mode(), evaluating(model):
            for first in range(0, len(ordered), batch_size):
                members = ordered[first : first + batch_size]
                prompts = self.collate(self.prompts(members)) if self.text_task.kind == "completion" else None
                found, texts = self.judged(model, members, split, self.collate(members), prompts)
                losses += float(found.double().sum())
                predictions.update(zip((member.index for member in members), texts, strict=True))
        return {"loss": losses / len(encoded), **self.measured(predictions, split)}

    def judged(
        self,
        model: nn.Module,
        members: Sequence[Encoded],
        split: str,
        batch: Mapping[str, Tensor],
        prompts: Mapping[str, Tensor] | None,
    ) -> tuple[Tensor, list[str]]:
        """Loss of each member, float32 [B], and the model's answer to it.

        Args:
            batch: of the members; ``prompts``: of :meth:`prompts` of them, for a completion.
        """
        check_context(model, batch, self.name)
        found = token_log_likelihoods(model, on_device(batch, model))
        losses = self._losses(*found, batch["labels"])
        if prompts is not None:
            return losses, self._continued(model, members, split, prompts)
        return losses, self._best(self._scores(*found), members, split)

    def measured(self, predictions: Mapping[int, str], split: str) -> dict[str, float]:
        """The task's metrics of predictions by their examples' indices."""
        source = self.text_task.examples(split)
        examples = [source[index] for index in sorted(predictions)]
        texts = [predictions[index] for index in sorted(predictions)]
        references = [example.accepted for example in examples]
        groups = [example.group for example in examples]
        names = (self.text_task.metric, *getattr(self.text_task, "more_metrics", ()))
        metrics = {**{name: get_metric(name) for name in names}, **self.further_metrics}
        return {name: measure(metric, texts, references, groups) for name, metric in metrics.items()}

    def _losses(self, log_likelihoods: Tensor, present: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, float32 [B]."""
        labels = labels.to(log_likelihoods.device)
        if self._teacher_forcing:
            right = torch.arange(len(labels), device=labels.device), labels
            summed = log_likelihoods.masked_fill(~present, 0.0)[right].sum(-1)
            return -summed / present[right].sum(-1)
        return F.cross_entropy(self._scores(log_likelihoods, present), labels, reduction="none")

    def _scores(self, log_likelihoods: Tensor, present: Tensor) -> Tensor:
        return summed_scores(log_likelihoods, present, getattr(self.text_task, "length_normalized", False))

    def _best(self, scores: Tensor, members: Sequence[Encoded], split: str) -> list[str]:
        """The candidate of each member that scores highest."""
        examples = self.text_task.examples(split)
        chosen = scores.argmax(-1).tolist()
        return [examples[member.index].named[at] for member, at in zip(members, chosen, strict=True)]

    def prompts(self, members: Sequence[Encoded]) -> list[Encoded]:
        """The members' contexts alone, as what is continued."""
        return [Encoded(member.context, ((0,),), 0, member.index) for member in members]

    def _continued(
        self, model: nn.Module, members: Sequence[Encoded], split: str, prompts: Mapping[str, Tensor]
    ) -> list[str]:
        """The greedy continuation of each member's context, cut to the answer."""
        encoded = self.dataset(split)
        batch = on_device(prompts, model)
        longest = self._longest(encoded)
        if self.max_length is not None:
            longest = min(longest, self.max_length - batch["input_ids"].shape[1] + 1)
        continued = greedy(model, batch, longest, self._stops(encoded))
        texts = self.tokenizer.batch_decode(continued, skip_special_tokens=True)
        examples = self.text_task.examples(split)
        return [_answer(text, examples[member.index]) for member, text in zip(members, texts, strict=True)]

    def _longest(self, encoded: Sequence[Encoded]) -> int:
        """How many tokens are generated: one more than the longest answer shows whether its last word ends there."""
        longest = max(len(candidate) for example in encoded for candidate in example.candidates) + 1
        return getattr(self.text_task, "max_new_tokens", None) or longest

    def _stops(self, encoded: Sequence[Encoded]) -> set[int]:
        """Tokens that end an answer: the end of a sequence, and what ends answers and never stands within one."""
        answers = [example.candidates[0] for example in encoded]
        within = {token for answer in answers for token in answer[:-1]}
        last = {answer[-1] for answer in answers} - within
        ends = {token for token in last if not self.tokenizer.decode([token], skip_special_tokens=True).strip()}
        eos = self.tokenizer.eos_token_id
        return ends | ({eos} if eos is not None else set())


def _answer(text: str, example: Example) -> str:
    """What a continuation answers: it ends where the example's own answer shows the model to end."""
    text, own = text.strip(), example.candidates[0]
    if own.endswith("\n"):
        lines = 1 + max(reference.count("\n") for reference in example.accepted)
        return "\n".join(text.split("\n")[:lines]).strip()
    if own.strip() not in example.accepted:  # it ends in a token of its own, as in a chat
        return text
    given = (ref for ref in example.accepted if re.match(re.escape(ref) + r"(?!\w)", text))
    return next(given, text)


def _epochs(count: int, seed: int, epoch: int) -> Iterator[int]:
    """Indices below ``count``, one permutation an epoch, from ``epoch`` on."""
    while True:
        yield from np.random.default_rng((seed, epoch)).permutation(count).tolist()
        epoch += 1
