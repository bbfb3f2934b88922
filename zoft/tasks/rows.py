"""Rows of one's own data, by split: from JSONL, JSON, CSV, TSV and parquet files, folders, and the Hub.

Every row remembers its file and number, so that an error can name them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoft.errors import ArtifactError, UsageError, ZoftError

#: The names that a split may have in a file's name or on the Hub.
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[^@:\s]+))?")


@dataclass(frozen=True)
class Row:
    """One row: its values by column, the file (or Hub split) that it is from, and its number there from 1."""

    values: dict[str, Any]
    source: str
    number: int

    @property
    def where(self) -> str:
        """``file, row number``, for errors."""
        return f"{self.source}, row {self.number}"


def read_splits(name: str) -> tuple[str, dict[str, list[Row]]]:
    """The data set's short name, and the rows of those splits that it has: ``train`` always.

    Raises:
        ArtifactError: there is no such file, folder or Hub data set, or the Hub cannot be reached.
        UsageError: a file that cannot be read as what its suffix says, a folder without a train file, or a
            split without rows.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve().name, _read_folder(path)
    if path.is_file():
        base, files = _siblings(path)
        return base, {split: _some(list(read_file(file)), split, str(file)) for split, file in files.items()}
    match = _HUB_NAME.fullmatch(name)
    if match is None or path.suffix in SUFFIXES or name.startswith((".", "/", "~")):
        raise ArtifactError(
            f"there is no file or folder {name}",
            f"Give a {', '.join(SUFFIXES)} file, a folder with train files, or user/name on the Hub.",
        )
    return match["repo"].split("/")[1], _read_hub(match["repo"], match["config"], match["revision"])


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one file; a JSONL or CSV row's number is the line that it ends on.

    Raises:
        UsageError: an unknown suffix, or a content that is not what the suffix says; names the row.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: unknown kind of file", f"Use one of {', '.join(SUFFIXES)}.")
    try:
        for number, values in _parse(path):
            if not isinstance(values, dict):
                raise UsageError(f"{path}, row {number}: not an object", "Write one JSON object a row.")
            yield Row(values, str(path), number)
    except ZoftError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: Unicode, JSON and parquet errors
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read: {reason}", f"Give a valid {path.suffix} file.") from error


def _parse(path: Path) -> Iterator[tuple[int, Any]]:
    """``(number, values)`` of every row of a file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
        return
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".csv", ".tsv"):
        delimiter = "\t" if path.suffix == ".tsv" else ","
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        for values in reader:
            if None in values:
                raise UsageError(
                    f"{path}, row {reader.line_num}: more fields than columns", "Quote fields that hold commas."
                )
            yield reader.line_num, values
    elif path.suffix == ".json" and text.lstrip().startswith("["):
        yield from enumerate(json.loads(text), start=1)
    else:
        # Not splitlines(): JSON strings may hold line separators such as U+2028 as they are.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _json(line, path, number)


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path}, row {number}: not valid JSON ({error})", "Correct the line.") from None


def _siblings(path: Path) -> tuple[str, dict[str, Path]]:
    """Short name, and the files by split: the file itself as ``train``, and its siblings by name.

    ``X.train.jsonl`` has the siblings ``X.validation.jsonl`` and ``X.test.jsonl`` where they exist.
    """
    match = re.fullmatch(r"(?P<base>.*?)(?P<mark>[._-]?)train", path.stem)
    if match is None or (match["base"] and not match["mark"]):
        return path.stem, {"train": path}
    files = {"train": path}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            sibling = path.with_name(f"{match['base']}{match['mark']}{name}{path.suffix}")
            if sibling.is_file():
                files.setdefault(split, sibling)
    return match["base"] or path.resolve().parent.name, files


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    """The splits of a folder: files whose names begin with a split's name, such as ``train-00000.parquet``."""
    found: dict[str, list[Row]] = {}
    for file in sorted(folder.iterdir()):
        split = _split_of(re.split(r"[._-]", file.name)[0])
        if split is not None and file.suffix in SUFFIXES:
            found.setdefault(split, []).extend(read_file(file))
    found = {split: _some(rows, split, str(folder)) for split, rows in found.items()}
    if "train" not in found:
        raise UsageError(
            f"{folder} has no train file", "Name the files train.jsonl, validation.jsonl and test.jsonl (or .csv, ...)."
        )
    return found


def _some(rows: list[Row], split: str, source: str) -> list[Row]:
    """``rows``; raises a UsageError where there are none."""
    if not rows:
        raise UsageError(f"{source}: the {split} split is empty: it has no row 1", "Give it at least one row.")
    return rows


def _split_of(name: str) -> str | None:
    """The split that ``name`` is a name of."""
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def load_hub(repo: str, config: str | None, revision: str | None, **options: Any) -> Any:
    """A data set on the Hub, or in the local cache, as the ``datasets`` library gives it.

    Raises:
        ArtifactError: it cannot be had.
        UsageError: it has several configurations and none, or an unknown one, is named.
    """
    import datasets

    try:
        return datasets.load_dataset(repo, config, revision=revision, **options)
    except Exception as error:
        kinds = {base.__name__ for base in type(error).__mro__}
        reason = " ".join(str(error).split())[:300]
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            raise UsageError(f"{repo}: {reason}", f"Name the configuration: {repo}:NAME.") from error
        if kinds & {"ConnectionError", "OfflineModeIsEnabled"}:
            raise ArtifactError(
                f"data set {repo} is not in the local cache, and the Hub cannot be reached",
                "Check the connection (and that HF_HUB_OFFLINE is not set), or give a file.",
            ) from error
        raise ArtifactError(
            f"data set {repo} cannot be loaded: {reason}",
            "Check the name, the revision, and your access (`hf auth login` or HF_TOKEN).",
        ) from error


def _read_hub(repo: str, config: str | None, revision: str | None) -> dict[str, list[Row]]:
    """The splits of a data set on the Hub, or in the local cache of the ``datasets`` library."""
    loaded = load_hub(repo, config, revision)
    found: dict[str, list[Row]] = {}
    for name, data in loaded.items():
        split = _split_of(str(name))
        if split is not None:
            found[split] = _some(list(_hub_rows(data, f"{repo} ({name})")), split, repo)
    if "train" not in found:
        raise UsageError(f"data set {repo} has no train split (it has {', '.join(map(str, loaded))})")
    return found


def _hub_rows(data: Iterable[dict[str, Any]], source: str) -> Iterator[Row]:
    """Rows of a split, class labels by their names; a label of -1, which means a hidden one, becomes None."""
    features: dict[str, Any] = getattr(data, "features", None) or {}
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}
    for number, values in enumerate(data, start=1):
        row = dict(values)
        for column, labels in names.items():
            index = row[column]
            row[column] = labels[index] if isinstance(index, int) and index >= 0 else None
        yield Row(row, source, number)
