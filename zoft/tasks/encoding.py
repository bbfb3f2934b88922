"""Token ids for the examples of a text task, and right-sized batches of them.

Nothing here runs a model. Each example becomes a context and the token ids of its candidates; each
candidate is scored given the same context, whatever the tokenizer merges across the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zoft.errors import UsageError
from zoft.tasks.base import Example

#: Marks an absent target token and an absent candidate.
ABSENT = -100


class TextSource(Protocol):
    """What ``LMTask`` reads of a :class:`~zoft.tasks.base.TextTask` or of a data set of one's own."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def metric(self) -> str: ...

    def examples(self, split: str) -> list[Example]: ...


@dataclass(frozen=True)
class Encoded:
    """One example in token ids.

    Attributes:
        context: what all candidates are scored given, special tokens included; never empty.
        candidates: the token ids of each candidate; never empty.
        label: index of the right candidate.
        index: where the example stands in its split.
        mask_at: the position in ``context`` that the candidate stands at, for a masked model; else None.
    """

    context: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    label: int
    index: int
    mask_at: int | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that the example stands for."""
        if self.mask_at is not None:
            return len(self.context)
        return len(self.context) + max(map(len, self.candidates))


def encode_causal(examples: Sequence[Example], tokenizer: Any, where: str) -> list[Encoded]:
    """Encode for a causal model: the context is what every ``prompt + candidate`` begins with.

    A tokenizer may merge across the boundary of prompt and candidate. The context then ends where the
    token ids of the prompt and of all ``prompt + candidate`` part, and the rest is the candidate: every
    candidate is scored given the same tokens. The beginning-of-sequence token comes first where the
    tokenizer puts one there by itself.

    Args:
        where: the beginning of error messages, for instance ``"task 'rte', split 'train'"``.

    Raises:
        UsageError: no examples, a label out of range, or a candidate that has no tokens.
    """
    _check_examples(examples, where)
    texts: list[str] = []
    for example in examples:
        texts.append(example.prompt)
        texts.extend(example.prompt + candidate for candidate in example.candidates)
    ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    first = _leading_ids(tokenizer)
    encoded = []
    for index, example in enumerate(examples):
        prompt = list(next(ids))
        wholes = [list(next(ids)) for _ in example.candidates]
        split = min(_common(prompt, whole) for whole in wholes)
        context = (*first, *prompt[:split]) or _substitute_context(tokenizer, where, index)
        candidates = tuple(tuple(whole[split:]) for whole in wholes)
        for number, candidate in enumerate(candidates):
            if not candidate:
                text = example.candidates[number]
                raise UsageError(
                    f"{where}, example {index}: candidate {text!r} has no tokens after its prompt",
                    "Give every candidate some text that the model's tokenizer keeps.",
                )
        encoded.append(Encoded(context, candidates, example.label, index))
    return encoded


def encode_masked(examples: Sequence[Example], tokenizer: Any, where: str) -> list[Encoded]:
    """Encode for a masked model: the prompt, then the mask token where the candidate stands.

    Raises:
        UsageError: no examples, a label out of range, a candidate that is not a single token, a
            tokenizer without a mask token, or a prompt that holds the mask token.
    """
    _check_examples(examples, where)
    mask = tokenizer.mask_token_id
    if mask is None:
        raise UsageError(
            f"{where}: the tokenizer has no mask token, so the model is no masked language model",
            "Use model_kind='causal'.",
        )
    texts = [example.prompt + tokenizer.mask_token for example in examples]
    contexts = tokenizer(texts, verbose=False)["input_ids"]
    known: dict[str, tuple[int, ...]] = {}
    encoded = []
    for index, (example, context) in enumerate(zip(examples, contexts, strict=True)):
        if context.count(mask) != 1:
            raise UsageError(
                f"{where}, example {index}: the prompt holds the mask token {tokenizer.mask_token!r}",
                "Remove it from the prompt.",
            )
        for text in example.candidates:
            if text not in known:
                known[text] = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(known[text]) != 1:
                raise UsageError(
                    f"{where}, example {index}: candidate {text!r} is {len(known[text])} tokens, and a"
                    " masked language model scores single tokens only",
                    "Choose candidates of one token, or use a causal language model.",
                )
        candidates = tuple(known[text] for text in example.candidates)
        encoded.append(Encoded(tuple(context), candidates, example.label, index, context.index(mask)))
    return encoded


def check_lengths(encoded: Sequence[Encoded], limit: int | None, where: str) -> None:
    """Raise a UsageError that names the first example longer than ``limit`` tokens."""
    for example in encoded:
        if limit is not None and example.length > limit:
            longer = sum(other.length > limit for other in encoded)
            raise UsageError(
                f"{where}, example {example.index}: {example.length} tokens, and the model takes at most"
                f" {limit} ({longer} of {len(encoded)} examples are too long)",
                "Shorten or drop these examples, or use a model with a longer context.",
            )


def collate(examples: Sequence[Encoded], pad_id: int, share_context: bool = True) -> dict[str, Tensor]:
    """A batch as int64 tensors, padded to its longest row.

    For a causal model a row is the context and all but the last token of a candidate, padded on the
    left, so that the logits at the last K positions predict the candidates' tokens. The single-token
    candidates of an example need the same row, and share it unless ``share_context`` is false. For a
    masked model a row is the context with its mask token, padded on the right.

    Returns:
        B examples, C candidates, K tokens of the longest candidate, R rows, T tokens of the longest row:

        * ``input_ids``, ``attention_mask``, ``position_ids`` [R, T]; no ``position_ids`` for a masked
          model, where they are the model's own affair;
        * ``rows`` [B, C]: the row of each candidate;
        * ``targets`` [B, C, K]: the candidates' tokens, at the right; -100 elsewhere;
        * ``labels`` [B]: the right candidate;
        * ``mask_at`` [R], for a masked model only: the position of the mask token.
    """
    masked = examples[0].mask_at is not None
    count = max(len(example.candidates) for example in examples)
    width = max(len(candidate) for example in examples for candidate in example.candidates)
    rows = torch.zeros(len(examples), count, dtype=torch.long)
    targets = torch.full((len(examples), count, width), ABSENT)
    sequences: list[tuple[int, ...]] = []
    mask_at: list[int | None] = []
    for number, example in enumerate(examples):
        shared: int | None = None
        for column, candidate in enumerate(example.candidates):
            targets[number, column, width - len(candidate) :] = torch.tensor(candidate)
            single = share_context and len(candidate) == 1
            if single and shared is not None:
                rows[number, column] = shared
                continue
            shared = len(sequences) if single else shared
            rows[number, column] = len(sequences)
            sequences.append(example.context + (() if masked else candidate[:-1]))
            mask_at.append(example.mask_at)
    batch = _padded(sequences, pad_id, left=not masked)
    if masked:
        del batch["position_ids"]
        batch["mask_at"] = torch.tensor(mask_at)
    labels = torch.tensor([example.label for example in examples])
    return {**batch, "rows": rows, "targets": targets, "labels": labels}


def _padded(sequences: Sequence[tuple[int, ...]], pad_id: int, left: bool) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``position_ids`` [R, T] of rows that are not empty."""
    longest = max(map(len, sequences))
    input_ids = torch.full((len(sequences), longest), pad_id)
    attention_mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        span = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        input_ids[row, span] = torch.tensor(sequence)
        attention_mask[row, span] = 1
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


def _check_examples(examples: Sequence[Example], where: str) -> None:
    if not examples:
        raise UsageError(f"{where} has no examples", "Give a data set with at least one example there.")
    for index, example in enumerate(examples):
        if not 0 <= example.label < len(example.candidates):
            raise UsageError(
                f"{where}, example {index}: label {example.label} with {len(example.candidates)} candidates",
                "A label is the index of one of the candidates.",
            )


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for position, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return position
    return min(len(left), len(right))


def _leading_ids(tokenizer: Any) -> tuple[int, ...]:
    """The beginning-of-sequence token, where the tokenizer puts one in front of a text by itself."""
    first = tokenizer.bos_token_id
    with_special = tokenizer("a")["input_ids"]
    return (first,) if first is not None and with_special[:1] == [first] else ()


def _substitute_context(tokenizer: Any, where: str, index: int) -> tuple[int, ...]:
    """The context of an example whose prompt has no tokens: a causal model needs one to start from."""
    for first in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if first is not None:
            return (first,)
    raise UsageError(f"{where}, example {index}: the prompt has no tokens", "Give the example a prompt.")
