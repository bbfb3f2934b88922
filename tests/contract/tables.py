"""How the contract tests make each method: nothing but what a method cannot do without."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoft.optimizers import OPTIMIZERS
from zoft.tuner import NetworkConfig, Tuner

METHODS = sorted(OPTIMIZERS)


def options(name: str, model: nn.Module) -> dict[str, Any]:
    """What a method needs beyond its defaults, found by asking its class."""
    try:
        OPTIMIZERS[name]()
    except ValueError as error:
        if "tuner" not in str(error):
            raise
        return {"tuner": Tuner.untrained(model, NetworkConfig(init="linear")).bind(model)}
    return {}
