"""The methods. A new one is a file here and a line in :data:`OPTIMIZERS`; everything else follows."""

from __future__ import annotations

from typing import Any

from zoft.errors import UsageError
from zoft.optimizers.base import ZOOptimizer
from zoft.optimizers.compose import Methods
from zoft.optimizers.forward_grad import ForwardGrad
from zoft.optimizers.fzoo import FZOO
from zoft.optimizers.hizoo import HiZOO
from zoft.optimizers.hizoo_l import HiZOOL
from zoft.optimizers.lozo import LOZO
from zoft.optimizers.mezo import MeZO
from zoft.optimizers.torch_optimizer import ZerothOrder
from zoft.optimizers.zo_adam import ZOAdam
from zoft.optimizers.zo_adamu import ZOAdaMU
from zoft.optimizers.zo_finetuner import ZOFinetuner
from zoft.optimizers.zo_sgd_cons import ZOSGDConservative
from zoft.optimizers.zo_sgd_mmt import ZOSGDMomentum
from zoft.optimizers.zo_sgd_sign import ZOSGDSign

#: Every method by its name; ``a+b`` is the direction of one with the update rule of the other.
OPTIMIZERS = Methods(
    (
        MeZO,
        ZOSGDSign,
        ZOSGDMomentum,
        ZOSGDConservative,
        ZOAdam,
        ZOAdaMU,
        HiZOO,
        HiZOOL,
        LOZO,
        FZOO,
        ForwardGrad,
        ZOFinetuner,
    )
)


def get_optimizer(name: str, **hyper: Any) -> ZOOptimizer:
    """The method ``name`` with these hyper-parameters.

    Raises:
        UsageError: no such method or hyper-parameter (with the nearest names), or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise UsageError(OPTIMIZERS.problem(name))
    return OPTIMIZERS[name].build(hyper, source=f"optimizer {name}")


__all__ = ["OPTIMIZERS", "ZOOptimizer", "ZerothOrder", "get_optimizer"]
