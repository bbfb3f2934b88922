"""What a run of a comparison is: what it is made on, its settings, and its record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from torch import nn

from finetune.compare_config import CompareConfig
from finetune.controls import CONTROLS
from finetune.oracle_config import OracleConfig
from finetune.processes import Record
from zoft.blocks import weights_hash
from zoft.config import unknown
from zoft.errors import UsageError
from zoft.optimizers import ZOOptimizer
from zoft.tasks.base import Task
from zoft.tuner import Tuner
from zoft.tuner.config import CONSTANT, RateSchedule

#: Version of what a record means; records of another version are not reused.
RECORD_FORMAT = 1

NOT_FINITE, NO_BETTER = "not finite", "no better than zero-shot"


@dataclass
class Bench:
    """What runs are made on: a model at its initial weights, and tasks.

    Attributes:
        model: the model; runs train it in place and put its weights back.
        tasks: every task by its name.
        roles: the tasks' roles (``zoft.tasks.base.ROLES``).
        chance: the loss of guessing, where a task has one.
        data: a hash of every task's examples.
        base: name of the base.
        revision: its commit, where it came from the Hub.
        fingerprint: a hash of the weights, made by :func:`weights_hash`.
    """

    model: nn.Module
    tasks: Mapping[str, Task]
    roles: Mapping[str, str]
    chance: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    revision: str | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or weights_hash(self.model)


@dataclass(frozen=True)
class TunerSource:
    """Where a run's tuner comes from.

    Attributes:
        folder: the tuner's name, see :mod:`zoft.names`; None is a tuner of the default network for the model.
        control: name of the control that is made of it (:data:`finetune.controls.CONTROLS`); None is the tuner itself.
        seed: seed of the control.
        digest: ``Tuner.digest`` of what :meth:`load` gives.
    """

    folder: str | None
    control: str | None = None
    seed: int = 0
    digest: str = ""

    def made(self, model: nn.Module) -> Tuner | str:
        """The tuner, or why there is no such control; ``model`` must be at its initial weights."""
        folder = self.folder
        tuner = Tuner.untrained(model, seed=self.seed) if folder is None else Tuner.from_pretrained(folder)
        return tuner if self.control is None else CONTROLS[self.control](tuner, model, self.seed)

    def load(self, model: nn.Module) -> Tuner:
        """The tuner; ``model`` must be at its initial weights.

        Raises:
            UsageError: there is no such control of it, or it is another one than when the digest was taken: a run
                would be recorded under the name of a tuner that it did not have.
        """
        made = self.made(model)
        if isinstance(made, str):
            raise UsageError(f"{self.folder} has no control {self.control}: {made}", "Leave it out.")
        if self.digest and made.digest != self.digest:
            raise UsageError(
                f"the tuner {self.folder} has changed while it was being compared",
                "Leave its files alone until the comparison is done, and start that again.",
            )
        return made


@dataclass(frozen=True)
class RunSpec:
    """The settings of a run; :attr:`key` identifies its result.

    Attributes:
        fingerprint: of the base's weights; ``data``: of the task's examples.
        optimizer: name of the method, with ``hyper`` (see :func:`with_course`), and ``tuner`` where it has one.
        forwards: the budget; the run makes as many whole steps as fit into it.
        eval_points: how often the validation loss is measured, the last time at the end.
        test: whether the test split is evaluated at the end.
    """

    fingerprint: str
    data: str
    task: str
    optimizer: str
    hyper: Mapping[str, Any]
    tuner: TunerSource | None
    lr: float
    epsilon: float
    seed: int
    forwards: int
    batch_size: int
    eval_points: int
    validation_examples: int | None
    test: bool
    test_examples: int | None
    noise: str

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, JSON-able."""
        return asdict(self)

    @property
    def key(self) -> str:
        """Hash of what the result depends on: all settings, of the tuner only what it computes."""
        content = {**self.settings, "tuner": self.tuner.digest if self.tuner else None, "format": RECORD_FORMAT}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def with_course(settings: Mapping[str, Any]) -> tuple[dict[str, Any], RateSchedule]:
    """A method's settings parted: its hyper-parameters, and the course of its learning rate over the run.

    Raises:
        UsageError: there is no such course.
    """
    hyper = dict(settings)
    course = hyper.pop("schedule", CONSTANT)
    if course not in get_args(RateSchedule):
        raise UsageError(unknown("schedule", str(course), get_args(RateSchedule)))
    return hyper, course


def run_spec(
    settings: CompareConfig | OracleConfig,
    bench: Bench,
    *,
    task: str,
    optimizer: str,
    hyper: Mapping[str, Any],
    tuner: TunerSource | None,
    lr: float,
    seed: int,
    forwards: int,
    eval_points: int,
    reported: bool,
) -> RunSpec:
    """One run on a bench; only reported ones see the test split."""
    return RunSpec(
        fingerprint=bench.fingerprint,
        data=bench.data.get(task, ""),
        task=task,
        optimizer=optimizer,
        hyper=hyper,
        tuner=tuner,
        lr=lr,
        epsilon=settings.epsilon,
        seed=seed,
        forwards=forwards,
        batch_size=settings.batch_size,
        eval_points=eval_points,
        validation_examples=settings.validation_examples,
        test=reported,
        test_examples=settings.test_examples if reported else None,
        noise=settings.noise,
    )


def record_of(
    spec: RunSpec,
    method: ZOOptimizer,
    curve: Sequence[tuple[int, float, float]],
    steps: int,
    skipped: int,
    validation_zero: float,
    test_zero: Mapping[str, float],
    test: Mapping[str, float],
    seconds: float,
    device: str,
) -> Record:
    """What is kept of a run.

    Args:
        curve: forwards, validation loss and mean training loss at every point.
        steps: steps made, fewer than the budget allows where the run gave up; ``skipped``: those that were skipped.
        validation_zero, test_zero: before the first step. ``test``: after the last; both empty if it was not asked for.
        seconds: wall time. ``device``: where it was made.
    """
    validation_loss = curve[-1][1] if steps == method.steps_within(spec.forwards) else math.nan
    metrics = [name for name in test if name != "loss"]
    judged = (test["loss"], test_zero["loss"]) if spec.test else (validation_loss, validation_zero)
    return {
        "key": spec.key,
        "settings": spec.settings,
        "steps": steps,
        "forwards": method.forwards_in(steps),
        "skipped_steps": skipped,
        "zero_shot": {"validation_loss": _finite(validation_zero), **_renamed(test_zero)},
        "validation_loss": _finite(validation_loss),
        **_renamed(test),
        "metric": metrics[0] if metrics else None,
        "diverged": _judgement(*judged, math.isfinite(validation_loss)),
        "curve": [[forwards, _finite(loss), _finite(training)] for forwards, loss, training in curve],
        "seconds": round(seconds, 3),
        "device": device,
    }


def _judgement(final: float, zero: float, finished: bool) -> str | None:
    """Why a run counts as diverged, or None."""
    if not finished or not math.isfinite(final):
        return NOT_FINITE
    return None if final < zero else NO_BETTER


def _renamed(values: Mapping[str, float]) -> dict[str, float | None]:
    return {("test_loss" if name == "loss" else "test_metric"): _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
