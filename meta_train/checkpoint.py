"""Checkpoints of a meta-training run, and whether a folder's run is the one that is asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meta_train.config import INCIDENTAL, MetaTrainConfig, recipe
from zoft.blocks import Blocks
from zoft.errors import ArtifactError, UsageError
from zoft.noise import spans
from zoft.tuner.config import PROVENANCE_FILE

CHECKPOINT_FILE = "checkpoint.safetensors"

#: Version of the checkpoint's content.
FORMAT = 1


def identity(config: MetaTrainConfig, tasks: list[str], blocks: Blocks) -> dict[str, Any]:
    """What makes two runs the same: configuration, tasks and the base's weights."""
    return {
        "config": config.to_dict(),
        "tasks": tasks,
        "base": {"signature": blocks.signature, "weights": _fingerprint(blocks)},
    }


def _fingerprint(blocks: Blocks) -> str:
    """Hash of the weights' bytes."""
    digest = hashlib.sha256()
    for block in blocks:
        values = block.parameter.detach().contiguous()
        for span in spans(block):
            part = span.of(values).cpu()
            digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write the checkpoint in one piece: a crash leaves the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    target, draft = folder / CHECKPOINT_FILE, folder / (CHECKPOINT_FILE + ".new")
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(content, draft, metadata={"zoft": json.dumps({"format": FORMAT, **record})})
    with open(draft, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(draft, target)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The JSON part of the folder's checkpoint, or None where there is no checkpoint.

    Raises:
        ArtifactError: the file is damaged or of a newer format.
    """
    file = folder / CHECKPOINT_FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as content:
            record = json.loads(content.metadata()["zoft"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is not a checkpoint of meta-training: {error}", "Use another folder.") from None
    if record.get("format") != FORMAT:
        raise ArtifactError(
            f"{file} has checkpoint format {record.get('format')}, and this zoft reads {FORMAT}",
            "Continue with the version of zoft that began the run, or use another folder.",
        )
    return record


def progress(folder: str | Path) -> tuple[int, bool]:
    """How far the run in ``folder`` is: steps done (0 where there is no run), and whether it is finished."""
    finished = read_finished(Path(folder))
    if finished is not None:
        return int(finished.get("steps", 0)), True
    record = read_record(Path(folder))
    return (0, False) if record is None else (int(record["done"]), False)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder's checkpoint."""
    file = folder / CHECKPOINT_FILE
    try:
        with safe_open(file, "pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}", "Use another folder.") from None


def read_finished(folder: Path) -> dict[str, Any] | None:
    """The provenance of a finished run in the folder, or None."""
    file = folder / PROVENANCE_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}", "Use another folder.") from None
    return content if isinstance(content, dict) else {}


def require_same(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Check that the run in ``folder`` is the one that is asked for.

    Raises:
        UsageError: it is another; says what differs.
    """
    differing = list(_differences({key: there.get(key) for key in asked}, asked))
    if differing:
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        raise UsageError(
            f"{folder} holds a different meta-training run: " + "; ".join(differing[:4]) + more,
            "Use another output folder, or ask for the run that is there.",
        )


#: What a run did in whose record a field is missing, because it was made before there was one.
_DEFAULTS = MetaTrainConfig.load(base=recipe("lookahead")).to_dict()


def _differences(there: Any, asked: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*there, *asked}):
            if path == "config" and (key in INCIDENTAL or (key not in there and asked[key] == _DEFAULTS.get(key))):
                continue
            yield from _differences(there.get(key), asked.get(key), f"{path}.{key}" if path else key)
    elif there != asked:
        if path.startswith("base"):
            yield "its base model has other weights" if path.endswith("weights") else "its base model has other blocks"
        else:
            yield f"{path.removeprefix('config.')} is {json.dumps(there)} there, {json.dumps(asked)} asked for"
