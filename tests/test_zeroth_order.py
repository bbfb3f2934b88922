"""ZerothOrder and the registry: wrong use ends in one clear sentence."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from transformers import get_scheduler

import zoft
from tests.contract.tables import METHODS, options
from tests.models import bits, mlp, randn, same_bits
from zoft.errors import UsageError
from zoft.tuner import Tuner

DATA = randn(8, 5)


def loss_of(model):
    return model(DATA).square().mean()


def wide():
    """The small network in float64, in which what a group changes can be told exactly."""
    return mlp(dtype=torch.float64)


def wide_loss(model):
    return model(DATA.double()).square().mean()


def test_lazy_names():
    assert {"ZerothOrder", "Tuner", "get_optimizer", "OPTIMIZERS"} <= set(dir(zoft))
    with pytest.raises(AttributeError, match="no attribute 'Adam'"):
        zoft.Adam  # noqa: B018


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("mezoo", {}, "unknown optimizer 'mezoo'; did you mean mezo"),
        ("mezo", {"epsilom": 1}, "unknown key 'epsilom'; did you mean epsilon"),
        ("mezo", {"epsilon": 0}, "epsilon: input should be greater than 0"),
        ("mezo", {"epsilon": float("nan")}, "epsilon: input should be a finite number"),
        ("mezo", {"directions": 0}, "directions: input should be greater than or equal to 1"),
        ("mezo", {"lr": -1, "epsilon": -1}, "lr: .*; epsilon: "),
        ("hizoo", {"smooth_scale": 2}, "smooth_scale: input should be less than 1"),
        ("zo-finetuner", {}, "needs a tuner"),
    ],
)
def test_wrong_methods_and_hyper_parameters(name, hyper, message):
    with pytest.raises(UsageError, match=message):
        zoft.get_optimizer(name, **hyper)


def test_wrong_use():
    model = mlp()
    with pytest.raises(UsageError, match="beside a finished method"):
        zoft.ZerothOrder(model, zoft.get_optimizer("mezo"), lr=1)
    with pytest.raises(UsageError, match="unknown key 'epsilom'; did you mean epsilon"):
        zoft.ZerothOrder(model, epsilom=1e-3)
    with pytest.raises(UsageError, match="a method is given as NoneType"):
        zoft.ZerothOrder(model, None)
    with pytest.raises(UsageError, match="params is empty"):
        zoft.ZerothOrder(model, params=[])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            lambda m: [{"params": m[0].parameters()}, {"params": [nn.Parameter(torch.ones(2))]}],
            r"group 1 has a tensor of shape \(2,\) that is no parameter of the model",
        ),
        (
            lambda m: [{"params": [m[0].weight.requires_grad_(False)]}, {"params": [m[0].bias]}],
            "group 0 has no trainable parameter: all of it is frozen",
        ),
        (lambda m: [{"params": m[0].parameters()}, {"params": []}], "group 1 is empty"),
        (lambda m: mlp().parameters(), r"group 0 has a tensor of shape \(7, 5\) that is no parameter of the model"),
        (lambda m: ["0.weight"], "group 0 has an entry of type str, not a parameter"),
        (lambda m: [m[0]], "group 0 has an entry of type Linear, not a parameter"),
        (lambda m: [("a", m[0].weight, 1)], "group 0 has an entry of type tuple, not a parameter"),
        (lambda m: [("a", m[0].weight), m[0].bias], "group 0: some parameters are given with names and some without"),
        (
            lambda m: [{"params": m[0].named_parameters()}, {"params": m[2].parameters()}],
            "group 1: some parameters are given with names and some without",
        ),
        (lambda m: [{"params": [m[0].bias]}, m[0].weight], "group 1 is Parameter, not a dictionary"),
        (lambda m: [{"params": {"bias": m[0].bias}}], "group 0 has no list of params"),
        (lambda m: {"params": [m[0].bias]}, "params is dict, not a list"),
        (lambda m: m, "params is Sequential, not a list"),
        (lambda m: [m[0].weight, nn.Parameter(torch.ones(2, 3))], r"group 0 has a tensor of shape \(2, 3\) that is no"),
        (
            lambda m: [{"params": [m[0].bias]}, {"params": [m[0].bias]}],
            r"group 1 has a tensor of shape \(7,\) that is in",
        ),
        (lambda m: [m[0].bias, m[0].bias], "that is in a group already"),
        (lambda m: [{"params": [m[0].bias], "weight_decy": 1}], "unknown option 'weight_decy'; did you mean weight_de"),
        (lambda m: [{"params": [m[0].bias], "lr": -1}], "group 0: lr is -1"),
        (lambda m: [{"params": [m[0].bias], "lr": "fast"}], "group 0: lr is 'fast'"),
        (lambda m: [{"params": [m[0].bias], "lr": None}], "group 0: lr is None"),
        (lambda m: [{"lr": 1}], "group 0 has no list of params"),
        (lambda m: m[0].weight, "params is Parameter, not a list"),
        (lambda m: 5, "params is int, not a list"),
        (lambda m: [{"params": [m[0].bias], "weight_decay": math.nan}], "group 0: weight_decay is nan"),
    ],
)
def test_wrong_groups(groups, message):
    model = mlp()
    with pytest.raises(UsageError, match=message) as caught:
        zoft.ZerothOrder(model, params=groups(model))
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("wrong", "described"),
    [
        (lambda m: "mezo", "the name 'mezo'"),
        (lambda m: list(m.parameters()), "parameters"),
        (lambda m: m.parameters(), "parameters"),
        (lambda m: m[0].weight, "a tensor"),
        (lambda m: m.state_dict(), "an object of type OrderedDict"),
        (lambda m: None, "an object of type NoneType"),
    ],
)
def test_the_model_is_needed(wrong, described):
    """Not its parameters alone, as for other optimizers of torch: a step runs it."""
    with pytest.raises(UsageError) as caught:
        zoft.ZerothOrder(wrong(mlp()), lr=1e-3)
    cause, remedy = str(caught.value).splitlines()
    assert cause.startswith(f"ZerothOrder is given {described}, not the model: it runs the model at perturbed weights")
    assert "params=" in remedy


def test_a_frozen_model_has_nothing_to_train():
    with pytest.raises(UsageError, match="the model has no trainable parameter"):
        zoft.ZerothOrder(mlp().requires_grad_(False))


def backward(model):
    loss = loss_of(model)
    loss.backward()
    return loss


def backward_in_earnest(model):
    with torch.inference_mode(False), torch.enable_grad():
        return backward(model).detach()


def with_a_graph(model):
    with torch.inference_mode(False), torch.enable_grad():
        return loss_of(model)


def slope(model):
    inputs = DATA.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).sum(), inputs)[0].square().mean()


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda model: model(DATA), r"shape \(8, 2\), not one value"),
        (lambda model: None, "returned NoneType, not a loss"),
        (lambda model: "0.5", "returned str, not a loss"),
        (lambda model: model(DATA).sum() * 1j, "the loss is complex"),
        (backward, "asks for gradients, and a zeroth-order step records none"),
        (slope, "asks for gradients, and a zeroth-order step records none"),
        (backward_in_earnest, r"calls backward\(\), which a zeroth-order step has no use for"),
        (with_a_graph, "loss carries gradients"),
    ],
)
def test_wrong_closures_change_nothing(closure, message):
    model = mlp()
    optimizer = zoft.ZerothOrder(model, lr=1e-2)
    before = bits(model)
    with pytest.raises(UsageError, match=message) as caught:
        optimizer.step(lambda: closure(model))
    assert 1 <= len(str(caught.value).splitlines()) <= 2
    assert same_bits(model, before)
    assert optimizer.last is None


def test_a_closure_is_needed_and_a_loss_from_before_the_step_is_none():
    model = mlp()
    optimizer = zoft.ZerothOrder(model)
    with pytest.raises(UsageError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(UsageError, match="needs a closure"):
        optimizer.step(loss_of(model))
    stale = loss_of(model)
    with pytest.raises(UsageError, match="computed outside the step"):
        optimizer.step(lambda: stale)


def test_other_errors_of_a_closure_are_its_own():
    model = mlp()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        zoft.ZerothOrder(model).step(lambda: model(DATA.T).mean())


def test_gradients_from_before_and_losses_of_derivatives_are_fine():
    model = mlp()
    loss_of(model).backward()

    def derivative():
        with torch.inference_mode(False), torch.enable_grad():
            return slope(model).detach()

    optimizer = zoft.ZerothOrder(model, lr=1e-2)
    before = bits(model)
    optimizer.step(lambda: loss_of(model))
    optimizer.zero_grad()
    optimizer.step(derivative)
    optimizer.step(lambda: np.float32(loss_of(model).item()))
    assert not same_bits(model, before)


def test_a_closure_is_checked_once_when_asked():
    model = mlp()
    batches = iter(randn(50, 8, 5, seed=3))
    with pytest.raises(UsageError, match=r"not deterministic: it gave 0\.\d+ and then 0\.\d+ at the same weights"):
        zoft.ZerothOrder(model, check_closure=True).step(lambda: model(next(batches)).square().mean())
    zoft.ZerothOrder(model).step(lambda: model(next(batches)).square().mean())
    with torch.random.fork_rng(devices=[]), pytest.raises(UsageError, match="not deterministic"):
        dropped = lambda: nn.functional.dropout(model(DATA), 0.5, training=True).square().mean()  # noqa: E731
        zoft.ZerothOrder(model, check_closure=True).step(dropped)

    calls = []
    optimizer = zoft.ZerothOrder(model, check_closure=True)
    for expected in (2 + 3, 2):  # the check; the audit and two forwards; two forwards
        calls.clear()
        optimizer.step(lambda: calls.append(1) or loss_of(model))
        assert len(calls) == expected
    zoft.ZerothOrder(model, check_closure=True).step(lambda: math.nan)
    zoft.ZerothOrder(model, check_closure=True).step(lambda: loss_of(model) * (1 + 1e-8 * len(calls)))


def test_five_lines_of_plain_torch():
    model = mlp()
    optimizer = zoft.ZerothOrder(model, method="mezo", lr=2e-2)
    scheduler = lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=150)
    losses = []
    for inputs in DATA.repeat(150, 1).split(8):
        losses.append(optimizer.step(lambda inputs=inputs: model(inputs).square().mean()))
        scheduler.step()
    assert losses[-1] < 0.5 * losses[0]


SCHEDULES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 1 / (1 + step)] * len(o.param_groups)),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 2e-2, total_steps=8, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "transformers linear": lambda o: get_scheduler("linear", o, 2, 8),
    "transformers cosine": lambda o: get_scheduler("cosine", o, 2, 8),
    "transformers polynomial": lambda o: get_scheduler("polynomial", o, 2, 8),
    "transformers constant_with_warmup": lambda o: get_scheduler("constant_with_warmup", o, 3, 8),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_set_the_rates_that_the_steps_use(name):
    """The rates are those that the same scheduler gives torch's SGD, and a resumed pair goes on with them."""
    shadow, plain, resumed = mlp(), mlp(), mlp()

    def halves(model):
        return [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 3e-3}]

    sgd = torch.optim.SGD(halves(shadow), lr=1e-2)
    twin, schedule = zoft.ZerothOrder(plain, params=halves(plain), lr=1e-2), SCHEDULES[name](sgd)
    scheduled = zoft.ZerothOrder(resumed, params=halves(resumed), lr=1e-2)
    under = SCHEDULES[name](scheduled)
    seen = set()
    for step in range(7):
        for mine, its in zip(twin.param_groups, sgd.param_groups, strict=True):
            mine["lr"] = its["lr"]
        seen.add(sgd.param_groups[0]["lr"])
        loss = twin.step(lambda: loss_of(plain))
        assert scheduled.step(lambda: loss_of(resumed)) == loss
        assert same_bits(resumed, bits(plain))
        sgd.step()
        for scheduler in (schedule, under):
            scheduler.step(*([loss] if name == "ReduceLROnPlateau" else []))
        if step == 3:
            saved = scheduled.state_dict(), under.state_dict()
            scheduled = zoft.ZerothOrder(resumed, params=halves(resumed), lr=1e-2)
            under = SCHEDULES[name](scheduled)
            scheduled.load_state_dict(saved[0])
            under.load_state_dict(saved[1])
    assert len(seen) > 2


@pytest.mark.parametrize("name", METHODS)
def test_the_state_is_what_safe_loading_takes(name):
    """torch.load(weights_only=True), the default, which unpickles nothing but tensors and plain values."""
    straight, model = mlp(), mlp()
    ahead = zoft.ZerothOrder(straight, name, lr=1e-2, **options(name, straight))
    first = zoft.ZerothOrder(model, name, lr=1e-2, **options(name, model))
    for _ in range(3):
        first.step(lambda: loss_of(model))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = zoft.ZerothOrder(model, name, lr=1e-5, seed=7, **options(name, mlp()))
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        second.step(lambda: loss_of(model))
    for _ in range(6):
        ahead.step(lambda: loss_of(straight))
    assert same_bits(model, bits(straight))


def test_a_groups_rate_and_decay_enter_its_update_alone():
    """Against one step of one group: twice the rate moves twice as far, and λ adds −η·λ·θ."""
    reference, model = wide(), wide()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    one = zoft.ZerothOrder(reference, lr=1e-3, weight_decay=0.5)
    first = {"params": model[0].named_parameters(), "lr": 2e-3, "weight_decay": 0.0}
    second = {"params": model[2].named_parameters(), "weight_decay": 3.0}
    two = zoft.ZerothOrder(model, lr=1e-3, weight_decay=0.5, params=[first, second])
    assert one.step(lambda: wide_loss(reference)) == two.step(lambda: wide_loss(model))
    for (name, plain), mine in zip(reference.named_parameters(), model.parameters(), strict=True):
        estimate = (start[name] - plain) / 1e-3 - 0.5 * start[name]
        rate, decay = (2e-3, 0.0) if name.startswith("0") else (1e-3, 3.0)
        torch.testing.assert_close(mine, start[name] - rate * (estimate + decay * start[name]), rtol=0, atol=1e-12)


def test_what_is_in_no_group_is_neither_perturbed_nor_trained():
    model = mlp()
    kept = [model[0].weight.detach().clone(), model[0].bias.detach().clone()]
    optimizer = zoft.ZerothOrder(model, "hizoo", params=model[2].parameters(), lr=1e-2)
    assert optimizer.method.state_bytes(optimizer.blocks) == 4 * sum(p.numel() for p in model[2].parameters())
    assert optimizer.blocks.names == ["2.weight", "2.bias"]

    def closure():
        assert torch.equal(model[0].weight, kept[0])
        return loss_of(model)

    moved = model[2].weight.detach().clone()
    optimizer.step(closure)
    assert torch.equal(model[0].bias, kept[1])
    assert not torch.equal(model[2].weight, moved)


def test_freezing_and_thawing_between_steps():
    """A frozen parameter is not perturbed; its state waits for it, also in a saved optimizer."""
    model = mlp()
    optimizer = zoft.ZerothOrder(model, "hizoo", smooth_scale=0.1, lr=1e-2)
    optimizer.step(lambda: loss_of(model))
    model[0].requires_grad_(False)
    kept, hessian = model[0].weight.clone(), optimizer.state_dict()["zoft"]["state"]["hessian/0.weight"]

    def closure():
        assert torch.equal(model[0].weight, kept)
        return loss_of(model)

    optimizer.step(closure)
    again = zoft.ZerothOrder(model, "hizoo", smooth_scale=0.1, lr=1e-2, params=model.parameters())
    again.load_state_dict(optimizer.state_dict())
    for each in (optimizer, again):
        model[0].requires_grad_(False)
        each.step(closure)
        assert torch.equal(each.state_dict()["zoft"]["state"]["hessian/0.weight"], hessian)
        model[0].requires_grad_(True)
        each.step(lambda: loss_of(model))
        assert not torch.equal(each.state_dict()["zoft"]["state"]["hessian/0.weight"], hessian)
        kept = model[0].weight.clone()
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter of any group is trainable now"):
        optimizer.step(lambda: loss_of(model))


def test_a_group_may_be_added_later():
    model, whole = mlp(), mlp()
    optimizer = zoft.ZerothOrder(model, "hizoo", params=[model[2].weight], lr=1e-2)
    optimizer.step(lambda: loss_of(model))
    rest = [p for p in model.parameters() if p is not model[2].weight]
    optimizer.add_param_group({"params": rest, "lr": 1e-3})
    before = bits(model)
    optimizer.step(lambda: loss_of(model))
    assert not any(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))
    assert set(optimizer.state_dict()["zoft"]["state"]) == set(
        zoft.ZerothOrder(whole, "hizoo").state_dict()["zoft"]["state"]
    )
    with pytest.raises(UsageError, match=r"group 2 has a tensor of shape .* that is in a group already"):
        optimizer.add_param_group({"params": rest})
    assert len(optimizer.param_groups) == 2


def test_a_tuner_refuses_other_blocks_than_it_is_bound_to():
    model = mlp()
    tuner = Tuner.untrained(model).bind(model)
    with pytest.raises(UsageError, match="bound to 4 trainable blocks, and 2 are to be trained"):
        zoft.ZerothOrder(model, "zo-finetuner", tuner=tuner, params=model[0].parameters())


def test_loading_the_state_of_something_else():
    model = mlp()
    hizoo = zoft.ZerothOrder(model, "hizoo")
    with pytest.raises(UsageError, match="not of the method hizoo"):
        hizoo.load_state_dict(zoft.ZerothOrder(model).state_dict())
    rademacher = zoft.ZerothOrder(model, noise="rademacher")
    with pytest.raises(UsageError, match="saved with noise"):
        rademacher.load_state_dict(zoft.ZerothOrder(model).state_dict())
    smaller = zoft.ZerothOrder(model[2], "hizoo")
    with pytest.raises(UsageError, match="other blocks"):
        smaller.load_state_dict(hizoo.state_dict())
    other = zoft.ZerothOrder(model, "hizoo", epsilon=1e-2)
    with pytest.raises(UsageError, match=r"saved with epsilon 0\.001, not 0\.01\nUse epsilon=0\.001"):
        other.load_state_dict(hizoo.state_dict())
    two = zoft.ZerothOrder(model, "hizoo", params=[{"params": m.parameters()} for m in (model[0], model[2])])
    with pytest.raises(UsageError, match="other parameter groups"):
        two.load_state_dict(hizoo.state_dict())


def test_a_tuner_composes_with_every_method():
    model = mlp()
    tuner = Tuner.untrained(model).bind(model)
    optimizer = zoft.ZerothOrder(model, "hizoo", tuner=tuner, lr=1e-3)
    first = optimizer.step(lambda: model(DATA).square().mean())
    for _ in range(20):
        last = optimizer.step(lambda: model(DATA).square().mean())
    assert last < first


def test_rademacher_noise():
    model = mlp()
    optimizer = zoft.ZerothOrder(model, noise="rademacher", lr=2e-2)
    losses = [optimizer.step(lambda: model(DATA).square().mean()) for _ in range(100)]
    assert losses[-1] < 0.5 * losses[0]
