"""Toy models and tasks for the tests of comparisons: importable by other processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.run_spec import Bench
from tests.models import build, randn
from zoft.tuner import Tuner


class Useful(nn.Module):
    """Two blocks: ``useful`` decides the loss, ``useless`` is at its best already and only gets in the way."""

    def __init__(self, useless: int = 100) -> None:
        super().__init__()
        self.useful = nn.Parameter(torch.ones(8))
        self.useless = nn.Parameter(torch.zeros(useless))

    def forward(self, noise: Tensor) -> Tensor:
        return (self.useful + 0.1 * noise).square().mean() + self.useless.square().sum()


class Toy:
    """Noisy batches of a model whose forward is its loss; the splits are fixed."""

    def __init__(self, name: str, shift: float = 0.0) -> None:
        self.name = name
        self._shift = shift

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Tensor]:
        step = 0
        while True:
            yield randn(8, seed=1000 * seed + step) / math.sqrt(batch_size)
            step += 1

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch) + self._shift

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        seed = 10 if split == "test" else 11
        with torch.inference_mode():
            loss = float(self.loss(model, randn(8, seed=seed)))
        return {"loss": loss, "accuracy": math.exp(-loss)}


class Flat(Toy):
    """A task that no method can learn: its loss does not depend on the model."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return 0.0 * model(batch) + 0.7


class Steep(Toy):
    """The same with a sixteen times the curvature: its best learning rate is sixteen times smaller."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return 16 * model(batch)


KINDS = {"dev": Toy, "flat": Flat, "held": Steep, "alike": Toy, "meta": Toy}
ROLES = {"dev": "development", "flat": "development", "held": "held-out", "alike": "held-out", "meta": "meta-training"}


def toy_bench(base: str, tasks: Sequence[str], device: str = "cpu", dtype: str | None = None) -> Bench:
    """A bench of toy tasks; of any base it is the same."""
    return Bench(
        model=Useful(),
        tasks={name: KINDS[name](name) for name in tasks},
        roles={name: ROLES[name] for name in tasks},
        data=dict.fromkeys(tasks, "toy"),
        base=base,
    )


def mlp_bench(base: str, tasks: Sequence[str], device: str = "cpu", dtype: str | None = None) -> Bench:
    """An MLP that learns a fixed linear map."""
    model = build(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    return Bench(model, {task: Regression(task) for task in tasks}, {})


class Regression:
    """Regression on a fixed map of four inputs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Tensor]:
        step = 0
        while True:
            yield randn(batch_size, 4, seed=1000 * seed + step)
            step += 1

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch)[:, 0] - batch.sum(1)).square().mean()

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        with torch.inference_mode():
            return {"loss": float(self.loss(model, randn(64, 4, seed=5)))}


def planted_tuner(folder: Path, tasks: Sequence[str] = ("meta",), seed: int = 0) -> Path:
    """A tuner that moves the useful block alone, as far as the bounded output allows."""
    tuner = Tuner.untrained(Useful(), seed=seed)
    with torch.no_grad():
        tuner.network.out.bias.copy_(torch.tensor([[2.0], [-2.0]]))
    tuner.provenance = {"tasks": list(tasks), "config": {"seed": seed}}
    return tuner.save_pretrained(folder)
