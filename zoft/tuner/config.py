"""tuner_config.json: what a tuner is, and which base it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from zoft.blocks import signature_of
from zoft.config import Config
from zoft.noise import GaussianTable
from zoft.tuner.features import FeatureConstants
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import NetworkConfig
from zoft.tuner.step_rule import StepRuleConfig
from zoft.tuner.structure import StructureConfig
from zoft.tuner.turns import TurnsConfig

#: Version of the layout on disk, apart from the package's. A zoft that reads a format reads it for good.
FORMAT = 1

CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, CARD_FILE = (
    "tuner_config.json",
    "tuner.safetensors",
    "meta_train.json",
    "README.md",
)

#: The files of a tuner; nothing else in a folder is read, copied or uploaded.
FILES = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE)

#: Courses of the learning rate over a run; all but the first fall to 0 at its end.
RateSchedule = Literal["constant", "linear", "cosine"]
CONSTANT: RateSchedule = "constant"


class BlockTable(Config):
    """The base model's blocks in the order of the tuner's rows."""

    names: list[str] = Field(description="Canonical names in row order.")
    shapes: list[list[int] | None] = Field(
        description="Shapes in row order; null where a converted tuner's base could not be asked."
    )
    signature: str = Field(description="Hash of names and shapes (Blocks.signature); empty where shapes are not known.")

    @classmethod
    def of(cls, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> BlockTable:
        """The table of blocks with these canonical names and shapes."""
        return cls(names=list(names), shapes=[list(s) for s in shapes], signature=signature_of(names, shapes))


class NoiseConfig(Config):
    """The noise that the tuner was learned with."""

    kind: str = Field(GaussianTable.name, description="Kind of noise.")
    version: int = Field(GaussianTable.version, description="Version of that kind.")


class Recommended(Config):
    """Settings to fine-tune with, found on development tasks or during meta-training."""

    lr: float | None = Field(None, gt=0, description="Learning rate η.")
    epsilon: float = Field(1e-3, gt=0, description="Perturbation scale ε.")
    batch_size: int = Field(16, ge=1, le=2**31, description="Examples a step.")
    directions: int = Field(1, ge=1, le=2**16, description="Directions a step averages over.")
    estimator: Literal["central", "one-sided"] = Field(
        "central", description="c along each direction from the losses on both sides, or from one and that at θ."
    )
    schedule: RateSchedule = Field(
        CONSTANT, description="Course of the learning rate over a run: constant, or falling to 0 at its end."
    )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; the estimate and the schedule are left out where every method begins with them."""
        content = super().to_dict()
        return {**{key: content[key] for key in ("lr", "epsilon", "batch_size")}, **self.usage}

    @property
    def estimate(self) -> dict[str, Any]:
        """The hyper-parameters ``directions`` and ``estimator``; empty where they are what every method begins with."""
        default = type(self)()
        values = {"directions": self.directions, "estimator": self.estimator}
        return {} if all(getattr(default, key) == value for key, value in values.items()) else values

    @property
    def usage(self) -> dict[str, Any]:
        """The :attr:`estimate`, and ``schedule`` where the learning rate is not constant."""
        return {**self.estimate, **({} if self.schedule == CONSTANT else {"schedule": self.schedule})}


#: Sections that a tuner may lack.
_PARTS = ("structure", "step_rule", "turns")


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
    structure: StructureConfig | None = Field(
        None, description="The learned structure within the blocks; absent where there is none."
    )
    recommended: Recommended = Field(Recommended(), description="Settings to fine-tune with.")
    step_rule: StepRuleConfig | None = Field(
        None, description="The step-size head: how the learning rate follows a run's losses; absent where it does not."
    )
    turns: TurnsConfig | None = Field(
        None, description="Which blocks a direction perturbs; absent where every direction perturbs all."
    )
    weights_sha256: str | None = Field(None, description=f"Hash of {WEIGHTS_FILE}; filled in when it is written.")

    @model_validator(mode="after")
    def _turns_are_possible(self) -> Self:
        if self.turns is None:
            return self
        if len(self.turns.of) != len(self.blocks.names):
            raise ValueError(f"turns for {len(self.turns.of)} blocks, and there are {len(self.blocks.names)}")
        if self.step_rule is not None and self.step_rule.two_sided:
            raise ValueError(f"the step-size head {self.step_rule.kind} has one curvature, and the blocks take turns")
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; parts that the tuner does not have are left out, as before there were any."""
        content = super().to_dict()
        content["recommended"] = self.recommended.to_dict()
        if self.step_rule is not None:
            content["step_rule"] = self.step_rule.to_dict()
        return {key: value for key, value in content.items() if value is not None or key not in _PARTS}
