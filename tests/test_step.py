"""The step: what is measured, what is updated, what is left alone."""

import math
import os
import signal

import pytest
import torch
from torch import nn

from tests.models import bits, build, mlp, randn, same_bits
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import Key, Span, get_noise, rounding_bits
from zoft.objective import Objective
from zoft.optimizers import get_optimizer
from zoft.perturb import Perturber
from zoft.rounding import stochastic_round
from zoft.step import apply_update, zo_step
from zoft.uninterrupted import uninterrupted

NOISE = get_noise("gaussian-table")
DATA, TARGET = randn(16, 5, seed=1), randn(16, 2, seed=2)


def loss(model, batch):
    return (model(batch[0]).float() - batch[1]).square().mean()


def one_step(model, method, lr, objective=None, step=0, state=None, reduce=None):
    blocks = Blocks.of(model)
    state = method.init(blocks) if state is None else state
    objective = objective or Objective(model, loss, [(DATA, TARGET)])
    return zo_step(method, state, blocks, Perturber(model, blocks), objective, NOISE, Key(3, step), lr, reduce)


def test_probe_holds_the_losses_at_the_shifted_weights():
    model = mlp()
    result = one_step(model, get_optimizer("mezo", epsilon=1e-2, directions=2), 0.0)
    for probe in result.probes:
        for sign, measured in ((1, probe.loss_plus), (-1, probe.loss_minus)):
            shifted = mlp()
            with torch.no_grad():
                for block in Blocks.of(shifted):
                    block.parameter.add_(NOISE.block(probe.key, block), alpha=sign * 1e-2)
            assert measured == pytest.approx(loss(shifted, (DATA, TARGET)).item(), rel=1e-6)
        assert probe.projected_gradient == (probe.loss_plus - probe.loss_minus) / 2e-2
    assert [p.key.draw for p in result.probes] == [0, 1]
    assert result.forwards == 5  # two directions, and the audit of the first evaluation


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_the_update(value):
    model = mlp()
    before = bits(model)
    method = get_optimizer("hizoo")
    state = method.init(Blocks.of(model))
    kept = {name: t.clone() for name, t in state.items()}
    result = one_step(model, method, 1e-2, Objective(model, lambda m, b: value, [None]), state=state)
    assert result.skipped
    assert same_bits(model, before)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_accumulation_is_the_mean_over_the_batches():
    model = mlp()
    whole = Objective(model, loss, [(DATA, TARGET)])()
    halves = Objective(model, loss, [(DATA[:8], TARGET[:8]), (DATA[8:], TARGET[8:])])
    assert halves() == pytest.approx(whole, rel=1e-6)
    assert halves.calls == 1
    with pytest.raises(UsageError, match="no batch"):
        Objective(model, loss, [])
    with pytest.raises(UsageError, match=r"shape \(16, 2\)"):
        Objective(model, lambda m, b: m(DATA), [None])()


def test_a_metric_may_be_minimised():
    model = mlp()
    objective = Objective(model, lambda m, b: float((m(DATA).argmax(1) == 1).float().mean()), [None])
    assert objective() in [i / 16 for i in range(17)]
    assert not one_step(model, get_optimizer("mezo"), 1e-3, objective).skipped


def test_reduce_averages_the_losses_over_ranks():
    seen = []

    def reduce(losses):
        seen.append(losses)
        return [value + 1 for value in losses]

    model = mlp()
    result = one_step(model, get_optimizer("hizoo"), 0.0, reduce=reduce)
    assert len(seen[0]) == 3
    probe = result.probes[0]
    assert [probe.loss_zero, probe.loss_plus, probe.loss_minus] == [value + 1 for value in seen[0]]


def test_update_needs_no_forward():
    """The probes and the state before the step determine the step: replay gives the same bits."""
    for name in ("mezo", "hizoo"):
        model, replayed = mlp(), mlp()
        method = get_optimizer(name, lr=1e-2)
        state, other = method.init(Blocks.of(model)), method.init(Blocks.of(replayed))
        for step in range(5):
            result = one_step(model, method, 1e-2, step=step, state=state)
            method.begin(other, Blocks.of(replayed))
            apply_update(method, other, Blocks.of(replayed), NOISE, result.probes, 1e-2)
        assert same_bits(replayed, bits(model))
        assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding(dtype):
    """In expectation equal; always one of the two neighbours; exact values stay."""
    values = torch.cat([randn(300, seed=4), randn(50, seed=5) * 1e-6, torch.tensor([0.0, -0.0, 1.0, 3e-8, -3e-8])])
    repeats = 4096
    bit = torch.randint(0, 65536, (repeats, len(values)), generator=torch.Generator().manual_seed(0))
    rounded = stochastic_round(values.expand(repeats, -1), dtype, bit).float()
    low, high = rounded.min(0).values, rounded.max(0).values
    near = values.to(dtype)
    gap = high - low
    assert torch.equal(rounded, torch.where(rounded == low, low, high))
    assert bool(((low <= values) & (values <= high)).all())
    exact = near.float() == values
    assert bool((gap[exact] == 0).all())
    assert int((gap > 0).sum()) > 250
    spread = gap * 0.5 / math.sqrt(repeats)
    assert bool(((rounded.mean(0) - values).abs() <= 5 * spread + gap / 65536 + 1e-12).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_below_half_an_ulp_survive_on_average(dtype):
    """A constant drift far below the rounding unit: round-to-nearest would lose all of it."""
    model = build(lambda: nn.Linear(100, 100, bias=False), dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)

    class Drift(type(get_optimizer("mezo"))):
        def update(self, state, span, theta, draws, lr):
            return torch.full((len(span),), lr)

    ulp = 2**-7 if dtype == torch.bfloat16 else 2**-10
    steps, drift = 64, ulp / 64
    objective = Objective(model, lambda m, b: m.weight.float().sum(), [None])
    for step in range(steps):
        one_step(model, Drift(), drift, objective, step=step)
    moved = (model.weight.detach().float() - 1).mean().item()
    expected = steps * drift
    assert float((torch.ones(1, dtype=dtype) + torch.tensor(drift, dtype=dtype)) - 1) == 0.0
    assert moved == pytest.approx(expected, rel=0.05)


def test_the_rounding_of_a_step_is_its_own():
    span = Span(Blocks.of(mlp())[0], 0, 35)
    assert torch.equal(rounding_bits(Key(1, 2), span), rounding_bits(Key(1, 2), span))
    assert not torch.equal(rounding_bits(Key(1, 2), span), rounding_bits(Key(1, 3), span))


def test_interrupt_waits_for_the_end_of_an_update():
    reached = False
    # A shell starts its background jobs with the signal ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            reached = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached
