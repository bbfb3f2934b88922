"""The gain that gradients predict: its parts against exact values, its formula against simulated steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.predicted_gain import BATCH, PART, Predicted, deviations, kernel, predicted
from tests.models import mlp
from tests.structures import covariance, structure_for
from zoft.errors import UsageError
from zoft.tuner import Tuner


def planted(count: int) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """g, the deviations of single examples' gradients, and gradients of ``count`` disjoint minibatches."""
    generator = np.random.default_rng(0)
    mean, spread = generator.normal(size=12) * 0.2, generator.uniform(0.2, 2, size=12)
    drawn = mean + spread * generator.normal(size=(count, PART, 12)).mean(1)
    values = torch.tensor(drawn).float()
    return mean, spread, {"first": values[:, :5], "second": values[:, 5:]}


def test_the_parts_are_those_of_the_known_distribution() -> None:
    mean, spread, found = planted(4000)
    scales = np.linspace(0.5, 1.5, 12)
    both = {"first": torch.tensor(scales[:5]).float(), "second": torch.tensor(scales[5:]).float()}
    made = predicted(kernel(found, both), directions=3)
    s, noise = np.diag(scales**2), np.diag(spread**2)
    whole = noise + np.outer(mean, mean)
    signal, trace = mean @ s @ mean, np.trace(s @ whole)
    square = signal + np.trace(s @ noise) / BATCH
    quartic = mean @ s @ whole @ s @ mean + np.trace(s @ noise @ s @ whole) / BATCH
    assert made.signal == pytest.approx(signal, rel=0.05)
    assert made.square == pytest.approx(square, rel=0.05)
    assert made.trace == pytest.approx(trace, rel=0.05)
    assert made.quartic == pytest.approx(quartic, rel=0.1)
    assert made.part == pytest.approx(signal / square, rel=0.1)


def test_a_step_lowers_a_quadratic_by_what_is_predicted() -> None:
    mean, spread, _ = planted(2)
    generator, count, n = np.random.default_rng(1), 400_000, 3
    whole = np.diag(spread**2) + np.outer(mean, mean)
    batch = mean + spread / np.sqrt(BATCH) * generator.normal(size=(count, 12))
    estimate = np.zeros_like(batch)
    for _ in range(n):
        z = generator.normal(size=(count, 12))
        estimate += (batch * z).sum(1, keepdims=True) * z / n
    slope, curvature = (estimate @ mean).mean(), ((estimate @ whole) * estimate).sum(1).mean()
    signal, trace = mean @ mean, np.trace(whole)
    square = signal + (spread**2).sum() / BATCH
    quartic = mean @ whole @ mean + np.trace(np.diag(spread**2) @ whole) / BATCH
    exact = Predicted(signal, square, trace, quartic, n)
    assert exact.progress == pytest.approx(slope**2 / (2 * curvature) / (n + 1), rel=0.03)


def test_deviations_are_those_of_directions() -> None:
    model = mlp()
    structure = structure_for(model, "scales")
    found = deviations(Tuner.untrained(model).structured(structure), model)
    expected = {name: np.sqrt(np.diag(covariance(structure, name))) for name in found}
    # All blocks have one factor ν beside the structure.
    factors = np.concatenate([found[name].numpy() / expected[name] for name in found])
    np.testing.assert_allclose(factors, factors[0], rtol=1e-3)
    assert all(bool((values == 1).all()) for values in deviations(Tuner.untrained(model), model).values())
    with pytest.raises(UsageError, match="low-rank has no scale"):
        deviations(Tuner.untrained(model).structured(structure_for(model, "low-rank")), model)
