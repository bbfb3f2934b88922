"""What a comparison is: methods, tasks, budget, seeds. Importing this module needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from zoft.config import Config, unknown
from zoft.errors import UsageError

#: Neighbours on the grid of learning rates differ by this factor.
LR_RATIO = math.sqrt(2)

#: Selection seeds begin so far above the first reported seed, so that the two never meet.
SELECTION_OFFSET = 10_000

#: Label of the method that every other one is paired with, where it is among the methods.
REFERENCE = "mezo"

#: Names of the controls, in the order of :data:`finetune.controls.CONTROLS`; a tuner's label begins with none.
CONTROL_NAMES = ("untrained", "permuted", "random-basis", "biases-only")

_SINGULAR = {
    "tasks": "task", "choose_on": "task", "regimes": "regime", "budgets": "budget", "controls": "control"
}  # fmt: skip

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class MethodEntry:
    """An entry such as ``hizoo:smooth_scale=1e-4``.

    Attributes:
        label: the entry as it was given; names the method in tables.
        name: the method in ``zoft.optimizers.OPTIMIZERS``.
        hyper: its hyper-parameters.
    """

    label: str
    name: str
    hyper: dict[str, Any]

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Read ``name`` or ``name:key=value:key=value``.

        Raises:
            UsageError: it is not of that form, or sets what the comparison itself sets.
        """
        name, colon, rest = entry.strip().partition(":")
        hyper: dict[str, Any] = {}
        for part in rest.split(":") if colon else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not key or not equals or not value:
                raise UsageError(
                    f"method {entry!r} is not of the form name:key=value,key=value",
                    "Write e.g. hizoo:smooth_scale=1e-4.",
                )
            if key in ("lr", "tuner"):
                raise UsageError(f"method {entry!r} sets {key}, which the comparison sets itself", f"Leave {key} out.")
            hyper[key.replace("-", "_")] = _value(value)
        return cls(entry.strip(), name, hyper)


def _value(text: str) -> Any:
    """An integer, a number, a truth value, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _numbers(given: float | dict[str, float]) -> list[float]:
    return list(given.values()) if isinstance(given, dict) else [given]


def listed(folders: str | list[str]) -> list[str]:
    """The folders of a tuner that is given as one or as several."""
    return [folders] if isinstance(folders, str) else folders


class CompareConfig(Config):
    """Methods × tasks × seeds at an equal number of forward passes."""

    base: str = Field("zoft-base", description="Base model: an alias, a ./folder, or user/repo on the Hub.")
    tasks: list[str] = Field(
        [], description="Tasks to compare on, separated by commas; by default all development tasks."
    )
    optimizers: list[str] = Field(
        ["mezo", "hizoo"],
        description="Methods without a tuner, each a name or name:key=value (hizoo:smooth_scale=1e-4); "
        "`all` is every one that is not named otherwise.",
    )
    tuners: dict[str, str | list[str]] = Field(
        {},
        description="Tuner folders by label; each is a method, and its controls are others. A list (in a file) is one "
        "recipe learned with several seeds, judged together.",
    )
    controls: list[str] | None = Field(
        None, description="Controls of every tuner: untrained, permuted, random-basis, biases-only; by default all."
    )
    rivals: list[str] = Field(
        ["mezo", "hizoo", "hizoo-l", "zo-adam"],
        description="A tuner wins where it is beyond the best of these methods and of all its controls.",
    )
    forwards: int = Field(600, ge=2, description="Forward passes of every run, whatever a step of the method costs.")
    budgets: list[Annotated[int, Field(ge=2)]] = Field(
        [], description="Several budgets of forward passes in place of forwards: a table for each."
    )
    regimes: list[Literal["tuned", "untuned"]] = Field(
        ["tuned"],
        description="tuned: each method's best lr on each task; untuned: one lr of each method for all tasks, chosen "
        "on development tasks.",
    )
    choose_on: list[str] = Field(
        [],
        description="Development tasks that the one lr is chosen on; by default those among the tasks, or else all.",
    )
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    epsilon: float = Field(1e-3, gt=0, description="Perturbation scale ε of every method.")
    lr_mode: Literal["search", "fixed"] = Field(
        "search", description="Search each method's best lr on each task, or take the one in `lrs`."
    )
    lrs: dict[str, float | dict[str, float]] = Field(
        {},
        description="Learning rates by label of the method; one for all tasks, or by task. With lr_mode fixed of every "
        "method, with search of those that are not to be searched.",
    )
    lr_start: float = Field(
        5e-4,
        gt=0,
        description="Where the search for the learning rate begins; a tuner's begins at the one it recommends.",
    )
    lr_reach: int = Field(20, ge=4, description="Factors of √2 that a search may go to either side of where it begins.")
    seeds: int = Field(5, ge=1, le=SELECTION_OFFSET, description="Number of seeds that are reported.")
    selection_seeds: int = Field(2, ge=1, description="Number of other seeds, which the learning rate is chosen on.")
    seed: int = Field(0, ge=0, description="The first reported seed.")
    eval_points: int = Field(
        10, ge=1, description="How often a reported run measures the validation loss (not in the budget)."
    )
    validation_examples: int | None = Field(None, ge=1, description="Validation examples used; by default all.")
    test_examples: int | None = Field(None, ge=1, description="Test examples used; by default all.")
    recommend: bool = Field(
        True, description="Also find the one learning rate of every method that is best over the development tasks."
    )
    allow_meta_training_tasks: bool = Field(
        False, description="Accept tasks that a tuner was meta-trained on; such results are no evidence."
    )
    noise: str = Field("gaussian-table", description="Kind of noise of every method.")
    workers: int | None = Field(None, ge=1, description="Processes; by default one a core (one on an accelerator).")
    threads: int = Field(1, ge=1, description="Threads of every process.")
    runs_at_once: int = Field(
        1,
        ge=1,
        description="Runs that a process makes at once, stacked along a leading dimension: for small models on an "
        "accelerator, which several processes (workers) may share.",
    )
    device: str = Field("cpu", description="Device.")
    dtype: str | None = Field(None, description="dtype of the weights; by default the checkpoint's.")
    data_dir: str | None = Field(
        None, description="Folder with local copies of the published tasks' data sets, in place of the Hub."
    )
    keep_bytes: int = Field(1 << 26, ge=0, description="Bytes in which a step's noise is kept for its next use.")
    cache_bytes: int | None = Field(
        None,
        ge=0,
        description="Bytes of every process for noise and batches that runs with the same seed share; 0 keeps none. By "
        "default 1 GiB, or less where memory is short.",
    )
    tensorboard: bool = Field(True, description="Write TensorBoard logs of the reported runs.")
    plots: bool = Field(True, description="Draw the losses by forward passes and by learning rate.")
    output_dir: str = Field("runs/compare", description="Folder of the results; a rerun goes on from what is there.")

    @field_validator("optimizers")
    @classmethod
    def _entries(cls, entries: list[str]) -> list[str]:
        for entry in entries:
            try:
                MethodEntry.parse(entry)
            except UsageError as error:
                raise ValueError(f"{error.cause}. {error.remedy}") from None
        if len(set(entries)) != len(entries):
            raise ValueError("a method is given twice")
        return entries

    @field_validator("tuners")
    @classmethod
    def _labels(cls, tuners: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for label, folders in tuners.items():
            if not _LABEL.fullmatch(label) or label.startswith(CONTROL_NAMES):
                raise ValueError(
                    f"{label!r} cannot be a tuner's label: use letters, digits, '.', '_', '-', and not a control's name"
                )
            if not folders or len(set(listed(folders))) != len(listed(folders)):
                raise ValueError(f"tuner {label} has no folder, or one twice")
        return tuners

    @field_validator("tasks", "choose_on", "regimes", "budgets", "controls")
    @classmethod
    def _once(cls, values: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        if values is not None and len(set(values)) != len(values):
            raise ValueError(f"a {_SINGULAR[str(info.field_name)]} is given twice")
        return values

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, controls: list[str] | None) -> list[str] | None:
        for name in controls or ():
            if name not in CONTROL_NAMES:
                raise ValueError(unknown("control", name, CONTROL_NAMES))
        return controls

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        clash = set(self.tuners) & {MethodEntry.parse(entry).label for entry in self.optimizers}
        if clash:
            raise ValueError(f"{sorted(clash)[0]!r} is both a method and a tuner's label; rename the tuner's")
        if any(not (lr > 0 and math.isfinite(lr)) for given in self.lrs.values() for lr in _numbers(given)):
            raise ValueError("a learning rate in lrs is not a positive number")
        if self.lr_mode == "fixed" and not self.lrs:
            raise ValueError("lr_mode fixed needs lrs, a learning rate for every method")
        if self.lr_mode == "fixed" and self.regimes != ["tuned"]:
            raise ValueError("regimes say how learning rates are searched; with lr_mode fixed there is no search")
        if self.lrs and self.lr_mode == "search" and "untuned" in self.regimes:
            raise ValueError("lrs are of the regime tuned; leave untuned out, or give no lrs")
        if not self.regimes:
            raise ValueError("regimes is empty; give tuned, untuned, or both")
        return self

    def given_lr(self, label: str, task: str) -> float:
        """The learning rate of ``lrs`` for a method on a task."""
        given = self.lrs[label]
        return given[task] if isinstance(given, dict) else given

    @property
    def all_budgets(self) -> list[int]:
        """The budgets, each of which has a table of its own."""
        return self.budgets or [self.forwards]

    def folders(self, label: str) -> list[str]:
        """The folders of a tuner's label, one for every seed that it was learned with."""
        return listed(self.tuners[label])

    @property
    def entries(self) -> list[MethodEntry]:
        """The methods without a tuner."""
        return [MethodEntry.parse(entry) for entry in self.optimizers]

    @property
    def reported_seeds(self) -> list[int]:
        """The seeds whose results are reported."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def chosen_on_seeds(self) -> list[int]:
        """The seeds that learning rates are chosen on; never one of :attr:`reported_seeds`."""
        first = self.seed + SELECTION_OFFSET
        return list(range(first, first + self.selection_seeds))
