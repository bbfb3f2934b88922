"""Which methods a comparison has: baselines, tuners, and the controls of every tuner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune.compare_config import CompareConfig, MethodEntry
from finetune.controls import CONTROLS
from finetune.run_spec import Bench, TunerSource, with_course
from zoft.errors import UsageError
from zoft.names import HUB_NAME
from zoft.optimizers import OPTIMIZERS, get_optimizer
from zoft.tuner import Tuner

#: The method that a tuner belongs to.
LEARNED = "zo-finetuner"


@dataclass(frozen=True)
class MethodPlan:
    """A method of a comparison.

    Attributes:
        label: its name in tables.
        optimizer, hyper: the method and its hyper-parameters, with ``schedule`` where its rate is not constant.
        forwards: forward passes a step.
        tuners: where it has one, its tuner; several if it was learned with several seeds.
        trained_on: the tasks that its tuners were meta-trained on.
        controls: of a tuner, the labels of its controls.
        kind: of a control, its name in :data:`finetune.controls.CONTROLS`.
        begin: where the search of its learning rate begins: what its tuner recommends; None is lr_start.
    """

    label: str
    optimizer: str
    hyper: Mapping[str, Any]
    forwards: int
    tuners: tuple[TunerSource, ...] = ()
    trained_on: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    kind: str | None = None
    begin: float | None = None

    @property
    def is_learned(self) -> bool:
        """Whether it is a learned tuner, and no control."""
        return bool(self.tuners) and self.tuners[0].control is None

    @property
    def course(self) -> str:
        """The course of its learning rate over a run."""
        return with_course(self.hyper)[1]

    @property
    def untrained(self) -> str | None:
        """Label of the untrained control of a tuner."""
        return next((label for label in self.controls if label.startswith("untrained")), None)

    def record(self) -> dict[str, Any]:
        """JSON-able, without the label."""
        content = asdict(self)
        del content["label"]
        tuners = [{**tuner, "untrained": tuner["control"] == "untrained"} for tuner in content["tuners"]]
        return {**content, "tuners": tuners, "tuner": tuners[0] if tuners else None, "control": self.untrained}


#: The entry that stands for every other method without a tuner.
ALL = "all"


def with_all(entries: Sequence[str]) -> list[str]:
    """The entries, with the registered methods that no other entry names in place of :data:`ALL`.

    Those that need a tuner are not among them; the others have their default hyper-parameters.
    """
    named = {MethodEntry.parse(entry).name for entry in entries} | {LEARNED}
    rest = [name for name in OPTIMIZERS if name not in named]
    return [name for entry in entries for name in (rest if entry == ALL else [entry])]


def baselines(config: CompareConfig) -> list[MethodPlan]:
    """The methods without a tuner; needs no model.

    Raises:
        UsageError: a wrong method or hyper-parameter.
    """
    plans = []
    for entry in map(MethodEntry.parse, with_all(config.optimizers)):
        hyper, _ = with_course(entry.hyper)
        method = get_optimizer(entry.name, **{"epsilon": config.epsilon, **hyper})
        plans.append(MethodPlan(entry.label, entry.name, entry.hyper, method.forwards))
    return plans


def plan_methods(config: CompareConfig, bench: Bench) -> tuple[list[MethodPlan], list[str]]:
    """The baselines, then the controls, then the tuners; and a sentence for every control that there is not.

    Tuners for which a control is the same share it: an untrained one begins where their meta-training began, and
    biases alone have nothing of a tuner. Without any tuner the one control is the untrained default network.

    Raises:
        UsageError: a wrong method or hyper-parameter, or a tuner learned with another kind of noise.
        ArtifactError, IncompatibleError: a tuner cannot be read, or does not fit the base.
    """
    plans = baselines(config)
    if not config.tuners:
        source = TunerSource(None, "untrained")
        source = replace(source, digest=source.load(bench.model).digest)
        return [*plans, MethodPlan("untrained", LEARNED, {}, 2, (source,), kind="untrained")], []
    tuners = {label: [_read(label, name, config, bench) for name in config.folders(label)] for label in config.tuners}
    controls, notes = _plan_controls(config, bench, tuners)
    plans += [control for control, _ in controls]
    for label, learned in tuners.items():
        sources = tuple(
            TunerSource(name, digest=tuner.digest) for name, tuner in zip(config.folders(label), learned, strict=True)
        )
        trained_on = tuple(dict.fromkeys(task for tuner in learned for task in tuner.provenance.get("tasks", ())))
        mine = tuple(control.label for control, labels in controls if label in labels)
        usage = _usage(label, learned)
        plans.append(
            MethodPlan(label, LEARNED, usage, _forwards(usage), sources, trained_on, mine, begin=_begin(learned))
        )
    return plans, notes


def _plan_controls(
    config: CompareConfig, bench: Bench, tuners: Mapping[str, Sequence[Tuner]]
) -> tuple[list[tuple[MethodPlan, list[str]]], list[str]]:
    """Every control with the labels of the tuners that it is of, and why others are missing."""
    planned, notes = [], []
    for name in CONTROLS if config.controls is None else config.controls:
        groups: dict[tuple[str, ...], tuple[tuple[TunerSource, ...], dict[str, Any], list[str]]] = {}
        begins: dict[tuple[str, ...], float | None] = {}
        missing: dict[str, list[str]] = {}
        for label, learned in tuners.items():
            sources = _sources(name, config.folders(label), learned, bench)
            if isinstance(sources, str):
                missing.setdefault(sources, []).append(label)
                continue
            usage = _usage(label, learned)
            same = (*(source.digest for source in sources), json.dumps(usage))
            groups.setdefault(same, (sources, usage, []))[2].append(label)
            begins.setdefault(same, _begin(learned))
        alone = len(groups) == 1
        for same, (sources, usage, labels) in groups.items():
            shown = name if alone else f"{name}-{'+'.join(labels)}"
            optimizer = "mezo" if name == "biases-only" else LEARNED
            plan = MethodPlan(shown, optimizer, usage, _forwards(usage), sources, kind=name, begin=begins[same])
            planned.append((plan, labels))
        notes += [f"no control {name} of {', '.join(labels)}: {why}" for why, labels in missing.items()]
    return planned, notes


def _usage(label: str, learned: Sequence[Tuner]) -> dict[str, Any]:
    """How the label's tuners are to be used, and so their controls: directions, estimator and schedule they name."""
    usages = [tuner.config.recommended.usage for tuner in learned]
    if any(usage != usages[0] for usage in usages):
        raise UsageError(
            f"the tuners of {label} recommend different directions, estimators or schedules",
            "Give each kind a label of its own.",
        )
    return usages[0]


def _begin(learned: Sequence[Tuner]) -> float | None:
    """The learning rate that the tuners recommend, of several the middle one."""
    rates = sorted(t.config.recommended.lr for t in learned if t.config.recommended.lr is not None)
    return rates[len(rates) // 2] if rates else None


def _forwards(usage: Mapping[str, Any]) -> int:
    """Forwards a step of the learned method."""
    return get_optimizer("mezo", **with_course(usage)[0]).forwards


def _sources(
    name: str, folders: Sequence[str], learned: Sequence[Tuner], bench: Bench
) -> tuple[TunerSource, ...] | str:
    """A control of every tuner of a label, or one if all compute the same; or why there is none."""
    sources, same = [], set()
    for index, (folder, tuner) in enumerate(zip(folders, learned, strict=True)):
        source = TunerSource(folder, name, _initial_seed(tuner) if name == "untrained" else index)
        made = source.made(bench.model)
        if isinstance(made, str):
            return made
        sources.append(replace(source, digest=made.digest))
        # Networks that start at σ = 1 do the same whatever their seed, and so do biases alone; the slopes or
        # curvatures that their step-size heads go by only say in which units the learning rate is.
        plain = name == "biases-only" or (name == "untrained" and tuner.config.network.init == "neutral")
        same.add("plain" if plain else made.digest)
    return tuple(sources[:1] if len(same) == 1 else sources)


def pinned(config: CompareConfig) -> CompareConfig:
    """The configuration with tuners by names that stay the same: those on the Hub at their present commit.

    Raises:
        UsageError, ArtifactError: a tuner cannot be had.
    """
    names = {
        label: _pinned(given) if isinstance(given, str) else [_pinned(name) for name in given]
        for label, given in config.tuners.items()
    }
    return config.model_copy(update={"tuners": names})


def _pinned(name: str) -> str:
    origin = Tuner.from_pretrained(name).origin
    if origin is not None and origin.commit is not None:
        return origin.pinned
    return f"./{name}" if HUB_NAME.fullmatch(name) else name  # a folder, once and for all


def _read(label: str, folder: str, config: CompareConfig, bench: Bench) -> Tuner:
    tuner = Tuner.from_pretrained(folder)
    if tuner.config.noise.kind != config.noise:
        raise UsageError(
            f"tuner {label} was learned with noise {tuner.config.noise.kind}, and this comparison uses {config.noise}",
            "Set noise to the tuner's kind.",
        )
    tuner.bind(bench.model, config.batch_size)
    return tuner


def _initial_seed(tuner: Tuner) -> int:
    """The seed that the networks began with, from the tuner's provenance."""
    settings = tuner.provenance.get("config", {})
    seed = settings.get("seed", 0) if isinstance(settings, Mapping) else 0
    return seed if isinstance(seed, int) else 0
