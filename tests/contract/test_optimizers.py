"""What every registered method promises. A new method is tested by its registry line alone."""

import doctest
import inspect
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from tests.contract.tables import METHODS, options
from tests.models import TiedLM, bits, build, mlp, randn, same_bits
from zoft import ZerothOrder
from zoft.blocks import Blocks
from zoft.noise import Key, get_noise
from zoft.objective import Objective
from zoft.optimizers import OPTIMIZERS, torch_optimizer
from zoft.perturb import Perturber
from zoft.step import apply_update, zo_step

DATA, TARGET = randn(32, 5, seed=1), randn(32, 2, seed=2)
TOKENS = torch.arange(11)


def regression(model):
    return (model(DATA) - TARGET).square().mean()


def language(model):
    return nn.functional.cross_entropy(model(TOKENS).float(), TOKENS.roll(1))


def logistic(model):
    return nn.functional.cross_entropy(model(DATA), (DATA.sum(1) > 0).long())


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(10))

    def forward(self):
        return (torch.linspace(0.5, 2, 10) * self.x.square()).sum()


PROBLEMS = {
    "quadratic": (Quadratic, lambda m: m(), 1e-2, 0.2),
    "regression": (mlp, regression, 2e-2, 0.9),
    "logistic": (lambda: build(lambda: nn.Linear(5, 2)), logistic, 1e-1, 0.7),
    "language": (lambda: build(TiedLM), language, 2e-2, 0.8),
}


def optimizer(name, model, **more):
    return ZerothOrder(model, name, **{"epsilon": 1e-3, **options(name, model), **more})


def test_the_registry_is_what_is_tested():
    assert sorted(OPTIMIZERS) == METHODS
    assert len(METHODS) >= 3


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", METHODS)
def test_descends(name, problem):
    maker, loss, lr, fraction = PROBLEMS[problem]
    model = maker()
    with torch.no_grad():
        start = loss(model).item()
    steps = optimizer(name, model, lr=lr, seed=1)
    for _ in range(400):
        steps.step(lambda: loss(model))
    with torch.no_grad():
        assert loss(model).item() < fraction * start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_learning_rate_zero_keeps_the_bits(name, dtype):
    model = mlp(dtype=dtype)
    model[0].weight.data[0, 0] = -0.0
    before = bits(model)
    steps = optimizer(name, model, lr=0.0)
    for _ in range(5):
        steps.step(lambda: (model(DATA.to(dtype)).float() - TARGET).square().mean())
    assert same_bits(model, before)


@pytest.mark.parametrize("name", METHODS)
def test_the_trajectory_is_a_function_of_the_seed_alone(name):
    def run(seed, disturb):
        model = mlp()
        steps = optimizer(name, model, lr=1e-2, seed=seed)
        for _ in range(5):
            if disturb:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(disturb)
                    steps.step(lambda: regression(model))
            else:
                steps.step(lambda: regression(model))
        return bits(model), model

    reference, _ = run(1, 0)
    assert same_bits(run(1, 7)[1], reference)
    assert not same_bits(run(2, 0)[1], reference)


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load_go_on_bit_for_bit(name):
    """k steps + save + load + k steps ≡ 2k steps; the state goes through safetensors."""
    straight = mlp()
    steps = optimizer(name, straight, lr=1e-2)
    for _ in range(10):
        steps.step(lambda: regression(straight))

    model = mlp()
    first = optimizer(name, model, lr=1e-2)
    for _ in range(5):
        first.step(lambda: regression(model))
    content = first.state_dict()
    state = content["zoft"].pop("state")
    content["zoft"]["state"] = load(save(state)) if state else {}
    second = ZerothOrder(model, name, lr=1e-2, seed=99, **options(name, mlp()))
    second.load_state_dict(content)
    for _ in range(5):
        second.step(lambda: regression(model))
    assert same_bits(model, bits(straight))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("directions", [1, 3])
def test_forwards_are_as_declared(name, directions):
    model = mlp()
    steps = optimizer(name, model, directions=directions)
    calls = []
    steps.step(lambda: calls.append(1) or regression(model))
    assert len(calls) == steps.method.forwards + 1  # the audit of the first evaluation
    calls.clear()
    steps.step(lambda: calls.append(1) or regression(model))
    assert len(calls) == steps.method.forwards == steps.last.forwards


@pytest.mark.parametrize("name", METHODS)
def test_state_bytes_are_as_declared(name):
    model = build(TiedLM)
    steps = optimizer(name, model)
    steps.step(lambda: language(model))
    state = steps.state_dict()["zoft"]["state"]
    assert all(isinstance(t, torch.Tensor) for t in state.values())
    assert sum(t.numel() * t.element_size() for t in state.values()) == steps.method.state_bytes(steps.blocks)


@pytest.mark.parametrize("name", METHODS)
def test_state_keeps_its_structure(name):
    model = mlp()
    steps = optimizer(name, model, lr=1e-2)
    before = {key: (t.dtype, t.shape) for key, t in steps.state_dict()["zoft"]["state"].items()}
    for _ in range(3):
        steps.step(lambda: regression(model))
    assert {key: (t.dtype, t.shape) for key, t in steps.state_dict()["zoft"]["state"].items()} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_dtypes_ties_and_frozen_parameters_are_kept(name, dtype):
    model = build(TiedLM, dtype=dtype)
    model.hidden.requires_grad_(False)
    frozen = model.hidden.weight.detach().clone()
    moved = model.embed.weight.detach().clone()
    steps = optimizer(name, model, lr=1e-2)
    for _ in range(3):
        steps.step(lambda: language(model))
    assert model.embed.weight is model.head.weight
    assert all(p.dtype == dtype and p.grad is None for p in model.parameters())
    assert torch.equal(model.hidden.weight, frozen)
    assert not torch.equal(model.embed.weight, moved)


@pytest.mark.parametrize("name", METHODS)
def test_replay_without_forwards(name):
    """The measured losses and the seed rebuild the weights bit for bit."""
    noise, lr = get_noise("gaussian-table"), 1e-2
    live, again = mlp(), mlp()
    method = OPTIMIZERS[name](**options(name, live))
    one, two = method.init(Blocks.of(live)), method.init(Blocks.of(again))
    perturber = Perturber(live, Blocks.of(live))
    objective = Objective(live, lambda m, b: regression(m), [None])
    for step in range(4):
        result = zo_step(method, one, Blocks.of(live), perturber, objective, noise, Key(1, step), lr)
        method.begin(two, Blocks.of(again))
        apply_update(method, two, Blocks.of(again), noise, result.probes, lr)
    assert same_bits(again, bits(live))


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_changes_nothing(name):
    model = mlp()
    steps = optimizer(name, model, lr=1e-2)
    steps.step(lambda: regression(model))
    before = bits(model)
    steps.step(lambda: math.nan)
    assert steps.last.skipped
    assert same_bits(model, before)
    steps.step(lambda: regression(model))
    assert not steps.last.skipped
    assert not same_bits(model, before)


@pytest.mark.parametrize("name", METHODS)
def test_each_group_has_its_learning_rate(name):
    model = mlp()
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 1e-2}]
    steps = optimizer(name, model, params=groups)
    scheduler = torch.optim.lr_scheduler.StepLR(steps, 1, gamma=0.0)
    steps.step(lambda: regression(model))
    assert torch.equal(model[0].weight, first)
    assert not torch.equal(model[2].weight, second)
    scheduler.step()
    second = model[2].weight.detach().clone()
    steps.step(lambda: regression(model))
    assert torch.equal(model[2].weight, second)


@pytest.mark.parametrize("name", METHODS)
def test_docstring_has_its_parts(name):
    text = inspect.getdoc(OPTIMIZERS[name]) or ""
    assert "Cost:" in text
    assert "Reference:" in text
    assert OPTIMIZERS[name].paper.removeprefix("arXiv ") in text
    assert all(field.description for field in OPTIMIZERS[name].model_fields.values())


def test_the_example_runs():
    with torch.random.fork_rng(devices=[]):
        failed, tried = doctest.testmod(torch_optimizer)
    assert tried >= 6
    assert failed == 0
