"""One split of a published data set, whose rows are read one at a time: from local files or from the Hub.

The largest of them has half a million rows, of which a task uses 2,500.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoft.errors import ArtifactError, UsageError
from zoft.tasks.rows import Row, load_hub, read_file

SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Hub:
    """Where a data set is on the Hub.

    Attributes:
        repo: ``user/name``.
        revision: the commit that is loaded: parquet or JSON Lines files, no loading script.
        config: the configuration in it; None: it has one only.
    """

    repo: str
    revision: str
    config: str | None = None

    @property
    def name(self) -> str:
        """``repo[:config]``."""
        return f"{self.repo}:{self.config}" if self.config else self.repo


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        size: number of rows.
        get: the row at an index, from 0.
        column: all values of a column.
    """

    size: int
    get: Callable[[int], Row]
    column: Callable[[str], Sequence[Any]]


def hub_table(hub: Hub, split: str) -> Table:
    """``split`` of a data set on the Hub; class labels stay numbers.

    Raises:
        ArtifactError, UsageError: it cannot be had.
    """
    data = load_hub(hub.repo, hub.config, hub.revision, split=split)
    source = f"{hub.name} ({split})"
    return Table(len(data), lambda index: Row(dict(data[index]), source, index + 1), lambda name: list(data[name]))


def local_table(folders: Sequence[Path], split: str) -> Table:
    """``split`` from the first of ``folders`` that has it: ``split.parquet``, ``split.jsonl``, the shards
    ``split-00000-of-00002.parquet``, or any such file in a folder ``split``.

    Raises:
        ArtifactError: none of them has it.
        UsageError: a file that cannot be read.
    """
    for folder in folders:
        files = _files(folder, split)
        if files:
            return _joined([_table(file) for file in files])
    looked = " and ".join(str(folder) for folder in folders)
    raise ArtifactError(
        f"there is no {split}.parquet or {split}.jsonl in {looked}",
        "Put a copy of the data set's files there, or leave --data-dir out to load them from the Hub.",
    )


def _files(folder: Path, split: str) -> list[Path]:
    if (folder / split).is_dir():
        return sorted(file for file in (folder / split).iterdir() if file.suffix in SUFFIXES)
    if not folder.is_dir():
        return []
    named = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?")
    found = [file for file in folder.iterdir() if file.suffix in SUFFIXES and named.fullmatch(file.stem)]
    kinds = {file.suffix for file in found}
    if len(kinds) > 1:
        raise UsageError(f"{folder} has {split} files of several kinds ({', '.join(sorted(kinds))})", "Keep one kind.")
    return sorted(found)


def _table(file: Path) -> Table:
    if file.suffix == ".jsonl":
        rows = list(read_file(file))
        return Table(len(rows), rows.__getitem__, lambda name: [row.values.get(name) for row in rows])
    import pyarrow
    import pyarrow.parquet

    try:
        data = pyarrow.parquet.read_table(file)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} cannot be read: {reason}", "Give a valid .parquet file.") from error
    return Table(
        data.num_rows,
        lambda index: Row(data.slice(index, 1).to_pylist()[0], str(file), index + 1),
        lambda name: data.column(name).to_pylist() if name in data.column_names else [None] * data.num_rows,
    )


def _joined(tables: Sequence[Table]) -> Table:
    """Shards one after the other."""
    places = [(table, index) for table in tables for index in range(table.size)]

    def get(index: int) -> Row:
        table, at = places[index]
        return table.get(at)

    return Table(len(places), get, lambda name: [value for table in tables for value in table.column(name)])
