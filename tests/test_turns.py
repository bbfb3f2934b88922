"""Blocks that take turns: which blocks a direction is of, and what a step with them does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune.controls import permuted, random_basis, untrained
from meta_train import MetaTrainConfig, meta_train
from meta_train.turns import best_part
from tests.models import build, randn
from zoft.blocks import Blocks
from zoft.errors import ArtifactError, UsageError
from zoft.noise import Key, get_noise, spans
from zoft.optimizers import ZerothOrder, get_optimizer
from zoft.step import Probe, raw_noise
from zoft.tasks.function import FunctionTask
from zoft.tuner import Tuner
from zoft.tuner.card import card
from zoft.tuner.show import describe, sigma_of
from zoft.tuner.step_rule import StepRuleConfig
from zoft.tuner.turns import TurnsConfig, parts_of, renumbered, turn_at

SLOPES = StepRuleConfig(kind="slopes", slope=2.0, power=2.0, decay=0.9)
GAUSS_NEWTON = StepRuleConfig(kind="gauss-newton", damping=1.0, decay=0.9)


def three_layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))


def tuner_of(model: nn.Module, turns: list[int] | None, rule: StepRuleConfig | None = None) -> Tuner:
    plain = Tuner.untrained(model)
    section = TurnsConfig(of=turns, learned=True) if turns is not None else None
    return Tuner(plain.config.model_copy(update={"turns": section, "step_rule": rule}), plain.network)


def method_of(model: nn.Module, turns: list[int], rule: StepRuleConfig | None = None, **settings):
    bound = tuner_of(model, turns, rule).bind(model)
    return get_optimizer("zo-finetuner", tuner=bound, **settings)


def test_directions_are_counted_through_the_run() -> None:
    assert [turn_at(step, draw, 3, 2) for step in range(2) for draw in range(3)] == [0, 1, 0, 1, 0, 1]
    assert [turn_at(step, 0, 1, 3) for step in range(5)] == [0, 1, 2, 0, 1]


def test_a_direction_is_of_the_blocks_whose_turn_it_is_and_sqrt_k_as_large() -> None:
    model, noise = three_layers(), get_noise("gaussian-table")
    blocks, turns = Blocks.of(model), [0, 1, 2, 0, 1, 2]
    method = method_of(model, turns, directions=3)
    plain = get_optimizer("zo-finetuner", tuner=tuner_of(model, None).bind(model), directions=3)
    state, plain_state = method.init(blocks), plain.init(blocks)
    method.begin(state, blocks)
    plain.begin(plain_state, blocks)
    for draw in range(3):
        for block in blocks:
            for span in spans(block):
                key = Key(7, 2, draw)
                z = method.direction(state, span, method.draw(noise, key, span))
                whole = plain.direction(plain_state, span, plain.draw(noise, key, span))
                if turns[block.index] == draw:
                    assert torch.allclose(z, math.sqrt(3) * whole)
                else:
                    assert not z.any()


def test_a_step_moves_every_block_by_its_own_directions() -> None:
    model, noise = three_layers(), get_noise("gaussian-table")
    blocks, turns = Blocks.of(model), [0, 0, 1, 1, 1, 1]
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)
    method = method_of(model, turns, directions=4, lr=1e-2, epsilon=1e-3)
    before = [block.parameter.detach().double().clone() for block in blocks]
    optimizer = ZerothOrder(model, method, seed=3)
    optimizer.step(lambda: (model(inputs) - wanted).square().mean())
    state = method.init(blocks)
    method.begin(state, blocks)

    def loss(shifts: list[torch.Tensor]) -> float:
        values = [value + shift for value, shift in zip(before, shifts, strict=True)]
        x = inputs.double()
        for layer in range(3):
            x = x @ values[2 * layer].T + values[2 * layer + 1]
            x = x.tanh() if layer < 2 else x
        return float((x - wanted.double()).square().mean())

    moved = [torch.zeros_like(value) for value in before]
    for draw in range(4):
        z = []
        for block in blocks:
            (span,) = spans(block)
            u = raw_noise(noise, Key(3, 0, draw), span).double().view(block.shape)
            own = turns[block.index] == draw % 2
            sigma = float(state["tuner/scale"][block.index]) * math.sqrt(2)
            z.append(u * sigma if own else torch.zeros_like(u))
        slope = (loss([1e-3 * part for part in z]) - loss([-1e-3 * part for part in z])) / 2e-3
        for total, part in zip(moved, z, strict=True):
            total -= 1e-2 * slope * part / 4
    for block, value, change in zip(blocks, before, moved, strict=True):
        assert torch.allclose(block.parameter.detach().double(), value + change, atol=2e-5)
        assert change.abs().max() > 1e-4


def test_turns_of_frozen_blocks_are_left_out() -> None:
    assert renumbered([0, 2, 2, 5]) == (0, 1, 1, 2)
    assert renumbered([3, 3]) == ()
    model = three_layers()
    tuner = tuner_of(model, [0, 0, 1, 1, 2, 2])
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    assert tuner.bind(model).turns == (0, 0, 1, 1)
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    assert tuner.bind(model).turns == ()


def test_a_tuner_with_turns_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = three_layers()
    tuner, without = tuner_of(model, [0, 1, 0, 1, 0, 1], GAUSS_NEWTON), tuner_of(model, None, GAUSS_NEWTON)
    assert tuner.digest != without.digest != tuner_of(model, [1, 0, 0, 1, 0, 1], GAUSS_NEWTON).digest
    back = Tuner.from_pretrained(tuner.save_pretrained(tmp_path / "turns"))
    assert back.digest == tuner.digest
    assert back.bind(model).turns == (0, 1, 0, 1, 0, 1)
    plain = without.save_pretrained(tmp_path / "plain")
    assert "turns" not in json.loads((plain / "tuner_config.json").read_text())


@pytest.mark.parametrize("turns", [[0] * 6, [0, 2] * 3, [1, 2] * 3, [0, 1], "0", [0, 1, 0, 1, 0, None], [-1, 0] * 3])
def test_impossible_turns_are_refused(tmp_path: Path, turns: object) -> None:
    folder = tuner_of(three_layers(), [0, 1, 0, 1, 0, 1]).save_pretrained(tmp_path / "tuner")
    file = folder / "tuner_config.json"
    content = json.loads(file.read_text())
    content["turns"] = {"of": turns, "learned": True}
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="turns"):
        Tuner.from_pretrained(folder)


def test_a_head_with_one_curvature_is_refused(tmp_path: Path) -> None:
    folder = tuner_of(three_layers(), [0, 1, 0, 1, 0, 1]).save_pretrained(tmp_path / "tuner")
    file = folder / "tuner_config.json"
    content = json.loads(file.read_text())
    content["step_rule"] = StepRuleConfig(kind="curvature", curvature=3.0).to_dict()
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="one curvature"):
        Tuner.from_pretrained(folder)


@pytest.mark.parametrize("name", ["hizoo", "hizoo-l", "zo-adamu", "hizoo+zo-adam"])
def test_methods_that_need_every_block_say_so(name: str) -> None:
    model = three_layers()
    bound = tuner_of(model, [0, 1, 0, 1, 0, 1]).bind(model)
    with pytest.raises(UsageError, match="take turns"):
        get_optimizer(name, tuner=bound)


def test_slopes_keeps_a_mean_for_every_turn() -> None:
    rng, state, squares = np.random.default_rng(0), SLOPES.init(2), np.array([4.0, 4.0])
    turns = [0, 1, 0, 1]
    for step in range(20):
        slopes = rng.normal(size=4) * [1.0, 10.0, 1.0, 10.0]
        probes = [Probe(Key(0, step, draw), 1.0, 1.0, 1e-3, slope=c) for draw, c in enumerate(slopes)]
        assert SLOPES.rate(state, probes, turns) == 1.0
        own = np.array([np.mean(slopes[turn::2] ** 2) for turn in (0, 1)])
        squares = 0.9 * squares + 0.1 * own
        expected = slopes * np.clip(4.0 / squares, 1 / 16, 16)[turns]
        weighed = [probe.projected_gradient for probe in SLOPES.weigh(state, probes, 16, turns)]
        assert weighed == pytest.approx(expected, rel=1e-12)
        SLOPES.end(state, probes, 16, turns)
        assert state["tuner/slopes"].numpy() == pytest.approx(squares, rel=1e-12)


def test_gauss_newton_keeps_a_mean_for_every_turn() -> None:
    rng, state = np.random.default_rng(0), GAUSS_NEWTON.init(2)
    turns, means = [0, 1, 0, 1], np.zeros(2)
    for step in range(20):
        examples = rng.normal(size=(4, 16)) * np.array([[1.0], [10.0], [1.0], [10.0]])
        matrix, slopes = 0.5 * examples @ examples.T / 16, examples.mean(1)
        probes = [
            Probe(Key(0, step, draw), 1e9, 1e9, 1e-3, slope=slopes[draw], curvature=tuple(matrix[draw]))
            for draw in range(4)
        ]
        keep = min(step / (step + 1), 0.9)
        own = np.array([matrix.diagonal()[turn::2].mean() for turn in (0, 1)])
        means = keep * means + (1 - keep) * own
        expected = 2 * np.linalg.solve(matrix + np.diag(means[turns]), slopes)
        weighed = [probe.projected_gradient for probe in GAUSS_NEWTON.weigh(state, probes, 16, turns)]
        assert weighed == pytest.approx(expected, rel=1e-9)
        GAUSS_NEWTON.end(state, probes, 16, turns)
        assert state["tuner/curvature"].numpy() == pytest.approx(np.stack([[step + 1] * 2, means], 1), rel=1e-12)


def test_controls_know_of_turns() -> None:
    model = three_layers()
    tuner = tuner_of(model, [0, 0, 0, 1, 1, 1])
    dealt = permuted(tuner, model, 0)
    assert isinstance(dealt, Tuner)
    other = dealt.bind(model).turns
    assert sorted(other) == [0, 0, 0, 1, 1, 1]
    assert other != (0, 0, 0, 1, 1, 1)
    assert random_basis(tuner, model, 0) == "it has no structured part"
    plain = untrained(tuner, model, 0)
    assert isinstance(plain, Tuner)
    assert plain.bind(model).turns == ()
    by_rule = Tuner(
        tuner.config.model_copy(update={"turns": TurnsConfig(of=[0, 0, 0, 1, 1, 1], learned=False)}), tuner.network
    )
    plain = untrained(by_rule, model, 0)
    assert isinstance(plain, Tuner)
    assert plain.bind(model).turns == (0, 0, 0, 1, 1, 1)


class Two(nn.Module):
    """Two maps of inputs of their own: a task is about the one or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 1, bias=False)
        self.second = nn.Linear(4, 1, bias=False)
        self.third = nn.Linear(64, 1, bias=False)


def about(name: str, part: str) -> FunctionTask:
    """A linear function of the inputs of ``part``; those of the others are noise."""

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        inputs = dict(zip(("first", "second", "third"), batch, strict=True))
        found = sum(module(inputs[name]) for name, module in model.named_children())
        return (found[:, 0] - 3 * inputs[part].sum(1)).square().mean()

    batches = [tuple(randn(8, n, seed=3 * at + n) for n in (4, 4, 64)) for at in range(40)]
    return FunctionTask(name, batches, loss)


def settings(**changes: Any) -> MetaTrainConfig:
    values = {"steps": 40, "batch_size": 8, "lookahead_lr": 1e-4, "restart_every": 10, "structure_storage": "float32"}
    return MetaTrainConfig.build({**values, **changes})


def test_types_take_turns_by_rule() -> None:
    tuner = meta_train(build(three_layers), [FunctionTask("t", [randn(8, 4)], squared)], settings(turns="types"))
    assert tuner.config.turns is not None
    assert not tuner.config.turns.learned
    assert tuner.config.turns.of == [0, 1] * 3  # the layers of a sequence are alike: weights and biases


def squared(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def test_parts_are_those_that_the_tasks_tell_apart() -> None:
    tasks = [about("a", "first"), about("b", "second")]
    tuner = meta_train(build(Two), tasks, settings(turns="signal"))
    assert tuner.config.turns is not None
    assert tuner.config.turns.learned
    first, second, _ = tuner.config.turns.of
    assert first != second


def test_the_best_parts_are_found_among_all() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 6, generator=generator, dtype=torch.float64) + 0.1
    signal = noise * torch.rand(3, 6, generator=generator, dtype=torch.float64)
    scores = {}
    for number in range(1, 2**5):
        mask = torch.tensor([False] + [bool(number >> bit & 1) for bit in range(5)])
        halves = [(signal[:, part].sum(1) / noise[:, part].sum(1)).square() for part in (mask, ~mask)]
        scores[tuple(mask.tolist())] = float((halves[0] + halves[1]).log().mean())
    assert tuple(best_part(signal, noise).tolist()) == max(scores, key=lambda mask: scores[mask])


def test_many_types_are_parted_at_a_ratio() -> None:
    noise = torch.ones(2, 20, dtype=torch.float64)
    signal = torch.full((2, 20), 0.05, dtype=torch.float64)
    signal[0, 7] = 0.9
    assert best_part(signal, noise).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(("count", "reason"), [(1, "one module type"), (65, "of 65 module types, .* at most 64 turns")])
def test_a_model_of_one_type_or_too_many_is_refused_before_anything_is_computed(
    count: int, reason: str, tmp_path: Path
) -> None:
    model = build(lambda: nn.ModuleDict({f"m{number}": nn.Linear(4, 1, bias=False) for number in range(count)}))
    with pytest.raises(UsageError, match=reason):
        meta_train(
            model, [FunctionTask("t", [randn(8, 4)], squared)], settings(turns="types"), output_dir=tmp_path / "x"
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": "signal", "objective": "lookahead", "learn_sigma": True, "structure": "none"}, "objective expected"),
        ({"turns": "types", "step_size": "curvature", "recommended_estimator": "central"}, "one curvature"),
    ],
)
def test_settings_that_turns_cannot_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**changes)


def test_turns_are_said_by_type() -> None:
    types = ["layers.q_proj", "layers.k_proj", "norms", "layers.q_proj"]
    assert parts_of([0, 0, 1, 0], types) == ["q_proj, k_proj", "norms"]
    assert parts_of([1, 0], ["a.proj", "b.proj"]) == ["b.proj", "a.proj"]
    tuner = tuner_of(three_layers(), [0, 1] * 3)
    assert describe(tuner, "x", sigma_of(tuner))["turns"] == "weight | biases"
    assert "2 parts take turns" in card(tuner.config, {}, "x")
    assert "turns" not in describe(tuner_of(three_layers(), None), "x", sigma_of(tuner))
