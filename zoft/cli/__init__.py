"""The command line: one table of verbs, each in a file of its own that is imported when it is used.

``zoft --help`` and ``zoft --version`` import neither torch, transformers nor pydantic.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

from zoft.errors import ZoftError


class Verb(NamedTuple):
    """A verb: the module that has its ``command``, and one line of help."""

    module: str
    help: str


VERBS: dict[str, Verb] = {
    "meta-train": Verb("zoft.cli.meta_train", "Learn a tuner for a base model."),
    "finetune": Verb("zoft.cli.finetune", "Fine-tune a model with a tuner or a baseline method."),
    "evaluate": Verb("zoft.cli.evaluate", "Evaluate a model on a task: zero-shot, in context, linear probe."),
    "compare": Verb("zoft.cli.compare", "Compare methods on tasks: table, plots, JSON."),
    "tuner": Verb("zoft.cli.tuner", "Look at, share and convert tuners."),
    "env": Verb("zoft.cli.env", "Show versions and devices, for a bug report."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs' names and one-line helps, and imports a verb when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command; None for an unknown verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(VERBS[cmd_name].module).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with the nearest names in the error."""
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            from zoft.cli.console import nearest_sentence

            raise click.UsageError(nearest_sentence("command", name, VERBS), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib import metadata

        click.echo(f"zoft {metadata.version('zoft')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`zoft COMMAND --help` shows the flags and examples of a command.",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def cli() -> None:
    """Learned zeroth-order optimizers: fine-tune a model with forward passes alone."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a bug, 2 usage, 3 artifact, 4 incompatible, 5 diverged,
    6 does not fit, 130 and 143 interrupted.
    """
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    from zoft.cli import console

    console.quieten(debug, "--quiet" in given)
    try:
        code = cli.main(args=given, prog_name="zoft", standalone_mode=False)
    except (ZoftError, click.ClickException, click.Abort, KeyboardInterrupt) as error:
        if debug and not isinstance(error, click.ClickException):
            console.traceback()
        code = console.report(error)
    except BrokenPipeError:
        code = 0
    except Exception as error:
        if debug:
            console.traceback()
        code = console.report_bug(error)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)
