"""A fine-tuning configuration with its defaults resolved: what a dry run shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import LEARNED, FinetuneConfig
from finetune.first_order import FIRST_ORDER, METHODS
from zoft.errors import UsageError
from zoft.models import LoadedModel
from zoft.names import EMBEDDED, HUB_NAME
from zoft.noise import GaussianTable
from zoft.optimizers import get_optimizer
from zoft.tasks.base import Task
from zoft.tasks.metrics import Metric
from zoft.tasks.objectives import LOSS, objective_name
from zoft.tuner import Tuner
from zoft.tuner.config import CONSTANT, RateSchedule

#: Examples a step where neither the user nor a tuner says.
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Plan:
    """A configuration with every default resolved, before any model is loaded.

    Attributes:
        config: no value in it is left to a default that depends on something else, output_dir included.
        tuner: the tuner, or None.
        sources: where lr, epsilon and batch size came from, in words.
        objective: a metric of one's own, which the configuration cannot hold.
    """

    config: FinetuneConfig
    tuner: Tuner | None
    sources: dict[str, str]
    objective: Metric | None = None

    def describe(self) -> list[str]:
        """One line for each value that came from elsewhere than the user."""
        values = {**self.config.to_dict(), **self.config.hyper}
        shown = {
            name: value if isinstance(value, str) else f"{value:g}"
            for name, value in values.items()
            if name in self.sources
        }
        return [f"{name} {shown[name]}: {source}" for name, source in self.sources.items()]


def plan(
    config: FinetuneConfig,
    *,
    model: LoadedModel | None = None,
    task: Task | None = None,
    tuner: Tuner | None = None,
    objective: Metric | None = None,
) -> Plan:
    """Resolve what a configuration leaves open; objects in memory take the place of names in it.

    Raises:
        UsageError: something is missing or given twice; all such problems at once.
        ArtifactError: the tuner cannot be read.
    """
    if tuner is None and config.tuner is not None:
        tuner = Tuner.from_pretrained(config.tuner)
    problems = _problems(config, model, task, tuner)
    if _differentiates(config) and (objective is not None or config.objective != LOSS):
        name = config.objective if objective is None else objective_name(objective)
        remedy = "Use a zeroth-order method that takes differences, such as mezo."
        problems.append((f"{config.optimizer} needs a gradient, and {name} has none", remedy))
    if problems:
        raise UsageError("; ".join(cause for cause, _ in problems), " ".join(remedy for _, remedy in problems))
    name = config.optimizer or LEARNED
    sources: dict[str, str] = {}
    schedule = _schedule(config, tuner if name == LEARNED else None, sources)
    hyper = dict(config.hyper)
    for key in ("lr",) if name in FIRST_ORDER else ("lr", "epsilon"):
        source = tuner if key != "lr" or _plain_steps(config, tuner) else None
        hyper[key], sources[key] = _setting(key, hyper.get(key), source, METHODS[name].model_fields[key].default)
    if name == LEARNED and tuner is not None:
        for key, value in tuner.config.recommended.estimate.items():
            # The recommended learning rate is for steps of this kind; what is given wins, as with every setting.
            if key not in hyper:
                hyper[key], sources[key] = value, "recommended by the tuner"
    if any(key.endswith("_schedule") for key in hyper):
        hyper.setdefault("schedule_steps", config.steps)
    if name != LEARNED and name not in FIRST_ORDER:
        get_optimizer(name, **hyper)  # what does not go together is said before any model is loaded
    batch_size, sources["batch_size"] = _setting("batch_size", config.batch_size, tuner, _BATCH_SIZE)
    base = model.name if model is not None else config.model
    if base is None and tuner is not None:
        base = _base_of(tuner)
    tenth = max(1, config.steps // 10)
    resolved = {
        "model": base,
        "tuner": config.tuner,
        "optimizer": name,
        "hyper": hyper,
        "batch_size": batch_size,
        "schedule": schedule,
        "noise": config.noise or (tuner.config.noise.kind if tuner is not None else GaussianTable.name),
        "eval_every": tenth if config.eval_every is None else config.eval_every,
        "save_every": tenth if config.save_every is None else config.save_every,
        "device": config.target,
        "output_dir": config.output_dir or _default_folder(config, name, base, task),
    }
    return Plan(config.model_copy(update=resolved), tuner, sources, objective)


def _differentiates(config: FinetuneConfig) -> bool:
    """Whether the method takes derivatives of the loss: a first-order baseline, or exact ones along directions."""
    kind = METHODS[config.optimizer or LEARNED]
    estimator = kind.model_fields.get("estimator")
    default = None if estimator is None else estimator.default
    return config.optimizer in FIRST_ORDER or config.hyper.get("estimator", default) == "derivative"


def _plain_steps(config: FinetuneConfig, tuner: Tuner | None) -> bool:
    """Whether steps are those that a tuner's learning rate is for, −η·c·z.

    Under another update rule it would be of another length, and so it would where a step-size head that goes by the
    examples' losses measures none.
    """
    rule = tuner.config.step_rule if tuner is not None else None
    unmeasured = rule is not None and rule.by_example and _differentiates(config)
    return not unmeasured and "update" not in getattr(METHODS[config.optimizer or LEARNED], "parts", ())


def _problems(
    config: FinetuneConfig, model: LoadedModel | None, task: Task | None, tuner: Tuner | None
) -> list[tuple[str, str]]:
    """What is missing or given twice: cause and remedy."""
    problems = []
    if config.optimizer is None and tuner is None:
        others = ", ".join(name for name in METHODS if name != LEARNED)
        problems.append(("no method is given", f"Give --tuner NAME, or --optimizer with one of {others}."))
    if config.optimizer == LEARNED and tuner is None:
        problems.append((f"the method {LEARNED} needs a tuner", "Give one with --tuner."))
    if config.optimizer in FIRST_ORDER and tuner is not None:
        problems.append((f"a tuner for {config.optimizer}, which perturbs nothing", "Give one of the two."))
    if model is None and config.model is None and (tuner is None or not _base_of(tuner)):
        problems.append(("no model is given", "Give one with --model."))
    data = [given for given in (task, config.task, config.dataset) if given is not None]
    if not data:
        problems.append(("no task is given", "Give one with --task, or your own data with --dataset."))
    if len(data) > 1:
        problems.append(("both a task and a data set are given", "Give one of the two."))
    unused = [name for name in ("template", "labels", "columns") if getattr(config, name) and config.dataset is None]
    if unused and data:
        problems.append((f"{' and '.join(unused)} given without a data set", "Give them with --dataset only."))
    unused = [name for name in ("data_dir", "per_class") if getattr(config, name) and config.task is None]
    if unused and data:
        problems.append((f"{' and '.join(unused)} given without a task", "Give them with a published --task only."))
    return problems


def _setting(key: str, given: Any, tuner: Tuner | None, default: Any) -> tuple[Any, str]:
    """A value and where it is from."""
    if given is not None:
        return given, "as given"
    recommended = getattr(tuner.config.recommended, key) if tuner is not None else None
    if recommended is not None:
        return recommended, "recommended by the tuner"
    return default, "the default" if key == "batch_size" else "the method's default"


def _schedule(config: FinetuneConfig, tuner: Tuner | None, sources: dict[str, str]) -> RateSchedule:
    """The course of the learning rate; ``sources`` learns where it is from, unless it is constant by default."""
    recommended = tuner.config.recommended.schedule if tuner is not None else CONSTANT
    if config.schedule is None and recommended == CONSTANT:
        return CONSTANT
    sources["schedule"] = "recommended by the tuner" if config.schedule is None else "as given"
    return config.schedule or recommended


def _base_of(tuner: Tuner) -> str:
    """The base's name; empty where a tuner from the Hub names a folder, which is one of its author's machine."""
    name, revision = tuner.config.base_model_name_or_path, tuner.config.base_model_revision
    if tuner.origin is not None and tuner.origin.commit and HUB_NAME.fullmatch(name) is None and name != EMBEDDED:
        return ""
    return f"{name}@{revision}" if name and revision else name


def _default_folder(config: FinetuneConfig, method: str, base: str | None, task: Task | None) -> str:
    data = task.name if task is not None else config.task or Path(str(config.dataset)).name.partition(".")[0]
    model = Path(str(base).partition("@")[0]).name
    trained = [config.peft] if config.peft else []
    minimised = [config.objective] if config.objective != LOSS else []
    parts = [data, model, method, *trained, *minimised, str(config.seed)]
    return "runs/" + "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-") for part in parts)
