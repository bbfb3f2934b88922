"""Learning a tuner: ``meta_train(model, tasks, config)``. Names are loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoft.lazy import lazy

if TYPE_CHECKING:
    from meta_train.checkpoint import progress as progress
    from meta_train.config import RECIPES as RECIPES
    from meta_train.config import MetaTrainConfig as MetaTrainConfig
    from meta_train.config import recipe as recipe
    from meta_train.loop import meta_train as meta_train

_LAZY = {
    "RECIPES": "meta_train.config",
    "MetaTrainConfig": "meta_train.config",
    "meta_train": "meta_train.loop",
    "progress": "meta_train.checkpoint",
    "recipe": "meta_train.config",
}

__all__ = sorted(_LAZY)

__getattr__, __dir__ = lazy(__name__, _LAZY)
