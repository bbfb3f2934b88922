"""Put a tuner into pretrained_tuners under a short name, or write the index's hashes anew.

    python -m zoft.assets.list_tuner NAME FOLDER [--licence Apache-2.0] [--results compare.json] [--lr 1e-4]
    python -m zoft.assets.list_tuner --refresh

A tuner on the Hub gets its short name by an entry in index.json: location user/repo@commit, and the sha256 of its
tuner.safetensors (the Hub shows it on the file's page).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zoft.tuner import Tuner
from zoft.tuner.config import FILES, WEIGHTS_FILE
from zoft.tuner.index import BUNDLED, Entry, Index, read_index, sha256_of, write_index


def list_tuner(
    name: str,
    folder: Path,
    licence: str = "Apache-2.0",
    results: str | None = None,
    lr: float | None = None,
    into: Path = BUNDLED,
) -> Entry:
    """Write the tuner in ``folder`` to ``into/name`` with a card for that name, and list it in the index.

    Args:
        results: compare.json for the card.
        lr: the learning rate to recommend.

    Raises:
        ZoftError: the tuner or the comparison cannot be read, or does not belong to the other.
    """
    tuner = Tuner.from_pretrained(folder)
    if lr is not None:
        tuner = tuner.recommending(lr=lr)
    if results is not None:
        tuner = tuner.with_results(results)
    target = into / name
    for file in FILES:
        (target / file).unlink(missing_ok=True)
    tuner.save_pretrained(target, name=name)
    base = tuner.config.base_model_name_or_path
    entry = Entry(location=name, base=base, sha256=sha256_of(target / WEIGHTS_FILE), licence=licence)
    write_index(Index(tuners={**read_index(into).tuners, name: entry}), into)
    return entry


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--licence", default="Apache-2.0")
    parser.add_argument("--results")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--refresh", action="store_true")
    given = parser.parse_args()
    if given.refresh:
        write_index(read_index())
        return
    if given.name is None or given.folder is None:
        parser.error("give NAME and FOLDER, or --refresh")
    entry = list_tuner(given.name, given.folder, given.licence, given.results, given.lr)
    print(f"{given.name}: sha256 {entry.sha256}")


if __name__ == "__main__":
    main()
