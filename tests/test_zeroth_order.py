"""ZerothOrder and the registry: wrong use ends in one clear sentence."""

import pytest
import torch

import zoft
from tests.models import mlp, randn
from zoft.errors import UsageError
from zoft.tuner import Tuner

DATA = randn(8, 5)


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
    optimizer = zoft.ZerothOrder(model)
    with pytest.raises(UsageError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(UsageError, match=r"shape \(8, 2\)"):
        optimizer.step(lambda: model(DATA))
    with pytest.raises(UsageError, match="beside a finished method"):
        zoft.ZerothOrder(model, zoft.get_optimizer("mezo"), lr=1)
    with pytest.raises(UsageError, match="parameter group 1 has no trainable parameter"):
        stray = torch.nn.Parameter(torch.ones(2))
        zoft.ZerothOrder(model, params=[{"params": model.parameters()}, {"params": [stray]}])


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
