"""What the learners of a structure from the signal have in common: they keep what every task says by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from meta_train.config import MetaTrainConfig
from meta_train.moments import settings_of
from meta_train.signal import BatchGradients, Signal
from zoft.blocks import Block, Blocks
from zoft.tuner.structure import Structure


class SignalStructure(ABC):
    """Running means of signal and noise by task, and the structure that they say.

    Args:
        config: with the kind of structure.
        blocks: the model's blocks.
        signal: of the blocks; a visit is added to it before it is added here.
        axes: of offsets, float64 [n] by block name; see :func:`meta_train.axes.input_axes`.
    """

    def __init__(
        self, config: MetaTrainConfig, blocks: Blocks, signal: Signal, axes: Mapping[str, Tensor] | None = None
    ) -> None:
        self._config, self._blocks, self._of_blocks = config, blocks, signal
        self.settings = settings_of(config, blocks)
        self._axes = dict(axes or {})
        self.count = 0

    @abstractmethod
    def take(self, block: Block, gradient: Tensor) -> None:
        """One block's gradient of one minibatch, at the weights as they are."""

    @abstractmethod
    def commit(self, task: int, gradients: BatchGradients) -> None:
        """Add a visit of a task: everything taken since the last time is of these gradients."""

    @abstractmethod
    def discard(self) -> None:
        """Forget what was taken since the last time."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""

    @abstractmethod
    def structure(self, share: float, without: int | None = None) -> Structure:
        """The structure, with that share a; gains are for the weights as they are.

        Args:
            without: index of a task that is left out.
        """
