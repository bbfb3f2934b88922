"""95 % intervals of means over few seeds: a bootstrap that is nowhere narrower than Student's t.

The plain percentile bootstrap is too narrow for few values: of 5 it is 37 % narrower than Student's t. So its
quantiles are the *expanded* ones (Hesterberg, What Teachers Should Know About the Bootstrap, 2015): for normal
values it then is as wide as Student's t. Where Student's interval reaches further on a side, that side is
Student's: many equal values and one outlier make a bootstrap too sure.

Values are in rows and columns. Tuner seeds are rows and run seeds columns; rows and columns are both drawn with
replacement, because the same run seeds are used with every tuner (the pigeonhole bootstrap, Owen 2007). With one
row this is the ordinary bootstrap. For a mean over tasks, tasks are the rows.

A loss that is not finite is infinite, and so is a difference that it is part of. A resample's mean is infinite
where it has such a value. Where one has both infinities, its mean counts against either side of the interval.
Whoever has an infinite mean where the other has none is behind, whatever the interval. The other way round it takes
the interval: a rival that diverged once is beaten only by who is also ahead in its finite runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

#: Number of resamples, and the seed that they are drawn with: the same values, the same interval.
RESAMPLES, SEED = 10_000, 20_150

#: Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)

_NORMAL = NormalDist()


def student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t; beyond the table by the Cornish–Fisher expansion."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = _NORMAL.inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the interval is infinite for fewer than two values."""

    mean: float
    low: float
    high: float

    @property
    def below(self) -> bool:
        """Whether the interval lies below zero."""
        return self.high < 0

    @property
    def above(self) -> bool:
        """Whether the interval lies above zero, or the mean is infinite."""
        return self.low > 0 or self.mean == math.inf


def interval(values: ArrayLike, unit: Literal["columns", "rows"] = "columns") -> Interval:
    """The mean of ``values`` with its 95 % interval.

    Args:
        values: [columns], or [rows, columns]; infinite ones are allowed, NaN counts as unknown.
        unit: what the number of independent values is the number of, for Student's t and the expansion of the
            quantiles: run seeds (columns), or tasks (rows).
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    rows, columns = table.shape
    units = columns if unit == "columns" else rows
    mean = _mean(table)
    if units < 2:
        return Interval(mean, -math.inf, math.inf)
    means = _resampled(table)
    quantile = student(units - 1)
    cut = int(_NORMAL.cdf(-math.sqrt(units / (units - 1)) * quantile) * RESAMPLES)
    unknown = np.isnan(means)
    low = float(np.partition(np.where(unknown, -np.inf, means), cut)[cut])
    high = float(np.partition(np.where(unknown, np.inf, means), RESAMPLES - 1 - cut)[RESAMPLES - 1 - cut])
    if np.isfinite(table).all():
        half = quantile * float(table.mean(0 if unit == "columns" else 1).std(ddof=1)) / math.sqrt(units)
        low, high = min(low, mean - half), max(high, mean + half)
    return Interval(mean, low, high)


def differences(mine: Sequence[float], others: Sequence[float], columns: int) -> np.ndarray:
    """Mine minus the others', paired by run seed: [rows, columns]. Equal values differ by 0, infinite ones too.

    Args:
        mine, others: values row by row. One row is paired with every row of the other.
        columns: number of run seeds.
    """
    left, right = (np.asarray(values, dtype=np.float64).reshape(-1, columns) for values in (mine, others))
    left, right = np.broadcast_arrays(left, right)
    with np.errstate(invalid="ignore"):
        return np.where(left == right, 0.0, left - right)


def _mean(table: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        return float(table.mean()) if table.size else math.nan


def _resampled(table: np.ndarray) -> np.ndarray:
    """Means of the resamples [RESAMPLES]; NaN where a resample has both infinities, or a NaN."""
    row_counts, column_counts = _counts(*table.shape)
    finite = np.where(np.isfinite(table), table, 0.0)
    means = ((row_counts @ finite) * column_counts).sum(1) / table.size
    if np.isfinite(table).all():
        return means
    up, down = ((row_counts @ wrong * column_counts).sum(1) > 0 for wrong in (_is_up(table), _is_down(table)))
    return np.where(up & down, np.nan, np.where(up, np.inf, np.where(down, -np.inf, means)))


def _is_up(table: np.ndarray) -> np.ndarray:
    return (np.isposinf(table) | np.isnan(table)).astype(np.float64)


def _is_down(table: np.ndarray) -> np.ndarray:
    return (np.isneginf(table) | np.isnan(table)).astype(np.float64)


@lru_cache(maxsize=16)
def _counts(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """How often every row and every column is in each resample: [RESAMPLES, rows] and [RESAMPLES, columns]."""
    generator = np.random.default_rng((SEED, rows, columns))
    drawn = [generator.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64) for n in (rows, columns)]
    return drawn[0], drawn[1]
