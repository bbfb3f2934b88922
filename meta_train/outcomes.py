"""Learning σ by block from the outcomes of whole runs, which gradients do not tell.

What a step along given directions is worth at the base says little of what a run along them ends at: directions that
begin well may soon be exhausted. So σ is searched by what it is for. CMA-ES (:mod:`zoft.evolution`) has one
coordinate for every module type, log σ of its blocks, and minimises the mean over the tasks of

    log(loss after a run of the tuner / loss before it)

- Runs are those of :mod:`meta_train.outcome_runs`, with the step-size head ``gauss-newton``, under which one learning
  rate fits whatever σ is (others would need a search of rates for each).
- All candidates of a generation have the same batches and directions; every generation has others.
- The search's mean is taken, not its luckiest candidate, and only where it ends lower than σ = 1 on seeds that no
  generation had.

Only the shares of the blocks matter: ν takes away what is common to all.

Note:
    The published recipe learns σ by the loss after one step, from gradients through the networks [ZOFT, eq. 9]; this
    gives each network the constant that its output layer's bias holds, and leaves its weights at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meta_train.config import MetaTrainConfig
from meta_train.feed import derived_seed
from meta_train.outcome_runs import OutcomeRuns, SearchingRun
from meta_train.parts import GAUSS_NEWTON_RATE, LearnedParts, tuners_without
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.evolution import DECIMALS, cma_es, cma_library
from zoft.tuner.bound import BoundTuner
from zoft.tuner.module_types import module_types
from zoft.tuner.pertnn import PertNN

#: Standard deviation of log σ at the first generation, and the part of the bound that a mean may reach.
_SPREAD, _REACH = 1.0, 0.999

#: Runs between two lines of progress.
_EVERY = 20


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        sigma: σ by block [B], float32; all 1 where nothing better was found.
        by_type: log σ by module type, of the search's mean.
        score, plain: of that mean and of σ = 1 on seeds that no generation had.
        trail: how the search went, JSON-able.
    """

    sigma: Tensor
    by_type: dict[str, float]
    score: float
    plain: float
    trail: list[dict[str, Any]] = field(default_factory=list)

    @property
    def better(self) -> bool:
        """Whether the mean ends lower than σ = 1."""
        return self.score < self.plain

    def to_dict(self, runs: int) -> dict[str, Any]:
        """For the provenance; scores as the factors that they are logarithms of.

        Args:
            runs: made by the search.
        """
        checked = {"found": math.exp(self.score), "sigma_1": math.exp(self.plain), "kept": self.better}
        return {"runs": runs, "log_sigma": self.by_type, "checked": checked, "generations": self.trail}


def constant_network(network: PertNN, sigma: Tensor) -> PertNN:
    """Networks that give σ [B] whatever they see: the output layer's bias decides.

    Args:
        network: whose output layer has no weights; it is left as it is.
    """
    made = PertNN(len(sigma), network.config)
    made.load_state_dict(network.state_dict())
    logs = sigma.double().log()
    if network.config.output == "bounded":
        logs = torch.atanh((logs / network.config.bound).clamp(-_REACH, _REACH))
    with torch.no_grad():
        made.out.bias.copy_(logs[:, None])
    return made.requires_grad_(False)


def check_outcomes(config: MetaTrainConfig, blocks: Blocks) -> None:
    """Before anything is computed for a search: whether it can be made.

    Raises:
        UsageError: ``cma`` is not installed, or the model has one module type.
    """
    if not config.outcome_generations:
        return
    if len(set(module_types(blocks))) < 2:
        raise UsageError(
            "all blocks of the model are of one module type: there is nothing to compare", "Set learn_sigma instead."
        )
    cma_library()


class Outcomes:
    """The search by what runs of tuners end at.

    Args:
        runs: makes them; its configuration has ``outcome_generations`` and the step-size head ``gauss-newton``.
        blocks: the model's trainable blocks.
        tuners: for every task the tuner that its runs start from, with the structure that the other tasks say.
    """

    def __init__(self, runs: OutcomeRuns, blocks: Blocks, tuners: Sequence[BoundTuner]) -> None:
        self._runs, self._config, self._tuners = runs, runs.config, tuners
        self._types = module_types(blocks)
        self.kinds = list(dict.fromkeys(self._types))

    @property
    def count(self) -> int:
        """Runs that a search makes."""
        config = self._config
        per_task = config.outcome_generations * config.outcome_population + 2 * config.outcome_checks
        return len(self._tuners) * per_task

    def search(self) -> Found:
        """Generations of CMA-ES, then the mean beside σ = 1."""
        config, kinds, say = self._config, self.kinds, self._runs.say
        say(f"outcomes: a search of {self.count} runs of {config.outcome_forwards} forward passes each")
        generator = np.random.default_rng((derived_seed("outcomes", config.seed), config.outcome_generations))
        count, bound = len(kinds), config.network.bound * _REACH
        strategy = cma_es(
            [0.0] * count, [_SPREAD] * count, bound, config.outcome_population, generator, by_coordinate=True
        )
        trail = []
        for generation in range(config.outcome_generations):
            asked = strategy.ask()
            candidates = [self._rounded(vector) for vector in asked]
            values = self._generation(candidates, [derived_seed("outcome", config.seed, generation)])
            strategy.tell(asked, values)
            trail.append({"best": min(values), "median": float(np.median(values)), "step": float(strategy.sigma)})
            say(_line(generation + 1, config.outcome_generations, trail[-1]))
        mean, plain = self._rounded(strategy.result.xfavorite), (0.0,) * count
        seeds = [derived_seed("outcome", config.seed, "check", number) for number in range(config.outcome_checks)]
        score, without = self._generation([mean, plain], seeds)
        found = Found(self._sigma(mean), dict(zip(kinds, mean, strict=True)), score, without, trail)
        say(_verdict(found))
        return found if found.better else replace(found, sigma=torch.ones(len(self._types)))

    def _rounded(self, vector: Sequence[float]) -> tuple[float, ...]:
        return tuple(round(float(value), DECIMALS) for value in vector)

    def _sigma(self, vector: Sequence[float]) -> Tensor:
        """σ [B]."""
        by_type = dict(zip(self.kinds, vector, strict=True))
        return torch.tensor([by_type[kind] for kind in self._types]).exp()

    def _generation(self, candidates: Sequence[Sequence[float]], seeds: Sequence[int]) -> list[float]:
        """The mean score of every candidate over tasks and seeds, task by task, so that what is drawn can be kept."""
        sums = [0.0] * len(candidates)
        for seed in seeds:
            for task in range(len(self._tuners)):
                for at, vector in enumerate(candidates):
                    sums[at] += self._score(task, vector, seed)
        self._runs.keep()
        return [total / (len(seeds) * len(self._tuners)) for total in sums]

    def _score(self, task: int, vector: Sequence[float], seed: int) -> float:
        """A run's score with that σ."""
        tuner = self._tuners[task]
        bound = replace(tuner, network=constant_network(tuner.network, self._sigma(vector)))
        score = self._runs.score(task, bound, GAUSS_NEWTON_RATE, seed)
        if self._runs.asked % _EVERY == 0:
            self._runs.say(f"outcomes: {self._runs.asked} of {self.count} runs")
        return score


def learn_by_outcomes(run: SearchingRun, parts: LearnedParts, runs: OutcomeRuns) -> dict[str, Any]:
    """Search, put what was found into the run's networks, and return what the provenance says of it."""
    search = Outcomes(runs, run.blocks, tuners_without(run, parts))
    found = search.search()
    run.tuner.network.load_state_dict(constant_network(run.tuner.network, found.sigma).state_dict())
    return found.to_dict(search.count)


def _line(number: int, count: int, entry: dict[str, Any]) -> str:
    best, median = math.exp(entry["best"]), math.exp(entry["median"])
    return (
        f"outcomes: generation {number} of {count}, runs end at {median:.3f} of the loss before (median), "
        f"{best:.3f} (best); step size {entry['step']:.2f}"
    )


def _verdict(found: Found) -> str:
    logs = ", ".join(f"{kind} {math.exp(value):.3g}" for kind, value in found.by_type.items())
    verdict = "kept" if found.better else "no better, so σ stays 1"
    return (
        f"outcomes: σ by module type {logs}; runs end at {math.exp(found.score):.3f} of the loss before, "
        f"with σ = 1 at {math.exp(found.plain):.3f}: {verdict}"
    )
