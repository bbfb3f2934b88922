"""Blocks that take turns: a direction perturbs one part of the model, the next direction another.

A direction of all blocks has one slope and one curvature, and the blocks that are steepest bound the step of all the
others. With turns, blocks are in K parts, and a direction is 0 in all blocks but those of the part whose turn it is.
At its best step size a direction of covariance S = diag(s) lowers the loss by

    r/2,    r = (Σ s_i·G_i)² / (Σ s_i·F_i · Σ s_i·T_i)

with G_i = |g_i|², F_i = E|g_b,i|² and T_i = tr H_i by block (:mod:`meta_train.signal`). Let r_k be the same with the
sums over part k, and w_k in proportion to √(F_k·T_k), with the sum 1. By Cauchy–Schwarz, twice,

    r ≤ (Σ_k w_k·√r_k)² ≤ Σ_k w_k·r_k,

so that turns in the proportion w lose nothing, whatever the parts, as long as each has a step size of its own, and gain
where the parts differ in signal over noise. Here all parts have equally many turns. That may lose, but never more than
a factor of K against directions of the one part that is best on a task.

Steps are longer or shorter by part only with a step-size head, which keeps its means by turn
(:mod:`zoft.tuner.step_rule`).

The idea is that of block coordinate descent. What is learned is which blocks go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from zoft.config import Config

#: Parts at most.
MOST = 64


class TurnsConfig(Config):
    """The section ``turns`` of a tuner."""

    of: list[int] = Field(description="The turn of every row's block, from 0; each one has a block.")
    learned: bool = Field(description="Whether it was learned which blocks go together; else they do so by a rule.")

    @model_validator(mode="after")
    def _every_turn_has_a_block(self) -> Self:
        found = set(self.of)
        if not 2 <= len(found) <= MOST or found != set(range(len(found))):
            raise ValueError(f"the turns are to be numbered from 0, at least 2 and at most {MOST}, each with a block")
        return self


def renumbered(turns: Sequence[int]) -> tuple[int, ...]:
    """The turns of blocks that are left of a model, from 0 again; empty where only one is left."""
    left = sorted(set(turns))
    return tuple(left.index(turn) for turn in turns) if len(left) > 1 else ()


def turn_at(step: int, draw: int, directions: int, count: int) -> int:
    """Whose turn it is: directions are counted through the whole run.

    Args:
        draw: which of the step's directions, from 0.
        directions: of a step.
        count: number of turns.
    """
    return (step * directions + draw) % count


def parts_of(turns: Sequence[int], types: Sequence[str]) -> list[str]:
    """The module types of every turn, ``q_proj, k_proj``; by short names where they tell the types apart."""
    short = {kind: kind.rpartition(".")[2] for kind in types}
    named = short if len(set(short.values())) == len(short) else {kind: kind for kind in types}
    parts: dict[int, list[str]] = {}
    for turn, kind in sorted(zip(turns, types, strict=True), key=lambda pair: pair[0]):
        parts.setdefault(turn, []).append(named[kind])
    return [", ".join(dict.fromkeys(part)) for part in parts.values()]
