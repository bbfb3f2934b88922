"""What a meta-training run reports: scalars for a reporter, and the curve of its provenance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol

import torch
from torch import Tensor

from zoft.blocks import Blocks

#: Points of the curve that the provenance keeps.
_POINTS = 100


class Reporter(Protocol):
    """Where scalars go, such as those of ``zoft.runs.reporters``."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, measured up to ``step`` (meta-steps done)."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def note(reporter: Any, text: str) -> None:
    """Tell the user ``text``, where the reporter has a ``note``."""
    if hasattr(reporter, "note"):
        reporter.note(text)


def group_of(name: str) -> str:
    """The group of a block: its name without layer numbers (``model.layers.mlp.up_proj.weight``)."""
    return ".".join(part for part in re.split(r"\.", name) if not part.isdigit())


def sigma_scalars(blocks: Blocks, scales: Tensor) -> dict[str, float]:
    """Geometric mean of ν·σ by block group, and the spread of its logarithm over all blocks."""
    logs = scales.detach().double().clamp(min=1e-30).log()
    groups: dict[str, list[float]] = {}
    for block, value in zip(blocks, logs.tolist(), strict=True):
        groups.setdefault(group_of(block.name), []).append(value)
    values = {f"sigma/{name}": math.exp(sum(group) / len(group)) for name, group in groups.items()}
    return {**values, "sigma/spread": float(logs.std(correction=0))}


def curve_scalars(points: Sequence[tuple[int, float, float]], names: Sequence[str]) -> dict[str, float]:
    """Means of (task, loss before, meta-loss) points since the last report, over all tasks and by task.

    Returns:
        ``meta/loss``, ``meta/loss_before``, ``meta/improvement`` (their difference; on other batches, and so
        noisy, where every lookahead step has its own) and ``meta/loss/<task>``; empty if all were skipped.
    """
    finite = [point for point in points if math.isfinite(point[2])]
    if not finite:
        return {}
    values = {
        "meta/loss": _mean([after for _, _, after in finite]),
        "meta/loss_before": _mean([before for _, before, _ in finite]),
        "meta/improvement": _mean([before - after for _, before, after in finite]),
    }
    for index, name in enumerate(names):
        mine = [after for task, _, after in finite if task == index]
        if mine:
            values[f"meta/loss/{name}"] = _mean(mine)
    return values


def thinned(points: Sequence[tuple[int, float, float]]) -> list[dict[str, float]]:
    """The curve in at most 100 points: means over runs of meta-steps; skipped steps are counted."""
    size = max(1, math.ceil(len(points) / _POINTS))
    curve = []
    for first in range(0, len(points), size):
        members = points[first : first + size]
        finite = [point for point in members if math.isfinite(point[2])]
        row: dict[str, float] = {"step": first + len(members)}
        if finite:
            row["loss"] = _mean([before for _, before, _ in finite])
            row["meta_loss"] = _mean([after for _, _, after in finite])
        if len(finite) < len(members):
            row["skipped"] = len(members) - len(finite)
        curve.append(row)
    return curve


def versions() -> dict[str, str]:
    """Versions that the numbers depend on."""
    return {"zoft": metadata.version("zoft"), "torch": torch.__version__}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
