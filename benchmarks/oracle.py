"""What can static scales, or shares of a structured part, give at best? CMA-ES on the outcome of whole runs.

    python benchmarks/oracle.py --output-dir runs/oracle [--search scales|share] [--dry-run]

See finetune/oracle.py for what is searched and how. Needs `pip install 'zoft[research]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.oracle_config import OracleConfig
from zoft.cli import console, flags
from zoft.errors import ZoftError

ABOUT = """What can static scales, or shares of a structured part, give at best? CMA-ES on the outcome of whole runs.
A run of 600 forward passes on the embedded base takes about 13 s of one core, so that a generation of 8 candidates on
3 tasks with one seed takes about 5 minutes, and the default search (15 generations, 4 tasks, MeZO's own search of the
same size, and the reported runs) about 4 hours of one core. --dry-run makes a few short runs and says what this search
would take here. It can be interrupted; the same command goes on."""

EXAMPLES = """
python benchmarks/oracle.py --output-dir runs/oracle --dry-run
python benchmarks/oracle.py --base ./runs/bases/qwen2 --generations 10 --output-dir runs/oracle-qwen2
python benchmarks/oracle.py --search share --tuner ./my-structured-tuner --output-dir runs/oracle-share
"""


def run(config_file: str | None, dry_run: bool, quiet: bool, debug: bool, **values: Any) -> None:
    """Search, then show the table."""
    config = flags.build(OracleConfig, "oracle", config_file, flags.given(values, OracleConfig))
    click.echo(config.to_yaml().rstrip())
    console.quieten(debug, quiet)
    from finetune.oracle import run_oracle
    from finetune.oracle_cost import cost

    if dry_run:
        for line in cost(config):
            click.echo(line)
        return
    with console.terminating():
        found = run_oracle(config, say=_nothing if quiet else _progress)
    click.echo(found.table)
    click.echo(f"results: {found.folder}")


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _nothing(line: str) -> None:
    pass


command = flags.verb(
    "oracle",
    run,
    [
        *flags.config_options(OracleConfig, first=["base", "search", "tasks", "tuner", "output_dir"]),
        *flags.common_options(),
    ],
    EXAMPLES,
    " ".join(ABOUT.split()),
)


def main() -> int:
    """The command; the exit code."""
    try:
        command.main(standalone_mode=False)
    except (ZoftError, click.ClickException) as error:
        if "--debug" in sys.argv:
            console.traceback()
        return console.report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
