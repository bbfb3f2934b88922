"""What a tuner is, for a reader: the same for one in a folder, on the Hub or under a short name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.tuner.artifact import Tuner
from zoft.tuner.card import CONVERTED
from zoft.tuner.features import FeatureConstants, block_statistics, features
from zoft.tuner.module_types import by_layer, types_of
from zoft.tuner.structure import described
from zoft.tuner.turns import parts_of

#: Standard deviation that models are commonly initialised with, where a tuner does not know its base's.
COMMON_DEVIATION = 0.02


def describe(tuner: Tuner, name: str, sigma: Tensor) -> dict[str, Any]:
    """What there is to say about a tuner, JSON-able, in the order in which to show it.

    Args:
        name: what the user wrote for it.
        sigma: float32 of shape [B], from :func:`sigma_of`.
    """
    config = tuner.config
    shapes = [shape for shape in config.blocks.shapes if shape is not None]
    recommended, provenance = config.recommended, tuner.provenance
    known = len(shapes) == len(config.blocks.names)
    size = f"{sum(map(math.prod, shapes)):,} parameters" if known else "shapes not known"
    content: dict[str, Any] = {
        "tuner": name,
        "commit": tuner.origin.commit if tuner.origin is not None and tuner.origin.commit else None,
        "what": "an optimizer for its base and derivatives, not a language model",
        "base": _base(tuner),
        "blocks": ", ".join(filter(None, (str(len(config.blocks.names)), size, _signature(tuner)))),
        "fits": "models with these parameter names and shapes; a resized vocabulary is fine",
        "network": config.network.to_dict(),
        "normalization": config.normalization.to_dict(),
        "structure": _structure(tuner, shapes),
        "turns": _turns(tuner),
        "step size": config.step_rule.to_dict() if config.step_rule is not None else None,
        "noise": f"{config.noise.kind} version {config.noise.version}",
        "recommended": {
            "lr": recommended.lr if recommended.lr is not None else "not determined",
            "epsilon": recommended.epsilon,
            "batch size": recommended.batch_size,
            **recommended.usage,
        },
        "sigma": _spread(sigma),
        "tasks": _tasks(provenance),
        "results": "below, and in the card" if provenance.get("results") else "none recorded",
        "use": f"zoft finetune --tuner {name} --task TASK",
        "cite": "arXiv 2510.00419 (--card has the entry)",
        "format": f"{config.format}, written by zoft {config.zoft_version}",
    }
    return {key: value for key, value in content.items() if value is not None}


def sigma_of(tuner: Tuner, model: nn.Module | None = None) -> Tensor:
    """σ of every block at the first step, float32 of shape [B], in the order of the tuner's rows.

    Args:
        model: the model whose block statistics are the features; without one every block is the average
            block of the base, or of a common initialisation where the tuner does not know its base.

    Raises:
        IncompatibleError: the tuner does not fit ``model``.
        UsageError: ``model`` has only some of the blocks.
    """
    config, count = tuner.config, len(tuner.config.blocks.names)
    if model is not None:
        bound, blocks = tuner.bind(model), Blocks.of(model)
        if len(blocks) != count:
            raise UsageError(f"the model has {len(blocks)} of the tuner's {count} blocks", "Unfreeze the others.")
        with torch.no_grad():
            sigma = bound.sigma(block_statistics(blocks), torch.zeros(2), torch.ones(count))
        row = {name: float(value) for name, value in zip(blocks.names, sigma, strict=True)}
        return torch.tensor([row[name] for name in config.blocks.names])
    mean, log_variance = config.constants.mean_shift, config.constants.log_variance_shift
    if config.constants == FeatureConstants():
        mean, log_variance = 0.0, 2 * math.log(COMMON_DEVIATION)
    average = torch.tensor([mean, math.exp(min(log_variance, 80.0))]).expand(count, 2)
    with torch.no_grad():
        kind = tuner.network.config.features
        return tuner.network(features(kind, config.constants, average, torch.zeros(2), torch.ones(count)))


def plot_sigma(file: Path, tuner: Tuner, sigma: Tensor, title: str) -> None:
    """A picture of σ by layer and module type, as PNG.

    Raises:
        UsageError: ``file`` cannot be written.
    """
    from matplotlib.colors import LogNorm, TwoSlopeNorm
    from matplotlib.figure import Figure

    kinds, layers, places = by_layer(tuner.config.blocks.names)
    grid = [[math.nan] * len(layers) for _ in kinds]
    for (row, column), value in zip(places, sigma.double().tolist(), strict=True):
        grid[row][column] = max(value, 1e-8)
    finite = [value for line in grid for value in line if math.isfinite(value)] or [1.0]
    least, most = min(finite), max(finite)
    wide = most / least > 20
    norm: Any = LogNorm(least, most) if wide else TwoSlopeNorm(1.0, min(least, 0.99), max(most, 1.01))
    figure = Figure(figsize=(2.8 + 0.28 * max(len(layers), 6), 1.3 + 0.26 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="viridis" if wide else "RdBu_r", norm=norm)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=7)
    step = max(1, len(layers) // 16)
    shown = range(0, len(layers), step)
    axes.set_xticks(shown, ["–" if layers[i] is None else str(layers[i]) for i in shown], fontsize=7)
    axes.set_xlabel("layer (–: in none)", fontsize=8)
    axes.set_title(title, fontsize=8)
    figure.colorbar(image, ax=axes, label="σ" + (", logarithmic" if wide else ""))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130, format="png")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}", "Give another file with --plot.") from None


def _base(tuner: Tuner) -> str:
    name = tuner.config.base_model_name_or_path or "unknown"
    return f"{name}@{tuner.config.base_model_revision}" if tuner.config.base_model_revision else name


def _structure(tuner: Tuner, shapes: Sequence[Sequence[int]]) -> str | None:
    structure = tuner.structure
    if structure is None:
        return None
    least, most = float(structure.share.min()), float(structure.share.max())
    share = f"{least:g}" if least == most else f"{least:.3g} to {most:.3g}"
    return f"{described(structure.config, shapes)}; learned share {share}"


def _turns(tuner: Tuner) -> str | None:
    if tuner.config.turns is None:
        return None
    blocks = tuner.config.blocks
    types = types_of(blocks.names, [shape is not None and len(shape) > 1 for shape in blocks.shapes])
    return " | ".join(parts_of(tuner.config.turns.of, types))


def _signature(tuner: Tuner) -> str:
    return f"signature {tuner.config.blocks.signature[:12]}" if tuner.config.blocks.signature else ""


def _tasks(provenance: dict[str, Any]) -> str:
    if provenance.get(CONVERTED):
        return "not recorded in the file that it was converted from"
    return ", ".join(provenance.get("tasks", [])) or "none: it is untrained"


def _spread(sigma: Tensor) -> dict[str, str]:
    quantiles = torch.quantile(sigma.double(), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    return {name: f"{value:.4g}" for name, value in zip(("least", "median", "greatest"), quantiles, strict=True)}
