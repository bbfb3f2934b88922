"""The errors that a user can meet, each with the exit code of the command line.

Every error carries a cause (what was given and what is wrong with it) and a remedy (what to do).
The command line prints both, in one or two lines, and exits with ``exit_code``.
"""

from __future__ import annotations


class ZoftError(Exception):
    """Base of every error that zoft raises on purpose.

    Args:
        cause: what was given and why it cannot be used, one sentence.
        remedy: what the user can do about it, one sentence; may be empty.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}" if self.remedy else self.cause


class UsageError(ZoftError):
    """A wrong command, option, configuration, task, method or data file."""

    exit_code = 2


class ArtifactError(ZoftError):
    """A model, tuner or data set that cannot be had or read."""

    exit_code = 3


class IncompatibleError(ZoftError):
    """Two things that do not fit: a tuner and a model, a checkpoint and a configuration."""

    exit_code = 4


class DivergedError(ZoftError):
    """The loss is no longer finite, too many steps in a row."""

    exit_code = 5


class DoesNotFitError(ZoftError):
    """The model does not fit into the memory at hand."""

    exit_code = 6


class Interrupted(ZoftError):
    """The user interrupted, and everything that was computed is saved."""

    exit_code = 130
