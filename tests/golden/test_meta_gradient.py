"""The meta-gradient against a plain float64 transcript: autograd through θ' = θ − η·Σ c·ν·σ⊙u.

The transcript below shares with the implementation only the noise bits and the block statistics (which
are float32 by definition): it measures c itself, applies the networks itself, and differentiates
through a copy of all weights.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from meta_train.lookahead import LearnedStep, look_ahead, restored
from meta_train.meta_gradient import closed_form, into_networks
from meta_train.unroll import unrolled
from tests.models import TiedLM, build, generator, randn
from zoft.blocks import Blocks
from zoft.noise import Key, get_noise
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.tuner import BoundTuner, NetworkConfig, NormalizationConfig, PertNN
from zoft.tuner.features import FeatureConstants, block_statistics

EPSILON, LR, SEED = 1e-3, 0.05, 11

#: Largest relative difference that is allowed; those seen are 1e-16 for K = 1 and up to 1e-12 for K = 4.
LIMIT = 1e-10


def mlp_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def lm_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def example(name: str, count: int):
    """A float64 model, its loss and ``count`` batches."""
    if name == "mlp":
        model = build(lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), 3, torch.float64, 0.4)
        pairs = [
            (randn(4, 5, seed=k, dtype=torch.float64), randn(4, 2, seed=9 + k, dtype=torch.float64))
            for k in range(count)
        ]
        return model, mlp_loss, pairs
    tokens = torch.randint(0, 11, (count, 3, 6), generator=generator(3))
    return build(TiedLM, 3, torch.float64, 0.4), lm_loss, list(tokens)


def tuner_for(model: nn.Module, output: str, features: str) -> BoundTuner:
    config = NetworkConfig(hidden=8, init="linear", output=output, features=features)
    blocks = Blocks.of(model)
    network = PertNN(len(blocks), config, seed=5).double()
    constants = FeatureConstants.of(block_statistics(blocks))
    return BoundTuner(network, constants, NormalizationConfig(embedding_rows=1), batch_size=3)


def transcript(model, loss, batches, tuner, differentiable, steps, noise):
    """∂L(θ_K)/∂(network parameters) by autograd through everything."""
    network, constants = tuner.network, tuner.constants
    names = [name for name, _ in model.named_parameters()]
    theta = [p.detach().clone() for p in model.parameters()]
    sizes = torch.tensor([3.0 * p.shape[-1] if "embed" in n else p.numel() for n, p in zip(names, theta, strict=True)])
    sizes = sizes.double()
    sigma, losses = torch.ones(len(names), dtype=torch.float64), torch.zeros(2)

    def evaluate(values, batch):
        wrapper = nn.Module()
        wrapper.model = model
        wrapper.forward = lambda: loss(model, batch)
        replaced = {f"model.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(wrapper, replaced, ())

    for step in range(steps):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, value in zip(moved.parameters(), theta, strict=True):
                parameter.copy_(value)
        statistics = block_statistics(Blocks.of(moved)).double()
        if network.config.features == "raw":
            columns = [statistics[:, 0], statistics[:, 1], *losses.double().expand(len(names), 2).T, sigma]
            inputs = torch.stack(columns, 1)
        else:
            # The two standardised statistics are float32, as the implementation has them.
            single = statistics.float()
            mean = (single[:, 0] - constants.mean_shift) / constants.mean_scale
            spread = ((single[:, 1] + 1e-12).log() - constants.log_variance_shift) / constants.log_variance_scale
            level = losses.clamp(min=0).log1p().double().expand(len(names), 2).T
            inputs = torch.stack([mean.double(), spread.double(), *level, sigma.log()], 1).clamp(-5, 5)
        hidden = torch.tanh((network.hidden.weight * inputs[:, None]).sum(-1) + network.hidden.bias)
        value = (network.out.weight[:, 0] * hidden).sum(-1) + network.out.bias[:, 0]
        kind = network.config.output
        sigma = value.abs() if kind == "abs" else value.exp() if kind == "exp" else (1.2 * torch.tanh(value)).exp()
        nu = (sizes.sum() / (sizes * sigma**2).sum()).sqrt()
        scale = (nu if differentiable else nu.detach()) * sigma
        u = [noise.block(Key(SEED, step), block).double() for block in Blocks.of(model)]
        with torch.no_grad():
            plus = evaluate([t + EPSILON * s * v for t, s, v in zip(theta, scale, u, strict=True)], batches[step])
            minus = evaluate([t - EPSILON * s * v for t, s, v in zip(theta, scale, u, strict=True)], batches[step])
        c = ((plus - minus) / (2 * EPSILON)).item()
        theta = [t - LR * c * s * v for t, s, v in zip(theta, scale, u, strict=True)]
        losses = torch.tensor([plus.item(), minus.item()])
    result = evaluate(theta, batches[-1])
    return result.item(), torch.autograd.grad(result, list(network.parameters()))


def implemented(model, loss, batches, tuner, differentiable, steps, noise, way):
    """The same by the implementation: ``closed-form`` or ``higher``."""
    blocks = Blocks.of(model)
    method = LearnedStep(tuner, blocks, EPSILON, differentiable)
    objectives = [Objective(model, loss, [batch]) for batch in batches[:steps]]
    with restored(blocks):
        record = look_ahead(
            method, method.initial(), blocks, Perturber(model, blocks), objectives, [noise] * steps, Key(SEED, 0), LR
        )
        assert record is not None
        if way == "closed-form":
            value, gradient = closed_form(record, model, blocks, loss, batches[-1])
    if way == "higher":
        value, gradient = unrolled(record, model, blocks, loss, batches[-1])
    assert into_networks(record.scales, gradient, tuner.network, "none")
    return value, [parameter.grad for parameter in tuner.network.parameters()]


def difference(left, right) -> float:
    """Relative difference of two lists of tensors."""
    error = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(left, right, strict=True)))
    return error / math.sqrt(sum(b.square().sum().item() for b in right))


CASES = [
    (name, steps, differentiable, output, features)
    for name in ("mlp", "tied-lm")
    for steps in (1, 4)
    for differentiable in (False, True)
    for output, features in (("abs", "raw"), ("bounded", "standardised"))
]


def test_the_cases_are_all_there():
    assert len(CASES) == 16


@pytest.mark.parametrize("way", ["closed-form", "higher"])
@pytest.mark.parametrize(("name", "steps", "differentiable", "output", "features"), CASES)
def test_equals_autograd_through_the_moved_weights(name, steps, differentiable, output, features, way):
    model, loss, batches = example(name, steps + 1)
    tuner, noise = tuner_for(model, output, features), get_noise("gaussian-table")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    expected_value, expected = transcript(model, loss, batches, tuner, differentiable, steps, noise)
    value, gradient = implemented(model, loss, batches, tuner, differentiable, steps, noise, way)
    assert value == pytest.approx(expected_value, rel=LIMIT)
    assert difference(gradient, expected) < LIMIT
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
