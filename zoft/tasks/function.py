"""A task from functions: any batches and any loss for any ``torch.nn.Module``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoft.errors import UsageError
from zoft.objective import evaluating


class FunctionTask:
    """A :class:`~zoft.tasks.base.Task` made of batches and a loss function.

    Args:
        name: what the task is called in records.
        batches: a sequence of ready batches, which every epoch permutes by the seed; any other iterable
            that can be gone through again and again (a ``DataLoader``), taken as it comes; or a function
            ``(batch_size, seed)`` -> endless iterator.
        loss: ``loss(model, batch)`` -> scalar tensor, the mean over the batch.
        evaluation: batches for :meth:`evaluate`; by default those of ``batches``, where they are a sequence.
        metrics: ``metrics(model, batch)`` -> values by name, averaged over the evaluation batches.
        losses: ``losses(model, batch)`` -> what ``loss`` is the mean of, [B]: the step-size head ``gauss-newton``, and
            so the recipe ``default``, takes the curvature from it. Without it steps are shorter.

    Examples:
        >>> import torch
        >>> batches = [(torch.ones(4, 3), torch.zeros(4, 1))]
        >>> task = FunctionTask("zeros", batches, lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
        >>> float(task.loss(torch.nn.Linear(3, 1), next(task.train_batches(4, seed=0)))) >= 0
        True
    """

    def __init__(
        self,
        name: str,
        batches: Iterable[Any] | Callable[[int, int], Iterator[Any]],
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        evaluation: Sequence[Any] | None = None,
        metrics: Callable[[nn.Module, Any], dict[str, float]] | None = None,
        losses: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        self.name = name
        self._batches = batches
        self._loss = loss
        self._evaluation = evaluation
        self._metrics = metrics
        self.part_losses = losses

    def train_batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[Any]:
        """Endless batches, a pure function of ``seed`` for a sequence.

        Args:
            batch_size: only for ``batches`` given as a function; ready batches have their size.
            start: number of batches to skip.

        Raises:
            UsageError: there are no batches.
        """
        iterator = self._endless(batch_size, seed, start)
        return iterator

    def _endless(self, batch_size: int, seed: int, start: int) -> Iterator[Any]:
        source = self._batches
        if isinstance(source, Sequence):
            if not source:
                raise UsageError(f"task {self.name!r} has no batches", "Give at least one batch.")
            epoch, first = divmod(start, len(source))
            while True:
                order = np.random.default_rng((seed, epoch)).permutation(len(source)).tolist()
                yield from (source[index] for index in order[first:])
                epoch, first = epoch + 1, 0
        elif callable(source):
            iterator = source(batch_size, seed)
            for _ in range(start):
                next(iterator)
            yield from iterator
        else:
            skip = start
            while True:
                count = 0
                for batch in source:
                    count += 1
                    if skip:
                        skip -= 1
                    else:
                        yield batch
                if not count:
                    raise UsageError(
                        f"task {self.name!r} has no batches (any more)",
                        "Give a sequence, or an iterable that can be gone through again.",
                    )

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of ``batch``."""
        return self._loss(model, batch)

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        """Mean ``loss`` and metrics over the evaluation batches, at most ``limit`` of them; splits are alike.

        Raises:
            UsageError: the task has no evaluation batches.
        """
        batches = self._evaluation
        if batches is None and isinstance(self._batches, Sequence):
            batches = self._batches
        if not batches:
            raise UsageError(f"task {self.name!r} has no evaluation batches", "Give it some with evaluation=.")
        rows = []
        with torch.no_grad(), evaluating(model):
            for batch in batches[:limit]:
                values = {"loss": float(self._loss(model, batch))}
                rows.append({**values, **(self._metrics(model, batch) if self._metrics else {})})
        return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
