"""What a step measures: plans, exact derivatives, trials; and what a method says when it cannot be."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import bits, build, mlp, randn, same_bits
from tests.tiny import FAMILIES, tiny_model
from zoft import ZerothOrder, get_optimizer
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import CHUNK, Key, Span, get_noise, spans
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.step import Plan, Probe, apply_update, zo_step

DATA, TARGET = randn(16, 5, seed=1), randn(16, 2, seed=2)
NOISE = get_noise("gaussian-table")


def loss(model, batch=None):
    return (model(DATA.to(next(model.parameters()).dtype)) - TARGET).square().mean()


def measured(model, method, lr=1e-3, objective=None):
    blocks = Blocks.of(model)
    objective = objective or Objective(model, loss, [None])
    return zo_step(method, method.init(blocks), blocks, Perturber(model, blocks), objective, NOISE, Key(3, 0), lr)


def test_plans():
    assert get_optimizer("mezo", directions=3).plan == Plan()
    assert get_optimizer("hizoo").plan == Plan(zero=True)
    assert get_optimizer("fzoo").plan == Plan((1,), True)
    assert get_optimizer("forward-grad").plan == Plan((), True, True)
    assert get_optimizer("zo-sgd-cons").plan == Plan((1, -1), True, False, (1, -1))
    assert [get_optimizer("zo-sgd-cons", estimator=e).forwards for e in ("central", "one-sided", "derivative")] == [
        5,
        4,
        4,
    ]
    assert get_optimizer("hizoo", directions=4).forwards == 9


def test_one_sided_losses():
    model = mlp()
    result = measured(model, get_optimizer("mezo", directions=2, estimator="one-sided", epsilon=1e-2), 0.0)
    zero = loss(model).item()
    for probe in result.probes:
        moved = mlp()
        with torch.no_grad():
            for block in Blocks.of(moved):
                block.parameter.add_(NOISE.block(probe.key, block), alpha=1e-2)
        assert probe.loss_zero == pytest.approx(zero, rel=1e-6)
        assert probe.loss_plus == pytest.approx(loss(moved).item(), rel=1e-6)
        assert probe.projected_gradient == (probe.loss_plus - probe.loss_zero) / 1e-2
        assert probe.loss_minus == 2 * probe.loss_zero - probe.loss_plus
    assert result.loss == pytest.approx(zero, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_derivative_is_that_of_backpropagation(family):
    """Along one direction, on every kind of model, and with two micro-batches; nothing of the model changes."""
    model = tiny_model(family).train()
    tokens = torch.arange(24).view(2, 12) + 20

    def language(model, batch):
        return nn.functional.cross_entropy(model(input_ids=batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    before = bits(model)
    batches = [tokens[:1], tokens[1:]]
    blocks = Blocks.of(model)
    tangents = [(block.parameter, NOISE.block(Key(1, 0), block)) for block in blocks]
    objective = Objective(model, language, batches)
    value, slope = objective.derivative(tangents)
    assert objective.calls == 2
    assert same_bits(model, before)
    assert all(module.training for module in model.modules())
    model.eval()
    total = sum(language(model, batch) for batch in batches) / 2
    gradients = torch.autograd.grad(total, [block.parameter for block in blocks], allow_unused=True)
    expected = sum(float((g * t).sum()) for g, (_, t) in zip(gradients, tangents, strict=True) if g is not None)
    assert value == pytest.approx(total.item(), rel=1e-5)
    assert slope == pytest.approx(expected, rel=2e-3)


class RoundedSTE(torch.autograd.Function):
    """An operator with a backward but no forward-mode derivative."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_model_without_forward_mode_is_refused():
    model = mlp()
    optimizer = ZerothOrder(model, "forward-grad", lr=1e-3)
    before = bits(model)
    with pytest.raises(UsageError, match=r"cannot be differentiated in forward mode: (?s:.*)mezo"):
        optimizer.step(lambda: RoundedSTE.apply(model(DATA)).sum())
    with pytest.raises(UsageError, match="the loss is a number, which has no derivative"):
        optimizer.step(lambda: loss(model).item())
    with pytest.raises(UsageError, match=r"the loss has shape \(16, 2\)"):
        optimizer.step(lambda: model(DATA))
    assert same_bits(model, before)
    assert optimizer.step(lambda: loss(model)) > optimizer.step(lambda: loss(model))


def inferred(value):
    with torch.inference_mode():
        return value()


ANOTHER = mlp(seed=1)
CUT_OFF = {
    "a metric": lambda model: (model(DATA).argmax(1) == TARGET.argmax(1)).float().mean(),
    "item": lambda model: torch.tensor(loss(model).item()),
    "detached": lambda model: loss(model).detach(),
    "inference mode": lambda model: inferred(lambda: loss(model)),
    "half of it": lambda model: inferred(lambda: model(DATA)).square().mean(),
    "of another model": lambda model: loss(ANOTHER),
}


@pytest.mark.parametrize("outside", [nullcontext, torch.inference_mode])
@pytest.mark.parametrize("kind", CUT_OFF)
@pytest.mark.parametrize(("name", "hyper"), [("forward-grad", {}), ("zo-adam", {"estimator": "derivative"})])
def test_a_loss_that_is_cut_off_from_the_parameters_has_no_derivative(name, hyper, kind, outside):
    """Its tangent is missing, which is no derivative of 0: nothing may be trained on it in silence."""
    model = mlp()
    before = bits(model)
    optimizer = ZerothOrder(model, name, lr=1e-2, **hyper)
    with outside(), pytest.raises(UsageError, match="the loss has no derivative with respect to what is") as caught:
        optimizer.step(lambda: CUT_OFF[kind](model))
    assert "mezo" in caught.value.remedy
    assert same_bits(model, before)
    assert optimizer.last is None


def test_the_derivative_does_not_depend_on_the_mode_that_a_step_is_called_in():
    """Gradients need not be recorded for it, also within the closure."""

    def slope(outside, inside):
        model = mlp()
        optimizer = ZerothOrder(model, "forward-grad", lr=1e-2)

        def closure():
            with inside():
                return loss(model)

        with outside():
            optimizer.step(closure)
        return optimizer.last.projected_gradient, bits(model)

    expected, moved = slope(nullcontext, nullcontext)
    assert expected != 0
    for outside in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        value, weights = slope(outside, nullcontext)
        assert value == expected
        assert all(torch.equal(a, b) for a, b in zip(weights, moved, strict=True))
    assert slope(nullcontext, torch.no_grad)[0] == expected


def test_one_batch_of_several_without_a_derivative_is_found():
    model = mlp()
    objective = Objective(model, lambda m, batch: loss(m).detach() if batch else loss(m), [0, 1])
    with pytest.raises(UsageError, match="the loss has no derivative"):
        measured(model, get_optimizer("forward-grad"), objective=objective)


def test_forward_grad_leaves_frozen_and_tied_parameters_to_themselves():
    model = mlp()
    model[0].requires_grad_(False)
    frozen, moved = bits(model[0]), bits(model[2])
    optimizer = ZerothOrder(model, "forward-grad", lr=1e-2)
    first = optimizer.step(lambda: loss(model))
    for _ in range(30):
        last = optimizer.step(lambda: loss(model))
    assert last < first
    assert same_bits(model[0], frozen)
    assert not same_bits(model[2], moved)


def test_a_trial_that_is_not_finite_is_not_taken():
    """Both candidates fail: θ stays, and the step counts as made."""
    model = mlp()
    before = bits(model)
    calls = []

    def failing(model, batch):
        calls.append(1)
        return loss(model) * (math.nan if len(calls) > 4 else 1.0)  # θ, θ + εz, the audit, θ − εz; then trials

    result = measured(model, get_optimizer("zo-sgd-cons"), 1e-3, Objective(model, failing, [None]))
    assert not result.skipped
    assert len(calls) == 6
    assert all(math.isnan(value) for value in result.probes[0].trials)
    assert same_bits(model, before)


def test_conservative_never_raises_the_loss_of_its_batch():
    model = mlp(dtype=torch.float64)
    optimizer = ZerothOrder(model, "zo-sgd-cons", lr=1.0, directions=2)
    chosen = set()
    for _ in range(40):
        before = loss(model).item()
        optimizer.step(lambda: loss(model))
        assert loss(model).item() <= before
        chosen.add(optimizer.method.choice(optimizer.last.probes[0]))
    assert {0, 1} <= chosen


def test_trials_use_each_groups_learning_rate():
    model = mlp(dtype=torch.float64)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 1e-3}]
    optimizer = ZerothOrder(model, "zo-sgd-cons", params=groups)
    optimizer.step(lambda: loss(model))
    probe = optimizer.last.probes[0]
    assert optimizer.method.choice(probe) == 1
    assert loss(model).item() == pytest.approx(probe.trials[0], rel=1e-12)


def test_fzoo_stays_where_all_losses_are_equal():
    model = mlp()
    before = bits(model)
    result = measured(model, get_optimizer("fzoo"), 1e-3, Objective(model, lambda m, b: m(DATA).sum() * 0 + 1, [None]))
    assert not result.skipped
    assert same_bits(model, before)


def test_fzoo_directions_are_signs_whatever_the_noise():
    block = Blocks.of(mlp())[0]
    span = Span(block, 0, block.numel)
    for kind in ("gaussian-table", "rademacher"):
        signs = get_optimizer("fzoo").draw(get_noise(kind), Key(1, 2), span)
        assert set(signs.tolist()) == {-1.0, 1.0}


def test_lozo_keeps_v_for_its_interval():
    """Two directions of one interval have the same row space, of rank r; the next interval's has another."""
    block = Blocks.of(build(lambda: nn.Linear(30, 40)))[0]
    method = get_optimizer("lozo", rank=2, interval=3)
    whole = Span(block, 0, block.numel)
    steps = [method.draw(NOISE, Key(1, step), whole).view(40, 30) for step in (0, 2, 3)]
    ranks = [torch.linalg.matrix_rank(torch.cat(pair)).item() for pair in (steps[:1], steps[:2], steps[1:])]
    assert ranks == [2, 2, 4]
    pieces = [method.draw(NOISE, Key(1, 2), Span(block, a, b)) for a, b in ((0, 7), (7, 100), (100, 1200))]
    torch.testing.assert_close(torch.cat(pieces).view(40, 30), steps[1])


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operator makes, in entries; views and ``known`` memory do not count."""

    def __init__(self, known):
        super().__init__()
        self.entries = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in self._known:
                self.entries = max(self.entries, value.untyped_storage().nbytes() // value.element_size())
        return result


def test_hizoo_l_never_holds_a_matrix():
    """Directions and update of a 1500 x 1000 matrix make nothing larger than a chunk and two rows."""
    rows, columns = 1500, 1000
    with torch.device("meta"):
        model = nn.Linear(columns, rows)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    blocks, method = Blocks.of(model), get_optimizer("hizoo-l", smooth_scale=1e-2)
    state = method.init(blocks)
    assert sorted(t.numel() for t in state.values()) == [columns, rows, rows]
    probe = Probe(Key(1, 0), 1.2, 0.9, 1e-3, 1.0)
    watch = Largest([*model.parameters(), *state.values()])
    with watch, torch.no_grad():
        for span in (span for block in blocks for span in spans(block)):
            method.direction(state, span, method.draw(NOISE, probe.key, span))
        apply_update(method, state, blocks, NOISE, [probe], 1e-3)
    assert CHUNK <= watch.entries <= CHUNK + 2 * columns
    assert CHUNK + 2 * columns < rows * columns / 5
    with watch:
        torch.outer(torch.ones(rows), torch.ones(columns))
    assert watch.entries == rows * columns  # the watch does see a matrix


def test_schedules_need_their_ends():
    with pytest.raises(UsageError, match="epsilon_schedule linear needs epsilon_end and schedule_steps"):
        get_optimizer("mezo", epsilon_schedule="linear")
    with pytest.raises(UsageError, match="smooth_scale_schedule cosine needs smooth_scale_end"):
        get_optimizer("hizoo", smooth_scale_schedule="cosine", schedule_steps=3)
    with pytest.raises(UsageError, match="epsilon_end has no effect while epsilon_schedule is constant"):
        get_optimizer("mezo", epsilon_end=1e-4)
    for first, last in ((0.0, 1e-3), (1e-3, 0.0)):
        with pytest.raises(UsageError, match="exponential needs smooth_scale and smooth_scale_end above 0"):
            get_optimizer(
                "hizoo",
                smooth_scale=first,
                smooth_scale_end=last,
                smooth_scale_schedule="exponential",
                schedule_steps=3,
            )
    method = get_optimizer("mezo", epsilon=1e-1, epsilon_schedule="exponential", epsilon_end=1e-3, schedule_steps=10)
    assert [method.epsilon_at(step) for step in (0, 5, 10, 99)] == pytest.approx([1e-1, 1e-2, 1e-3, 1e-3])
    result = measured(mlp(), method, 0.0)
    assert result.probes[0].epsilon == 1e-1


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("zo-adamm", {}, "unknown optimizer 'zo-adamm'; did you mean zo-adam"),
        ("zo-adam", {"beta_1": 0.5}, "did you mean beta1"),
        ("zo-sgd-mmt", {"momentum": 1}, "momentum: input should be less than 1"),
        ("lozo", {"rank": 0}, "rank: input should be greater than or equal to 1"),
        ("lozo", {"epsilon": -1}, "epsilon: input should be greater than 0"),
        ("fzoo", {"directions": 1}, "directions: input should be greater than or equal to 2"),
        ("fzoo", {"epsilon": 0}, "epsilon: input should be greater than 0"),
        ("zo-adamu", {"anneal_steps": 5}, r"anneal_steps \(5\) must be after warmup_steps \(1024\)"),
        ("mezo", {"estimator": "two-sided"}, "estimator: input should be 'central', 'one-sided' or 'derivative'"),
        ("hizoo+zo-adam", {"beta1": 1}, "beta1: input should be less than 1"),
    ],
)
def test_wrong_hyper_parameters(name, hyper, message):
    with pytest.raises(UsageError, match=message) as caught:
        get_optimizer(name, **hyper)
    assert "\n" not in caught.value.cause
    assert "(given: {" not in caught.value.cause


def test_a_composition_has_the_hyper_parameters_of_both():
    method = get_optimizer("hizoo-l+zo-adam", smooth_scale=1e-3, beta1=0.5)
    assert (method.smooth_scale, method.beta1, method.name) == (1e-3, 0.5, "hizoo-l+zo-adam")
    assert type(method) is type(get_optimizer("hizoo-l+zo-adam"))
    fzoo = get_optimizer("lozo+fzoo")
    assert (fzoo.directions, fzoo.estimator, fzoo.epsilon, fzoo.rank) == (8, "one-sided", 1e-4, 4)
    assert copy.deepcopy(fzoo) == fzoo
