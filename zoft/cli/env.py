"""``zoft env``."""

from __future__ import annotations

import platform

import click

from zoft.cli import flags


def run(debug: bool) -> None:
    """Print versions and devices."""
    import torch

    from zoft.runs.folder import versions

    rows = dict(versions())
    rows["platform"] = platform.platform()
    rows["cpu"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows["cuda"] = f"{torch.version.cuda}: {', '.join(cuda)}" if cuda else "none"
    rows["mps"] = "yes" if torch.backends.mps.is_available() else "no"
    for name, value in rows.items():
        click.echo(f"{name:14}{value}")


command = flags.verb("env", run, [flags.debug_option()], "zoft env", "Show versions and devices, for a bug report.")
