"""The step-size head: its formula, what it costs, resuming, the artifact, and what it is for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoft
from meta_train import MetaTrainConfig, meta_train, recipe
from tests.models import TiedLM, build
from zoft.errors import ArtifactError, UsageError
from zoft.noise import Key
from zoft.step import Probe
from zoft.tasks.function import FunctionTask
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.step_rule import StepRuleConfig


def ruled(model: nn.Module, **settings: object) -> Tuner:
    """A tuner that is MeZO but for its step-size head."""
    tuner = Tuner.untrained(model, NetworkConfig(hidden=4))
    rule = StepRuleConfig.build({"curvature": 10.0, **settings})
    return Tuner(tuner.config.model_copy(update={"step_rule": rule}), tuner.network)


class Bowl(nn.Module):
    """½·steepness·|θ|² in 100 dimensions, with noise by batch."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(100, dtype=torch.float64))
        self.steepness = steepness

    def loss(self) -> Tensor:
        return 0.5 * self.steepness * self.theta.square().sum()


def descended(steepness: float, tuner: Tuner | None, steps: int = 250) -> float:
    """How much of the loss is left."""
    model = Bowl(steepness)
    bound = tuner.bind(model) if tuner is not None else None
    optimizer = zoft.ZerothOrder(model, "mezo", tuner=bound, lr=2e-3, seed=1)
    first = float(model.loss().detach())
    for _ in range(steps):
        optimizer.step(model.loss)
    return float(model.loss().detach()) / first


def test_one_rate_serves_losses_of_every_steepness() -> None:
    tuner = ruled(Bowl(1.0), curvature=100.0, every=2, reach=1000.0)
    with_head = [descended(steepness, tuner) for steepness in (0.02, 1.0, 50.0)]
    without = [descended(steepness, None) for steepness in (0.02, 1.0, 50.0)]
    assert max(with_head) < 0.6
    assert without[0] > 0.95  # hardly moves
    assert not without[2] < 1  # diverges


def test_the_rule_is_its_formula_in_float64() -> None:
    rule = StepRuleConfig(curvature=300.0, every=3, decay=0.7, reach=4.0, largest_slope=1.5)
    state, rng, epsilon = rule.init(), np.random.default_rng(0), 1e-2
    mean, weight, squares, seen = 300.0, 0.0, 0.0, []
    for step in range(60):
        losses = rng.normal(size=(2, 2)) * 0.02 * (5 if step == 40 else 1) + 1
        zero = 1.0 + 1e-3 * rng.normal() if rule.measures(step) else None
        probes = [Probe(Key(0, step, k), *map(float, losses[k]), epsilon, zero) for k in range(2)]
        if step % 3 == 0:
            curvatures = np.abs(losses.sum(1) - 2 * zero) / epsilon**2
            mean = 0.7 * mean + 0.3 * curvatures.mean()
        square = (((losses[:, 0] - losses[:, 1]) / (2 * epsilon)) ** 2).mean()
        expected = np.clip(300.0 / mean, 0.25, 4.0)
        if weight:
            expected *= min(1.0, 1.5 * math.sqrt(squares / weight) / math.sqrt(square))
        before = {name: tensor.clone() for name, tensor in state.items()}
        assert rule.rate(state, probes) == pytest.approx(expected, rel=1e-12)
        assert all(torch.equal(state[name], before[name]) for name in state)
        rule.end(state, probes, 16)
        keep = 1 - 1 / min(weight + 1, 30)
        weight, squares = keep * weight + 1, keep * squares + square
        seen.append(expected)
    assert seen[40] < 0.7 * seen[39]  # a steep batch
    assert len({round(value, 6) for value in seen}) > 20


def test_slopes_are_their_formula_in_float64() -> None:
    rule = StepRuleConfig(kind="slopes", slope=2.0, power=1.5, decay=0.7, reach=3.0)
    state, rng, square = rule.init(), np.random.default_rng(1), 4.0
    factors = []
    for step in range(40):
        c = rng.normal(size=3) * (0.2 if step < 10 else 30 if step > 30 else 4.0)
        probes = [Probe(Key(0, step, k), 1.0 + float(value) * 1e-3, 1.0, 1e-3, 1.0) for k, value in enumerate(c)]
        slopes = np.array([probe.projected_gradient for probe in probes])
        square = 0.7 * square + 0.3 * (slopes**2).mean()
        assert rule.rate(state, probes) == pytest.approx(np.clip((2.0 / math.sqrt(square)) ** 1.5, 1 / 3, 3), rel=1e-12)
        assert not rule.measures(step)
        factors.append(rule.rate(state, probes))
        rule.end(state, probes, 16)
    assert max(factors) == 3.0
    assert min(factors) == pytest.approx(1 / 3)
    assert len({round(factor, 6) for factor in factors}) > 12
    assert rule.forwards(40) == 0


def test_slopes_keep_a_run_from_growing() -> None:
    """At a rate where plain SPSA diverges, and with a one-sided estimator of several directions too."""
    assert not descended(50.0, None) < 1
    slopes = ruled(Bowl(1.0), curvature=None, kind="slopes", slope=100.0, power=2.0, reach=1000.0)
    assert descended(50.0, slopes) < 0.9
    model = Bowl(50.0)
    optimizer = zoft.ZerothOrder(
        model, "zo-finetuner", tuner=slopes.bind(model), lr=2e-3, seed=1, directions=3, estimator="one-sided"
    )
    first = float(model.loss().detach())
    for _ in range(250):
        optimizer.step(model.loss)
    assert float(model.loss().detach()) < 0.9 * first


def test_a_kind_has_its_own_settings_only() -> None:
    for settings in ({"kind": "slopes"}, {"kind": "curvature"}, {"kind": "slopes", "slope": 1.0, "curvature": 1.0}):
        with pytest.raises(UsageError, match="needs"):
            StepRuleConfig.build(settings)
    rule = StepRuleConfig(kind="slopes", slope=2.0)
    assert StepRuleConfig.build(rule.to_dict()) == rule
    assert set(rule.to_dict()) == {"kind", "slope", "power", "decay", "reach"}


def test_meta_training_measures_the_slopes_of_its_tasks() -> None:
    model = Bowl(3.0)
    task = FunctionTask("bowl", [None], lambda model, batch: model.loss())
    rule = meta_train(model, [task], MetaTrainConfig(steps=2, lookahead_lr=1e-4, step_size="slopes")).config.step_rule
    assert rule is not None
    # |g|² = 900, and c is N(0, |g|²) along a direction of norm² 100.
    assert rule.slope == pytest.approx(30, rel=0.6)


def lm_loss(model: nn.Module) -> Tensor:
    """A loss."""
    batch = torch.arange(12).view(2, 6) % 11
    return nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten())


@pytest.mark.parametrize("name", ["mezo", "hizoo", "zo-adam", "zo-sgd-cons", "hizoo+zo-adam"])
def test_forwards_are_counted_and_a_run_goes_on_bit_for_bit(name: str) -> None:
    straight, halved = build(TiedLM), build(TiedLM)
    tuner = ruled(straight, every=3)

    def run(model: nn.Module, steps: int, state: dict[str, object] | None = None) -> tuple[zoft.ZerothOrder, int]:
        optimizer = zoft.ZerothOrder(model, name, tuner=tuner.bind(model), lr=1e-3, seed=3)
        if state is not None:
            optimizer.load_state_dict(state)  # type: ignore[arg-type]
        count = 0
        for _ in range(steps):
            optimizer.step(lambda: lm_loss(model))
            count += optimizer.last.forwards  # type: ignore[union-attr]
        return optimizer, count

    optimizer, count = run(straight, 7)
    method = zoft.get_optimizer(name, tuner=tuner.bind(build(TiedLM)))
    assert count == method.forwards_in(7) + 1  # the audit of the first step
    assert method.forwards_in(7) == 7 * method.forwards + (0 if method.plan.zero else 3)
    kept, _ = run(halved, 4)
    run(halved, 3, kept.state_dict())
    for ours, theirs in zip(straight.parameters(), halved.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert bool(optimizer.state_dict())


def test_a_budget_is_kept() -> None:
    method = zoft.get_optimizer("mezo", tuner=ruled(build(TiedLM), every=10).bind(build(TiedLM)))
    for budget in range(2, 300):
        steps = method.steps_within(budget)
        assert method.forwards_in(steps) <= budget < method.forwards_in(steps + 1)
    plain = zoft.get_optimizer("mezo")
    assert (plain.steps_within(601), plain.forwards_in(300)) == (300, 600)


def test_it_needs_both_sides() -> None:
    tuner = ruled(build(TiedLM)).bind(build(TiedLM))
    for name, hyper in (("mezo", {"estimator": "one-sided"}), ("fzoo", {}), ("forward-grad", {})):
        with pytest.raises(UsageError, match="needs the losses on both sides"):
            zoft.get_optimizer(name, tuner=tuner, **hyper)


def test_the_artifact(tmp_path: Path) -> None:
    tuner = ruled(build(TiedLM), every=7)
    again = Tuner.from_pretrained(tuner.save_pretrained(tmp_path))
    assert again.config.step_rule == tuner.config.step_rule
    assert again.digest == tuner.digest != Tuner.untrained(build(TiedLM), NetworkConfig(hidden=4)).digest
    file = tmp_path / "tuner_config.json"
    content = json.loads(file.read_text())
    for change, message in (
        ({"curvature": 0}, r"step_rule\.curvature: input should be greater than 0"),
        ({"kind": "magic"}, r"step_rule\.kind"),
        ({"more": 1}, r"step_rule\.more"),
    ):
        file.write_text(json.dumps({**content, "step_rule": {**content["step_rule"], **change}}))
        with pytest.raises(ArtifactError, match=message):
            Tuner.from_pretrained(tmp_path)
    lacking = {key: value for key, value in content["step_rule"].items() if key != "decay"}
    file.write_text(json.dumps({**content, "step_rule": lacking}))
    with pytest.raises(ArtifactError, match=r"does not state step_rule\.decay"):
        Tuner.from_pretrained(tmp_path)


def test_meta_training_measures_the_curvature_of_its_tasks() -> None:
    model = Bowl(3.0)
    task = FunctionTask("bowl", [None], lambda model, batch: model.loss())
    settings = {**recipe("lookahead"), "steps": 2, "lookahead_steps": 1}
    asked = {**settings, "step_size": "curvature", "step_size_every": 5}
    rule = meta_train(model, [task], MetaTrainConfig.build(asked)).config.step_rule
    assert rule is not None
    assert rule.every == 5
    assert rule.curvature == pytest.approx(300, rel=0.1)
