"""The step-size head that goes by the losses of the single examples: its matrix, its formula, and what it is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoft
from meta_train import MetaTrainConfig, meta_train
from tests.models import TiedLM, build
from zoft.blocks import Block
from zoft.curvature import PartLosses, damped_step, gauss_newton, margin_curvature
from zoft.errors import UsageError
from zoft.models import load_model
from zoft.noise import GaussianTable, Key, Span
from zoft.objective import Objective
from zoft.step import Probe
from zoft.tasks import get_task
from zoft.tasks.base import objective_on
from zoft.tasks.function import FunctionTask
from zoft.tasks.lm import LMTask
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.step_rule import StepRuleConfig

RULE = StepRuleConfig(kind="gauss-newton", damping=0.7, decay=0.6)


def ruled(model: nn.Module, rule: StepRuleConfig = RULE) -> Tuner:
    """A tuner that is MeZO but for its step-size head."""
    tuner = Tuner.untrained(model, NetworkConfig(hidden=4))
    return Tuner(tuner.config.model_copy(update={"step_rule": rule}), tuner.network)


class Logistic(nn.Module):
    """Log-losses log(1 + exp(−y·xᵀθ)) of examples whose features have a scale, in float64."""

    def __init__(self, scale: float = 1.0, dimensions: int = 30, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.theta = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))
        self.x = scale * torch.randn(512, dimensions, generator=generator, dtype=torch.float64)
        truth = torch.randn(dimensions, generator=generator, dtype=torch.float64) / scale
        self.y = torch.where(
            torch.rand(512, generator=generator) < torch.sigmoid(2 * self.x @ truth).float(), 1.0, -1.0
        )

    def losses(self, rows: Tensor) -> Tensor:
        """Of each of the examples."""
        return F.softplus(-self.y[rows] * (self.x[rows] @ self.theta))


def losses(model: nn.Module, rows: Tensor) -> Tensor:
    """Of a batch's examples."""
    assert isinstance(model, Logistic)
    return model.losses(rows)


def loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Their mean."""
    return losses(model, rows).mean()


def objective(model: Logistic, batches: Sequence[Tensor], by_example: bool = True) -> Objective:
    """With its examples apart, or not."""
    return Objective(model, loss, batches, losses=losses if by_example else None)


def test_where_every_example_has_one_margin_the_matrix_is_the_hessian_or_above_it() -> None:
    """Against autograd: of examples that are right the same, of all at least that."""
    model, theta = Logistic(dimensions=12), torch.linspace(-1, 1, 12, dtype=torch.float64)
    with torch.no_grad():
        model.theta.copy_(theta)
    directions = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    every = torch.arange(64)
    right = every[model.losses(every) <= math.log(2)]
    assert 10 < len(right) < 54

    def along(rows: Tensor) -> tuple[Tensor, Tensor]:
        def each(theta: Tensor) -> Tensor:
            return F.softplus(-model.y[rows] * (model.x[rows] @ theta))

        hessian = torch.autograd.functional.hessian(lambda theta: each(theta).mean(), theta)
        slopes = directions @ torch.autograd.functional.jacobian(each, theta).mT
        weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
        return gauss_newton(each(theta), slopes, weights), directions @ hessian @ directions.mT

    found, hessian = along(right)
    assert torch.allclose(found, hessian, rtol=1e-9)
    found, hessian = along(every)
    assert float(torch.linalg.eigvalsh(found - hessian).min()) > 0


def test_wrong_examples_have_the_largest_curvature_on_their_way() -> None:
    """w·(1 − p)² is p·(1 − p) from p = ½ on, and ¼ before; and no loss is so small that its weight is infinite."""
    right = torch.tensor([1e-30, 0.02, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
    weights = margin_curvature(-right.log())
    on_the_way = torch.where(right < 0.5, 0.25, right * (1 - right))
    assert torch.allclose(weights * (1 - right).square(), on_the_way, rtol=1e-9)
    assert margin_curvature(torch.zeros(1, dtype=torch.float64)).tolist() == pytest.approx([1e6 - 1], rel=1e-6)


def test_where_an_example_has_several_tokens_each_is_a_part_of_its_own() -> None:
    """G against autograd's Hessian of a mean over examples of means over tokens, each with a margin of its own."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    counts, theta = [4, 1, 2], torch.linspace(-1, 1, 6, dtype=torch.float64)
    x *= (x @ theta).sign()[..., None]  # all are right, and G is the Hessian
    missing = torch.arange(4) >= torch.tensor(counts)[:, None]
    directions = torch.randn(5, 6, generator=generator, dtype=torch.float64)

    def tokens(theta: Tensor) -> Tensor:
        return F.softplus(-(x @ theta))

    def mean(theta: Tensor) -> Tensor:
        rows = tokens(theta)
        return torch.stack([row[:count].mean() for row, count in zip(rows, counts, strict=True)]).mean()

    parts = PartLosses.of(tokens(theta).masked_fill(missing, -math.inf))
    assert len(parts.values) == sum(counts)
    assert parts.mean == pytest.approx(float(mean(theta)), rel=1e-12)
    slopes = torch.autograd.functional.jacobian(tokens, theta)[~missing]
    hessian = torch.autograd.functional.hessian(mean, theta)
    found = gauss_newton(parts.values, directions @ slopes.mT, parts.weights)
    assert torch.allclose(found, directions @ hessian @ directions.mT, rtol=1e-9)
    lost = PartLosses.of(torch.tensor([[1.0, math.nan], [2.0, -math.inf]]))
    assert math.isnan(lost.mean)


@pytest.mark.parametrize("name", ["rewrite-opposite", "review-negation"])
def test_a_tasks_loss_is_the_mean_of_its_parts(name: str) -> None:
    loaded = load_model("zoft-base")
    task = LMTask(get_task(name), loaded.tokenizer)
    batch = next(task.train_batches(6, 0))
    with torch.no_grad():
        parts, whole = task.part_losses(loaded.model, batch), float(task.loss(loaded.model, batch))
    assert parts.ndim == (2 if task.text_task.kind == "completion" else 1)
    assert PartLosses.of(parts).mean == pytest.approx(whole, rel=1e-6)
    values = [part.mean for part in objective_on(task, loaded.model, [batch, batch]).apart()]
    assert values == pytest.approx([whole, whole], rel=1e-6)


def test_a_damped_step_does_not_depend_on_damping_where_all_is_alike() -> None:
    slopes = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for damping in (0.01, 1.0, 50.0):
        step = damped_step(4.0 * torch.eye(3, dtype=torch.float64), slopes, torch.full((3,), 4.0), damping)
        assert torch.allclose(step, slopes / 4.0, rtol=1e-12)
    assert not damped_step(torch.zeros(3, 3, dtype=torch.float64), slopes, torch.zeros(3), 1.0).any()


def transcript(
    slopes: np.ndarray, losses: np.ndarray, history: tuple[int, float], promise: float, damping: float, decay: float
) -> tuple[np.ndarray, float]:
    """What the slopes [n] become, from the examples' slopes [n, B] and losses [B]; and T."""
    right = np.exp(-losses)
    weights = np.where(right < 0.5, 0.25 / (1 - right) ** 2, right / (1 - right))
    matrix = np.einsum("ib,jb,b->ij", slopes, slopes, weights) / len(losses)
    count, mean = history
    keep = min(count / (count + 1), decay)
    mean = keep * mean + (1 - keep) * np.trace(matrix) / len(matrix)
    c = slopes.mean(1)
    step = (1 + damping) * np.linalg.inv(matrix + damping * mean * np.eye(len(c))) @ c
    return step * min(1.0, promise / (c @ step / len(c))), mean


@pytest.mark.parametrize("estimator", ["one-sided", "central"])
def test_steps_are_their_formula_in_float64(estimator: str) -> None:
    model, epsilon, n = Logistic(scale=3.0), 1e-4, 3
    tuner = ruled(model).bind(model)
    optimizer = zoft.ZerothOrder(
        model, "mezo", tuner=tuner, lr=0.5, epsilon=epsilon, directions=n, estimator=estimator, seed=4
    )
    noise, span = GaussianTable(), Span(Block(0, "theta", model.theta), 0, 30)
    history = (0, 0.0)
    for step in range(12):
        rows = torch.randint(0, 512, (8,), generator=torch.Generator().manual_seed(step))
        theta = model.theta.detach().numpy().copy()
        x, y = model.x[rows].numpy(), model.y[rows].numpy()
        z = np.stack([noise(Key(4, step, k), span).double().numpy() for k in range(n)])

        def each(theta: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> np.ndarray:
            return np.log1p(np.exp(-y * (x @ theta)))

        plus = np.stack([each(theta + epsilon * d) for d in z])
        minus = np.stack([each(theta - epsilon * d) for d in z])
        zero = each(theta) if estimator == "one-sided" else (plus + minus).mean(0) / 2
        slopes = (plus - zero) / epsilon if estimator == "one-sided" else (plus - minus) / (2 * epsilon)
        promise = zero.mean() / 4
        weighed, mean = transcript(slopes, zero, history, promise, 0.7, 0.6)
        history = (history[0] + 1, mean)
        optimizer.step_on(objective(model, [rows]))
        expected = theta - 0.5 / n * weighed @ z
        assert model.theta.detach().numpy() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert bool((model.theta != 0).all())


def run(scale: float, lr: float, tuned: bool = True, by_example: bool = True) -> float:
    """The loss after 150 steps, where log 2 is that of a guess."""
    model = Logistic(scale)
    tuner = ruled(model).bind(model) if tuned else None
    hyper = {"lr": lr, "epsilon": 1e-4 / scale, "directions": 4, "estimator": "one-sided", "seed": 1}
    optimizer = zoft.ZerothOrder(model, "mezo", tuner=tuner, **hyper)
    for step in range(150):
        rows = torch.randint(0, 512, (16,), generator=torch.Generator().manual_seed(step))
        optimizer.step_on(objective(model, [rows], by_example))
    return float(loss(model, torch.arange(512)).detach())


def test_one_rate_serves_losses_of_every_scale() -> None:
    ends = [run(scale, 0.5) for scale in (0.1, 1.0, 30.0)]
    assert ends == pytest.approx([ends[0]] * 3, rel=1e-3)
    assert ends[0] < 0.5
    without = [run(scale, 0.05, tuned=False) for scale in (0.1, 1.0, 30.0)]
    assert without[0] > 0.68  # hardly moves
    assert without[1] < 0.55
    assert not without[2] < 1  # diverges


def test_whole_batches_stand_in_for_examples_with_shorter_steps() -> None:
    assert run(1.0, 0.5, by_example=False) < 0.69
    model = Logistic()
    tuner = ruled(model).bind(model, 16)
    method = zoft.get_optimizer("mezo", tuner=tuner, directions=2)
    assert method.plan.examples
    rule, probe = RULE, Probe(Key(0, 0), 0.65 + 1e-3, 0.65 - 1e-3, 1e-2)
    curved = [replace(probe, curvature=(2.0,), by_batch=flag) for flag in (False, True)]
    state = rule.init()
    whole, single = (rule.weigh(state, [one], 16)[0].projected_gradient for one in curved)
    assert single == pytest.approx(whole / 16)
    assert rule.weigh(state, [probe], 16) == [probe]


def test_no_step_promises_more_than_a_quarter_of_the_loss() -> None:
    state = RULE.init()
    flat = [Probe(Key(0, 0), 0.2 + 1e-3, 0.2 - 1e-3, 1e-3, curvature=(1e-6,))]
    (weighed,) = RULE.weigh(state, flat, 16)
    assert weighed.projected_gradient * flat[0].projected_gradient == pytest.approx(0.2 / 4)


def test_the_examples_are_averaged_over_processes() -> None:
    """Two halves of a batch, averaged as two processes would, give the step of the whole batch."""
    rows, seen = torch.arange(16), []

    def first(model: Logistic, part: Tensor, other: list[list[float]] | None) -> list[float]:
        def reduce(values: list[float]) -> list[float]:
            seen.append(values)
            return values if other is None else [(a + b) / 2 for a, b in zip(values, other[0], strict=True)]

        optimizer = zoft.ZerothOrder(
            model, "mezo", tuner=ruled(model).bind(model), lr=0.5, directions=2, seed=2, reduce=reduce
        )
        optimizer.step_on(objective(model, [part]))
        return model.theta.tolist()

    first(Logistic(), rows[8:], None)
    halves = first(Logistic(), rows[:8], [seen[0]])
    assert len(seen[0]) == 2 * 2 + 2 * 2
    assert halves == pytest.approx(first(Logistic(), rows, None), rel=1e-6)
    several = Logistic()
    optimizer = zoft.ZerothOrder(several, "mezo", tuner=ruled(several).bind(several), lr=0.5, directions=2, seed=2)
    optimizer.step_on(objective(several, [rows[:8], rows[8:]]))
    assert halves == pytest.approx(several.theta.tolist(), rel=1e-6)


def test_losses_that_are_not_one_an_example_are_refused() -> None:
    model = Logistic()
    optimizer = zoft.ZerothOrder(model, "mezo", tuner=ruled(model).bind(model), lr=0.5)
    with pytest.raises(UsageError, match="neither one value an example nor one a token"):
        optimizer.step_on(
            Objective(model, loss, [torch.arange(4)], losses=lambda m, rows: losses(m, rows).view(2, 2, 1))
        )


def test_a_closure_may_return_the_losses_of_its_examples() -> None:
    """Then a step sees them apart; and for other methods it is their mean."""
    rows, ends = torch.arange(16), {}
    for by_example in (True, False):
        for tuned in (True, False):
            model = Logistic()
            tuner = ruled(model).bind(model) if tuned else None
            optimizer = zoft.ZerothOrder(model, "mezo", tuner=tuner, lr=0.5, directions=2, seed=2)
            optimizer.step(lambda m=model, each=by_example: losses(m, rows) if each else loss(m, rows))
            ends[by_example, tuned] = model.theta.tolist()
            assert optimizer.last is not None
            assert [probe.by_batch for probe in optimizer.last.probes] == [tuned and not by_example] * 2
    whole = Logistic()
    zoft.ZerothOrder(whole, "mezo", tuner=ruled(whole).bind(whole), lr=0.5, directions=2, seed=2).step_on(
        objective(whole, [rows])
    )
    assert ends[True, True] == whole.theta.tolist() != ends[False, True]
    assert ends[True, False] == pytest.approx(ends[False, False], rel=1e-9)


def lm_loss(model: nn.Module) -> Tensor:
    """A loss."""
    batch = torch.arange(12).view(2, 6) % 11
    return F.cross_entropy(model(batch).flatten(0, 1), batch.flatten())


def lm_losses(model: nn.Module, _: None) -> Tensor:
    """Of its two examples."""
    batch = torch.arange(12).view(2, 6) % 11
    return F.cross_entropy(model(batch).flatten(0, 1), batch.flatten(), reduction="none").view(2, 6).mean(1)


@pytest.mark.parametrize("name", ["mezo", "hizoo", "zo-adam", "fzoo", "hizoo+zo-adam", "forward-grad"])
def test_every_method_takes_it_and_goes_on_bit_for_bit(name: str) -> None:
    straight, halved = build(TiedLM), build(TiedLM)
    start = [parameter.detach().clone() for parameter in straight.parameters()]
    tuner = ruled(straight)

    def steps(model: nn.Module, count: int, state: dict[str, object] | None = None) -> zoft.ZerothOrder:
        optimizer = zoft.ZerothOrder(model, name, tuner=tuner.bind(model), lr=0.1, seed=3)
        if state is not None:
            optimizer.load_state_dict(state)  # type: ignore[arg-type]
        for _ in range(count):
            optimizer.step_on(Objective(model, lambda model, _: lm_loss(model), [None], losses=lm_losses))
        return optimizer

    steps(straight, 7)
    kept = steps(halved, 4)
    steps(halved, 3, kept.state_dict())
    for before, ours, theirs in zip(start, straight.parameters(), halved.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, before)


def test_the_head_is_left_alone_where_nothing_was_measured() -> None:
    """Along exact derivatives the examples are not kept apart."""
    method = zoft.get_optimizer("forward-grad", tuner=ruled(build(TiedLM)).bind(build(TiedLM)))
    assert not method.plan.examples
    assert RULE.measures(0) is False
    assert RULE.forwards(100) == 0
    assert RULE.rate(RULE.init(), [Probe(Key(0, 0), 1.0, 1.0, 1e-3)]) == 1.0


def test_meta_training_recommends_a_rate_without_units() -> None:
    model = Logistic()
    task = FunctionTask("logistic", [torch.arange(16), torch.arange(16, 32)], loss)
    asked = {"steps": 2, "lookahead_lr": 1e-4, "step_size": "gauss-newton", "step_size_damping": 0.5}
    for given, expected in ({}, 1.0), ({"recommended_lr": 0.3}, 0.3):
        tuner = meta_train(model, [task], MetaTrainConfig.build({**asked, **given}))
        assert tuner.config.step_rule == StepRuleConfig(kind="gauss-newton", damping=0.5, decay=0.9)
        assert tuner.config.recommended.lr == expected


def test_its_settings() -> None:
    assert set(RULE.to_dict()) == {"kind", "damping", "decay"}
    assert StepRuleConfig.build(RULE.to_dict()) == RULE
    for settings in ({"kind": "gauss-newton"}, {"kind": "gauss-newton", "damping": 1.0, "slope": 1.0}):
        with pytest.raises(UsageError, match="needs"):
            StepRuleConfig.build(settings)
