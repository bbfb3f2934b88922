"""Learning which blocks go together where blocks take turns (:mod:`zoft.tuner.turns`).

Blocks of one module type stay together. ``types`` gives every type a turn of its own: a rule, and nothing is learned.
``signal`` puts the types into two parts, those that raise most the mean over the tasks of the logarithm of

    r_1/2 + r_2/2,    r_k = (G_k / F_k)²

with G_k and F_k the signal and the noise of a part (:mod:`meta_train.signal`, T ∝ F assumed as there). The logarithm
makes it the choice that does well on all tasks and not very well on one: parts pay where on some tasks most of the
signal is in the one and on some in the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meta_train.config import MetaTrainConfig
from meta_train.signal import Signal
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.tuner.module_types import module_types
from zoft.tuner.turns import MOST

#: Least G/F: a smaller or negative estimate is noise.
_LEAST = 0.01

#: With more types than this not all pairs of parts are compared, but those that a threshold of mean log(G/F) makes.
_MOST_TYPES = 14


def check_turns(config: MetaTrainConfig, blocks: Blocks) -> None:
    """Raise a UsageError where blocks are to take turns and are of one module type, or of too many for one each."""
    if config.turns == "none":
        return
    types = len(set(module_types(blocks)))
    if types < 2:
        raise UsageError(
            "all blocks of the model are of one module type, and so cannot take turns", "Set turns to none."
        )
    if config.turns == "types" and types > MOST:
        raise UsageError(
            f"the blocks of the model are of {types} module types, and there are at most {MOST} turns",
            "Set turns to signal, which makes two parts, or to none.",
        )


def learned_turns(
    config: MetaTrainConfig, blocks: Blocks, signal: Signal | None, without: int | None = None
) -> list[int] | None:
    """The turn of every block; None where blocks are not to take turns.

    Args:
        signal: of the blocks, for the kind ``signal``.
        without: index of a task that is left out.
    """
    if config.turns == "none":
        return None
    types = module_types(blocks)
    kinds = list(dict.fromkeys(types))
    if config.turns == "types":
        return [kinds.index(kind) for kind in types]
    if signal is None:
        raise ValueError("the turns signal need the objective expected")
    members = torch.tensor([[kind == other for kind in types] for other in kinds], dtype=torch.float64)
    seen = signal.visits > 0
    if without is not None:
        seen[without] = False
    second = best_part(signal.signal[seen] @ members.T, signal.noise[seen] @ members.T)
    return [int(second[kinds.index(kind)]) for kind in types]


def best_part(signal: Tensor, noise: Tensor) -> Tensor:
    """Which types are in the second part: a mask [types], False for the first type.

    Args:
        signal, noise: G and F by task and type, [tasks, types].
    """
    candidates = _candidates(signal, noise)
    squares = []
    for part in (candidates.double(), (~candidates).double()):
        ratio = (part @ signal.T) / (part @ noise.T).clamp(min=1e-300)
        squares.append(ratio.clamp(min=_LEAST).square())
    found = candidates[int(sum(squares[1:], squares[0]).log().mean(1).argmax())]
    return ~found if bool(found[0]) else found


def _candidates(signal: Tensor, noise: Tensor) -> Tensor:
    """Masks [pairs of parts, types], neither part empty."""
    count = signal.shape[1]
    if count <= _MOST_TYPES:
        numbers = torch.arange(1, 2 ** (count - 1))
        bits = (numbers[:, None] >> torch.arange(count)) & 1
        return bits.bool()
    order = (signal / noise.clamp(min=1e-300)).clamp(min=_LEAST).log().mean(0).argsort()
    ranks = order.argsort()
    return ranks[None] >= torch.arange(1, count)[:, None]
