"""Which row of a tuner belongs to which block of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from zoft.blocks import Block, Blocks, canonical_name
from zoft.errors import IncompatibleError

#: What the names of PEFT's parameters hold.
_ADAPTER = re.compile(r"\.(lora_[AB]|ia3_l)\.|^prompt_encoder\.")


@dataclass(frozen=True)
class Match:
    """A tuner's rows for a model.

    Attributes:
        rows: for every block of the model, in order, its row in the tuner.
        notes: what differs without harm, one sentence each.
        names, shapes: of the model's blocks, in order.
    """

    rows: tuple[int, ...]
    notes: tuple[str, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def match(names: Sequence[str], shapes: Sequence[Sequence[int] | None], model: nn.Module) -> Match:
    """Match a tuner's rows with a model's blocks; a shape of None is not known and fits any.

    Raises:
        IncompatibleError: a block of the model has no row, a row has no parameter in the model, or a
            shape differs by more than a resized vocabulary.
    """
    blocks = Blocks.of(model)
    row_of = {name: row for row, name in enumerate(names)}
    everything = {canonical_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    extra = [block.name for block in blocks if block.name not in row_of]
    missing = [name for name in names if name not in everything]
    known = {name: shape for name, shape in zip(names, shapes, strict=True) if shape is not None}
    differing = [b for b in blocks if b.name in known and list(known[b.name]) != list(b.shape)]
    resized = _resized_vocabulary(differing, known)
    misshapen = [] if resized else differing
    if extra or missing or misshapen:
        problems = [f"{name}: not in the tuner" for name in extra]
        problems += [f"{name}: not in the model" for name in missing]
        problems += [f"{b.name}: {_of(known[b.name])} in the tuner, {_of(b.shape)} here" for b in misshapen]
        matching = len(blocks) - len(extra) - len(misshapen)
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise IncompatibleError(
            f"the tuner is for another base: {matching} of {len(blocks)} blocks match; "
            + "; ".join(problems[:3])
            + more,
            _remedy(extra, missing),
        )
    notes = [resized] if resized else []
    if len(known) < len(names):
        notes.append("the tuner does not know the shapes of its base: only the names were compared")
    rows = tuple(row_of[block.name] for block in blocks)
    return Match(rows, tuple(notes), tuple(blocks.names), tuple(blocks.shapes))


def _resized_vocabulary(differing: Sequence[Block], known: Mapping[str, Sequence[int]]) -> str | None:
    """A note if every differing block is a table or head whose vocabulary changed, all alike."""
    changes = set()
    for block in differing:
        before, after = list(known[block.name]), list(block.shape)
        if len(before) != len(after) or before[1:] != after[1:]:
            return None
        changes.add((before[0], after[0]))
    if len(changes) != 1 or not any(block.is_embedding for block in differing):
        return None
    ((before_rows, after_rows),) = changes
    return (
        f"the model's vocabulary has {after_rows} entries, the tuner's base had {before_rows}: "
        f"the same networks serve {', '.join(block.name for block in differing)}"
    )


def _remedy(extra: Sequence[str], missing: Sequence[str]) -> str:
    """Which of the two sides has an adapter that the other one lacks."""
    if any(map(_ADAPTER.search, missing)):
        return "The tuner was learned on an adapter: give the same --peft options, or another tuner."
    if any(map(_ADAPTER.search, extra)):
        return "The model has an adapter: meta-train a tuner with the same --peft options, or train without one."
    return "Use a tuner learned on this model's base, or meta-train one."


def _of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
