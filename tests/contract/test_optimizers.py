"""What every registered method promises. A new method is tested by its registry line alone."""

import doctest
import inspect
import math
import re
from functools import cache

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from tests.contract.tables import ALL, COMPOSITIONS, ESTIMATORS, METHODS, REFUSED, options, tuner
from tests.models import TiedLM, bits, build, mlp, randn, same_bits
from zoft import ZerothOrder, get_optimizer
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import GaussianTable, Key, Span, get_noise
from zoft.objective import Objective
from zoft.optimizers import OPTIMIZERS, torch_optimizer
from zoft.perturb import Perturber
from zoft.step import Probe, apply_update, zo_step

DATA, TARGET = randn(32, 5, seed=1), randn(32, 2, seed=2)
TOKENS = torch.arange(11)


def regression(model):
    return (model(DATA) - TARGET).square().mean()


def language(model):
    return nn.functional.cross_entropy(model(TOKENS).float(), TOKENS.roll(1))


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(10))

    def forward(self):
        return (torch.linspace(0.5, 2, 10) * self.x.square()).sum()


#: Small data for small models, on which a few dozen steps go a long way.
INPUTS, AIM = randn(16, 2, seed=3), randn(16, 1, seed=4)
WORDS = torch.tensor([0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 1, 0])


def small(dtype=torch.float32):
    return build(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), dtype=dtype)


def fit(model):
    return (model(INPUTS.to(next(model.parameters()).dtype)) - AIM).square().mean()


def logistic(model):
    return nn.functional.cross_entropy(model(INPUTS), (INPUTS.sum(1) > 0).long())


def next_word(model):
    return nn.functional.cross_entropy(model(WORDS[:-1]), WORDS[1:])


#: Maker, loss, MeZO's learning rate, steps, and the fraction of the first loss to come below.
PROBLEMS = {
    "quadratic": (Quadratic, lambda m: m(), 4e-2, 25, 0.5),
    "regression": (small, fit, 1e-1, 30, 0.85),
    "logistic": (lambda: build(lambda: nn.Linear(2, 2)), logistic, 4e-1, 15, 0.5),
    "language": (lambda: build(lambda: TiedLM(5, 3)), next_word, 1e-1, 30, 0.75),
}


def optimizer(name, model, **more):
    return ZerothOrder(model, name, **{"epsilon": 1e-3, "keep_bytes": 1 << 16, **options(name, model), **more})


def test_the_registry_is_what_is_tested():
    """Every method, and every pair of methods that bring a part, is either tested or refused with a reason."""
    assert list(OPTIMIZERS) == METHODS
    bringing = [name for name in METHODS if OPTIMIZERS[name].parts]
    assert len(COMPOSITIONS) + len(REFUSED) == len(bringing) * (len(bringing) - 1) // 2
    assert (len(METHODS), len(COMPOSITIONS), len(REFUSED), len(ESTIMATORS)) == (12, 13, 23, 49)


@cache
def first_movement(name, problem):
    """How far a first step moves θ for each unit of the learning rate, on average."""
    maker, loss, *_ = PROBLEMS[problem]
    lr, moved = 1e-4, []
    for seed in range(4):
        model = maker()
        before = torch.cat([p.detach().clone().view(-1) for p in model.parameters()])
        optimizer(name, model, lr=lr, seed=seed).step(lambda model=model: loss(model))
        after = torch.cat([p.detach().view(-1) for p in model.parameters()])
        moved.append(float((after - before).norm()) / lr)
    return sum(moved) / len(moved)


def final_fraction(name, maker, loss, lr, count):
    model = maker()
    with torch.no_grad():
        start = loss(model).item()
    steps = optimizer(name, model, lr=lr, seed=1)
    for _ in range(count):
        steps.step(lambda: loss(model))
    with torch.no_grad():
        return loss(model).item() / start


CASES = [(name, problem) for name in METHODS for problem in PROBLEMS]
CASES += [(name, "quadratic") for name in COMPOSITIONS]


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_descends(name, problem):
    """With first steps as long as MeZO's, or a tenth of that (momentum adds steps up)."""
    maker, loss, lr, count, fraction = PROBLEMS[problem]
    matched = lr * first_movement("mezo", problem) / first_movement(name, problem)
    assert any(final_fraction(name, maker, loss, matched * factor, count) < fraction for factor in (1.0, 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_learning_rate_zero_keeps_the_bits(name, dtype):
    model = mlp(dtype=dtype)
    model[0].weight.data[0, 0] = -0.0
    before = bits(model)
    steps = optimizer(name, model, lr=0.0)
    for _ in range(5):
        steps.step(lambda: (model(DATA.to(dtype)).float() - TARGET).square().mean())
    assert same_bits(model, before)


@pytest.mark.parametrize("name", ALL)
def test_the_trajectory_is_a_function_of_the_seed_alone(name):
    def run(seed, disturb):
        model = mlp()
        steps = optimizer(name, model, lr=1e-3, seed=seed)
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


@pytest.mark.parametrize("name", ALL)
def test_save_and_load_go_on_bit_for_bit(name):
    """k steps + save + load + k steps ≡ 2k steps; the state goes through safetensors."""
    straight = mlp()
    steps = optimizer(name, straight, lr=1e-3)
    for _ in range(10):
        steps.step(lambda: regression(straight))

    model = mlp()
    first = optimizer(name, model, lr=1e-3)
    for _ in range(5):
        first.step(lambda: regression(model))
    content = first.state_dict()
    state = content["zoft"].pop("state")
    content["zoft"]["state"] = load(save(state)) if state else {}
    second = optimizer(name, mlp(), lr=1e-3, seed=99)
    fresh = mlp()
    fresh.load_state_dict(model.state_dict())
    second = optimizer(name, fresh, lr=1e-3, seed=99, **options(name, mlp()))
    second.load_state_dict(content)
    for _ in range(5):
        second.step(lambda: regression(fresh))
    assert same_bits(fresh, bits(straight))


@pytest.mark.parametrize(("name", "estimator"), ESTIMATORS)
@pytest.mark.parametrize("directions", [2, 3])
def test_forwards_are_as_declared(name, estimator, directions):
    """A derivative calls the closure once and counts as two forwards; the first evaluation is audited."""
    model = mlp()
    steps = optimizer(name, model, directions=directions, estimator=estimator)
    products = directions if estimator == "derivative" else 0
    calls = []
    steps.step(lambda: calls.append(1) or regression(model))
    audits = steps.last.forwards - steps.method.forwards
    assert audits == (0 if products and not steps.method.trials else 1)
    assert len(calls) == steps.method.forwards - products + audits
    calls.clear()
    steps.step(lambda: calls.append(1) or regression(model))
    assert len(calls) + products == steps.method.forwards == steps.last.forwards


@pytest.mark.parametrize("name", ALL)
def test_state_bytes_are_as_declared(name):
    model = build(TiedLM)
    steps = optimizer(name, model)
    steps.step(lambda: language(model))
    state = steps.state_dict()["zoft"]["state"]
    assert all(isinstance(t, torch.Tensor) for t in state.values())
    assert sum(t.numel() * t.element_size() for t in state.values()) == steps.method.state_bytes(steps.blocks)


@pytest.mark.parametrize("name", ALL)
def test_state_bytes_of_a_model_without_values(name):
    """A method's need is known from a model on the meta device, without its memory."""
    with torch.device("meta"):
        large = nn.Sequential(nn.Embedding(100_000, 4096), nn.Linear(4096, 4096))
    blocks = Blocks.of(large, values=False)
    counted = OPTIMIZERS[name](**options(name, mlp())).state_bytes(blocks)
    full = sum(map(int, re.findall(r"(\d+) bytes a parameter", cost(name)))) * blocks.numel
    # Beside what the docstring says of every parameter: vectors, rows and columns, a few numbers a block.
    assert full <= counted < full + 1_000_000


def cost(name):
    """The sentence of a method's docstring that says what it costs."""
    text = inspect.getdoc(OPTIMIZERS[name]) or ""
    return text.partition("Cost:")[2].partition("\n\n")[0]


@pytest.mark.parametrize("name", ALL)
def test_state_keeps_its_structure(name):
    model = mlp()
    steps = optimizer(name, model, lr=1e-3)
    before = {key: (t.dtype, t.shape) for key, t in steps.state_dict()["zoft"]["state"].items()}
    for _ in range(3):
        steps.step(lambda: regression(model))
    assert {key: (t.dtype, t.shape) for key, t in steps.state_dict()["zoft"]["state"].items()} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_dtypes_ties_and_frozen_parameters_are_kept(name, dtype):
    model = build(TiedLM, dtype=dtype)
    model.hidden.requires_grad_(False)
    frozen = model.hidden.weight.detach().clone()
    moved = model.embed.weight.detach().clone()
    steps = optimizer(name, model, lr=1e-3)
    for _ in range(3):
        steps.step(lambda: language(model))
    assert model.embed.weight is model.head.weight
    assert all(p.dtype == dtype and p.grad is None for p in model.parameters())
    assert torch.equal(model.hidden.weight, frozen)
    assert not torch.equal(model.embed.weight, moved)


def replayed(name, **hyper):
    """A run and its replay: live and rebuilt model, the states of both."""
    noise, lr = get_noise("gaussian-table"), 1e-3
    live, again = mlp(), mlp()
    method = OPTIMIZERS[name](**{**options(name, live), **hyper})
    one, two = method.init(Blocks.of(live)), method.init(Blocks.of(again))
    perturber = Perturber(live, Blocks.of(live))
    objective = Objective(live, lambda m, b: regression(m), [None])
    for step in range(4):
        result = zo_step(method, one, Blocks.of(live), perturber, objective, noise, Key(1, step), lr)
        method.begin(two, Blocks.of(again))
        apply_update(method, two, Blocks.of(again), noise, result.probes, lr)
    return live, again, one, two


@pytest.mark.parametrize(("name", "estimator"), ESTIMATORS)
def test_replay_without_forwards(name, estimator):
    """The measurements and the seed rebuild weights and state bit for bit."""
    live, again, one, two = replayed(name, estimator=estimator, directions=2)
    assert same_bits(again, bits(live))
    assert not same_bits(again, bits(mlp()))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ALL)
def test_a_tuner_composes(name):
    """σ reach the direction of every method, and a replay has them too."""
    live, again, one, two = replayed(name, tuner=tuner(mlp()))
    assert same_bits(again, bits(live))
    assert torch.equal(one["tuner/sigma"], two["tuner/sigma"])
    if name != "zo-finetuner":
        assert not same_bits(live, bits(replayed(name)[0]))


@pytest.mark.parametrize("name", ALL)
def test_a_loss_that_is_not_finite_changes_nothing(name):
    model = mlp()
    steps = optimizer(name, model, lr=1e-3)
    steps.step(lambda: regression(model))
    before, state = bits(model), steps.state_dict()["zoft"]["state"]
    steps.step(lambda: regression(model) * math.nan)
    assert steps.last.skipped
    assert same_bits(model, before)
    kept = steps.state_dict()["zoft"]["state"]
    assert all(torch.equal(state[key], kept[key]) for key in state if not key.startswith("tuner/"))
    steps.step(lambda: regression(model))
    assert not steps.last.skipped
    assert not same_bits(model, before)


@pytest.mark.parametrize("name", ALL)
def test_each_group_has_its_learning_rate(name):
    model = mlp()
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 1e-3}]
    steps = optimizer(name, model, params=groups)
    scheduler = torch.optim.lr_scheduler.StepLR(steps, 1, gamma=0.0)
    steps.step(lambda: regression(model))
    assert torch.equal(model[0].weight, first)
    assert not torch.equal(model[2].weight, second)
    scheduler.step()
    second = model[2].weight.detach().clone()
    steps.step(lambda: regression(model))
    assert torch.equal(model[2].weight, second)


def directions_of(method, state, blocks, noise, key):
    """z of a draw, over all blocks."""
    whole = [Span(block, 0, block.numel) for block in blocks]
    return torch.cat([method.direction(state, span, method.draw(noise, key, span)) for span in whole])


@pytest.mark.parametrize(("name", "estimator"), ESTIMATORS)
def test_c_is_the_slope_along_the_direction(name, estimator):
    """What a step measures along each of its z is ⟨∇L, z⟩, to the order of its estimator in ε."""
    model, noise, epsilon = small(torch.float64), get_noise("gaussian-table"), 1e-5
    blocks = Blocks.of(model)
    gradient = torch.cat([g.view(-1) for g in torch.autograd.grad(fit(model), list(model.parameters()))])
    hyper = {**options(name, model), "epsilon": epsilon, "estimator": estimator, "directions": 3}
    method, objective = OPTIMIZERS[name](**hyper), Objective(model, lambda m, b: fit(m), [None])
    probes = zo_step(
        method, method.init(blocks), blocks, Perturber(model, blocks), objective, noise, Key(9, 4), 0.0
    ).probes
    state = method.init(blocks)
    method.begin(state, blocks)
    for probe in probes:
        z = directions_of(method, state, blocks, noise, probe.key)
        slope = float(gradient @ z)
        assert abs(slope) > 1e-2
        assert probe.projected_gradient == pytest.approx(slope, abs=1e-3 if estimator == "one-sided" else 1e-8)
    assert len({probe.projected_gradient for probe in probes}) == 3


class Values(nn.Module):
    """A matrix and a vector, so unlike each other that a tuner's σ of them differ."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(randn(3, 2, seed=7, dtype=torch.float64) * 0.1)
        self.vector = nn.Parameter(randn(4, seed=8, dtype=torch.float64) + 3)


class Remembered(GaussianTable):
    """Makes every draw once for all methods."""

    def __init__(self):
        super().__init__()
        self._made = {}

    def _make(self, key, span, device):
        index = (key, span.block.name, span.start, span.stop)
        if index not in self._made:
            self._made[index] = super()._make(key, span, device)
        return self._made[index].clone()


NOISE = Remembered()


@pytest.mark.parametrize("name", ALL)
def test_the_mean_estimate_is_the_gradient(name):
    """The estimate is linear in c = ⟨g, z⟩, and for c = 1 it is a y with E[y·zᵀ] = (ν·σ)² of every block.

    So its mean is (ν·σ)²·g whatever g is. Over 400 first steps, far enough apart for a direction that is kept for
    some steps, within five standard errors: entry by entry, and for the mean of every block's diagonal, which is known
    to a few percent.
    """
    model = Values()
    blocks, method = Blocks.of(model), OPTIMIZERS[name](**options(name, model))
    state = method.init(blocks)
    method.begin(state, blocks)
    whole = [Span(block, 0, block.numel) for block in blocks]

    def estimate(*draws):
        """That of draws ``(step, c)``."""
        parts = []
        for span in whole:
            keys = [(Key(9, 1000 * step), c) for step, c in draws]
            drawn = [(method.draw(NOISE, key, span), Probe(key, c, -c, 1.0, 0.0, c)) for key, c in keys]
            parts.append(reference_estimate(method, state, span, drawn))
        return torch.cat(parts)

    z = torch.stack([directions_of(method, state, blocks, NOISE, Key(9, 1000 * step)) for step in range(400)])
    y = torch.stack([estimate((step, 1.0)) for step in range(400)])
    torch.testing.assert_close(estimate((0, 3.0), (1, -0.5)), (3 * y[0] - 0.5 * y[1]) / 2)

    scale = torch.cat([torch.full((block.numel,), method.scale(state, block) ** 2) for block in blocks])
    assert not method.tuner or abs(float(scale[0] - scale[-1])) > 0.5
    size = blocks[0].numel
    diagonals = [((y * z)[:, part].mean(1), scale[part].mean()) for part in (slice(size), slice(size, None))]
    for values, expected in ((y[:, :, None] * z[:, None, :], scale.diag()), *diagonals):
        error = values.std(0) / len(values) ** 0.5
        assert bool(((values.mean(0) - expected).abs() < 5 * error + 1e-6).all())  # signs have no error
    assert all(float(values.std()) / 20 < 0.08 * float(expected) for values, expected in diagonals)


def reference_estimate(method, state, span, draws):
    """The method's estimate with c for its coefficient: a rule by signs is a rule, not an estimate."""
    scale = [(probe.projected_gradient, method.coefficient(probe)) for _, probe in draws]
    if all(c == used for c, used in scale):
        return method.estimate(state, span, draws)
    parts = [
        method.estimate(state, span, [draw]) * (c / used) / len(draws)
        for draw, (c, used) in zip(draws, scale, strict=True)
    ]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("pair", REFUSED)
def test_a_refused_composition_says_why(pair):
    with pytest.raises(UsageError, match="cannot be composed: ") as caught:
        get_optimizer(pair)
    assert REFUSED[pair] in str(caught.value)


@pytest.mark.parametrize("name", [name for name in METHODS if OPTIMIZERS[name].refuses])
def test_a_refused_estimator_says_why(name):
    for estimator, reason in OPTIMIZERS[name].refuses.items():
        with pytest.raises(UsageError) as caught:
            get_optimizer(name, estimator=estimator)
        assert reason in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_docstring_has_its_parts(name):
    method = OPTIMIZERS[name]
    text = inspect.getdoc(method) or ""
    sections = [section for section in ("Cost:", "Reference:", "Note:", "Examples:") if section in text]
    assert sections[:2] == ["Cost:", "Reference:"]
    assert "Examples:" in text
    assert [text.index(section) for section in sections] == sorted(text.index(section) for section in sections)
    assert method.paper.removeprefix("arXiv ") in text
    assert all(field.description for field in method.model_fields.values())
    assert method.published.endswith(".")
    forwards = OPTIMIZERS[name](**options(name, mlp())).forwards
    if "N + 1" not in cost(name) and "Jacobian" not in cost(name):
        assert cost(name).split()[0] == str(forwards)
    assert cost(name).count("no state") == (not OPTIMIZERS[name](**options(name, mlp())).init(Blocks.of(mlp())))


@pytest.mark.parametrize("name", METHODS)
def test_the_example_runs(name):
    run_examples(OPTIMIZERS[name].__doc__, name, at_least=3)


def test_the_example_of_the_optimizer_runs():
    run_examples(torch_optimizer.ZerothOrder.__doc__, "ZerothOrder", at_least=6)


def run_examples(text, name, at_least):
    case = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), {}, name, None, 0)
    with torch.random.fork_rng(devices=[]):
        outcome = doctest.DocTestRunner().run(case)
    assert outcome.attempted >= at_least
    assert outcome.failed == 0
