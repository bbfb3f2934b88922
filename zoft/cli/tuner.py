"""``zoft tuner``: show, list, pull, push and convert."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import click

from zoft.cli import flags
from zoft.errors import ArtifactError, UsageError

SHOW = """
zoft tuner show zoft-base-default
zoft tuner show ./my-tuner --plot sigma.png --model zoft-base
zoft tuner show user/llama-3.2-1b-tuner@v1 --json
"""

LIST = """
zoft tuner list
zoft tuner list --hub --base meta-llama/Llama-3.2-1B
"""

PULL = """
zoft tuner pull user/llama-3.2-1b-tuner my-copy
zoft tuner pull hf://user/tuners@v1/llama-3.2-1b my-copy
"""

PUSH = """
zoft tuner push ./my-tuner user/llama-3.2-1b-tuner
zoft tuner push ./my-tuner user/llama-3.2-1b-tuner --private --results runs/compare/compare.json
zoft tuner push ./my-tuner somebody/their-tuner --create-pr --message "Learned for longer"
"""

CONVERT = """
zoft tuner convert llama1B_finetuner.pth --base llama-3.2-1b --output-dir converted
"""


def show(name: str, model: str | None, plot: str | None, card: bool, json_: bool, debug: bool, **hub: Any) -> None:
    """Print what a tuner is; draw its σ."""
    from zoft.tuner import Tuner
    from zoft.tuner.card import card as written
    from zoft.tuner.card import results_table
    from zoft.tuner.show import COMMON_DEVIATION, describe, plot_sigma, sigma_of

    tuner = Tuner.from_pretrained(name, **hub)
    loaded = None
    if model is not None:
        from zoft.models import load_model

        loaded = load_model(model)
    sigma = sigma_of(tuner, loaded.model if loaded else None)
    described = describe(tuner, name, sigma)
    if plot is not None:
        blocks = f"the blocks of {model}" if model else f"an average block (of N(0, {COMMON_DEVIATION}²) if unknown)"
        plot_sigma(Path(plot), tuner, sigma, f"σ of {name} at {blocks}, before the first step")
    if json_:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False))
        return
    if card:
        click.echo(written(tuner.config, tuner.provenance, name).rstrip())
        return
    for key, value in described.items():
        text = ", ".join(f"{part} {item}" for part, item in value.items()) if isinstance(value, dict) else value
        click.echo(f"{key:14}{text}")
    if plot is not None:
        click.echo(f"{'plot':14}{plot}")
    if "results" in tuner.provenance:
        click.echo("\n" + results_table(tuner.provenance["results"]))


def list_(hub: bool, base: str | None, author: str | None, json_: bool, debug: bool) -> None:
    """Print the tuners with short names, or those on the Hub."""
    from zoft.names import resolve_model
    from zoft.tuner.index import read_index

    repo = None
    if base is not None:
        resolved = resolve_model(base)
        repo = base if resolved.is_local else resolved.path_or_repo
    rows: list[dict[str, Any]]
    if hub:
        from zoft.tuner.hub import search

        rows = [
            {"name": found.repo, "base": found.base, "where": f"{found.downloads} downloads"}
            for found in search(repo, author)
        ]
    else:
        tuners = read_index().tuners.items()
        rows = [
            {"name": name, "base": entry.base, "where": entry.location if entry.on_hub else "comes with zoft"}
            for name, entry in tuners
            if repo in (None, entry.base)
        ]
    if json_:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"{row['name']:32} {row['base'] or 'base not named':32} {row['where']}")
    if not rows:
        click.echo("none" + ("" if hub else "; --hub looks on the Hub"))


def pull(name: str, folder: str, debug: bool, **hub: Any) -> None:
    """Download a tuner, check it, and copy its files."""
    from zoft.tuner import Tuner
    from zoft.tuner.config import FILES
    from zoft.tuner.hub import fetch
    from zoft.tuner.index import resolve_tuner

    place, target = resolve_tuner(name), Path(folder)
    if place.is_local:
        raise UsageError(f"{name} is a local folder already", "Give user/repo on the Hub.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty", "Give another folder.")
    source, commit = fetch(place, with_card=True, **hub)
    Tuner.from_folder(source)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, target / file)
    except OSError as error:
        raise UsageError(f"cannot write to {target}: {error.strerror}", "Give another folder.") from None
    click.echo(f"{place.path_or_repo} at commit {commit}")
    click.echo(f"tuner: {target}")


def push(
    name: str,
    repo: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    results: str | None,
    debug: bool,
) -> None:
    """Upload a tuner with its card."""
    from zoft.tuner import Tuner

    tuner = Tuner.from_pretrained(name)
    if results is not None:
        tuner = tuner.with_results(results)
    address = tuner.push_to_hub(
        repo, private=private or None, revision=revision, create_pr=create_pr, commit_message=message
    )
    click.echo(address)
    if not create_pr:
        click.echo(f"Use it with `zoft finetune --tuner {repo}{f'@{revision}' if revision else ''} --task ...`.")


def convert(file: str, base: str, output_dir: str, debug: bool) -> None:
    """Read a published tuner and write it in zoft's layout."""
    from zoft.models import base_blocks
    from zoft.names import EMBEDDED, resolve_model
    from zoft.tuner.convert import convert as read

    resolved = resolve_model(base)
    target = Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty", "Give another folder with --output-dir.")
    try:
        blocks, commit = base_blocks(base)
    except ArtifactError as error:
        warnings.warn(
            f"{error.cause}: the names in the file are not checked, and the shapes stay unknown", stacklevel=1
        )
        blocks, commit = None, None
    label = EMBEDDED if base == EMBEDDED else resolved.path_or_repo
    tuner = read(file, label, commit, blocks)
    tuner.save_pretrained(target)
    checked = f"names and shapes as in {label}" if blocks else "names not checked"
    click.echo(f"{len(tuner.config.blocks.names)} networks of {tuner.config.network.hidden} hidden units, {checked}")
    click.echo(f"tuner: {target}")


_NAME = click.Argument(["name"], metavar="TUNER")
_JSON = click.Option(["--json", "json_"], is_flag=True, help="Print it as JSON.")
_HUB_OPTIONS = [
    click.Option(["--cache-dir"], metavar="DIR", help="The Hub's cache; by default that of HF_HOME."),
    click.Option(["--local-files-only"], is_flag=True, help="Take what is in the cache, without asking the Hub."),
    click.Option(["--force-download"], is_flag=True, help="Download again what is in the cache."),
]

command = click.Group(
    "tuner",
    commands=[
        flags.Command(
            "show",
            callback=show,
            params=[
                _NAME,
                click.Option(["--plot"], metavar="FILE.png", help="Draw sigma by layer and module type."),
                click.Option(["--card"], is_flag=True, help="Print the whole card."),
                click.Option(["--model"], metavar="MODEL", help="Take sigma at this model's blocks."),
                _JSON,
                *_HUB_OPTIONS,
                flags.debug_option(),
            ],
            help="Show a tuner, wherever it is: its base, blocks, settings, and the spread of sigma over the blocks.",
            epilog=SHOW,
        ),
        flags.Command(
            "list",
            callback=list_,
            params=[
                click.Option(["--hub"], is_flag=True, help="Those on the Hub, by their tag, in place of short names."),
                click.Option(["--base"], metavar="MODEL", help="Only tuners for this base."),
                click.Option(["--author"], metavar="USER", help="On the Hub, only this user's or organisation's."),
                _JSON,
                flags.debug_option(),
            ],
            help="List the tuners that have a short name, or those on the Hub.",
            epilog=LIST,
        ),
        flags.Command(
            "pull",
            callback=pull,
            params=[
                _NAME,
                click.Argument(["folder"], metavar="FOLDER"),
                *_HUB_OPTIONS,
                flags.debug_option(),
            ],
            help="Download a tuner from the Hub into a folder, and check it. Using one needs no pull.",
            epilog=PULL,
        ),
        flags.Command(
            "push",
            callback=push,
            params=[
                _NAME,
                click.Argument(["repo"], metavar="USER/REPO"),
                click.Option(["--private"], is_flag=True, help="Make a new repository private."),
                click.Option(["--revision"], metavar="BRANCH", help="Push to this branch; made if there is none."),
                click.Option(["--create-pr"], is_flag=True, help="Open a pull request in place of a commit."),
                click.Option(["--message"], metavar="TEXT", help="Message of the commit."),
                click.Option(["--results"], metavar="compare.json", help="Results for the card."),
                flags.debug_option(),
            ],
            help="Upload a tuner to the Hub, with a card made anew. The token is HF_TOKEN or that of `hf auth login`.",
            epilog=PUSH,
        ),
        flags.Command(
            "convert",
            callback=convert,
            params=[
                click.Argument(["file"], metavar="FILE.pth"),
                click.Option(["--base"], required=True, metavar="MODEL", help="The base that it was learned on."),
                click.Option(["--output-dir"], required=True, metavar="DIR", help="Folder of the converted tuner."),
                flags.debug_option(),
            ],
            help="Convert a published tuner (a pickle) without running a byte of it.",
            epilog=CONVERT,
        ),
    ],
    help="Look at, share and convert tuners.",
)
