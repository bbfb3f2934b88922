"""zoft: learned zeroth-order optimizers.

Names are loaded when they are first used, so that ``import zoft`` and ``zoft --help`` need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoft.lazy import lazy

if TYPE_CHECKING:
    from finetune import finetune as finetune
    from meta_train import meta_train as meta_train
    from zoft.optimizers import OPTIMIZERS as OPTIMIZERS
    from zoft.optimizers import ZerothOrder as ZerothOrder
    from zoft.optimizers import ZOOptimizer as ZOOptimizer
    from zoft.optimizers import get_optimizer as get_optimizer
    from zoft.tuner import Tuner as Tuner

_LAZY = {
    "OPTIMIZERS": "zoft.optimizers",
    "Tuner": "zoft.tuner",
    "ZOOptimizer": "zoft.optimizers",
    "ZerothOrder": "zoft.optimizers",
    "finetune": "finetune",
    "get_optimizer": "zoft.optimizers",
    "meta_train": "meta_train",
}

__all__ = sorted(_LAZY)

__getattr__, __dir__ = lazy(__name__, _LAZY)
