"""What the evidence is made of: bases with their frozen tuners, held-out tasks, budgets, regimes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from finetune.compare_config import CompareConfig
from zoft.config import Config
from zoft.tasks import TASKS, tasks_with_role

#: The label of the tuner that the evidence is about.
LABEL = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: Settings that change no figure.
_NO_MATTER = {
    "output_dir", "result", "page", "notes", "workers", "threads", "cache_bytes", "plots", "device", "runs_at_once"
}  # fmt: skip


class EvidenceBase(Config):
    """A base or a derivative with the tuner that is to prove itself on it."""

    name: str = Field(description="What tables call it.")
    base: str = Field(description="Base model: an alias, a ./folder, or user/repo on the Hub.")
    tuner: str | list[str] = Field(
        description="The frozen tuner; a list is one recipe learned with several seeds, judged together."
    )
    derivative: bool = Field(False, description="Whether it is a derivative of the base that the tuner was learned on.")
    tasks: list[str] = Field([], description="Held-out tasks; by default all that come with the package.")
    choose_on: list[str] = Field([], description="Development tasks of the one learning rate; by default all.")

    @property
    def reported(self) -> list[str]:
        """The tasks that are reported."""
        return self.tasks or tasks_with_role("held-out")


class EvidenceConfig(Config):
    """One comparison a base, all with the same settings."""

    bases: list[EvidenceBase] = Field(min_length=1, description="Bases and derivatives.")
    optimizers: list[str] = Field(["all"], description="Methods without a tuner, as in a comparison.")
    rivals: list[str] = Field(
        ["mezo", "hizoo", "hizoo-l", "zo-adam"], description="Methods that decide the wins, with all controls."
    )
    budgets: list[int] = Field([600, 2000, 10000], min_length=1, description="Budgets of forward passes.")
    regimes: list[Literal["tuned", "untuned"]] = Field(["tuned", "untuned"], description="Regimes.")
    seeds: int = Field(10, ge=1, description="Reported seeds.")
    selection_seeds: int = Field(2, ge=1, description="Other seeds, which learning rates are chosen on.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    epsilon: float = Field(1e-3, gt=0, description="Perturbation scale ε of every method.")
    lr_start: float = Field(1.25e-4, gt=0, description="Where searches begin.")
    lr_reach: int = Field(40, ge=4, description="Factors of √2 that a search may go to either side.")
    eval_points: int = Field(20, ge=1, description="Points of a reported run's curve.")
    validation_examples: int | None = Field(200, ge=1, description="Validation examples used.")
    test_examples: int | None = Field(None, ge=1, description="Test examples used; by default all.")
    noise: str = Field("gaussian-table", description="Kind of noise.")
    workers: int | None = Field(None, ge=1, description="Processes; by default one a core.")
    threads: int = Field(1, ge=1, description="Threads of every process.")
    device: str = Field("cpu", description="Device.")
    runs_at_once: int = Field(1, ge=1, description="As in a comparison.")
    cache_bytes: int | None = Field(None, ge=0, description="As in a comparison.")
    plots: bool = Field(True, description="Whether every comparison draws its own plots besides the page's.")
    output_dir: str = Field("runs/evidence", description="Folder of the runs; a rerun goes on from what is there.")
    result: str = Field("docs/evidence.json", description="The figures.")
    page: str = Field("docs/evidence.md", description="The page that is made of them.")
    notes: str = Field("docs/evidence-notes.md", description="Written by hand: what failed, and limits.")

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        names = [base.name for base in self.bases]
        if len(set(names)) != len(names) or not all(map(_NAME.fullmatch, names)):
            raise ValueError("bases need different names of letters, digits, '.', '_' and '-'")
        for base in self.bases:
            wrong = [task for task in base.reported if task in TASKS and TASKS[task].role != "held-out"]
            if wrong:
                raise ValueError(f"{', '.join(wrong)} of {base.name} is no held-out task, and so proves nothing")
        return self

    @property
    def digest(self) -> str:
        """Hash of all that the figures depend on, tuners apart."""
        return settings_digest(self.to_dict())

    def comparison(self, base: EvidenceBase) -> CompareConfig:
        """The comparison on one base."""
        shared: dict[str, Any] = {
            key: value
            for key, value in self.to_dict().items()
            if key in CompareConfig.model_fields and key not in ("output_dir", "base")
        }
        own = {"base": base.base, "tasks": base.reported, "choose_on": base.choose_on, "tuners": {LABEL: base.tuner}}
        further = {"recommend": False, "tensorboard": False, "output_dir": f"{self.output_dir}/{base.name}"}
        return CompareConfig.build({**shared, **own, **further}, source=f"evidence, {base.name}")


def settings_digest(config: Mapping[str, Any]) -> str:
    """:attr:`EvidenceConfig.digest` of a configuration's content; tuners are known by digests of their own."""
    content: dict[str, Any] = {key: value for key, value in config.items() if key not in _NO_MATTER}
    content["bases"] = [{key: value for key, value in base.items() if key != "tuner"} for base in config["bases"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
