"""Token ids for the examples of a text task, and right-sized batches of them.

Nothing here runs a model. Each example becomes a context and the token ids of its candidates; each
candidate is scored given the same context, whatever the tokenizer merges across the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        # A chat template may write the beginning-of-sequence token itself.
        leading = () if tuple(prompt[: len(first)]) == first else first
        context = (*leading, *prompt[:split]) or _substitute_context(tokenizer, place(example, where, index))
        candidates = tuple(tuple(whole[split:]) for whole in wholes)
        for number, candidate in enumerate(candidates):
            if not candidate:
                text = example.candidates[number]
                raise UsageError(
                    f"{place(example, where, index)}: candidate {text!r} has no tokens after its prompt",
                    "Give every candidate some text that the model's tokenizer keeps.",
                )
        encoded.append(Encoded(context, candidates, example.label, index))
    return encoded


def encode_masked(examples: Sequence[Example], tokenizer: Any, where: str, first_token: bool = False) -> list[Encoded]:
    """Encode for a masked model: the example's cloze, or the prompt followed by the mask token.

    Args:
        first_token: of a candidate with several tokens the first one stands for it.

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
    texts = [_masked_text(example, tokenizer.mask_token) for example in examples]
    contexts = tokenizer(texts, verbose=False)["input_ids"]
    known: dict[str, tuple[int, ...]] = {}
    encoded = []
    for index, (example, context) in enumerate(zip(examples, contexts, strict=True)):
        if context.count(mask) != 1:
            raise UsageError(
                f"{place(example, where, index)}: the prompt holds the mask token {tokenizer.mask_token!r}",
                "Remove it from the prompt.",
            )
        words = (example.cloze.candidates if example.cloze else ()) or example.candidates
        for text in words:
            if text not in known:
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                known[text] = tuple(ids[:1] if first_token else ids)
            if len(known[text]) != 1:
                raise UsageError(
                    f"{place(example, where, index)}: candidate {text!r} is {len(known[text])} tokens, and a"
                    " masked language model scores single tokens only",
                    "Choose candidates of one token, or use a causal language model.",
                )
        candidates = tuple(known[text] for text in words)
        encoded.append(Encoded(tuple(context), candidates, example.label, index, context.index(mask)))
    return encoded


def first_tokens(encoded: Sequence[Encoded], examples: Sequence[Example], tokenizer: Any, where: str) -> list[Encoded]:
    """``encoded`` with the first token of every candidate alone, which then stands for it.

    Raises:
        UsageError: two candidates of an example begin with the same token; names the example.
    """
    for one in encoded:
        seen: dict[int, int] = {}
        for number, candidate in enumerate(one.candidates):
            if candidate[0] in seen:
                example = examples[one.index]
                pair = [example.candidates[seen[candidate[0]]], example.candidates[number]]
                raise UsageError(
                    f"{place(example, where, one.index)}: {pair[0]!r} and {pair[1]!r} begin with the same token"
                    f" {tokenizer.decode([candidate[0]])!r}, which one-token scoring cannot tell apart",
                    "Choose other label words, or score whole candidates (without one-token).",
                )
            seen[candidate[0]] = number
    return [replace(one, candidates=tuple(candidate[:1] for candidate in one.candidates)) for one in encoded]


def place(example: Example, where: str, index: int) -> str:
    """File and row of an example if it has them, otherwise its split and index: what an error begins with."""
    return example.where or f"{where}, example {index}"


def _masked_text(example: Example, mask: str) -> str:
    if example.cloze is None:
        return example.prompt + mask
    # A mask token of RoBERTa's kind takes the space before it along; one of BERT's kind ignores it.
    before = f"{example.cloze.before} " if example.cloze.before else ""
    return before + mask + example.cloze.after


def check_lengths(encoded: Sequence[Encoded], examples: Sequence[Example], limit: int | None, where: str) -> None:
    """Raise a UsageError that names the first example longer than ``limit`` tokens."""
    for example in encoded:
        if limit is not None and example.length > limit:
            longer = sum(other.length > limit for other in encoded)
            raise UsageError(
                f"{place(examples[example.index], where, example.index)}: {example.length} tokens, and the model"
                f" takes at most {limit} ({longer} of {len(encoded)} examples are too long)",
                "Shorten or drop these examples, or use a model with a longer context.",
            )


def collate(examples: Sequence[Encoded], pad_id: int, share: bool | None = None) -> dict[str, Tensor]:
    """A batch as int64 tensors, padded to its longest row.

    For a causal model a row is the context and all but the last token of a candidate, padded on the
    left, so that the logits at the last K positions predict the candidates' tokens. The single-token
    candidates of an example need the same row, and share it unless ``share`` is false. For a
    masked model a row is the context with its mask token, padded on the right.

    Candidates of several tokens share their context where that saves at least half of the tokens, or
    where ``share`` is true: it costs a second, short call of the model. A row is then a context alone.

    Returns:
        B examples, C candidates, K tokens of the longest candidate, R rows, T tokens of the longest row:

        * ``input_ids``, ``attention_mask``, ``position_ids`` [R, T]; no ``position_ids`` for a masked
          model, where they are the model's own affair;
        * ``rows`` [B, C]: the row of each candidate;
        * ``targets`` [B, C, K]: the candidates' tokens, at the right; -100 elsewhere;
        * ``labels`` [B]: the right candidate; ``indices`` [B]: where the examples stand in their split;
        * ``mask_at`` [R], for a masked model only: the position of the mask token.

        With a shared context ``targets`` are at the left, there is no ``rows``, row b is the context of
        example b, and S suffixes follow the contexts, one for each candidate of several tokens (and an
        empty one for an example without such a candidate):

        * ``suffix_ids``, ``suffix_mask`` [S, K - 1]: all but the last token, padded on the right;
        * ``suffix_rows`` [S]: the context of each; ``suffix_first`` [B]: the first one of each context;
        * ``suffix_of`` [B, C]: the suffix of each candidate; any one of its example for a single token.
    """
    masked = examples[0].mask_at is not None
    about = {
        "labels": torch.tensor([example.label for example in examples]),
        "indices": torch.tensor([example.index for example in examples]),
    }
    several = not masked and any(len(candidate) > 1 for example in examples for candidate in example.candidates)
    if several and (share or (share is None and _sharing_halves(examples))):
        return {**_shared(examples, pad_id), **about}
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
            single = share is not False and len(candidate) == 1
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
    return {**batch, "rows": rows, "targets": targets, **about}


def _sharing_halves(examples: Sequence[Encoded]) -> bool:
    """Whether running every context once takes at most half of the tokens that whole rows take."""
    apart, shared = 0, 0
    for example in examples:
        suffixes = [len(candidate) - 1 for candidate in example.candidates if len(candidate) > 1]
        rows = len(suffixes) + (len(suffixes) < len(example.candidates))
        apart += rows * len(example.context) + sum(suffixes)
        shared += len(example.context) + sum(suffixes)
    return apart >= 2 * shared


def _shared(examples: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """The batch of :func:`collate` whose contexts are rows of their own."""
    count = max(len(example.candidates) for example in examples)
    width = max(len(candidate) for example in examples for candidate in example.candidates)
    targets = torch.full((len(examples), count, width), ABSENT)
    columns = torch.zeros(len(examples), count, dtype=torch.long)
    suffixes: list[tuple[int, ...]] = []
    rows: list[int] = []
    first: list[int] = []
    for number, example in enumerate(examples):
        first.append(len(suffixes))
        columns[number] = len(suffixes)
        for column, candidate in enumerate(example.candidates):
            targets[number, column, : len(candidate)] = torch.tensor(candidate)
            if len(candidate) > 1:
                columns[number, column] = len(suffixes)
                suffixes.append(candidate[:-1])
        if len(suffixes) == first[-1]:
            suffixes.append(())
        rows.extend([number] * (len(suffixes) - first[-1]))
    batch = _padded([example.context for example in examples], pad_id, left=True)
    ids = torch.full((len(suffixes), width - 1), pad_id)
    mask = torch.zeros_like(ids)
    for number, suffix in enumerate(suffixes):
        ids[number, : len(suffix)] = torch.tensor(suffix, dtype=torch.long)
        mask[number, : len(suffix)] = 1
    names = {"suffix_rows": rows, "suffix_first": first}
    indexed = {name: torch.tensor(value) for name, value in names.items()}
    return {**batch, **indexed, "targets": targets, "suffix_ids": ids, "suffix_mask": mask, "suffix_of": columns}


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
                f"{place(example, where, index)}: label {example.label} with {len(example.candidates)} candidates",
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


def _substitute_context(tokenizer: Any, where: str) -> tuple[int, ...]:
    """The context of an example whose prompt has no tokens: a causal model needs one to start from."""
    for first in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if first is not None:
            return (first,)
    raise UsageError(f"{where}: the prompt has no tokens", "Give the example a prompt.")
