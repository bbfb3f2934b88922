"""Reading a tuner's folder, strictly: whatever is in it, the answer is a tuner or an error that says why not.

Sizes are checked before anything of that size is allocated, and what a message quotes is shortened, so that a
hostile file costs neither memory nor a screenful.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoft.blocks import signature_of
from zoft.errors import ArtifactError
from zoft.noise import NOISES
from zoft.tuner.config import CONFIG_FILE, FORMAT, PROVENANCE_FILE, WEIGHTS_FILE, BlockTable, TunerConfig
from zoft.tuner.pertnn import weight_shapes
from zoft.tuner.structure import Structure, stored_tensors

#: The largest files that are read, in bytes; real ones are a hundred times smaller.
LARGEST = {CONFIG_FILE: 4 * 2**20, PROVENANCE_FILE: 8 * 2**20, WEIGHTS_FILE: 256 * 2**20, "README.md": 2**20}

_PICKLES = {".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt"}
#: What a tuner of format 1 states: nothing that it computes with is left to a default, which may change.
_REQUIRED = {
    "network": ("features", "hidden", "activation", "output", "bound"),
    "constants": ("mean_shift", "mean_scale", "log_variance_shift", "log_variance_scale"),
    "normalization": ("kind", "embedding_rows"),
    "noise": ("kind", "version"),
}

#: How the file calls the dtypes of a structure.
_STORED = {torch.float16: "F16", torch.float32: "F32"}

_CONVERT = "zoft never unpickles; read it with `zoft tuner convert FILE --base BASE --output-dir FOLDER`."
_AGAIN = "Get the tuner again."
_LONGEST_NAME = 512
_MOST_WARNINGS = 8


def read(folder: Path) -> tuple[TunerConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, weights and provenance of the tuner in ``folder``.

    Raises:
        ArtifactError: no such folder; a file is missing, damaged, or not what the configuration says; a
            pickle; or a format newer than this version of zoft reads.
    """
    refuse_pickles(folder)
    if not folder.is_dir():
        raise ArtifactError(
            f"there is no tuner folder {folder}",
            "Give the folder that `zoft meta-train` wrote, user/repo on the Hub, or a name of `zoft tuner list`.",
        )
    config = read_config(folder / CONFIG_FILE)
    weights = _read_weights(folder / WEIGHTS_FILE, config)
    provenance = folder / PROVENANCE_FILE
    # The hash is of the file, not of the tuner, which may be saved with other weights.
    config = config.model_copy(update={"weights_sha256": None})
    return config, weights, _read_provenance(provenance) if provenance.is_file() else {}


def is_pickle(name: str) -> bool:
    """Whether a file of that name is a pickle by its suffix."""
    return Path(name).suffix.lower() in _PICKLES


def pickled(where: str) -> ArtifactError:
    """The refusal of a pickle."""
    return ArtifactError(where, _CONVERT)


def refuse_pickles(path: Path) -> None:
    """Raise the ArtifactError that names ``zoft tuner convert`` where ``path`` is a pickle, or holds only one."""
    if is_pickle(path.name):
        raise pickled(f"{path} is a pickle, not a tuner folder")
    if path.is_dir() and not (path / WEIGHTS_FILE).exists():
        pickles = sorted(p.name for p in path.iterdir() if is_pickle(p.name))
        if pickles:
            raise pickled(f"{path} holds a pickle ({pickles[0]}) and no {WEIGHTS_FILE}")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, without NaN and infinities.

    Raises:
        ArtifactError: it is missing, too large, or none.
    """
    if not file.is_file():
        raise ArtifactError(f"the tuner has no {file.name} in {file.parent}", "Give a complete tuner folder.")
    try:
        _check_size(file)
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ArtifactError(f"{file} is not valid JSON: {short(reason)}", _AGAIN) from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} is not a JSON object", _AGAIN)
    return content


def read_config(file: Path) -> TunerConfig:
    """The configuration; unknown keys are warned of and ignored.

    Raises:
        ArtifactError: it is none, contradicts itself, or is of a newer format.
    """
    content = read_json(file)
    number = content.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ArtifactError(f"{file} does not state its format", "Give a tuner that zoft wrote.")
    if number > FORMAT:
        written = content.get("zoft_version")
        needed = short(written, 40) if isinstance(written, str) else "of a newer version"
        raise ArtifactError(
            f"the tuner has format {short(number, 20)}, and this zoft reads formats up to {FORMAT}",
            f"Install zoft {needed} or newer.",
        )
    _check_lists(file, content)
    for section, keys in _REQUIRED.items():
        stated = content.get(section)
        lacking = [key for key in keys if not isinstance(stated, dict) or key not in stated]
        if lacking:
            raise ArtifactError(f"{file} does not state {section}.{lacking[0]}", _AGAIN)
    unknown: list[str] = []
    try:
        config = TunerConfig.model_validate(_without_unknown(content, TunerConfig, file.name, unknown))
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{file}: {_first(error)}", _AGAIN) from None
    for text in unknown[:_MOST_WARNINGS]:
        warnings.warn(text, stacklevel=4)
    if len(unknown) > _MOST_WARNINGS:
        warnings.warn(f"{file.name}: {len(unknown) - _MOST_WARNINGS} more unknown keys are ignored", stacklevel=4)
    _check_blocks(file, config.blocks)
    _check_parts(file, content, config)
    for text in (config.base_model_name_or_path, config.base_model_revision or "", config.zoft_version):
        if not _is_name(text) and text:
            raise ArtifactError(f"{file}: {short(text)} is no name of a base or a version", _AGAIN)
    noise = config.noise
    if noise.kind not in NOISES or not 1 <= noise.version <= NOISES[noise.kind].version:
        raise ArtifactError(
            f"the tuner was learned with noise {short(noise.kind)!r} version {short(noise.version, 20)}, "
            "which this zoft does not have",
            f"Install zoft {short(config.zoft_version, 40)} or newer.",
        )
    return config


def short(value: Any, length: int = 80) -> str:
    """``value`` for a message: one line of printable characters, at most ``length`` of them."""
    text = repr(value) if isinstance(value, str) and not _is_name(value) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _check_lists(file: Path, content: Mapping[str, Any]) -> None:
    """The long lists, by hand: pydantic would make an error of each of a million wrong entries."""
    table = content.get("blocks")
    names, shapes = (table.get("names"), table.get("shapes")) if isinstance(table, dict) else (None, None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"{file}: blocks.names is no list of names", _AGAIN)
    if not isinstance(shapes, list) or not all(shape is None or _is_shape(shape) for shape in shapes):
        raise ArtifactError(f"{file}: blocks.shapes is no list of shapes", _AGAIN)
    turns = content.get("turns")
    of = turns.get("of", []) if isinstance(turns, dict) else []
    if not isinstance(of, list) or not all(type(turn) is int for turn in of):
        raise ArtifactError(f"{file}: turns.of is no list of numbers", _AGAIN)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**62 for size in value)


def _check_blocks(file: Path, table: BlockTable) -> None:
    if not table.names or len(table.names) != len(table.shapes) or len(set(table.names)) != len(table.names):
        raise ArtifactError(f"{file}: names and shapes of the blocks do not pair up", _AGAIN)
    for name in table.names:
        if not _is_name(name):
            raise ArtifactError(f"{file}: {short(name)} is no name of a block", _AGAIN)
    shapes = [shape for shape in table.shapes if shape is not None]
    expected = signature_of(table.names, shapes) if len(shapes) == len(table.shapes) else ""
    if table.signature != expected:
        raise ArtifactError(f"{file}: the signature is not that of the names and shapes", _AGAIN)


def _check_parts(file: Path, content: Mapping[str, Any], config: TunerConfig) -> None:
    """The parts that a tuner may have state everything, and a structure is for blocks of known shapes."""
    sections = {"structure": config.structure, "step_rule": config.step_rule, "turns": config.turns}
    for section, part in sections.items():
        lacking = [key for key in part.to_dict() if key not in content[section]] if part is not None else []
        if lacking:
            raise ArtifactError(f"{file} does not state {section}.{lacking[0]}", _AGAIN)
    if config.structure is not None and None in config.blocks.shapes:
        raise ArtifactError(f"{file} has a structure for blocks without shapes", _AGAIN)


def _is_name(text: str) -> bool:
    """Printable, without blanks at the ends, of a sensible length: what a terminal or a file can show as it is."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and text == text.strip()


def _check_size(file: Path) -> None:
    largest = LARGEST[file.name]
    if file.stat().st_size > largest:
        raise ArtifactError(
            f"{file} is larger than any tuner's {file.name} ({largest >> 20} MiB)", "Give a tuner that zoft wrote."
        )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "configuration"
    return f"{short(where)}: {short(first['msg'].lower(), 160)}"


def _without_unknown(
    content: Mapping[str, Any], model: type[BaseModel], where: str, unknown: list[str]
) -> dict[str, Any]:
    """The known keys; ``unknown`` takes a sentence for each other one: a newer zoft may have written it."""
    known: dict[str, Any] = {}
    for key, value in content.items():
        if key not in model.model_fields:
            unknown.append(f"{where}: unknown key {short(key)!r} is ignored")
            continue
        inner = model.model_fields[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = _without_unknown(value, inner, f"{where}: {key}", unknown)
        known[key] = value
    return known


def _read_provenance(file: Path) -> dict[str, Any]:
    content = read_json(file)
    tasks = content.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, str) and _is_name(task) for task in tasks):
        raise ArtifactError(f"{file}: tasks is no list of names", _AGAIN)
    return content


def _read_weights(file: Path, config: TunerConfig) -> dict[str, Tensor]:
    if not file.is_file():
        raise ArtifactError(f"the tuner has no {file.name} in {file.parent}", "Give a complete tuner folder.")
    expected = {name: ("F32", shape) for name, shape in weight_shapes(len(config.blocks.names), config.network).items()}
    if config.structure is not None:
        stored_as = stored_tensors(config.structure, [shape or [] for shape in config.blocks.shapes])
        expected |= {name: (_STORED[dtype], shape) for name, (dtype, shape) in stored_as.items()}
    try:
        _check_size(file)
        with safe_open(file, framework="pt") as stored:
            names = sorted(stored.keys())
            _check_tensors(file, names, expected)
            for name in names:
                _check_tensor(file, name, stored.get_slice(name), expected[name])
            tensors = {name: stored.get_tensor(name) for name in names}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{file} cannot be read: {short(error, 200)}", _AGAIN) from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{file}: {name} has values that are not finite", _AGAIN)
    if config.weights_sha256 is not None and config.weights_sha256 != digest:
        raise ArtifactError(f"{file} is not the file that was written: its hash differs from {CONFIG_FILE}'s", _AGAIN)
    structure = structure_of(config, tensors)
    problem = structure.problem() if structure is not None else None
    if problem is not None:
        raise ArtifactError(f"{file}: {short(problem, 200)}", _AGAIN)
    return tensors


def structure_of(config: TunerConfig, tensors: Mapping[str, Tensor]) -> Structure | None:
    """The structure among a tuner's tensors, where its configuration has one."""
    if config.structure is None:
        return None
    shapes = [shape or [] for shape in config.blocks.shapes]
    return Structure.from_tensors(config.structure, config.blocks.names, shapes, tensors)


def _check_tensors(file: Path, names: Sequence[str], expected: Mapping[str, Any]) -> None:
    if list(names) != sorted(expected):
        raise ArtifactError(f"{file} holds {short(', '.join(names), 200)}, not {', '.join(sorted(expected))}", _AGAIN)


def _check_tensor(file: Path, name: str, stored: Any, expected: tuple[str, tuple[int, ...]]) -> None:
    found = stored.get_dtype(), tuple(stored.get_shape())
    if found != expected:
        raise ArtifactError(f"{file}: {name} is {found[0]} {short(found[1])}, not {expected[0]} {expected[1]}", _AGAIN)
