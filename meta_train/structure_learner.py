"""What learns the structure within the blocks, by the kind of structure and what it is learned from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from meta_train.axes import input_axes
from meta_train.config import MetaTrainConfig
from meta_train.moments import Moments
from meta_train.signal import Signal
from meta_train.signal_gains import SignalGains
from meta_train.signal_scales import SignalScales
from meta_train.signal_structure import SignalStructure
from zoft.blocks import Blocks
from zoft.tasks.base import Task
from zoft.tuner.parts import GainsAndOffsets

#: By the kind of structure, of those that are learned from the signal.
FROM_SIGNAL: dict[str, type[SignalStructure]] = {
    "scales": SignalScales,
    "gains": SignalGains,
    "gains-and-offsets": SignalGains,
}


def structure_learner(
    config: MetaTrainConfig, model: nn.Module, blocks: Blocks, tasks: Sequence[Task], signal: Signal | None
) -> Moments | SignalStructure | None:
    """The learner of a run; None where there is no structure.

    Args:
        model: at the base's weights.
        signal: of the blocks, with the expected objective.
    """
    if config.structure == "none":
        return None
    if config.structure_from == "signal" and signal is not None:
        offsets = config.structure == GainsAndOffsets.name
        axes = input_axes(model, blocks, tasks, config.seed) if offsets else {}
        return FROM_SIGNAL[config.structure](config, blocks, signal, axes)
    return Moments(config, blocks)
