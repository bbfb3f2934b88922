"""The folder of a run: ``run.json  metrics.jsonl  tb/  checkpoints/  final/  result.json``.

A folder belongs to one run: the same configuration on the same inputs. What only changes where or how
loudly it runs (the folder itself, the device, threads) is no part of that.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from zoft.errors import UsageError

RUN_FILE, RESULT_FILE, METRICS_FILE = "run.json", "result.json", "metrics.jsonl"
CHECKPOINTS, FINAL, TENSORBOARD = "checkpoints", "final", "tb"

#: Configuration keys that do not make a run another one.
_INCIDENTAL = frozenset({"output_dir", "device", "threads", "noise_cache", "keep_checkpoints"})

_PACKAGES = ("zoft", "torch", "transformers", "accelerate", "numpy", "safetensors", "tokenizers")


@dataclass(frozen=True)
class RunFolder:
    """A claimed run folder.

    Attributes:
        path: the folder.
        checkpoint: the latest checkpoint to resume from, or None.
    """

    path: Path
    checkpoint: Path | None = None

    @property
    def final(self) -> Path:
        """The folder of the finished model."""
        return self.path / FINAL

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def step(self) -> int | None:
        """The step to resume from; None for a run from the start."""
        return None if self.checkpoint is None else _step(self.checkpoint)


def claim(
    path: str | Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, Any], *, resume: bool = False
) -> RunFolder:
    """Make ``path`` this run's folder and write its run.json, or find where the run can go on.

    In a distributed run every process may call this; only the first one writes and checks.

    Args:
        kind: the verb.
        config: the resolved configuration, JSON-able.
        inputs: what names in it stood for (commits, hashes), JSON-able.
        resume: go on with an unfinished run.

    Raises:
        UsageError: the folder holds another run (named is what differs), a finished one, an unfinished one
            without ``resume``, or something else.
    """
    folder = Path(path)
    if int(os.environ.get("RANK", "0")) != 0:
        return RunFolder(folder, latest_checkpoint(folder) if resume else None)
    record = {"kind": kind, "config": dict(config), "inputs": dict(inputs)}
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "Give a folder with --output-dir.")
    if not (folder / RUN_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no run", "Give another folder with --output-dir.")
        _write(folder, record)
        return RunFolder(folder)
    _check_same(folder, record)
    if (folder / RESULT_FILE).is_file():
        raise UsageError(
            f"{folder} holds this very run, finished: see {folder / RESULT_FILE}",
            "Give another folder with --output-dir to run it again.",
        )
    checkpoint = latest_checkpoint(folder)
    if not resume:
        where = f"at step {_step(checkpoint)}" if checkpoint else "before its first checkpoint"
        raise UsageError(
            f"{folder} holds this very run, stopped {where}",
            "Add --resume to go on, or give another folder with --output-dir.",
        )
    return RunFolder(folder, checkpoint)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step that was written completely, or None."""
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=_step, default=None)


def note(folder: RunFolder, key: str, value: Any) -> None:
    """Keep a JSON-able ``value`` in run.json beside what identifies the run."""
    record = json.loads((folder.path / RUN_FILE).read_text(encoding="utf-8"))
    _replace(folder.path / RUN_FILE, {**record, key: value})


def noted(folder: RunFolder, key: str) -> Any:
    """What :func:`note` kept, or None."""
    file = folder.path / RUN_FILE
    return json.loads(file.read_text(encoding="utf-8")).get(key) if file.is_file() else None


def write_result(folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Write result.json, which marks the run as finished; values that are not finite become null."""
    _replace(folder.path / RESULT_FILE, result)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN_FILE).write_text(_json({**record, "versions": versions()}), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", "Give another --output-dir.") from None


def _check_same(folder: Path, record: Mapping[str, Any]) -> None:
    try:
        there = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / RUN_FILE} cannot be read: {error}", "Give another --output-dir.") from None
    here = json.loads(_json(record))
    differing = [f"{key}: {then!r} there, {now!r} here" for key, then, now in _differences(there, here)]
    if differing:
        more = f" (and {len(differing) - 6} more)" if len(differing) > 6 else ""
        raise UsageError(
            f"{folder} holds another run: " + "; ".join(differing[:6]) + more,
            "Give another folder with --output-dir.",
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    """Where two records differ, incidental keys aside."""
    if there.get("kind") != here.get("kind"):
        yield "kind", there.get("kind"), here.get("kind")
    for part in ("config", "inputs"):
        mine, other = _flat(here.get(part) or {}), _flat(there.get(part) or {})
        for key in dict.fromkeys([*mine, *other]):
            if key not in _INCIDENTAL and mine.get(key) != other.get(key):
                yield key, other.get(key), mine.get(key)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _replace(file: Path, content: Mapping[str, Any]) -> None:
    """Write ``file`` wholly or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(_json(content), encoding="utf-8")
    part.replace(file)


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _step(checkpoint: Path) -> int:
    suffix = checkpoint.name.rpartition("-")[2]
    return int(suffix) if suffix.isdigit() else -1
