"""The learning rate to recommend, by the outcomes of whole runs.

The step-size head knows the curvature along a step's directions, but not how much of their slopes is signal: that
differs between kinds of directions, and is less as a run goes on. So runs are made on the tasks of meta-training, with
what the *other* tasks say of the directions, at rates a factor √2 apart, until both neighbours of the best one were
tried. A rate's score is the mean over tasks and seeds of log(loss after / loss before). All rates have the same batches
and directions.

Recommended is the rate one step below the best. Above its best rate a run is soon lost, below it is only slower, and a
task that was not met may want less than those that were: on development tasks the two rates end equally low in the
mean, and only at the best one were runs lost (docs/learning.md, "The rate of gains").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from meta_train.feed import derived_seed
from meta_train.outcome_runs import OutcomeRuns
from meta_train.parts import FinishedRun, LearnedParts, recommended_rate, tuners_without
from zoft.tuner.bound import BoundTuner

#: Rates are 2^(k/2) times the first, |k| at most this: a factor of 16 to either side.
_REACH = 8


def recommend_rate(run: FinishedRun, parts: LearnedParts, runs: OutcomeRuns) -> tuple[float, dict[str, Any]]:
    """The rate, and what the provenance says of its search; nothing where there was none."""
    config = run.config
    if config.recommended_lr is not None:
        return config.recommended_lr, {}
    first = recommended_rate(config, parts)
    if not config.rate_seeds:
        return first, {}
    scores = search(runs, tuners_without(run, parts), first)
    rate = _rate(first, min(scores, key=lambda place: scores[place]) - 1)
    runs.say(f"learning rate: {rate:.3g} is recommended")
    tried = {f"{_rate(first, place):.3g}": math.exp(score) for place, score in sorted(scores.items())}
    return rate, {"learning_rates": tried}


def search(runs: OutcomeRuns, tuners: Sequence[BoundTuner], first: float) -> dict[int, float]:
    """The mean score of every rate that was tried, by k: the rate is 2^(k/2) times the first.

    Args:
        tuners: of every task.
        first: the rate to begin at.
    """
    config, scores = runs.config, dict[int, float]()
    seeds = [derived_seed("rate", config.seed, number) for number in range(config.rate_seeds)]
    wanted: list[int] = [0]
    while wanted:
        place = wanted[0]
        rate = _rate(first, place)
        made = [runs.score(task, tuner, rate, seed) for seed in seeds for task, tuner in enumerate(tuners)]
        scores[place] = sum(made) / len(made)
        runs.keep()
        runs.say(f"learning rate {rate:.3g}: {len(made)} runs end at {math.exp(scores[place]):.3f} of the loss before")
        best = min(scores, key=lambda place: scores[place])
        wanted = [near for near in (best + 1, best - 1) if near not in scores and abs(near) <= _REACH]
    return scores


def _rate(first: float, place: int) -> float:
    """2^(place/2) times the first rate, to three digits."""
    return float(f"{first * 2 ** (place / 2):.3g}")
