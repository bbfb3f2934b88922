"""The tuner: PertNN weights and what is needed to use them, as a folder of safetensors and JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any, Self

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoft.blocks import Blocks
from zoft.config import Config
from zoft.errors import ArtifactError
from zoft.noise import NOISES, GaussianTable
from zoft.tuner.binding import match
from zoft.tuner.bound import BoundTuner
from zoft.tuner.features import FeatureConstants, block_statistics
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import NetworkConfig, PertNN

#: Version of the layout on disk, apart from the package's.
FORMAT = 1

CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE = "tuner_config.json", "tuner.safetensors", "meta_train.json"
_PICKLES = {".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt"}
_LARGEST_CONFIG = 16 * 2**20


class BlockTable(Config):
    """The base model's blocks in the order of the tuner's rows."""

    names: list[str] = Field(description="Canonical names in row order.")
    shapes: list[list[int]] = Field(description="Shapes in row order.")
    signature: str = Field(description="Hash of names and shapes (Blocks.signature).")


class NoiseConfig(Config):
    """The noise that the tuner was learned with."""

    kind: str = Field(GaussianTable.name, description="Kind of noise.")
    version: int = Field(GaussianTable.version, description="Version of that kind.")


class Recommended(Config):
    """Settings to fine-tune with, found on development tasks or during meta-training."""

    lr: float | None = Field(None, gt=0, description="Learning rate η.")
    epsilon: float = Field(1e-3, gt=0, description="Perturbation scale ε.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")


class TunerConfig(Config):
    """tuner_config.json."""

    format: int = Field(FORMAT, description="Version of the layout.")
    zoft_version: str = Field(description="Version of zoft that wrote the tuner.")
    base_model_name_or_path: str = Field("", description="The base model that the tuner was learned on.")
    base_model_revision: str | None = Field(None, description="Its commit, where it came from the Hub.")
    blocks: BlockTable = Field(description="The base's blocks.")
    network: NetworkConfig = Field(NetworkConfig(), description="What the PertNNs are.")
    constants: FeatureConstants = Field(FeatureConstants(), description="Constants of standardised features.")
    normalization: NormalizationConfig = Field(NormalizationConfig(), description="How ν comes about.")
    noise: NoiseConfig = Field(NoiseConfig(), description="The noise it was learned with.")
    recommended: Recommended = Field(Recommended(), description="Settings to fine-tune with.")


@dataclass(eq=False)
class Tuner:
    """A learned perturbation for a base model and its derivatives.

    Attributes:
        config: what the tuner is and which base it fits.
        network: the PertNNs.
        provenance: how it was learned; written to meta_train.json.
    """

    config: TunerConfig
    network: PertNN
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def untrained(
        cls,
        model: nn.Module,
        network: NetworkConfig | None = None,
        normalization: NormalizationConfig | None = None,
        base_model_name_or_path: str = "",
        base_model_revision: str | None = None,
        noise: str = GaussianTable.name,
        seed: int = 0,
    ) -> Self:
        """A tuner at its initial values: what meta-training starts from, and the control beside it.

        Args:
            model: the base; its trainable parameters are the blocks.
            seed: seed of the initial values.
        """
        blocks = Blocks.of(model)
        network = network or NetworkConfig()
        config = TunerConfig(
            zoft_version=metadata.version("zoft"),
            base_model_name_or_path=base_model_name_or_path,
            base_model_revision=base_model_revision,
            blocks=BlockTable(names=blocks.names, shapes=[list(s) for s in blocks.shapes], signature=blocks.signature),
            network=network,
            constants=FeatureConstants.of(block_statistics(blocks)),
            normalization=normalization or NormalizationConfig(),
            noise=NoiseConfig(kind=noise, version=NOISES[noise].version),
        )
        return cls(config, PertNN(len(blocks), network, seed))

    def bind(self, model: nn.Module, batch_size: int | None = None) -> BoundTuner:
        """Fit the tuner to a model.

        Args:
            model: the base or a derivative; wrapper prefixes do not matter, and frozen parameters of
                the model may have rows that then stay unused.
            batch_size: examples a step; the recommended one by default.

        Raises:
            IncompatibleError: names or shapes differ; the report counts and names them. A vocabulary
                of another size in a derivative is only noted and warned of.
        """
        found = match(self.config.blocks.names, self.config.blocks.shapes, model)
        for note in found.notes:
            warnings.warn(note, stacklevel=2)
        rows = torch.tensor(found.rows)
        network = PertNN(len(found.rows), self.config.network)
        network.load_state_dict({name: t[rows] for name, t in self.network.state_dict().items()})
        network.requires_grad_(False)
        return BoundTuner(
            network,
            self.config.constants,
            self.config.normalization,
            batch_size or self.config.recommended.batch_size,
            found.notes,
        )

    def recommending(self, **settings: Any) -> Tuner:
        """The same tuner with other recommended settings."""
        recommended = self.config.recommended.model_copy(update=settings)
        config = self.config.model_copy(update={"recommended": recommended})
        return Tuner(config, self.network, self.provenance)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the tuner's folder: README.md, tuner_config.json, tuner.safetensors, meta_train.json."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.detach().float().contiguous().cpu() for name, t in self.network.state_dict().items()}
        save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
        (target / CONFIG_FILE).write_text(_json(self.config.to_dict()), encoding="utf-8")
        (target / PROVENANCE_FILE).write_text(_json(self.provenance), encoding="utf-8")
        (target / "README.md").write_text(self._card(), encoding="utf-8")
        return target

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read a tuner's folder, strictly.

        Raises:
            ArtifactError: no such folder, a file is missing, damaged, or not what its configuration
                says; a pickle; or a layout newer than this version of zoft reads.
        """
        folder = Path(path)
        _refuse_pickles(folder)
        if not folder.is_dir():
            raise ArtifactError(
                f"there is no tuner folder {folder}",
                "Give the folder that `zoft meta-train` wrote; a tuner on the Hub must be downloaded first.",
            )
        config = _read_config(folder / CONFIG_FILE)
        network = PertNN(len(config.blocks.names), config.network)
        network.load_state_dict(_read_weights(folder / WEIGHTS_FILE, network.state_dict()))
        provenance = folder / PROVENANCE_FILE
        return cls(config, network, _read_json(provenance) if provenance.is_file() else {})

    def _card(self) -> str:
        template = Template(resources.files("zoft.tuner").joinpath("card.md").read_text(encoding="utf-8"))
        config = self.config
        return template.substitute(
            base=config.base_model_name_or_path or "unknown",
            version=config.zoft_version,
            count=len(config.blocks.names),
            tasks=", ".join(self.provenance.get("tasks", [])) or "none: it is untrained",
            lr=config.recommended.lr if config.recommended.lr is not None else "not determined",
            epsilon=config.recommended.epsilon,
            batch_size=config.recommended.batch_size,
        )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _refuse_pickles(path: Path) -> None:
    convert = "zoft never unpickles; read it with `zoft tuner convert`, where your version has that command."
    if path.suffix.lower() in _PICKLES:
        raise ArtifactError(f"{path} is a pickle, not a tuner folder", convert)
    if path.is_dir() and not (path / WEIGHTS_FILE).exists():
        pickles = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _PICKLES)
        if pickles:
            raise ArtifactError(f"{path} holds a pickle ({pickles[0]}) and no {WEIGHTS_FILE}", convert)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ArtifactError(f"the tuner has no {file.name} in {file.parent}", "Give a complete tuner folder.")
    if file.stat().st_size > _LARGEST_CONFIG:
        raise ArtifactError(f"{file} is larger than any tuner's {file.name}", "Give a tuner that zoft wrote.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ArtifactError(f"{file} is not valid JSON: {reason}", "Get the tuner again.") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} is not a JSON object", "Get the tuner again.")
    return content


def _read_config(file: Path) -> TunerConfig:
    content = _read_json(file)
    number = content.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ArtifactError(f"{file} does not state its format", "Give a tuner that zoft wrote.")
    if number > FORMAT:
        raise ArtifactError(
            f"the tuner has format {number}, and this zoft reads formats up to {FORMAT}",
            f"Install zoft {content.get('zoft_version', 'of a newer version')} or newer.",
        )
    try:
        config = TunerConfig.model_validate(_without_unknown(content, TunerConfig, file.name))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "configuration"
        raise ArtifactError(f"{file}: {where}: {first['msg'].lower()}", "Get the tuner again.") from None
    table = config.blocks
    if not table.names or len(table.names) != len(table.shapes) or len(set(table.names)) != len(table.names):
        raise ArtifactError(f"{file}: names and shapes of the blocks do not pair up", "Get the tuner again.")
    if config.noise.kind not in NOISES or config.noise.version > NOISES[config.noise.kind].version:
        raise ArtifactError(
            f"the tuner was learned with noise {config.noise.kind!r} version {config.noise.version}, "
            "which this zoft does not have",
            f"Install zoft {config.zoft_version} or newer.",
        )
    return config


def _without_unknown(content: Mapping[str, Any], model: type[BaseModel], where: str) -> dict[str, Any]:
    """The known keys; each unknown one is warned of, because a newer zoft may have written it."""
    known: dict[str, Any] = {}
    for key, value in content.items():
        if key not in model.model_fields:
            warnings.warn(f"{where}: unknown key {key!r} is ignored", stacklevel=2)
            continue
        inner = model.model_fields[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = _without_unknown(value, inner, f"{where}: {key}")
        known[key] = value
    return known


def _read_weights(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not file.is_file():
        raise ArtifactError(f"the tuner has no {file.name} in {file.parent}", "Give a complete tuner folder.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}", "Get the tuner again.") from None
    if sorted(tensors) != sorted(expected):
        names = ", ".join(sorted(tensors))
        raise ArtifactError(f"{file} holds {names}, not {', '.join(sorted(expected))}", "Get the tuner again.")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.shape != expected[name].shape:
            raise ArtifactError(
                f"{file}: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"not torch.float32 {tuple(expected[name].shape)}",
                "Get the tuner again.",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{file}: {name} has values that are not finite", "Get the tuner again.")
    return tensors
