"""Flags from configurations: every field of a Config class becomes an option with its description."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import click
from pydantic.fields import FieldInfo

from zoft.config import Config, nearest, read_yaml

C = TypeVar("C", bound=Config)

#: Between the names of nested fields in the parameter names that click sees.
_NESTED = "__"


class Command(click.Command):
    """A verb: unknown flags are answered with the nearest ones, and the epilog keeps its line breaks."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with the nearest names for an unknown flag."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flags = [flag for param in self.get_params(ctx) for flag in (*param.opts, *param.secondary_opts)]
            close = [f"--{name}" for name in nearest(error.option_name.lstrip("-"), [f.lstrip("-") for f in flags])]
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"unknown flag {error.option_name}{hint}", ctx) from None
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, as written."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Examples:\n")
            for line in self.epilog.strip().splitlines():
                formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")


def config_options(config: type[Config], skip: Iterable[str] = (), first: Sequence[str] = ()) -> list[click.Parameter]:
    """An option for every field of ``config``, nested configurations flattened with a dash.

    Lists are comma separated, mappings ``name=value,...``. No option has a default, so that what the user
    gave can be told from the rest; the defaults are shown. The fields ``first`` come first, ``skip`` not at all.
    """
    names = [*first, *(name for name in config.model_fields if name not in first)]
    return [option for name in names if name not in skip for option in _options(config, name, ())]


def method_options(methods: Mapping[str, type[Config]], taken: Iterable[str]) -> list[click.Parameter]:
    """An option for every hyper-parameter of the methods, each once, with the methods that have it."""
    owners: dict[str, list[str]] = {}
    for name, method in methods.items():
        for key in method.model_fields:
            if key not in (*taken, "tuner"):
                owners.setdefault(key, []).append(name)
    options: list[click.Parameter] = []
    for key, names in owners.items():
        field = methods[names[0]].model_fields[key]
        only = "" if len(names) == len(methods) else f" ({', '.join(names)})"
        options.append(_option((key,), field, only))
    return options


def common_options() -> list[click.Parameter]:
    """The options that every verb with a configuration has."""
    return [
        click.Option(["--config", "config_file"], metavar="FILE.yaml", help="Configuration file; flags win over it."),
        click.Option(["--dry-run"], is_flag=True, help="Print the resolved configuration and exit."),
        click.Option(["--quiet"], is_flag=True, help="No progress, only errors and warnings."),
        debug_option(),
    ]


def debug_option() -> click.Option:
    """``--debug``, which every verb has."""
    return click.Option(["--debug"], is_flag=True, help="Show tracebacks and the libraries' own messages.")


def given(values: Mapping[str, Any], config: type[Config]) -> dict[str, Any]:
    """The fields of ``config`` that the user gave as flags, nested again; ``none`` empties an optional one."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        path = name.split(_NESTED)
        if value is None or path[0] not in config.model_fields:
            continue
        target, owner = nested, config
        for part in path[:-1]:
            target = target.setdefault(part, {})
            owner = _bare(owner.model_fields[part].annotation)
        optional = type(None) in typing.get_args(owner.model_fields[path[-1]].annotation)
        empty = isinstance(value, str) and value.lower() in ("none", "null")
        target[path[-1]] = None if empty and optional else value
    return nested


def build(
    config: type[C],
    verb: str,
    file: str | None,
    flags: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
) -> C:
    """``base`` < YAML ``file`` < ``flags``; nested mappings are merged by key.

    Raises:
        UsageError: every wrong key and value at once.
    """
    values = merged(base or {}, read_yaml(file) if file else {}, flags)
    return config.build(values, source=file or f"zoft {verb}")


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged by key, later ones win, nested ones likewise."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _options(config: type[Config], name: str, path: tuple[str, ...]) -> Iterable[click.Option]:
    """The options of one field: one, or those of the configuration that it holds."""
    field = config.model_fields[name]
    inner = _bare(field.annotation)
    if isinstance(inner, type) and issubclass(inner, Config):
        for part in inner.model_fields:
            yield from _options(inner, part, (*path, name))
    else:
        yield _option((*path, name), field)


def _option(path: tuple[str, ...], field: FieldInfo, note: str = "") -> click.Option:
    flag = "--" + "-".join(path).replace("_", "-")
    kind = _bare(field.annotation)
    text = (field.description or "") + note
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if default not in (None, [], {}, ""):
        shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        text += f"  [default: {shown}]"
    name = _NESTED.join(path)
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=text)
    if typing.get_origin(kind) is Literal:
        return click.Option(
            [flag, name], type=click.STRING, metavar="|".join(map(str, typing.get_args(kind))), help=text
        )
    if typing.get_origin(kind) in (list, tuple) or kind in (list, tuple):
        return click.Option([flag, name], metavar="A,B,...", callback=_split, help=text)
    if typing.get_origin(kind) is dict or kind is dict:
        return click.Option([flag, name], metavar="A=X,B=Y", callback=_pairs, help=text)
    # The configuration validates: its errors are reported together with all the others.
    metavar = {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT") if isinstance(kind, type) else "VALUE"
    return click.Option([flag, name], type=click.STRING, metavar=metavar, help=text)


def _bare(annotation: Any) -> Any:
    """The annotation without ``| None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return parts[0] if len(parts) == 1 else annotation
    return annotation


def _split(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def _pairs(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str] | None:
    if value is None:
        return None
    # At the last sign: a name may hold one itself (hizoo:smooth_scale=1e-4).
    pairs = [part.rpartition("=") for part in value.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter(f"{value!r} is not name=value,name=value", ctx, param)
    return {name.strip(): text.strip() for name, _, text in pairs}


def verb(
    name: str, run: Callable[..., Any], options: Iterable[click.Parameter], examples: str, help: str
) -> click.Command:
    """The command of a verb."""
    return Command(name, callback=run, params=list(options), help=help, epilog=examples, no_args_is_help=False)
