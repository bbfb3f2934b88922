"""``zoft tuner``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zoft.cli import flags

EXAMPLES = """
zoft tuner show my-tuner
zoft tuner show my-tuner --json
"""


def show(folder: str, json_: bool, debug: bool) -> None:
    """Print what a tuner is."""
    from zoft.tuner import Tuner

    described = _described(Tuner.from_pretrained(Path(folder).expanduser()), folder)
    if json_:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False))
        return
    for name, value in described.items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:14}{text}")


def _described(tuner: Any, folder: str) -> dict[str, Any]:
    config = tuner.config
    sizes = [_numel(shape) for shape in config.blocks.shapes]
    recommended = config.recommended
    return {
        "tuner": folder,
        "base": _base(config),
        "blocks": f"{len(sizes)}, {sum(sizes):,} parameters, signature {config.blocks.signature[:12]}",
        "network": config.network.to_dict(),
        "normalization": config.normalization.to_dict(),
        "noise": f"{config.noise.kind} version {config.noise.version}",
        "recommended": {
            "lr": recommended.lr if recommended.lr is not None else "not determined",
            "epsilon": recommended.epsilon,
            "batch size": recommended.batch_size,
        },
        "sigma": _sigma(tuner),
        "tasks": ", ".join(tuner.provenance.get("tasks", [])) or "none: it is untrained",
        "format": f"{config.format}, written by zoft {config.zoft_version}",
    }


def _base(config: Any) -> str:
    name = config.base_model_name_or_path or "unknown"
    return f"{name}@{config.base_model_revision}" if config.base_model_revision else name


def _sigma(tuner: Any) -> dict[str, str]:
    """Spread of sigma over the blocks at the features of an average block, before the first step."""
    import torch

    from zoft.tuner.features import features

    constants = tuner.config.constants
    average = torch.tensor([constants.mean_shift, constants.log_variance_shift])
    average[1] = average[1].exp()
    count = len(tuner.config.blocks.names)
    with torch.no_grad():
        inputs = features(
            tuner.network.config.features, constants, average.expand(count, 2), torch.zeros(2), torch.ones(count)
        )
        sigma = tuner.network(inputs).double()
    quantiles = torch.quantile(sigma, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    return {name: f"{value:.4g}" for name, value in zip(("least", "median", "greatest"), quantiles, strict=True)}


def _numel(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


command = click.Group(
    "tuner",
    commands=[
        flags.Command(
            "show",
            callback=show,
            params=[
                click.Argument(["folder"], metavar="FOLDER"),
                click.Option(["--json", "json_"], is_flag=True, help="Print it as JSON."),
                flags.debug_option(),
            ],
            help="Show a tuner: its base, blocks, settings, and the spread of sigma over the blocks.",
            epilog=EXAMPLES,
        )
    ],
    help="Look at tuners.",
)
