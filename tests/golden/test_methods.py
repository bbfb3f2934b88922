"""Every method against an independent float64 transcript of its paper; ``pytest --tables`` prints the errors."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden import transcripts
from tests.models import bits, mlp, randn, same_bits
from zoft.blocks import Blocks
from zoft.noise import Key, Span, get_noise
from zoft.optimizers import OPTIMIZERS, ZerothOrder
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.normalization import NormalizationConfig, effective_sizes

SEED, STEPS, LR, EPSILON = 5, 12, 3e-2, 1e-3
DATA = randn(16, 5, seed=1, dtype=torch.float64)
TARGET = randn(16, 2, seed=2, dtype=torch.float64)
NOISE = get_noise("gaussian-table")
BLOCKS = Blocks.of(mlp(dtype=torch.float64))


def loss(theta):
    """The MLP's mean squared error in numpy: [Linear(5, 7), tanh, Linear(7, 2)]."""
    w1, b1, w2, b2 = theta
    out = np.tanh(DATA.numpy() @ w1.T + b1) @ w2.T + b2
    return float(np.mean((out - TARGET.numpy()) ** 2))


def gradient(theta):
    """Its gradient, by hand."""
    w1, b1, w2, b2 = theta
    hidden = np.tanh(DATA.numpy() @ w1.T + b1)
    out = 2 * (hidden @ w2.T + b2 - TARGET.numpy()) / TARGET.numel()
    inner = (out @ w2) * (1 - hidden**2)
    return [inner.T @ DATA.numpy(), inner.sum(0), out.T @ hidden, out.sum(0)]


def run(method, steps=STEPS, lr=LR, epsilon=EPSILON, **hyper):
    model = mlp(dtype=torch.float64)
    optimizer = ZerothOrder(model, method, seed=SEED, lr=lr, epsilon=epsilon, **hyper)
    for _ in range(steps):
        optimizer.step(lambda: (model(DATA) - TARGET).square().mean())
    return model, optimizer


def arrays(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def initial():
    return arrays(mlp(dtype=torch.float64))


def directions(step, draw, part=0):
    return [NOISE.block(Key(SEED, step, draw, part), block).double().numpy() for block in BLOCKS]


def factors(index, step, kept, draw=0, rank=2):
    """U of a step and V of the step that it was drawn in, for a block of the MLP."""
    rows, columns = BLOCKS[index].shape
    u = NOISE(Key(SEED, step, draw), Span(BLOCKS[index], 0, rows * rank)).double().numpy()
    v = NOISE(Key(SEED, kept, draw, 1), Span(BLOCKS[index], 0, columns * rank)).double().numpy()
    return u.reshape(rows, rank), v.reshape(columns, rank)


@pytest.fixture
def compare(record_property, request):
    """Compares a model with the expected θ: the largest difference, relative to the run's largest movement."""

    def check(method, model, expected, limit, start=None):
        start = initial() if start is None else start
        moved = max(np.abs(e - s).max() for e, s in zip(expected, start, strict=True))
        assert moved > 1e-3
        error = float(max(np.abs(a - e).max() for a, e in zip(arrays(model), expected, strict=True)) / moved)
        record_property("golden", (method, request.node.name, error, limit))
        assert error < limit

    return check


@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"directions": 3},
        {"weight_decay": 0.1},
        {"estimator": "one-sided"},
        {"estimator": "one-sided", "directions": 3, "weight_decay": 0.1},
    ],
)
def test_mezo(hyper, compare):
    model, _ = run("mezo", **hyper)
    names = {"directions": "n"}
    options = {names.get(name, name): value for name, value in hyper.items()}
    if "estimator" in options:
        options["estimator"] = transcripts.one_sided
    compare("mezo", model, transcripts.mezo(initial(), loss, directions, STEPS, LR, EPSILON, **options), 1e-10)


#: Courses from 1e-2 to 1e-3 within 8 steps.
COURSES = {
    "linear": lambda t: 1e-2 + min(t / 8, 1) * (1e-3 - 1e-2),
    "cosine": lambda t: 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + np.cos(np.pi * min(t / 8, 1))),
    "exponential": lambda t: 1e-2 * 0.1 ** min(t / 8, 1),
}


@pytest.mark.parametrize(("kind", "epsilon"), COURSES.items())
def test_epsilon_schedules(kind, epsilon, compare):
    model, _ = run("mezo", epsilon=1e-2, epsilon_schedule=kind, epsilon_end=1e-3, schedule_steps=8)
    compare("mezo", model, transcripts.mezo(initial(), loss, directions, STEPS, LR, epsilon), 1e-10)


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_zo_sgd_sign(elementwise, n, compare):
    model, _ = run("zo-sgd-sign", elementwise=elementwise, directions=n, lr=1e-2)
    expected = transcripts.zo_sgd_sign(initial(), loss, directions, STEPS, 1e-2, EPSILON, n, elementwise)
    compare("zo-sgd-sign", model, expected, 1e-12)


@pytest.mark.parametrize(("n", "decay", "estimator"), [(1, 0.0, "central"), (1, 0.1, "central"), (3, 0.1, "one-sided")])
def test_zo_sgd_mmt(n, decay, estimator, compare):
    model, _ = run("zo-sgd-mmt", momentum=0.8, weight_decay=decay, directions=n, estimator=estimator)
    along = {"central": transcripts.central, "one-sided": transcripts.one_sided}[estimator]
    expected = transcripts.zo_sgd_mmt(initial(), loss, directions, STEPS, LR, EPSILON, 0.8, n, decay, along)
    compare("zo-sgd-mmt", model, expected, 1e-10)


def test_zo_sgd_cons(compare):
    """At a learning rate at which each of the three candidates is chosen at some step."""
    model, _ = run("zo-sgd-cons", steps=25, lr=0.5, epsilon=0.3)
    expected, choices = transcripts.zo_sgd_cons(initial(), loss, directions, 25, 0.5, 0.3)
    assert set(choices) == {-1, 0, 1}
    compare("zo-sgd-cons", model, expected, 1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_zo_adam(decay, compare):
    model, _ = run("zo-adam", lr=1e-2, weight_decay=decay)
    z = lambda t, theta: directions(t, 0)  # noqa: E731
    expected = transcripts.zo_adam(initial(), loss, z, STEPS, 1e-2, EPSILON, decay=decay)
    compare("zo-adam", model, expected, 1e-8)


def test_zo_adam_is_torchs_adam_on_the_estimates():
    model, reference = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    optimizer = ZerothOrder(model, "zo-adam", seed=SEED, lr=1e-2, epsilon=EPSILON)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.step(lambda: (model(DATA) - TARGET).square().mean())
        c = optimizer.last.probes[0].projected_gradient
        for parameter, z in zip(reference.parameters(), directions(step, 0), strict=True):
            parameter.grad = c * torch.from_numpy(z)
        adam.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "signed"), [(1, False), (1, True), (2, False), (2, True)])
def test_zo_adamu(n, signed, compare):
    """Through all three phases: 3 steps of warm-up, annealing until step 8, then fixed."""
    options = {"warmup_steps": 3, "anneal_steps": 8, "directions": n, "signed_momentum": signed}
    model, _ = run("zo-adamu", lr=1e-2, **options)
    both = lambda t, k: (directions(t, k), directions(t, k, 1))  # noqa: E731
    expected = transcripts.zo_adamu(initial(), loss, both, STEPS, 1e-2, EPSILON, 3, 8, n=n, signed=signed)
    compare("zo-adamu", model, expected, 1e-8)


def test_forward_grad(compare):
    model, _ = run("forward-grad")
    compare("forward-grad", model, transcripts.forward_grad(initial(), gradient, directions, STEPS, LR), 1e-12)


def test_fzoo(compare):
    signs = lambda t, k: [np.sign(z) for z in directions(t, k)]  # noqa: E731
    model, _ = run("fzoo", lr=1e-6, epsilon=1e-4, directions=4)
    compare("fzoo", model, transcripts.fzoo(initial(), loss, signs, STEPS, 1e-6, 1e-4, 4), 1e-8)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("interval", [1, 5, 50])
def test_lozo(interval, n, compare):
    """V drawn at every step, at three of the twelve, and at the first alone."""
    model, _ = run("lozo", rank=2, interval=interval, directions=n)
    expected = transcripts.lozo(initial(), loss, factors, directions, STEPS, LR, EPSILON, 2, interval, n=n)
    compare("lozo", model, expected, 1e-10)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("alpha", [1e-6, 1e-2, 0.3])
@pytest.mark.parametrize("subtract", [False, True])
def test_hizoo(alpha, n, subtract, compare):
    model, optimizer = run("hizoo", smooth_scale=alpha, directions=n, subtract_inverse=subtract)
    expected, hessian = transcripts.hizoo(initial(), loss, directions, STEPS, LR, EPSILON, alpha, n, subtract)
    compare("hizoo", model, expected, 1e-8)
    state = optimizer.state_dict()["zoft"]["state"]
    for block, h in zip(optimizer.blocks, hessian, strict=True):
        np.testing.assert_allclose(state[f"hessian/{block.name}"].numpy(), h, rtol=1e-7)


def test_hizoo_smooth_scale_schedule(compare):
    schedule = {"smooth_scale_schedule": "linear", "smooth_scale_end": 0.0, "schedule_steps": 6}
    model, _ = run("hizoo", smooth_scale=0.1, **schedule)
    alpha = lambda t: 0.1 * (1 - min(t / 6, 1))  # noqa: E731
    compare("hizoo", model, transcripts.hizoo(initial(), loss, directions, STEPS, LR, EPSILON, alpha)[0], 1e-8)


@pytest.mark.parametrize(("kind", "course"), COURSES.items())
def test_hizoo_with_both_schedules_and_weight_decay(kind, course, compare):
    """ε and α take the same course, and H is learned at the ε of its step."""
    kinds = {"smooth_scale_schedule": kind, "epsilon_schedule": kind}
    ends = {"smooth_scale_end": 1e-3, "epsilon_end": 1e-3, "schedule_steps": 8}
    model, _ = run("hizoo", epsilon=1e-2, smooth_scale=1e-2, directions=2, weight_decay=0.1, **kinds, **ends)
    expected = transcripts.hizoo(initial(), loss, directions, STEPS, LR, course, course, 2, decay=0.1)[0]
    compare("hizoo", model, expected, 1e-8)


def test_hizoo_without_smoothing_is_mezo_bit_for_bit():
    hizoo, _ = run("hizoo", smooth_scale=0.0)
    mezo, _ = run("mezo")
    assert same_bits(hizoo, bits(mezo))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("alpha", [1e-6, 1e-2, 0.3])
def test_hizoo_l(alpha, n, compare):
    model, optimizer = run("hizoo-l", smooth_scale=alpha, directions=n)
    expected, rows, columns = transcripts.hizoo_l(initial(), loss, directions, STEPS, LR, EPSILON, alpha, n)
    compare("hizoo-l", model, expected, 1e-8)
    state = optimizer.state_dict()["zoft"]["state"]
    for index in (0, 2):
        name = optimizer.blocks[index].name
        np.testing.assert_allclose(state[f"hessian/rows/{name}"].numpy(), rows[index], rtol=1e-7)
        np.testing.assert_allclose(state[f"hessian/columns/{name}"].numpy(), columns[index], rtol=1e-7)


@pytest.mark.parametrize("method", ["hizoo-l", "lozo"])
def test_a_matrix_of_several_chunks(method, compare):
    """600 x 500 entries are two chunks, and the second begins within a row."""
    model = torch.nn.Linear(500, 600, bias=False, dtype=torch.float64, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        model.weight.copy_(randn(600, 500, seed=7, dtype=torch.float64))
    inputs = randn(4, 500, seed=8, dtype=torch.float64) / 20
    start, block = arrays(model), Blocks.of(model)[0]
    hyper = {"hizoo-l": {"smooth_scale": 0.1}, "lozo": {"rank": 2, "interval": 2}}[method]
    optimizer = ZerothOrder(model, method, seed=SEED, lr=1.0, epsilon=EPSILON, **hyper)
    for _ in range(3):
        optimizer.step(lambda: model(inputs).square().mean())

    def square(theta):
        return float(np.mean((inputs.numpy() @ theta[0].T) ** 2))

    def noise(t, k):
        return [NOISE.block(Key(SEED, t, k), block).double().numpy()]

    def pair(index, t, kept, k):
        u = NOISE(Key(SEED, t), Span(block, 0, 1200)).double().numpy().reshape(600, 2)
        return u, NOISE(Key(SEED, kept, 0, 1), Span(block, 0, 1000)).double().numpy().reshape(500, 2)

    if method == "hizoo-l":
        expected = transcripts.hizoo_l(start, square, noise, 3, 1.0, EPSILON, 0.1)[0]
    else:
        expected = transcripts.lozo(start, square, pair, noise, 3, 1.0, EPSILON, 2, 2)
    compare(method, model, expected, 1e-8, start)


def learned(output):
    """A tuner for the MLP, and its transcript."""
    model = mlp(dtype=torch.float64)
    network = NetworkConfig(features="raw", output=output, init="linear", hidden=16)
    tuner = Tuner.untrained(model, network, NormalizationConfig(), seed=3)
    weights = {name: t.double().numpy() for name, t in tuner.network.state_dict().items()}
    networks = [
        (weights["hidden.weight"][i], weights["hidden.bias"][i], weights["out.weight"][i], weights["out.bias"][i])
        for i in range(len(BLOCKS))
    ]
    sizes = effective_sizes(Blocks.of(model), 16, NormalizationConfig()).tolist()
    assert sizes == [x.size for x in initial()]
    return tuner.bind(model), transcripts.LearnedScale(networks, sizes, output)


@pytest.mark.parametrize("output", ["abs", "exp", "bounded"])
def test_zo_finetuner(output, compare):
    tuner, scale = learned(output)
    model, optimizer = run("zo-finetuner", tuner=tuner)
    expected = transcripts.zo_finetuner(initial(), loss, directions, STEPS, LR, EPSILON, scale)
    sigma = optimizer.state_dict()["zoft"]["state"]["tuner/sigma"].numpy()
    # The networks compute in float32.
    np.testing.assert_allclose(sigma, scale.sigma, rtol=2e-5)
    compare("zo-finetuner", model, expected, 1e-4)


def test_neutral_tuner_is_mezo_bit_for_bit():
    """σ = 1 for every block, so ν = 1: the learned method with nothing learned is MeZO."""
    model = mlp(dtype=torch.float64)
    learned, _ = run("zo-finetuner", tuner=Tuner.untrained(model, NetworkConfig(init="neutral")).bind(model))
    mezo, _ = run("mezo")
    assert same_bits(learned, bits(mezo))


# ---- compositions: the direction's transcript with the update rule's ----


def test_learned_sigma_with_adam(compare):
    """``zo-adam`` with a tuner: Adam on c·z with z = ν·σ·u."""
    tuner, scale = learned("exp")
    model, _ = run("zo-adam", lr=1e-2, tuner=tuner)
    scaled = transcripts.LearnedDirection(scale, directions, EPSILON)
    expected = transcripts.zo_adam(initial(), loss, lambda t, theta: scaled(t, theta, loss), STEPS, 1e-2, EPSILON)
    # The networks compute in float32, and Adam divides by small numbers.
    compare("zo-adam", model, expected, 1e-3)


@pytest.mark.parametrize("n", [1, 3])
def test_learned_sigma_with_hizoo(n, compare):
    """z = ν·σ·H^(−1/2)·u, H from u; with n directions the networks see the mean of their losses."""
    tuner, scale = learned("exp")
    model, optimizer = run("hizoo", smooth_scale=0.1, directions=n, tuner=tuner)
    expected, hessian = transcripts.hizoo(initial(), loss, directions, STEPS, LR, EPSILON, 0.1, n, learned=scale)
    # The networks compute in float32.
    compare("hizoo", model, expected, 1e-4)
    state = optimizer.state_dict()["zoft"]["state"]
    np.testing.assert_allclose(state["tuner/sigma"].numpy(), scale.sigma, rtol=2e-5)
    for block, h in zip(optimizer.blocks, hessian, strict=True):
        np.testing.assert_allclose(state[f"hessian/{block.name}"].numpy(), h, rtol=1e-3)


def test_learned_sigma_with_fzoo(compare):
    """The networks see the mean of the losses at θ + εz, and its mirror at the loss of θ."""
    tuner, scale = learned("exp")
    signs = lambda t, k: [np.sign(z) for z in directions(t, k)]  # noqa: E731
    model, optimizer = run("fzoo", lr=1e-6, epsilon=1e-4, directions=4, tuner=tuner)
    expected = transcripts.fzoo(initial(), loss, signs, STEPS, 1e-6, 1e-4, 4, learned=scale)
    compare("fzoo", model, expected, 1e-4)
    sigma = optimizer.state_dict()["zoft"]["state"]["tuner/sigma"].numpy()
    np.testing.assert_allclose(sigma, scale.sigma, rtol=2e-5)


def test_hizoo_with_adam(compare):
    model, _ = run("hizoo+zo-adam", lr=1e-2, smooth_scale=0.1)
    shaped = transcripts.HessianDirection(initial(), directions, EPSILON, 0.1)
    expected = transcripts.zo_adam(initial(), loss, lambda t, theta: shaped(t, theta, loss), STEPS, 1e-2, EPSILON)
    compare("hizoo+zo-adam", model, expected, 1e-6)


def test_lozo_with_momentum(compare):
    model, _ = run("lozo+zo-sgd-mmt", rank=2, interval=5, momentum=0.8)
    expected = transcripts.lozo(initial(), loss, factors, directions, STEPS, LR, EPSILON, 2, 5, beta=0.8)
    compare("lozo+zo-sgd-mmt", model, expected, 1e-10)


def test_every_method_has_a_transcript():
    """Each name of the registry is compared in this file."""
    compared = set(re.findall(r'compare\(\s*"([^"]+)"', Path(__file__).read_text(encoding="utf-8")))
    assert compared >= set(OPTIMIZERS)
