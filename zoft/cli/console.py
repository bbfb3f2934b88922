"""What a user sees: errors in one or two lines, warnings in one, and nobody else's chatter."""

from __future__ import annotations

import difflib
import logging
import os
import signal
import sys
import traceback as traceback_module
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from zoft.errors import UsageError, ZoftError


def nearest_sentence(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown KIND 'NAME'`` with the nearest names, or all; as ``zoft.config.unknown``, without pydantic."""
    names = list(known)
    close = difflib.get_close_matches(name, names, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def report(error: BaseException) -> int:
    """Print cause and remedy on standard error.

    Returns:
        The exit code.
    """
    if isinstance(error, ZoftError):
        _line(f"zoft: error: {error.cause}")
        if error.remedy:
            _line(error.remedy)
        return error.exit_code
    if isinstance(error, click.ClickException):
        message, remedy = _usage(error)
        _line(f"zoft: error: {message}")
        _line(remedy)
        return UsageError.exit_code
    _line("zoft: interrupted")
    return 130


def report_bug(error: Exception) -> int:
    """Say that an unexpected error is a bug."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    _line(f"zoft: error: this is a bug: {text[:300]}")
    if "--debug" not in sys.argv:
        _line("Run the command again with --debug for the traceback, and report it with the output of `zoft env`.")
    return 1


def traceback() -> None:
    """Print the current exception's traceback."""
    traceback_module.print_exc()


class _Lines(logging.Handler):
    """Shows zoft's own messages, such as the commit that a name stood for, in one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message on standard error, whatever that is by now."""
        _line(f"zoft: {record.getMessage()}")


def quieten(debug: bool, quiet: bool = False) -> None:
    """Show zoft's own warnings in one line each, and no other library's messages; all of them with ``debug``.

    With ``quiet`` zoft's messages are left out as well, not its warnings.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logger = logging.getLogger("zoft")
    logger.setLevel(logging.WARNING if quiet or not is_main_process() else logging.INFO)
    logger.handlers, logger.propagate = [_Lines()], False
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", module=r"(zoft|finetune|meta_train)\b")
    warnings.showwarning = _show_warning


@contextmanager
def terminating() -> Iterator[list[int]]:
    """Within: SIGTERM acts as Ctrl-C does; the list then holds its number."""
    ended: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, previous)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _line("zoft: warning: " + " ".join(str(message).split()))


def _usage(error: click.ClickException) -> tuple[str, str]:
    message = " ".join(error.format_message().split())
    message = message[:1].lower() + message[1:].rstrip(".")
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "zoft"
    return message, f"See `{path} --help`."


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
