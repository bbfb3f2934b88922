"""``zoft compare``."""

from __future__ import annotations

from typing import Any

import click

from finetune.compare_config import CompareConfig
from zoft.cli import console, flags
from zoft.errors import Interrupted

EXAMPLES = """
zoft compare --base zoft-base --optimizers mezo,hizoo --seeds 3 --output-dir runs/compare
zoft compare --base zoft-base --tuners mine=./my-tuner --tasks review-negation,question-type
zoft compare --tuners mine=./my-tuner --tasks mood,list-item --regimes tuned,untuned --budgets 600,2000
zoft compare --self-test
zoft compare --optimizers mezo,hizoo:smooth_scale=1e-4 --lr-mode fixed --lrs mezo=1e-4,hizoo:smooth_scale=1e-4=3e-5
"""


def run(
    config_file: str | None, dry_run: bool, quiet: bool, debug: bool, self_test: bool = False, **values: Any
) -> None:
    """Compare, then show the table; or test the instrument itself."""
    from finetune.methods import baselines

    if self_test:
        _self_test()
        return
    config = flags.build(CompareConfig, "compare", config_file, flags.given(values, CompareConfig))
    baselines(config)  # a wrong method or hyper-parameter is said before anything is loaded
    if dry_run or not quiet:
        click.echo(config.to_yaml().rstrip())
    if dry_run:
        return
    from finetune.compare import compare

    with console.terminating() as ended:
        try:
            comparison = compare(config, say=_nothing if quiet else _progress)
        except Interrupted as error:
            error.exit_code = 143 if ended else 130
            raise
    click.echo(comparison.table.rstrip())
    click.echo(comparison.verdict)
    click.echo(f"results: {comparison.folder}")


def _self_test() -> None:
    from finetune.self_test import self_test

    result = self_test()
    click.echo("\n".join(result.lines))
    if not result.passed:
        raise SystemExit(1)


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _nothing(line: str) -> None:
    pass


command = flags.verb(
    "compare",
    run,
    [
        *flags.config_options(CompareConfig, first=["base", "tasks", "optimizers", "tuners", "output_dir"]),
        click.Option(
            ["--self-test"],
            is_flag=True,
            help="Test the instrument itself, a minute or two: a planted gain must win, and nothing else.",
        ),
        *flags.common_options(),
    ],
    EXAMPLES,
    "Compare methods: every one at its own best learning rate, with the same number of forward passes, several seeds.",
)
