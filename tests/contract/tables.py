"""What the contract tests run over: every registered method and composition, with what it cannot do without."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from zoft.optimizers import OPTIMIZERS
from zoft.optimizers.base import Estimator
from zoft.tuner import NetworkConfig, Tuner

METHODS = list(OPTIMIZERS)
COMPOSITIONS = [name for name, refused in OPTIMIZERS.compositions().items() if refused is None]
REFUSED = {name: reason for name, reason in OPTIMIZERS.compositions().items() if reason is not None}
ALL = METHODS + COMPOSITIONS

#: Every method with every estimator that it does not refuse.
ESTIMATORS = [
    (name, estimator) for name in ALL for estimator in get_args(Estimator) if estimator not in OPTIMIZERS[name].refuses
]


def tuner(model: nn.Module) -> Any:
    """An untrained tuner whose σ differ from block to block."""
    return Tuner.untrained(model, NetworkConfig(init="linear")).bind(model)


def options(name: str, model: nn.Module) -> dict[str, Any]:
    """What a method needs beyond its defaults, found by asking its class."""
    try:
        OPTIMIZERS[name]()
    except ValueError as error:
        if "tuner" not in str(error):
            raise
        return {"tuner": tuner(model)}
    return {}
