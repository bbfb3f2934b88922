"""Searches by evolution on the outcomes of whole runs: CMA-ES, and what a run counts for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoft.errors import UsageError

#: What a run counts for at most, where its loss is not finite, and at least.
CEILING, FLOOR = 1.0, -7.0

#: Decimals of coordinates: the runs of a repeated search are the same even where a sum is rounded otherwise.
DECIMALS = 4


def cma_library() -> Any:
    """The library ``cma``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import cma
    except ModuleNotFoundError:
        raise UsageError(
            "a search by evolution needs the library cma", "Install it: pip install 'zoft[research]'."
        ) from None
    return cma


def cma_es(
    start: Sequence[float],
    spread: Sequence[float],
    bound: float,
    population: int,
    generator: np.random.Generator,
    *,
    by_coordinate: bool = False,
) -> Any:
    """CMA-ES (Hansen, *The CMA Evolution Strategy: A Tutorial*, arXiv 1604.00772) by its authors' library ``cma``.

    It is asked for candidates and told their values (``ask``, ``tell``); its random stream is its own.

    Args:
        start, spread: the first mean and standard deviation of every coordinate.
        bound: no coordinate goes further than this from 0.
        population: candidates a generation.
        generator: where its random numbers come from.
        by_coordinate: learn no correlations: faster where there are few generations.

    Raises:
        UsageError: the library is not installed.
    """
    options = {
        "popsize": population,
        "bounds": [-bound, bound],
        "CMA_stds": list(spread),
        "CMA_diagonal": by_coordinate,
        "maxstd": bound / 2,
        "randn": lambda *shape: generator.standard_normal(shape),
        "seed": math.nan,  # leaves numpy's global generator alone
        "verbose": -9,
    }
    return cma_library().CMAEvolutionStrategy(list(start), 1.0, options)


def log_ratio(final: float, zero: float) -> float:
    """x = log(final / zero), at least FLOOR; above 0 x / (1 + x), below CEILING, which is what is not finite.

    So no run that diverged outweighs all others, and of two that did the wilder one is still the worse. Where ``zero``
    is 0 there was nothing to gain: x is 0 if it stayed, and else the run counts as one that is not finite.
    """
    ratio = final / zero if zero else 1.0 if final == 0 else math.inf
    if not math.isfinite(ratio):
        return CEILING
    x = max(math.log(max(ratio, 1e-30)), FLOOR)
    return x if x <= 0 else CEILING * x / (1 + x)
