"""Tuners as they were published before there was a format for them, made into tuners of zoft.

The published files [ZOFT, public code] are pickled dictionaries: by each parameter's name an
``nn.Sequential(Linear(5, hidden), Tanh(), Linear(hidden, 1))``, float32 or float16, on whatever device. They say
nothing about how the networks are used; that is recorded here, from the public code: raw features in the order mean,
variance, L+, L−, σ; σ = |output|; ν with an embedding counted as 15 · batch size rows, however large its table is.

Note:
    The public code runs the networks in the model's dtype; here they are float32, whatever the model is. Its update
    uses 10·lr with (L+ − L−)/20ε, which is lr with (L+ − L−)/2ε here: learning rates carry over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoft.blocks import canonical_name
from zoft.errors import IncompatibleError
from zoft.tuner.artifact import Tuner
from zoft.tuner.card import CONVERTED
from zoft.tuner.config import BlockTable, TunerConfig
from zoft.tuner.features import FEATURES
from zoft.tuner.layout import short
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import NetworkConfig, PertNN
from zoft.tuner.pickled import Archive, Module, TensorOf, refused

#: Rows of an embedding that the public code counts for every example of a batch.
PUBLISHED_EMBEDDING_ROWS = 15

#: What the layout can hold.
_LONGEST_NAME, _MOST_HIDDEN = 512, 2**16


def convert(
    file: str | Path,
    base_model_name_or_path: str,
    base_model_revision: str | None = None,
    blocks: BlockTable | None = None,
) -> Tuner:
    """Read a published tuner; no byte of the file is run.

    Args:
        file: the pickled file.
        base_model_name_or_path: the base that it was learned on.
        base_model_revision: the base's commit, where it came from the Hub.
        blocks: the base's blocks, to check the names and to know the shapes; None where they cannot be had.

    Raises:
        ArtifactError: the file is none, is damaged, or holds anything else; what it is is named.
        IncompatibleError: the names are not those of ``blocks``.
    """
    path = Path(file)
    archive = Archive(path)
    networks = _networks(archive)
    names = list(networks)
    if blocks is not None:
        _check(path, names, blocks)
        names = list(blocks.names)  # in the base's order, so that the signature is the base's
    rows = {part: np.stack([networks[name][part] for name in names]) for part in networks[names[0]]}
    config = TunerConfig(
        zoft_version=metadata.version("zoft"),
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        blocks=blocks or BlockTable(names=names, shapes=[None] * len(names), signature=""),
        network=NetworkConfig(features="raw", hidden=rows["hidden.bias"].shape[1], output="abs", init="linear"),
        normalization=NormalizationConfig(kind="published", embedding_rows=PUBLISHED_EMBEDDING_ROWS),
    )
    network = PertNN(len(names), config.network)
    network.load_state_dict({part: torch.from_numpy(values) for part, values in rows.items()})
    network.requires_grad_(False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = {"file": short(path.name, 256), "sha256": digest, "archive": archive.root}
    return Tuner(config, network, {CONVERTED: {**record, "names_checked": blocks is not None}})


def _networks(archive: Archive) -> dict[str, dict[str, Any]]:
    """By canonical parameter name the four arrays of a network, in the file's order."""
    content = archive.content
    if not isinstance(content, dict) or not content:
        raise refused(archive.file, "it is no dictionary of networks by parameter name")
    networks: dict[str, dict[str, Any]] = {}
    hidden = None
    for full_name, module in content.items():
        name = canonical_name(full_name)
        if short(name, _LONGEST_NAME) != name or name in networks:
            raise refused(archive.file, f"{short(full_name)} is no name of a parameter, or is there twice")
        parts = _parts(archive, name, module)
        hidden = hidden or _hidden_units(archive, name, parts["hidden.bias"])
        expected = {
            "hidden.weight": (hidden, len(FEATURES)),
            "hidden.bias": (hidden,),
            "out.weight": (1, hidden),
            "out.bias": (1,),
        }
        for part, shape in expected.items():
            if parts[part].shape != shape:
                raise refused(archive.file, f"the network of {short(name)} has {part} of shape {parts[part].shape}")
            if not np.isfinite(parts[part]).all():
                raise refused(archive.file, f"the network of {short(name)} has values that are not finite")
        networks[name] = parts
    return networks


def _hidden_units(archive: Archive, name: str, bias: Any) -> int:
    if bias.ndim != 1 or not 1 <= len(bias) <= _MOST_HIDDEN:
        raise refused(archive.file, f"the network of {short(name)} has hidden units of shape {bias.shape}")
    return len(bias)


def _parts(archive: Archive, name: str, module: Any) -> dict[str, Any]:
    """The arrays of one ``Sequential(Linear, Tanh, Linear)``."""
    layers = _mapping(module, "Sequential", "_modules")
    kinds = [layer.kind if isinstance(layer, Module) else "?" for layer in layers.values()]
    if kinds != ["Linear", "Tanh", "Linear"]:
        raise refused(archive.file, f"{short(name)} is no Sequential(Linear, Tanh, Linear)")
    first, _, last = layers.values()
    arrays = {}
    for label, layer in (("hidden", first), ("out", last)):
        parameters = _mapping(layer, "Linear", "_parameters")
        for part in ("weight", "bias"):
            tensor = parameters.get(part)
            if not isinstance(tensor, TensorOf):
                raise refused(archive.file, f"the network of {short(name)} lacks a {part}")
            arrays[f"{label}.{part}"] = archive.array(tensor)
    return arrays


def _mapping(module: Any, kind: str, attribute: str) -> Mapping[str, Any]:
    """A dictionary among the attributes of a module; empty where there is none."""
    found = module.state.get(attribute) if isinstance(module, Module) and module.kind == kind else None
    return found if isinstance(found, Mapping) else {}


def _check(file: Path, names: list[str], blocks: BlockTable) -> None:
    """Compare the file's names with the base's blocks."""
    extra = [name for name in names if name not in set(blocks.names)]
    missing = [name for name in blocks.names if name not in set(names)]
    if extra or missing:
        problems = [f"{short(name)}: not in the base" for name in extra]
        problems += [f"{short(name)}: not in the file" for name in missing]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise IncompatibleError(
            f"{file} is for another base: {len(names) - len(extra)} of its {len(names)} networks have one of the "
            f"base's {len(blocks.names)} blocks; " + "; ".join(problems[:3]) + more,
            "Give the base that it was learned on with --base.",
        )
