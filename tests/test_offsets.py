"""Offsets of layers without a bias: their axes, what is learned of them, and their controls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.controls import CONTROLS
from meta_train import MetaTrainConfig, checkpoint, meta_train
from meta_train.axes import EXAMPLES, input_axes
from meta_train.feed import derived_seed
from meta_train.moments import EXACT
from meta_train.signal import Signal, batch_gradients
from meta_train.signal_gains import SignalGains
from tests.models import build, interrupted, randn
from zoft.blocks import Blocks
from zoft.errors import Interrupted
from zoft.tasks.function import FunctionTask
from zoft.tuner import Tuner
from zoft.tuner.gains import unlearned


class Net(nn.Module):
    """Layers with a bias, without one, and of inputs that all have something in common."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4, bias=False)
        self.biased = nn.Linear(4, 5)
        self.outer = nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.tanh(self.biased(torch.relu(self.inner(x)))))
        return out


class Unused(Net):
    """With a layer that nothing goes into."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3, bias=False)


def examples(width: int, shift: float, seed: int) -> Iterator[Tensor]:
    """Endless examples of three tokens, shifted along one axis."""
    axis, at = torch.linspace(-1, 1, width), seed % 2**20
    while True:
        at += 1
        yield 0.3 * randn(1, 3, width, seed=at) + shift * axis


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Wants the outputs to be somewhere else."""
    return (model(batch) - 1.0).square().mean()


def shifted(name: str, shift: float, width: int, after: int | None) -> FunctionTask:
    """Examples of one shift; Ctrl-C at a call of the loss."""

    def batches(batch_size: int, seed: int) -> Iterator[Tensor]:
        made = examples(width, shift, seed)
        while True:
            yield torch.cat([next(made) for _ in range(batch_size)])

    return FunctionTask(name, batches, interrupted(loss, after))


def tasks(width: int = 6, after: int | None = None) -> list[FunctionTask]:
    """Two, one of which has much larger inputs."""
    return [shifted("small", 1.0, width, None), shifted("large", 5.0, width, after)]


def config(**changes: Any) -> MetaTrainConfig:
    """Gains and offsets from the signal, few steps."""
    settings = {
        "structure": "gains-and-offsets",
        "structure_storage": "float32",
        "batch_size": 4,
        "steps": 6,
        "save_every": 2,
        "lookahead_lr": 1e-3,
        "step_size": "none",
    }
    return MetaTrainConfig(**{**settings, **changes})


@pytest.mark.parametrize("width", [6, EXACT + 8])
def test_an_axis_is_the_leading_eigenvector_of_the_inputs(width: int) -> None:
    model = build(lambda: Net(width))
    blocks, both = Blocks.of(model), tasks(width)
    axes = input_axes(model, blocks, both, seed=3)
    assert sorted(axes) == ["inner.weight", "outer.weight"]  # the other one has a bias
    moment = np.zeros((width, width))
    for task in both:
        stream = task.train_batches(1, derived_seed("axes", 3, task.name))
        rows = np.concatenate([next(stream).double().numpy().reshape(-1, width) for _ in range(EXAMPLES)])
        moment += rows.T @ rows / (rows**2).sum()
    expected = np.linalg.eigh(moment)[1][:, -1]
    found = axes["inner.weight"].numpy()
    assert found[np.abs(found).argmax()] > 0
    np.testing.assert_allclose((found**2).mean(), 1, rtol=1e-6)
    # Of a large moment only a sketch is kept.
    assert abs(found @ expected) / width**0.5 > (0.999999 if width <= EXACT else 0.99)


def test_measuring_axes_leaves_the_model_as_it_was() -> None:
    model = build(Net).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    input_axes(model, Blocks.of(model), tasks(), seed=0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_is_never_used_has_no_axis() -> None:
    model = build(Unused)
    assert "unused.weight" not in input_axes(model, Blocks.of(model), tasks(), seed=0)


def test_offsets_are_learned_from_the_signal_in_float64() -> None:
    model = build(Net)
    blocks = Blocks.of(model)
    axes = {"inner.weight": torch.linspace(-1, 1, 6, dtype=torch.float64)}
    axes["inner.weight"] /= axes["inner.weight"].square().mean().sqrt()
    signal = Signal(1, len(blocks))
    learner = SignalGains(config(structure_power=2.0, structure_floor=0.4), blocks, signal, axes)
    stream = tasks()[0].train_batches(4, 7)
    batches = [next(stream) for _ in range(5)]
    _, gradients = batch_gradients(model, blocks, tasks()[0].loss, batches, learner.take)
    after = signal.after(0, gradients)
    assert after is not None
    signal.load(after.state())
    learner.commit(0, gradients)

    slopes = []
    for batch in batches:
        found = torch.autograd.grad(tasks()[0].loss(model, batch), list(model.parameters()))
        row = []
        for block, gradient in zip(blocks, found, strict=True):
            g, theta = gradient.double().numpy(), block.parameter.detach().double().numpy()
            if theta.ndim == 1:
                row.append(g * np.sqrt((theta**2).mean()))
                continue
            row += [(g * theta).sum(1), (g * theta).sum(0)]
            if block.name == "inner.weight":
                row.append(g @ axes[block.name].numpy() * np.sqrt((theta**2).mean()))
        slopes.append(np.concatenate(row))
    pairs = [slopes[a] * slopes[b] for a in range(5) for b in range(5) if a != b]
    noise = np.mean(np.square(slopes), axis=0)
    g, f = np.mean(pairs, axis=0), noise / noise.sum()
    ratios = (np.maximum(g / g.sum(), 0) / (f + 0.4 * f.mean())) ** 2
    ratios /= ratios.mean()

    structure = learner.structure(1.0)
    theta = model.inner.weight.detach().double().numpy()
    rows, columns, offsets = ratios[:4], ratios[4:10], ratios[10:14]
    # An offset of ratio 1 changes a row by as much as a gain of ratio 1 does in the mean over the rows.
    trace = (theta**2 * (rows[:, None] + columns)).sum() + offsets.sum() * 6 * (theta**2).mean()
    left, right = (factor.double().numpy() for factor in structure.factors["inner.weight"])
    np.testing.assert_allclose(left[:, 0], rows * 24 / trace, rtol=1e-5)
    np.testing.assert_allclose(left[:, 1], offsets * (theta**2).mean() * 24 / trace, rtol=1e-5)
    np.testing.assert_allclose(right[:, 0], columns * 24 / trace, rtol=1e-5)
    np.testing.assert_allclose(right[:, 1], axes["inner.weight"].numpy(), rtol=1e-6)
    np.testing.assert_allclose(float(structure.weight[0]), trace / 24, rtol=1e-5)
    assert structure.factors["biased.weight"][1][:, 1].abs().max() == 0
    assert structure.factors["biased.weight"][0][:, 1].abs().max() == 0

    other = {"inner.weight": randn(6).double()}
    again = SignalGains(config(structure_power=2.0, structure_floor=0.4), blocks, signal, other)
    again.load(learner.state())
    for name, factors in again.structure(1.0).factors.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, structure.factors[name], strict=True))


def learned(**changes: Any) -> tuple[nn.Module, Tuner]:
    """A model and the tuner that was learned on it."""
    model = build(Net)
    return model, meta_train(model, tasks(), config(**changes))


def test_controls_are_the_axes_alone_and_random_axes() -> None:
    model, tuner = learned()
    assert tuner.structure is not None
    blocks = Blocks.of(model)
    rule = unlearned(tuner.structure, blocks)
    alone = CONTROLS["untrained"](tuner, model, 1)
    assert isinstance(alone, Tuner)
    assert alone.structure is not None
    assert rule is not None
    for name, (_, right) in tuner.structure.factors.items():
        flat_left, flat_right = alone.structure.factors[name]
        assert torch.equal(flat_left, rule.factors[name][0])
        if right.shape[0] > 1:
            assert torch.equal(flat_right[:, 1], right[:, 1])
            assert all(len(values.unique()) == 1 for values in (flat_left[:, 0], flat_left[:, 1], flat_right[:, 0]))
    mixed = CONTROLS["random-basis"](tuner, model, 1)
    assert isinstance(mixed, Tuner)
    assert mixed.structure is not None
    axis, other = (one.structure.factors["inner.weight"][1][:, 1] for one in (tuner, mixed) if one.structure)
    assert not torch.equal(axis, other)
    assert torch.equal(axis.sort().values, other.sort().values)
    dealt = CONTROLS["permuted"](tuner, model, 1)
    assert isinstance(dealt, Tuner)
    bound = dealt.bind(model).structure
    assert bound is not None
    assert not torch.equal(bound.power, tuner.bind(model).structure.power)  # type: ignore[union-attr]


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    _, whole = learned()
    with pytest.raises(Interrupted):
        meta_train(build(Net), tasks(after=EXAMPLES + 10), config(), output_dir=tmp_path)
    assert checkpoint.read_record(tmp_path)["done"] in range(1, 6)  # type: ignore[index]
    assert meta_train(build(Net), tasks(), config(), output_dir=tmp_path, resume=True).digest == whole.digest
    assert Tuner.from_pretrained(tmp_path).digest == whole.digest
