"""The meta-gradient's memory: no two blocks' gradients at once, and no second copy of the model."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from meta_train.lookahead import LearnedStep, look_ahead, restored
from meta_train.meta_gradient import backward_reduced, closed_form, into_networks
from tests.models import TiedLM, build, generator, randn
from zoft.blocks import Blocks
from zoft.noise import Key, get_noise
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.tuner import BoundTuner, NetworkConfig, NormalizationConfig, PertNN
from zoft.tuner.features import FeatureConstants


def loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def test_each_gradient_is_freed_before_the_next_is_there():
    model = build(lambda: nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(6))))
    blocks = Blocks.of(model)
    storages: list[weakref.ref] = []
    alive: list[int] = []

    def reduce(block, gradient):
        alive.append(sum(reference() is not None for reference in storages))
        storages.append(weakref.ref(gradient.untyped_storage()))
        assert sum(other.parameter.grad is not None for other in blocks) == 0

    value = backward_reduced(model, blocks, lambda m, x: m(x).square().mean(), randn(4, 32), reduce)
    assert value > 0
    assert alive == [0] * 6


def test_a_tied_tensor_is_reduced_once_with_its_summed_gradient():
    model = build(TiedLM)
    blocks = Blocks.of(model)
    tokens = torch.randint(0, 11, (3, 6), generator=generator())
    seen = {}
    backward_reduced(
        model, blocks, loss, tokens, lambda block, gradient: seen.setdefault(block.name, []).append(gradient)
    )
    loss(model, tokens).backward()
    assert {name: len(values) for name, values in seen.items()} == dict.fromkeys(blocks.names, 1)
    for block in blocks:
        torch.testing.assert_close(seen[block.name][0], block.parameter.grad)


def test_hooks_are_gone_after_an_error():
    model = build(TiedLM)
    blocks = Blocks.of(model)

    def failing(block, gradient):
        raise KeyboardInterrupt

    tokens = torch.randint(0, 11, (3, 6), generator=generator())
    with pytest.raises(KeyboardInterrupt):
        backward_reduced(model, blocks, loss, tokens, failing)
    assert all(block.parameter.grad is None for block in blocks)
    loss(model, tokens).backward()
    assert all(block.parameter.grad is not None for block in blocks)


@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_kept_noise_gives_the_same_gradient(keep):
    model = build(TiedLM)
    blocks = Blocks.of(model)
    network = PertNN(len(blocks), NetworkConfig(hidden=4))
    tuner = BoundTuner(network, FeatureConstants(), NormalizationConfig(), 3)
    method = LearnedStep(tuner, blocks, 1e-3)
    batches = list(torch.randint(0, 11, (3, 4, 6), generator=generator(1)))
    objectives = [Objective(model, loss, [batch]) for batch in batches]
    gradients = []
    for size in (0, keep):
        noises = [get_noise("gaussian-table", size) for _ in batches]
        with restored(blocks):
            state, perturber = method.initial(), Perturber(model, blocks)
            record = look_ahead(method, state, blocks, perturber, objectives, noises, Key(0, 0), 0.1)
            gradients.append(closed_form(record, model, blocks, loss, batches[0])[1])
    assert torch.equal(*gradients)


def test_weights_are_restored_after_an_error():
    model = build(TiedLM)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), restored(Blocks.of(model)):
        for parameter in model.parameters():
            parameter.data.add_(1.0)
        raise ZeroDivisionError
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_unit_scale_forgets_the_size_of_the_gradient_and_nonfinite_ones_are_refused():
    network = PertNN(3, NetworkConfig(hidden=4))
    gradients = []
    for size in (1.0, 1e-9):
        network.zero_grad()
        scales = [network(randn(3, 5, seed=step)) for step in range(2)]
        assert into_networks(scales, size * randn(2, 3, seed=7).double(), network, "unit")
        gradients.append(network.out.bias.grad.clone())
    torch.testing.assert_close(*gradients)
    assert not into_networks([network(randn(3, 5))], torch.full((1, 3), torch.nan), network, "unit")
