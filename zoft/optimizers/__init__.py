"""The methods. A new one is a file here and a line in :data:`OPTIMIZERS`; everything else follows."""

from __future__ import annotations

from typing import Any

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.optimizers.base import ZOOptimizer
from zoft.optimizers.hizoo import HiZOO
from zoft.optimizers.mezo import MeZO
from zoft.optimizers.torch_optimizer import ZerothOrder
from zoft.optimizers.zo_finetuner import ZOFinetuner

#: Every method by its name.
OPTIMIZERS: dict[str, type[ZOOptimizer]] = {method.name: method for method in (MeZO, HiZOO, ZOFinetuner)}


def get_optimizer(name: str, **hyper: Any) -> ZOOptimizer:
    """The method ``name`` with these hyper-parameters.

    Raises:
        UsageError: no such method or hyper-parameter (with the nearest names), or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise UsageError(unknown("optimizer", name, OPTIMIZERS))
    return OPTIMIZERS[name].build(hyper, source=f"optimizer {name}")


__all__ = ["OPTIMIZERS", "ZOOptimizer", "ZerothOrder", "get_optimizer"]
