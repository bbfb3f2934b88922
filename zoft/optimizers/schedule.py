"""Hyper-parameters that change with the step: plain functions of its number, so a replay needs no state for them."""

from __future__ import annotations

import math
from typing import Literal

#: How a value goes from its first to its last one over a number of steps; it stays at the last one afterwards.
Schedule = Literal["constant", "linear", "cosine", "exponential"]


def scheduled(kind: Schedule, first: float, last: float, step: int, steps: int) -> float:
    """The value at ``step`` of a schedule from ``first`` (step 0) to ``last`` (step ``steps`` and later).

    With x = step / steps: linear first + x·(last − first); cosine the same with ½ − ½·cos(πx) in place of x;
    exponential first·(last / first)^x, for positive values.
    """
    if kind == "constant":
        return first
    if step >= steps:
        return last
    x = step / steps
    if kind == "exponential":
        return first * (last / first) ** x
    if kind == "cosine":
        x = 0.5 - 0.5 * math.cos(math.pi * x)
    return first + x * (last - first)
