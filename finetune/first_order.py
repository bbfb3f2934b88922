"""First-order baselines: the optimizers that ``--optimizer`` takes besides the zeroth-order methods.

They backpropagate, and so need a gradient and their state beside the activations: what zeroth-order
methods save. They are no entries of ``zoft.optimizers.OPTIMIZERS``, whose members share one step.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from zoft.config import Config, unknown
from zoft.optimizers import OPTIMIZERS
from zoft.optimizers.compose import JOIN


class FirstOrder(Config):
    """A first-order optimizer: torch's own, with these hyper-parameters.

    Class attributes:
        name: the name in :data:`FIRST_ORDER`.
    """

    name: ClassVar[str]

    lr: float = Field(1e-5, ge=0, allow_inf_nan=False, description="Learning rate η.")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="Weight decay λ.")
    clip: float | None = Field(
        1.0, gt=0, allow_inf_nan=False, description="Largest gradient norm of a first-order step; none does not clip."
    )

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, for records."""
        return {"name": self.name, **self.to_dict()}


class AdamW(FirstOrder):
    """Adam with decoupled weight decay; with λ = 0, the default, it is Adam.

    Cost: a forward and a backward pass a step, 8 bytes a parameter for the state (float32).

    Reference: Loshchilov and Hutter, arXiv 1711.05101. [MeZO, Table 16] tunes OPT with Adam at learning
    rates 1e-5, 5e-5 and 8e-5, batch size 8, without weight decay.
    """

    name: ClassVar[str] = "adamw"

    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    adam_epsilon: float = Field(1e-8, gt=0, allow_inf_nan=False, description="What keeps Adam's division finite.")

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """``torch.optim.AdamW``."""
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=betas, eps=self.adam_epsilon, weight_decay=self.weight_decay
        )


class SGD(FirstOrder):
    """Stochastic gradient descent, with momentum if asked for; λ·θ is added to the gradient, as torch does.

    Cost: a forward and a backward pass a step; 4 bytes a parameter with momentum.
    """

    name: ClassVar[str] = "sgd"

    lr: float = Field(1e-3, ge=0, allow_inf_nan=False, description="Learning rate η.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of first-order SGD.")

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """``torch.optim.SGD``."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


#: Every first-order optimizer by its name.
FIRST_ORDER: dict[str, type[FirstOrder]] = {kind.name: kind for kind in (AdamW, SGD)}

#: Everything that ``--optimizer`` takes, compositions of methods too; the zeroth-order ones are listed first.
METHODS: Mapping[str, type[Config]] = ChainMap[str, Any](FIRST_ORDER, OPTIMIZERS)


def unknown_method(name: str) -> str:
    """Why ``--optimizer`` does not take ``name``: one sentence, with the nearest names."""
    return OPTIMIZERS.problem(name) if JOIN in name else unknown("optimizer", name, METHODS)
