"""Learning a tuner: ``meta_train(model, tasks, config)``. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'meta_train' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
