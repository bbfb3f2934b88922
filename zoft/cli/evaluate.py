"""``zoft evaluate``."""

from __future__ import annotations

import json
from typing import Any

import click

from finetune.evaluate import EvaluateConfig
from zoft.cli import flags

EXAMPLES = """
zoft evaluate --model zoft-base --task review-contrast
zoft evaluate --model runs/mine/final --task review-contrast --splits test --limit none
zoft evaluate --model zoft-base --task review-contrast --shots 8
zoft evaluate --model zoft-base --task review-contrast --linear-probe
zoft evaluate --model opt-1.3b --task boolq --data-dir data
zoft evaluate --model gpt2 --dataset reviews.jsonl --template "{text} Sentiment:" --json
"""


def run(config_file: str | None, dry_run: bool, quiet: bool, debug: bool, json_: bool, **values: Any) -> None:
    """Evaluate and print the figures."""
    from finetune.evaluate import evaluate
    from finetune.task import shown_examples

    config = flags.build(EvaluateConfig, "evaluate", config_file, flags.given(values, EvaluateConfig))
    if dry_run:
        click.echo(config.to_yaml().rstrip())
        click.echo("\n".join(shown_examples(config, config.model)), nl=False)
        return
    figures = evaluate(config)
    if json_:
        click.echo(json.dumps(figures, indent=2))
        return
    for split, values_of in figures.items():
        parts = "  ".join(f"{name} {value:.4f}" for name, value in values_of.items() if name != "examples")
        click.echo(f"{split:12}{parts}  ({values_of['examples']} examples)")


command = flags.verb(
    "evaluate",
    run,
    [
        *flags.config_options(EvaluateConfig),
        click.Option(["--json", "json_"], is_flag=True, help="Print the figures as JSON."),
        *flags.common_options(),
    ],
    EXAMPLES,
    "Evaluate a model on a task or on your own data: zero-shot, with demonstrations, or by a linear probe.",
)
