"""Curvature and slopes of the loss along random directions, and a learning rate near the edge of what MeZO stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from torch import Tensor, nn

from meta_train.feed import derived_seed
from zoft.errors import UsageError
from zoft.noise import Key, Noise, Span
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.tasks.base import Task
from zoft.tuner.bound_structure import BoundStructure

#: MeZO's largest stable learning rate times the measured curvature, as found on small language models
#: and MLPs (0.1 to 0.4 there).
EDGE = 0.2

#: Minibatches, each with its own direction, at least so many over all tasks and for each task.
_PROBES, _PROBES_EACH = 16, 4


class Measured(NamedTuple):
    """What directions of a tuner, or of plain noise, meet on the tasks.

    Attributes:
        curvature: mean |zᵀHz|.
        slope: root mean square of c.
    """

    curvature: float
    slope: float

    @property
    def edge(self) -> float:
        """0.2 / mean |zᵀHz|."""
        return EDGE / self.curvature


def measure(
    perturber: Perturber,
    model: nn.Module,
    tasks: Sequence[Task],
    batch_size: int,
    noise: Noise,
    seed: int,
    structure: BoundStructure | None = None,
    scales: Tensor | None = None,
) -> Measured:
    """zᵀHz = (L(θ + εz) + L(θ − εz) − 2·L(θ)) / ε² and c = (L(θ + εz) − L(θ − εz)) / 2ε with ε = 1e-3.

    The absolute value of the curvature makes rates err on the low side where curvatures of both signs cancel.

    Args:
        structure: of the directions z; they are N(0, I) without one.
        scales: ν·σ [B], which multiply them by block; 1 without.

    Raises:
        UsageError: the losses are not finite, or there is no curvature to be seen.
    """
    epsilon, values, squares = 1e-3, [], []
    each = max(_PROBES_EACH, -(-_PROBES // len(tasks)))
    for number, task in enumerate(tasks):
        stream = task.train_batches(batch_size, derived_seed("edge", seed, task.name))
        for probe, batch in enumerate(islice(stream, each)):
            objective = Objective(model, task.loss, [batch])
            key = Key(derived_seed("edge", seed), number * each + probe)

            def shift(span: Span, scale: float, key: Key = key) -> Tensor:
                u = noise(key, span, span.block.parameter.device)
                if structure is not None:
                    u = structure.mixed(noise, key, span, u).mul_(structure.deviation(span))
                return u.mul_(scale if scales is None else scale * float(scales[span.block.index]))

            both = [perturber.evaluate(partial(shift, scale=scale), objective) for scale in (epsilon, -epsilon)]
            values.append(abs(sum(both) - 2 * objective()) / epsilon**2)
            squares.append(((both[0] - both[1]) / (2 * epsilon)) ** 2)
    curvature = math.fsum(values) / len(values) if values else math.nan
    if not math.isfinite(curvature) or curvature <= 0:
        raise UsageError(
            "no lookahead_lr is given, and the loss shows no finite curvature to choose one by",
            "Set lookahead_lr, about the largest learning rate at which MeZO is stable.",
        )
    return Measured(curvature, math.sqrt(math.fsum(squares) / len(squares)))
