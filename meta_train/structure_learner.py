"""What learns the structure within the blocks, by the kind of structure and what it is learned from."""

from __future__ import annotations

from meta_train.config import MetaTrainConfig
from meta_train.moments import Moments
from meta_train.signal import Signal
from meta_train.signal_gains import SignalGains
from meta_train.signal_scales import SignalScales
from meta_train.signal_structure import SignalStructure
from zoft.blocks import Blocks

#: By the kind of structure, of those that are learned from the signal.
FROM_SIGNAL: dict[str, type[SignalStructure]] = {"scales": SignalScales, "gains": SignalGains}


def structure_learner(
    config: MetaTrainConfig, blocks: Blocks, signal: Signal | None
) -> Moments | SignalStructure | None:
    """The learner of a run; None where there is no structure.

    Args:
        signal: of the blocks, with the expected objective.
    """
    if config.structure == "none":
        return None
    if config.structure_from == "signal" and signal is not None:
        return FROM_SIGNAL[config.structure](config, blocks, signal)
    return Moments(config, blocks)
