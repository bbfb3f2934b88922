"""``zoft finetune``."""

from __future__ import annotations

from typing import Any

import click

from finetune.config import FinetuneConfig
from finetune.first_order import METHODS
from zoft.cli import console, flags

EXAMPLES = """
zoft finetune --tuner my-tuner --task review-contrast
zoft finetune --model zoft-base --optimizer mezo --lr 1e-4 --task review-contrast --steps 500
zoft finetune --tuner my-tuner --dataset reviews.jsonl --template "{text} Sentiment:" --labels negative,positive
zoft finetune --model zoft-base --optimizer mezo --peft lora --lr 3e-2 --task review-contrast
zoft finetune --model zoft-base --optimizer adamw --lr 5e-5 --task review-contrast --steps 200
zoft finetune --config run.yaml --seed 1 --output-dir runs/second
zoft finetune --config run.yaml --resume
"""


def run(config_file: str | None, dry_run: bool, quiet: bool, debug: bool, resume: bool, **values: Any) -> None:
    """Resolve the configuration, fine-tune, and show the figures."""
    from finetune.plan import plan
    from finetune.run import finetune
    from finetune.task import shown_examples

    given = flags.given(values, FinetuneConfig)
    names = {key for method in METHODS.values() for key in method.model_fields} - set(FinetuneConfig.model_fields)
    hyper = {key: value for key, value in values.items() if key in names and value is not None}
    if hyper:
        given["hyper"] = hyper
    config = flags.build(FinetuneConfig, "finetune", config_file, given)
    planned = plan(config)
    quiet = quiet or not console.is_main_process()
    if dry_run or not quiet:
        click.echo(planned.config.to_yaml().rstrip())
        for line in planned.describe():
            click.echo(f"# {line}")
    if dry_run:
        click.echo("\n".join(shown_examples(planned.config, planned.config.model)), nl=False)
        return
    result = finetune(config, tuner=planned.tuner, resume=resume, reporters=[] if quiet else None)
    if not console.is_main_process():
        return
    click.echo("\n".join(_table(result.zero_shot, result.final)))
    click.echo(f"{result.forwards} forwards in {result.steps} steps, {result.seconds:.1f} s")
    click.echo(f"model: {result.folder / 'final'}")
    for note in result.warnings:
        click.echo(f"zoft: warning: {note}", err=True)


def _table(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"{'':12}{'':14}{'zero-shot':>10}{'final':>10}"]
    for split, figures in before.items():
        for name, value in figures.items():
            lines.append(f"{split:12}{name:14}{value:10.4f}{after[split][name]:10.4f}")
    return lines


command = flags.verb(
    "finetune",
    run,
    [
        *flags.config_options(
            FinetuneConfig, skip=["hyper"], first=["tuner", "model", "optimizer", "task", "dataset", "output_dir"]
        ),
        *flags.method_options(METHODS, taken=FinetuneConfig.model_fields),
        click.Option(["--resume"], is_flag=True, help="Go on with the unfinished run in --output-dir."),
        *flags.common_options(),
    ],
    EXAMPLES,
    "Fine-tune a model: with a tuner (--tuner), a zeroth-order method or a first-order baseline (--optimizer).",
)
