"""Which methods a comparison has: baselines, tuners, and the untrained control of every kind of tuner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune.compare_config import CompareConfig, MethodEntry
from finetune.compare_run import Bench, TunerSource, tuner_hash
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
        optimizer, hyper: the method and its hyper-parameters; ``tuner`` where it has one.
        forwards: forward passes a step.
        trained_on: the tasks that its tuner was meta-trained on.
        control: label of the untrained control of a tuner.
    """

    label: str
    optimizer: str
    hyper: Mapping[str, Any]
    forwards: int
    tuner: TunerSource | None = None
    trained_on: tuple[str, ...] = ()
    control: str | None = None

    def record(self) -> dict[str, Any]:
        """JSON-able, without the label."""
        content = asdict(self)
        del content["label"]
        return content


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
        method = get_optimizer(entry.name, **{"epsilon": config.epsilon, **entry.hyper})
        plans.append(MethodPlan(entry.label, entry.name, entry.hyper, method.forwards))
    return plans


def plan_methods(config: CompareConfig, bench: Bench) -> list[MethodPlan]:
    """The baselines, then the untrained controls, then the tuners.

    Tuners with the same architecture and initial values share a control, which begins where their
    meta-training began. Without any tuner the control is that of the default network.

    Raises:
        UsageError: a wrong method or hyper-parameter, or a tuner learned with another kind of noise.
        ArtifactError, IncompatibleError: a tuner cannot be read, or does not fit the base.
    """
    plans = baselines(config)
    tuners = {label: _read(label, folder, config, bench) for label, folder in config.tuners.items()}
    controls: dict[str, TunerSource] = {}
    members: dict[str, list[str]] = {}
    for label, tuner in tuners.items():
        source = TunerSource(str(config.tuners[label]), untrained=True, seed=_initial_seed(tuner))
        digest = tuner_hash(source.load(bench.model))
        controls.setdefault(digest, replace(source, digest=digest))
        members.setdefault(digest, []).append(label)
    if not controls:
        source = TunerSource(None, untrained=True)
        digest = tuner_hash(source.load(bench.model))
        controls, members = {digest: replace(source, digest=digest)}, {digest: []}
    names = {
        digest: "untrained" if len(controls) == 1 else f"untrained-{'+'.join(labels)}"
        for digest, labels in members.items()
    }
    plans += [MethodPlan(names[digest], LEARNED, {}, 2, source) for digest, source in controls.items()]
    for digest, labels in members.items():
        for label in labels:
            tuner = tuners[label]
            source = TunerSource(str(config.tuners[label]), untrained=False, digest=tuner_hash(tuner))
            trained_on = tuple(tuner.provenance.get("tasks", ()))
            plans.append(MethodPlan(label, LEARNED, {}, 2, source, trained_on, names[digest]))
    return plans


def pinned(config: CompareConfig) -> CompareConfig:
    """The configuration with tuners by names that stay the same: those on the Hub at their present commit.

    Raises:
        UsageError, ArtifactError: a tuner cannot be had.
    """
    names = {}
    for label, name in config.tuners.items():
        origin = Tuner.from_pretrained(name).origin
        if origin is not None and origin.commit is not None:
            names[label] = origin.pinned
        else:
            names[label] = f"./{name}" if HUB_NAME.fullmatch(name) else name  # a folder, once and for all
    return config.model_copy(update={"tuners": names})


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
