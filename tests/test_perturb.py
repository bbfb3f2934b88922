"""perturbed evaluation: the shift reaches every use of a parameter, and nothing of it stays."""

import copy

import pytest
import torch
from torch import nn

from tests.models import Attention, FunctionalHead, OtherMethod, Switching, TiedLM, bits, build, mlp, randn, same_bits
from zoft.blocks import Blocks
from zoft.noise import Key, Span, get_noise
from zoft.objective import Objective
from zoft.perturb import Perturber, displaced

NOISE = get_noise("gaussian-table")


def shift(span: Span):
    return NOISE(Key(1, 2), span) * 0.1


TOKENS = torch.arange(9)
CASES = {
    "mlp": (mlp, randn(3, 5), []),
    "tied": (lambda: build(TiedLM), TOKENS, []),
    "functional-head": (lambda: build(FunctionalHead), TOKENS, ["embed.weight"]),
    "attention": (
        lambda: build(Attention),
        randn(2, 5, 8),
        ["attention.out_proj.weight", "attention.out_proj.bias"],
    ),
    "other-method": (lambda: build(OtherMethod), randn(3, 4), ["scale.weight"]),
}


def loss(model, batch):
    return model(batch).float().square().mean()


@pytest.mark.parametrize("case", CASES)
def test_every_use_sees_the_shift(case):
    """Equal to a copy of the model whose parameters were shifted by hand."""
    maker, batch, elsewhere = CASES[case]
    model = maker()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for block in Blocks.of(reference):
            block.parameter.add_(shift(Span(block, 0, block.numel)).view(block.shape))
    blocks = Blocks.of(model)
    perturber, objective = Perturber(model, blocks), Objective(model, loss, [batch])
    before = bits(model)
    assert perturber.evaluate(shift, objective) == Objective(reference, loss, [batch])()
    assert sorted(perturber.read_elsewhere) == sorted(elsewhere)
    assert same_bits(model, before)
    # The shift matters at all: otherwise this test could not fail.
    assert objective() != Objective(reference, loss, [batch])()
    # One audit, and one more evaluation where it found something; none from then on.
    calls = objective.calls
    perturber.evaluate(shift, objective)
    assert objective.calls == calls + 1


def test_a_read_that_appears_later_is_found():
    model = build(Switching)
    batch = randn(3, 4)
    perturber, objective = Perturber(model, Blocks.of(model)), Objective(model, loss, [batch])
    perturber.evaluate(shift, objective)
    assert perturber.read_elsewhere == []
    model.rare = True
    with displaced(Blocks.of(model), shift):
        expected = objective()
    assert perturber.evaluate(shift, objective) == expected
    assert perturber.read_elsewhere == ["second.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_bits_are_unchanged_in_every_dtype(case, dtype):
    maker, batch, _ = CASES[case]
    model = maker().to(dtype)
    batch = batch.to(dtype) if batch.is_floating_point() else batch
    # A value that arithmetic would lose: minus zero.
    next(model.parameters()).data.view(-1)[0] = -0.0
    before = bits(model)
    perturber, objective = Perturber(model, Blocks.of(model)), Objective(model, loss, [batch])
    values = {perturber.evaluate(shift, objective) for _ in range(20)}
    assert len(values) == 1
    assert values != {objective()}
    assert same_bits(model, before)
    with displaced(Blocks.of(model), shift):
        assert not same_bits(model, before)
    assert same_bits(model, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("case", ["mlp", "tied", "attention"])
def test_bits_survive_an_exception_inside_the_forward(case, error):
    maker, batch, _ = CASES[case]
    model = maker()
    model.bomb = nn.Identity()
    perturber, objective = Perturber(model, Blocks.of(model)), Objective(model, loss, [batch])
    normal = perturber.evaluate(shift, objective)
    before, parameters = bits(model), [id(p) for p in model.parameters()]
    leaf = next(m for m in reversed(list(model.modules())) if list(m.parameters(recurse=False)))

    def explode(module, args):
        raise error("inside the forward")

    handle = leaf.register_forward_pre_hook(explode)
    with pytest.raises(error):
        perturber.evaluate(shift, objective)
    handle.remove()
    assert same_bits(model, before)
    assert [id(p) for p in model.parameters()] == parameters
    assert perturber.evaluate(shift, objective) == normal


def test_hooks_do_not_stay():
    model = mlp()
    perturber = Perturber(model, Blocks.of(model))
    perturber.evaluate(shift, Objective(model, loss, [randn(3, 5)]))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_nesting_is_refused():
    model = mlp()
    perturber = Perturber(model, Blocks.of(model))
    with perturber(shift), pytest.raises(RuntimeError, match="nested"):
        perturber.evaluate(shift, Objective(model, loss, [randn(3, 5)]))


def test_extra_memory_is_that_of_one_leaf():
    """At any time at most one leaf's parameters are kept beside the model."""
    model = build(lambda: nn.Sequential(*(nn.Linear(16, 16) for _ in range(6))))
    perturber = Perturber(model, Blocks.of(model))
    most = 0

    def watch(module, args):
        nonlocal most
        most = max(most, sum(t.numel() for t in perturber._kept.values()))

    for module in model:
        module.register_forward_pre_hook(watch)
    perturber.evaluate(shift, Objective(model, loss, [randn(3, 16)]))
    assert most == 16 * 16 + 16


def test_tied_table_is_shifted_once_and_alike_in_both_places():
    model = build(TiedLM)
    seen = []
    model.embed.register_forward_hook(lambda m, a, o: seen.append(m.weight.data.clone()))
    model.head.register_forward_pre_hook(lambda m, a: seen.append(m.weight.data.clone()))
    with Perturber(model, Blocks.of(model))(shift):
        model(TOKENS)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], model.embed.weight)


def test_training_mode_is_restored_and_dropout_is_off():
    model = build(lambda: nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 5)))
    model.train()
    model[2].eval()
    objective = Objective(model, loss, [randn(3, 5)])
    assert objective() == objective()
    assert [m.training for m in model.modules()] == [True, True, True, False]
