"""Adapting scales by forwards alone: the energy of a walk, the rule, and the table on a planted gradient."""

from __future__ import annotations

import pytest
import torch

from benchmarks.online_adaptation import DIRECTIONS, adapted, learned, row, walk

SHAPES = {"matrix": (8, 16), "vector": (4,)}


def planted(count: int, noise: float) -> dict[str, torch.Tensor]:
    """Gradients of minibatches whose mean is in one row of the matrix."""
    generator = torch.Generator().manual_seed(0)
    found = {name: noise * torch.randn(count, torch.Size(shape).numel(), generator=generator)
             for name, shape in SHAPES.items()}  # fmt: skip
    found["matrix"][:, 16:32] += 1.0
    return found


def test_a_walk_has_the_energy_that_is_said() -> None:
    gradient = torch.zeros(1, 64)
    gradient[0, :4] = 1.0
    count = 400
    walks = [walk(gradient, count, seed) for seed in range(20)]
    energy = sum(energy for _, energy in walks) / 20
    assert energy == pytest.approx(count * 4, rel=0.1)
    inside = sum(float(total[:4].square().sum()) for total, _ in walks) / 20
    outside = sum(float(total[4:].square().sum()) for total, _ in walks) / 20
    assert inside == pytest.approx(count**2 * 4 + 4 * energy, rel=0.1)
    assert outside == pytest.approx(60 * energy, rel=0.1)


def test_a_step_s_directions_share_a_minibatch() -> None:
    white = torch.stack([torch.ones(8), torch.zeros(8)])
    first = walk(white, DIRECTIONS, 0)
    assert walk(white, 2 * DIRECTIONS, 0)[1] == first[1] > 0


def test_the_row_with_the_signal_gets_larger_scales_and_vectors_stay() -> None:
    found = planted(50, 0.1)
    scales = {name: torch.ones(values.shape[1]) for name, values in found.items()}
    total, energy = walk(torch.cat(list(found.values()), 1), 400, 0)
    after = adapted(scales, total, energy, SHAPES, 0.3, 1.0)
    rows = after["matrix"].view(8, 16)[:, 0]
    assert int(rows.argmax()) == 1
    assert rows[1] > 2 * rows[torch.arange(8) != 1].max()
    assert torch.equal(after["vector"], scales["vector"])


def test_scales_from_true_gradients_find_it_too_and_the_table_says_so() -> None:
    found = planted(64, 1.0)
    mine = learned(found, SHAPES)
    assert mine["matrix"].view(8, 16).square().sum() == pytest.approx(128, rel=1e-3)
    assert int(mine["matrix"].view(8, 16).mean(1).argmax()) == 1
    scales = {name: torch.ones(values.shape[1]) for name, values in found.items()}
    as_it_is, *after, told = map(float, row(found, scales, SHAPES, [900], seeds=2))
    assert as_it_is == 1
    assert 1.2 < min(after) <= max(after) < 1.2 * told
