"""A bench with planted best scales for the tests of the oracle: importable by other processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.run_spec import Bench
from tests.compare_toys import Toy


class Planted(nn.Module):
    """Two matrices: ``useful`` decides the loss; ``useless`` is at its best, is large, and curves twice as much.

    Whatever moves ``useless`` only costs: the best scale of it is 0. With isotropic directions it bounds the
    learning rate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.useful = nn.Parameter(torch.ones(2, 4))
        self.useless = nn.Parameter(torch.zeros(8, 8))

    def forward(self, noise: Tensor) -> Tensor:
        return (self.useful + 0.1 * noise.view(2, 4)).square().mean() + 0.25 * self.useless.square().sum()


def planted_bench(base: str, tasks: Sequence[str], device: str = "cpu", dtype: str | None = None) -> Bench:
    """The planted problem under the names of ``tasks``; those called held are held-out."""
    roles = {name: "held-out" if name.startswith("held") else "development" for name in tasks}
    return Bench(Planted(), {name: Toy(name) for name in tasks}, roles, data=dict.fromkeys(tasks, "toy"), base=base)


def frozen_bench(base: str, tasks: Sequence[str]) -> Bench:
    """The same with the planted optimum built in: ``useless`` is not trained at all."""
    bench = planted_bench(base, tasks)
    bench.model.useless.requires_grad_(False)
    return bench
