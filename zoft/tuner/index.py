"""The tuners that have a short name: pretrained_tuners/index.json."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from zoft.config import Config
from zoft.errors import ArtifactError
from zoft.names import Resolved, resolve
from zoft.tuner.config import CONFIG_FILE, WEIGHTS_FILE

#: Beside the packages, in a source checkout as in an installation.
BUNDLED = Path(__file__).resolve().parents[2] / "pretrained_tuners"

INDEX_FILE = "index.json"

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=96)]
_Location = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][\w.-]*|[A-Za-z0-9][\w.-]*/[\w.-]+@[0-9a-f]{40})$")]
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Entry(Config):
    """A tuner with a short name."""

    location: _Location = Field(description="A folder beside the index, or user/repo@commit on the Hub.")
    base: str = Field(min_length=1, description="The base model.")
    sha256: _Hash = Field(description="Hash of tuner.safetensors.")
    licence: str = Field(min_length=1, description="SPDX identifier of the tuner's licence.")

    @property
    def on_hub(self) -> bool:
        """Whether the tuner is downloaded."""
        return "/" in self.location


class Index(Config):
    """index.json."""

    format: int = Field(1, ge=1, le=1, description="Version of the index.")
    tuners: dict[_Name, Entry] = Field(default_factory=dict, description="The tuners by their short names.")


def read_index(folder: Path = BUNDLED) -> Index:
    """The index in ``folder``; an empty one where there is none.

    Raises:
        ArtifactError: it is not what it should be.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        return Index()
    try:
        return Index.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{file} is damaged: {reason}", "Install zoft again.") from None


@cache
def _bundled() -> Index:
    return read_index()


def resolve_tuner(name: str) -> Resolved:
    """Where the tuner ``name`` is; see :mod:`zoft.names`.

    Raises:
        UsageError: no such name.
    """
    short = {
        known: entry.location if entry.on_hub else str(BUNDLED / entry.location)
        for known, entry in _bundled().tuners.items()
    }
    return resolve(name, "tuner", (CONFIG_FILE,), short)


def check_listed(name: str, weights: Path) -> None:
    """Compare the weights with the index's hash, if ``name`` is a name in it.

    Raises:
        ArtifactError: they differ.
    """
    entry = _bundled().tuners.get(name)
    if entry is not None and sha256_of(weights) != entry.sha256:
        raise ArtifactError(f"{weights} is not the tuner that the index lists as {name}", "Install zoft again.")


def sha256_of(file: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_index(index: Index, folder: Path = BUNDLED) -> None:
    """Write ``index``, with the hashes of the folders as they are."""
    tuners = {
        name: entry
        if entry.on_hub
        else entry.model_copy(update={"sha256": sha256_of(folder / entry.location / WEIGHTS_FILE)})
        for name, entry in sorted(index.tuners.items())
    }
    content = Index(tuners=tuners).to_dict()
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
