"""Configurations: frozen pydantic models that go to and from YAML and command-line flags.

A configuration class derives from :class:`Config`; every field is ``Field(default, description=...)``
and the description is the help text of its flag. Unknown keys are errors that name the nearest known
ones, and all errors of a file are reported at once.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zoft.errors import UsageError


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The ``known`` names nearest to ``name``, best first; at most ``count``, possibly none."""
    folded = {candidate.lower().replace("_", "-"): candidate for candidate in known}
    hits = difflib.get_close_matches(name.lower().replace("_", "-"), folded, n=count, cutoff=0.5)
    return [folded[hit] for hit in hits]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence: ``kind`` has no ``name``, and the nearest names (or all of them when few)."""
    known = list(known)
    close = nearest(name, known)
    if close:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(close)}?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"unknown {kind} {name!r}; known: {listed}"


class Config(BaseModel):
    """Base of all configurations: frozen, strict about keys, no NaN or infinity, round-trips through YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def build(cls, values: Mapping[str, Any] | None = None, *, source: str = "configuration") -> Self:
        """Validate ``values``.

        Raises:
            UsageError: naming every wrong key and value at once, with the nearest known keys.
        """
        try:
            return cls.model_validate(dict(values or {}))
        except ValidationError as error:
            lines = [_sentence(cls, item) for item in error.errors()]
            remedy = "" if any("did you mean" in line for line in lines) else "Correct the value."
            raise UsageError(f"{source}: " + "; ".join(lines), remedy) from None

    @classmethod
    def load(
        cls,
        file: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge ``base`` < YAML ``file`` < ``overrides`` and validate the result.

        Args:
            file: a YAML mapping, or None.
            overrides: values that win (command-line flags); None values count as not given.
            base: values below the file, for instance a named recipe.

        Raises:
            UsageError: the file cannot be read, is not a mapping, or holds wrong keys or values.
        """
        values: dict[str, Any] = dict(base or {})
        if file is not None:
            values.update(read_yaml(file))
        values.update({key: value for key, value in (overrides or {}).items() if value is not None})
        return cls.build(values, source=str(file) if file is not None else cls.__name__)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, in the order of the fields."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """YAML that :meth:`load` reads back to an equal configuration."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: the file is missing, is not valid YAML, or is not a mapping.
    """
    path = Path(file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", "Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML: {reason}", "Correct the file.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path} is not a mapping of names to values", "Write one `name: value` a line.")
    return content


def _sentence(cls: type[BaseModel], item: Any) -> str:
    """One validation error as a clause: the key, what is wrong, what was given."""
    location = [str(part) for part in item["loc"]]
    owner = _owner(cls, location[:-1])
    if item["type"] == "extra_forbidden" and owner is not None:
        return unknown("key", location[-1], owner.model_fields)
    message = item["msg"].removeprefix("Value error, ")
    if not location:
        return message
    given = f"{item['input']!r}"
    told = given in message
    if item["type"] == "value_error":
        # Our own validators say what they were given, and which part of a mapping or list is wrong.
        told = told or isinstance(item["input"], Mapping | list | tuple) or str(item["input"]) in message
    suffix = "" if told else f" (given: {given})"
    return f"{'.'.join(location)}: {message[:1].lower()}{message[1:]}{suffix}"


def _owner(cls: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model class that holds the last key of ``path``, following nested configurations."""
    owner: type[BaseModel] | None = cls
    for name in path:
        if owner is None or name not in owner.model_fields:
            return None
        owner = _model_in(owner.model_fields[name].annotation)
    return owner


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as ``Network | None``, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
    return None
