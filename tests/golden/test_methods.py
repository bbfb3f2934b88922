"""Every method against an independent float64 transcript of its paper."""

import numpy as np
import pytest
import torch

from tests.golden import transcripts
from tests.models import bits, mlp, randn, same_bits
from zoft.blocks import Blocks
from zoft.noise import Key, get_noise
from zoft.optimizers import ZerothOrder
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.normalization import NormalizationConfig, effective_sizes

SEED, STEPS, LR, EPSILON = 5, 12, 3e-2, 1e-3
DATA = randn(16, 5, seed=1, dtype=torch.float64)
TARGET = randn(16, 2, seed=2, dtype=torch.float64)


def loss(theta):
    """The MLP's mean squared error in numpy: [Linear(5, 7), tanh, Linear(7, 2)]."""
    w1, b1, w2, b2 = theta
    out = np.tanh(DATA.numpy() @ w1.T + b1) @ w2.T + b2
    return float(np.mean((out - TARGET.numpy()) ** 2))


def run(method, steps=STEPS, **hyper):
    model = mlp(dtype=torch.float64)
    optimizer = ZerothOrder(model, method, seed=SEED, lr=LR, epsilon=EPSILON, **hyper)
    for _ in range(steps):
        optimizer.step(lambda: (model(DATA) - TARGET).square().mean())
    return model, optimizer


def arrays(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def directions(step, draw):
    noise, blocks = get_noise("gaussian-table"), Blocks.of(mlp(dtype=torch.float64))
    return [noise.block(Key(SEED, step, draw), block).double().numpy() for block in blocks]


def largest_error(model, expected, start):
    """Largest difference, relative to the largest movement of the run."""
    moved = max(np.abs(e - s).max() for e, s in zip(expected, start, strict=True))
    assert moved > 1e-3
    return max(np.abs(a - e).max() for a, e in zip(arrays(model), expected, strict=True)) / moved


@pytest.mark.parametrize("hyper", [{}, {"directions": 3}, {"weight_decay": 0.1}])
def test_mezo(hyper):
    start = arrays(mlp(dtype=torch.float64))
    model, _ = run("mezo", **hyper)
    names = {"directions": "n"}
    options = {names.get(name, name): value for name, value in hyper.items()}
    expected = transcripts.mezo(start, loss, directions, STEPS, LR, EPSILON, **options)
    assert largest_error(model, expected, start) < 1e-10


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("alpha", [1e-6, 1e-2, 0.3])
def test_hizoo(alpha, n):
    start = arrays(mlp(dtype=torch.float64))
    model, optimizer = run("hizoo", smooth_scale=alpha, directions=n)
    expected, hessian = transcripts.hizoo(start, loss, directions, STEPS, LR, EPSILON, alpha, n)
    assert largest_error(model, expected, start) < 1e-8
    state = optimizer.state_dict()["zoft"]["state"]
    for block, h in zip(optimizer.blocks, hessian, strict=True):
        np.testing.assert_allclose(state[f"hessian/{block.name}"].numpy(), h, rtol=1e-7)


def test_hizoo_without_smoothing_is_mezo_bit_for_bit():
    hizoo, _ = run("hizoo", smooth_scale=0.0)
    mezo, _ = run("mezo")
    assert same_bits(hizoo, bits(mezo))


@pytest.mark.parametrize("output", ["abs", "exp", "bounded"])
def test_zo_finetuner(output):
    model = mlp(dtype=torch.float64)
    network = NetworkConfig(features="raw", output=output, init="linear", hidden=16)
    normalization = NormalizationConfig()
    tuner = Tuner.untrained(model, network, normalization, seed=3)
    start = arrays(model)
    weights = {name: t.double().numpy() for name, t in tuner.network.state_dict().items()}
    networks = [
        (weights["hidden.weight"][i], weights["hidden.bias"][i], weights["out.weight"][i], weights["out.bias"][i])
        for i in range(len(start))
    ]
    sizes = effective_sizes(Blocks.of(model), 16, normalization).tolist()
    assert sizes == [x.size for x in start]
    model, optimizer = run("zo-finetuner", tuner=tuner.bind(model))
    expected, history = transcripts.zo_finetuner(start, loss, directions, STEPS, LR, EPSILON, networks, sizes, output)
    sigma = optimizer.state_dict()["zoft"]["state"]["tuner/sigma"].numpy()
    # The networks compute in float32.
    np.testing.assert_allclose(sigma, history[-1], rtol=2e-5)
    assert largest_error(model, expected, start) < 1e-4


def test_neutral_tuner_is_mezo_bit_for_bit():
    """σ = 1 for every block, so ν = 1: the learned method with nothing learned is MeZO."""
    model = mlp(dtype=torch.float64)
    learned, _ = run("zo-finetuner", tuner=Tuner.untrained(model, NetworkConfig(init="neutral")).bind(model))
    mezo, _ = run("mezo")
    assert same_bits(learned, bits(mezo))


@pytest.mark.parametrize("method", ["mezo", "hizoo"])
def test_the_mean_estimate_is_the_gradient(method):
    """Over many directions the mean of c·z agrees with autograd, within five standard errors."""
    model = mlp(dtype=torch.float64)
    (model(DATA) - TARGET).square().mean().backward()
    gradient = torch.cat([p.grad.view(-1) for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    before = torch.cat([p.detach().clone().view(-1) for p in model.parameters()])
    estimates = []
    for seed in range(1500):
        optimizer = ZerothOrder(model, method, seed=seed, lr=1.0, epsilon=1e-5)
        optimizer.step(lambda: (model(DATA) - TARGET).square().mean())
        after = torch.cat([p.detach().view(-1) for p in model.parameters()])
        estimates.append(before - after)
        torch.nn.utils.vector_to_parameters(before.clone(), model.parameters())
    stacked = torch.stack(estimates)
    error = stacked.std(0) / len(estimates) ** 0.5
    assert bool(((stacked.mean(0) - gradient).abs() < 5 * error).all())
    assert float(torch.cosine_similarity(stacked.mean(0), gradient, dim=0)) > 0.9
