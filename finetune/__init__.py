"""Using a tuner or a baseline: ``finetune(...)``. Names are loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoft.lazy import lazy

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig as FinetuneConfig
    from finetune.evaluate import EvaluateConfig as EvaluateConfig
    from finetune.run import FinetuneResult as FinetuneResult
    from finetune.run import finetune as finetune
    from finetune.trainer import ZOTrainer as ZOTrainer
    from finetune.trainer import ZOTrainerMixin as ZOTrainerMixin

_LAZY = {
    "EvaluateConfig": "finetune.evaluate",
    "FinetuneConfig": "finetune.config",
    "FinetuneResult": "finetune.run",
    "ZOTrainer": "finetune.trainer",
    "ZOTrainerMixin": "finetune.trainer",
    "finetune": "finetune.run",
}

__all__ = sorted(_LAZY)

__getattr__, __dir__ = lazy(__name__, _LAZY)
