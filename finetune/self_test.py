"""The instrument's self-test: a win where one was planted, and none where there is nothing to win.

    zoft compare --self-test

Both problems are quadratics over many blocks with noisy minibatches, and go through :func:`finetune.compare.compare`
as any base does: search, reporting, intervals, wins.

*Planted.* One block holds the whole distance to the optimum; all others are there already and only add noise to c. A
tuner with a large σ on the one must win against MeZO and every control, in both regimes.

*Irrelevant.* All blocks are alike, and the tuners' σ are arbitrary. A tuner and its permuted control are then equal
in distribution, and equal σ are the best, so every win is false. Of the intervals' one side, 2.5 % may be.

*The intervals alone*, on many drawn differences of mean zero: here the rate of false wins is seen more closely.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from finetune.compare import Comparison, compare
from finetune.compare_config import CompareConfig
from finetune.intervals import interval
from finetune.run_spec import Bench
from finetune.wins import WIN, Contest
from zoft.tuner import Tuner

#: Matrices and vectors of the model, entries of each, and how many matrices the planted problem is about.
MATRICES, VECTORS, ENTRIES, USEFUL = 4, 1, 8, 1

#: Standard deviation of a minibatch's optimum, and the distance of every block that is not there.
NOISE, DISTANCE = 0.3, 1.0

#: One-sided level of the intervals, and how improbable a count of false wins must be to fail the test.
LEVEL, IMPROBABLE = 0.025, 0.001


class ManyBlocks(nn.Module):
    """Matrices and vectors of the same size, all zero; the loss is half the squared distance to an optimum."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(MATRICES + VECTORS):
            shape = (2, ENTRIES // 2) if index < MATRICES else (ENTRIES,)
            self.register_parameter(f"block{index}", nn.Parameter(torch.zeros(shape)))

    def forward(self, optimum: Tensor) -> Tensor:
        values = torch.cat([parameter.view(-1) for parameter in self.parameters()])
        return (values - optimum).square().sum() / 2


class Instance:
    """One optimum: of the first blocks alone, or of all."""

    def __init__(self, name: str, seed: int, useful: int) -> None:
        self.name = name
        points = _normal(seed, MATRICES + VECTORS, ENTRIES)
        points *= DISTANCE / points.norm(dim=1, keepdim=True)
        points[useful:] = 0
        self._optimum = points.view(-1)

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            noise = torch.randn(len(self._optimum), generator=generator)
            yield self._optimum + noise * (NOISE / math.sqrt(batch_size))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        value: Tensor = model(batch)
        return value

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        with torch.inference_mode():
            return {"loss": float(self.loss(model, self._optimum))}


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bench(base: str, tasks: Sequence[str], device: str = "cpu", dtype: str | None = None) -> Bench:
    """The instances by their names: ``planted-3`` is the fourth planted one; those with ``dev`` are development."""
    made, roles = {}, {}
    for name in tasks:
        kind, _, number = name.partition("-")
        seed = 1000 + int(number.removeprefix("dev"))
        made[name] = Instance(name, seed, USEFUL if kind == "planted" else MATRICES + VECTORS)
        roles[name] = "development" if number.startswith("dev") else "held-out"
    return Bench(ManyBlocks(), made, roles, base=base)


def tuner_of(log_sigma: Tensor, folder: Path) -> str:
    """A tuner with constant σ, saved to ``folder``.

    Args:
        log_sigma: [blocks], each within ±1.2.
    """
    tuner = Tuner.untrained(ManyBlocks())
    with torch.no_grad():
        tuner.network.out.bias.copy_(torch.atanh(log_sigma / tuner.config.network.bound)[:, None])
    tuner.provenance = {"tasks": ["none"]}
    return str(tuner.save_pretrained(folder))


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found.

    Attributes:
        planted: wins and contests on the planted problem, over all rivals at once.
        irrelevant: wins and contests on the irrelevant one, over the best rival; ``permuted``: over the permuted
            control by itself, which is equal in distribution.
        level: share of false wins of the intervals alone, in one direction.
        lines: the report. ``passed``: whether all is as it should be.
    """

    planted: tuple[int, int]
    irrelevant: tuple[int, int]
    permuted: tuple[int, int]
    level: dict[str, float]
    lines: list[str]
    passed: bool


def self_test(
    planted: int = 3, irrelevant: int = 6, tuners: int = 2, seeds: int = 10, sets: int = 1000, selection_seeds: int = 2
) -> SelfTest:
    """Run it.

    Args:
        planted, irrelevant: instances of either problem; ``tuners``: arbitrary tuners on the irrelevant one.
        seeds: reported seeds; ``sets``: of differences drawn for the intervals alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        won = _contests(_planted(here, planted, seeds, selection_seeds))
        nothing = _contests(_irrelevant(here, irrelevant, tuners, seeds, selection_seeds))
    over_all = sum(found.outcome == WIN and set(found.against.values()) == {WIN} for found in won)
    false = sum(found.outcome == WIN for found in nothing)
    alone = [outcome for found in nothing for rival, outcome in found.against.items() if rival.startswith("permuted")]
    false_alone = alone.count(WIN)
    level = {name: _level(draw, seeds, sets) for name, draw in _DRAWS.items()}
    expected = 2 * planted
    passed = (
        over_all == len(won) == expected
        and false <= most(len(nothing))
        and false_alone <= most(len(alone))
        and all(share * sets <= most(sets) for share in level.values())
    )
    lines = [
        f"planted σ: wins over MeZO and every control on {over_all} of {expected} (instance, regime) pairs",
        f"σ irrelevant: {false} false wins over the best rival in {len(nothing)} (tuner, instance) pairs",
        f"  over the permuted control by itself: {false_alone} of {len(alone)}; nominal {LEVEL:.1%}, "
        f"at most {most(len(alone))} accepted",
        *(
            f"intervals alone, {seeds} differences of mean zero, {name}: {share:.1%} false wins in {sets} sets"
            for name, share in level.items()
        ),
        f"  skewed (exponential): {_level(_skewed, seeds, sets):.1%}, a limit of so few seeds and not judged",
        "self-test passed" if passed else "self-test FAILED",
    ]
    return SelfTest((over_all, expected), (false, len(nothing)), (false_alone, len(alone)), level, lines, passed)


def _contests(comparison: Comparison) -> list[Contest]:
    return [found for view in comparison.views for found in view.contests]


def _config(folder: Path, **values: object) -> CompareConfig:
    fixed = {
        "base": "self-test", "optimizers": ["mezo"], "forwards": 40, "lr_start": 3e-2, "lr_reach": 16, "workers": 1,
        "tensorboard": False, "recommend": False, "plots": False, "eval_points": 1, "cache_bytes": 1 << 26,
    }  # fmt: skip
    return CompareConfig.build({**fixed, **values, "output_dir": str(folder)})


def _planted(folder: Path, count: int, seeds: int, selection_seeds: int) -> Comparison:
    log_sigma = torch.full((MATRICES + VECTORS,), -1.1)
    log_sigma[:USEFUL] = 1.1
    values = {
        "tasks": [f"planted-{index}" for index in range(count)], "choose_on": ["planted-dev0"],
        "regimes": ["tuned", "untuned"], "seeds": seeds, "selection_seeds": selection_seeds,
        "tuners": {"planted": tuner_of(log_sigma, folder / "planted")},
    }  # fmt: skip
    return compare(_config(folder / "out-planted", **values), say=_nothing, factory=bench)


def _irrelevant(folder: Path, count: int, tuners: int, seeds: int, selection_seeds: int) -> Comparison:
    names = {
        f"arbitrary{at}": tuner_of(0.3 * _normal(at, MATRICES + VECTORS).clamp(-2, 2), folder / f"arbitrary{at}")
        for at in range(tuners)
    }
    values = {
        "tasks": [f"irrelevant-{index}" for index in range(count)], "tuners": names, "seeds": seeds,
        "selection_seeds": selection_seeds,
    }  # fmt: skip
    return compare(_config(folder / "out-irrelevant", **values), say=_nothing, factory=bench)


def _nothing(line: str) -> None:
    pass


_DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda generator, count: generator.normal(size=count),
    "long-tailed (t, 3 degrees of freedom)": lambda generator, count: generator.standard_t(3, size=count),
}


def _skewed(generator: np.random.Generator, count: int) -> np.ndarray:
    """Differences mostly a little below zero and seldom far above: a rare disaster."""
    return generator.exponential(size=count) - 1


def _level(draw: Callable[[np.random.Generator, int], np.ndarray], count: int, sets: int) -> float:
    """Share of sets whose interval lies below zero."""
    generator = np.random.default_rng(0)
    return sum(interval(draw(generator, count)).below for _ in range(sets)) / sets


def most(count: int) -> int:
    """The most false wins in ``count`` that are not improbable at :data:`LEVEL`."""
    at_least, wins = 1.0, 0
    while at_least > IMPROBABLE and wins <= count:
        at_least -= math.comb(count, wins) * LEVEL**wins * (1 - LEVEL) ** (count - wins)
        wins += 1
    return wins - 1


def main() -> None:
    """The whole self-test; exits with 1 where it fails."""
    result = self_test()
    print("\n".join(result.lines))
    sys.exit(0 if result.passed else 1)


if __name__ == "__main__":
    main()
