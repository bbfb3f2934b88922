"""What a fine-tuning run is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from finetune.first_order import METHODS, unknown_method
from zoft.adapters import TrainableConfig
from zoft.config import Config, nearest, unknown
from zoft.errors import UsageError
from zoft.models import DTYPES
from zoft.names import resolve_model
from zoft.noise import NOISES
from zoft.tasks import get_task
from zoft.tasks.objectives import LOSS, OBJECTIVES
from zoft.tuner.config import RateSchedule
from zoft.tuner.index import resolve_tuner

#: The method that a tuner brings along.
LEARNED = "zo-finetuner"

T = TypeVar("T")


class DataConfig(Config):
    """A model, and the task or the data set that it works on."""

    model: str | None = Field(
        None, description="Model: a local folder, user/repo on the Hub, or a short name such as zoft-base."
    )
    task: str | None = Field(None, description="Task, by its name.")
    dataset: str | None = Field(
        None, description="Data of one's own in place of a task: a file, a folder, or user/name on the Hub."
    )
    template: str | None = Field(None, description="The prompt over the data's columns, such as '{text} Sentiment:'.")
    labels: list[str] | None = Field(None, description="The texts that stand for the data's labels, in their order.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="The data's names for text, prompt, label, candidates, completion, messages."
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the training rows for a split that a data set lacks."
    )
    data_dir: str | None = Field(
        None, description="Folder with local copies of the published tasks' data sets, in place of the Hub."
    )
    per_class: int | None = Field(
        None, ge=1, description="Examples of each class that a published task trains on, in place of 1,000 in all."
    )
    one_token: bool = Field(False, description="Score only the first token of every candidate.")
    max_length: int | None = Field(
        None, ge=1, description="Longest sequence in tokens; the model's context length by default."
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of everything that is drawn: splits, order of the data, directions."
    )
    dtype: str | None = Field(None, description="dtype of the weights; the checkpoint's by default.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto is cuda where there is one.")
    trust_remote_code: bool = Field(False, description="Allow Python code of the model's own repository to run.")

    @property
    def target(self) -> str:
        """The device that ``device`` stands for."""
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str | None) -> str | None:
        if value is not None:
            _or_value_error(lambda: resolve_model(value))
        return value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str | None) -> str | None:
        if value is not None:
            _or_value_error(lambda: get_task(value))
        return value

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        if value is not None and value not in DTYPES:
            raise ValueError(unknown("dtype", value, DTYPES))
        return value


class FinetuneConfig(DataConfig, TrainableConfig):
    """Configuration of ``zoft finetune``. The model is the tuner's base by default."""

    tuner: str | None = Field(
        None,
        description="Tuner: a local folder, user/repo[@revision] on the Hub, or a short name (`zoft tuner list`); its "
        "sigma scale the method's directions.",
    )
    optimizer: str | None = Field(
        None,
        description=f"Method, or a first-order baseline (adamw, sgd); by default {LEARNED}, if there is a tuner.",
    )
    hyper: dict[str, Any] = Field(
        default_factory=dict,
        description="Hyper-parameters of the method; lr and epsilon are the tuner's recommended ones by default.",
    )
    objective: str = Field(
        LOSS, description=f"What is minimised: {LOSS}, or 1 minus a metric: {', '.join(OBJECTIVES[1:])}."
    )
    steps: int = Field(1000, ge=1, description="Steps of the method.")
    batch_size: int | None = Field(
        None, ge=1, description="Examples a step, over all processes; the tuner's recommended size, or 16, by default."
    )
    accumulate: int = Field(1, ge=1, description="Parts that a step's batch is run in, to save memory.")
    schedule: RateSchedule | None = Field(
        None, description="Course of the learning rate over the steps; the tuner's, or constant, by default."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises from 0.")
    eval_every: int | None = Field(
        None, ge=0, description="Steps between evaluations on the validation split; 0 is never, a tenth by default."
    )
    eval_limit: int | None = Field(1000, ge=1, description="Examples of a split used in an evaluation; none is all.")
    save_every: int | None = Field(
        None, ge=0, description="Steps between checkpoints; 0 is never, a tenth of the steps by default."
    )
    keep_checkpoints: int = Field(1, ge=1, description="Checkpoints that are kept, the latest ones.")
    patience: int = Field(10, ge=1, description="Lost steps in a row (loss not finite, or exploded) that end the run.")
    noise: str | None = Field(None, description="Kind of noise; the tuner's, or gaussian-table, by default.")
    noise_cache: int = Field(
        256, ge=0, description="MiB for keeping a step's noise instead of making it again; the bits are the same."
    )
    threads: int | None = Field(None, ge=1, description="Threads of torch on the CPU; torch's own choice by default.")
    output_dir: str | None = Field(
        None, description="Folder of the run; runs/<task>-<model>-<method>-<seed> by default, an adapter named too."
    )

    @field_validator("tuner")
    @classmethod
    def _known_tuner(cls, value: str | None) -> str | None:
        if value is not None:
            _or_value_error(lambda: resolve_tuner(value))
        return value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS:
            raise ValueError(unknown_method(value))
        return value

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str) -> str:
        if value not in OBJECTIVES:
            raise ValueError(unknown("objective", value, OBJECTIVES))
        return value

    @field_validator("hyper")
    @classmethod
    def _known_hyper(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if value and "optimizer" in info.data:
            name = info.data["optimizer"] or (LEARNED if info.data.get("tuner") else None)
            if name is not None:
                return _or_value_error(lambda: checked_hyper(name, value))
        return value

    @field_validator("noise")
    @classmethod
    def _known_noise(cls, value: str | None) -> str | None:
        if value is not None and value not in NOISES:
            raise ValueError(unknown("noise kind", value, NOISES))
        return value


def checked_hyper(name: str, hyper: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of the method ``name`` as numbers, whether or not it needs a tuner.

    Raises:
        UsageError: an unknown one, with the nearest, or a value out of range.
    """
    known = [key for key in METHODS[name].model_fields if key != "tuner"]
    problems = []
    for key in hyper:
        if key not in known:
            others = [other for other, method in METHODS.items() if key in method.model_fields and key != "tuner"]
            where = f"it is one of {', '.join(others)}" if others else f"known: {', '.join(known)}"
            close = nearest(key, known)
            hint = f"did you mean {' or '.join(close)}?" if close and not others else where
            problems.append(f"{name} has no hyper-parameter {key!r}; {hint}")
    if problems:
        raise UsageError("; ".join(problems))
    checked: dict[str, Any] = {}
    wrong = []
    for key, value in hyper.items():
        field = METHODS[name].model_fields[key]
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
            empty = isinstance(value, str) and value.lower() == "none" and not field.is_required()
            checked[key] = adapter.validate_python(None if empty else value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            wrong.append(f"{key}: {message[:1].lower()}{message[1:]} (given: {value!r})")
    if wrong:
        raise UsageError(f"{name}: " + "; ".join(wrong), "Correct the value.")
    return checked


def _or_value_error(check: Callable[[], T]) -> T:
    """``check()``; pydantic collects ValueErrors of all fields, so that all are reported at once."""
    try:
        return check()
    except UsageError as error:
        raise ValueError(error.cause) from None
