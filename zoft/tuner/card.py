"""The model card: generated from the tuner alone, so that it says nothing that the tuner does not hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from zoft.errors import UsageError
from zoft.names import HUB_NAME
from zoft.tuner.config import CONSTANT, Recommended, TunerConfig
from zoft.tuner.structure import described

TAGS = ("zoft", "zo-tuner", "zeroth-order", "learned-optimizer")

#: Keys of the provenance: the summary of a comparison, and what a converted tuner was made from.
RESULTS, CONVERTED = "results", "converted"


def card(config: TunerConfig, provenance: Mapping[str, Any], name: str) -> str:
    """README.md of a tuner.

    Args:
        name: what the usage shows for the tuner: ``user/repo``, a short name or a folder.
    """
    template = Template(resources.files("zoft.tuner").joinpath("card.md").read_text(encoding="utf-8"))
    recommended = config.recommended
    lr = recommended.lr
    known = all(shape is not None for shape in config.blocks.shapes)
    return template.substitute(
        front_matter=_front_matter(config),
        base=base_of(config) or "an unknown base",
        name=name,
        count=len(config.blocks.names),
        structure=_structure(config),
        noise=config.noise.kind,
        noise_version=config.noise.version,
        shapes="" if known else "The shapes are not known to this tuner, so that only the names are compared.",
        lr=f"{lr:.3g}" if lr is not None else "not determined",
        settings=json.dumps({"lr": float(f"{lr:.3g}") if lr is not None else 1e-6, **recommended.estimate}),
        imports="" if recommended.schedule == CONSTANT else "import transformers\n",
        course=_course(recommended) + _closure(config),
        epsilon=f"{recommended.epsilon:g}",
        batch_size=recommended.batch_size,
        estimate="".join(f", {key} {value}" for key, value in recommended.usage.items()),
        recommended_by="" if lr is not None else "Search for the learning rate, downward from 1e-6 and upward.",
        learned=learned(provenance),
        results=results_table(provenance.get(RESULTS)),
        limit=_limit(provenance),
        versions=_versions(config, provenance),
    )


def _course(recommended: Recommended) -> str:
    """The line of the usage that makes the recommended course of the learning rate."""
    if recommended.schedule == CONSTANT:
        return ""
    return (
        f'\nschedule = transformers.get_scheduler("{recommended.schedule}", optimizer, 0, num_training_steps=STEPS)'
        "  # schedule.step() after each"
    )


def _closure(config: TunerConfig) -> str:
    """What the usage says of the closure where the step-size head goes by the losses of the examples."""
    if config.step_rule is None or not config.step_rule.by_example:
        return ""
    return "\n# Steps are longer where the closure returns the losses of the examples, [B], and not their mean."


def base_of(config: TunerConfig) -> str:
    """The base's name for others to read: a folder of somebody's machine tells them nothing but its last part."""
    name = config.base_model_name_or_path
    return name if HUB_NAME.fullmatch(name) or "/" not in name else Path(name).name


def learned(provenance: Mapping[str, Any]) -> str:
    """What the tuner was learned on, in a few lines of Markdown."""
    converted = provenance.get(CONVERTED)
    if isinstance(converted, Mapping):
        return (
            f"Converted by zoft from the published file `{_text(converted.get('file'))}` "
            f"(sha256 `{_text(converted.get('sha256'))[:16]}`), which does not record what it was learned on."
        )
    tasks = provenance.get("tasks") or []
    if not tasks:
        return "It was not: these are its initial values, the control that a learned tuner is compared with."
    config = provenance.get("config")
    settings = config if isinstance(config, Mapping) else {}
    seeds = provenance.get("seeds")
    parts = [
        ("steps", provenance.get("steps")),
        ("lookahead steps", settings.get("lookahead_steps") if settings.get("objective") != "expected" else None),
        ("minibatches a step", settings.get("gradient_batches") if settings.get("objective") == "expected" else None),
        ("batch size", settings.get("batch_size")),
        ("seed", seeds.get("run") if isinstance(seeds, Mapping) else None),
    ]
    said = ", ".join(f"{label} {_text(value)}" for label, value in parts if isinstance(value, int))
    return f"Tasks: {', '.join(tasks)}.\n\nMeta-training: {said}. The full record is in `meta_train.json`."


def results_of(comparison: str | Path | Mapping[str, Any], digest: str) -> dict[str, Any]:
    """What a card shows of a comparison that the tuner with ``digest`` was in.

    Raises:
        UsageError: it is no comparison, or the tuner was not in it.
    """
    content = comparison if isinstance(comparison, Mapping) else _read(Path(comparison))
    try:
        methods: Mapping[str, Any] = content["methods"]
        tuners = {label: method["tuner"] for label, method in methods.items() if method["tuner"] is not None}
        mine = [label for label, tuner in tuners.items() if tuner["digest"] == digest and not tuner["untrained"]]
        if not mine:
            raise UsageError(
                f"this tuner is not in the comparison; its tuners are {', '.join(tuners) or 'none'}",
                "Compare this very tuner with `zoft compare --tuners NAME=FOLDER`.",
            )
        together = len(methods[mine[0]].get("tuners", ()))
        if together > 1:
            raise UsageError(
                f"the comparison judged {together} tuners together, and a card is of one",
                "Compare this very tuner with `zoft compare --tuners NAME=FOLDER`.",
            )
        config, control = content["config"], methods[mine[0]]["control"]
        others = [label for label in methods if label not in tuners]
        return {
            "tuner": mine[0],
            "control": control,
            "base": content["base"]["name"],
            "forwards": config["forwards"],
            "epsilon": config["epsilon"],
            "batch_size": config["batch_size"],
            "lr_mode": config["lr_mode"],
            "zoft_version": content["zoft_version"],
            "tasks": [_task(task, [*others, *([control] if control else []), mine[0]]) for task in content["tasks"]],
        }
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UsageError("that is no result of a comparison", "Give compare.json of a `zoft compare`.") from None


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {file}: {error}", "Give compare.json of a `zoft compare`.") from None


def _task(task: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    cells = {label: task["cells"][label] for label in labels}
    return {
        "task": task["task"],
        "role": task["role"],
        "metric": task["metric"],
        "zero_shot": {"loss": task["zero_shot_loss"], "metric": task["zero_shot_metric"]},
        "decided": task["decided"],
        "methods": {
            label: {key: cell[key] for key in ("lr", "seeds", "loss", "metric", "divergences")}
            for label, cell in cells.items()
        },
    }


def results_table(results: Any) -> str:
    """The results that :func:`results_of` kept, as Markdown."""
    if not isinstance(results, Mapping):
        return "None were given. `zoft compare --tuners mine=FOLDER` makes them."
    try:
        return "\n".join(_table(results))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        return "They cannot be shown: the record of them is damaged."


def _table(results: Mapping[str, Any]) -> list[str]:
    tasks: Sequence[Mapping[str, Any]] = results["tasks"]
    labels = list(tasks[0]["methods"])
    mine, control = results["tuner"], results["control"]
    names = {mine: "**this tuner**", control: "untrained control"}
    head = ["task", "zero-shot", *(names.get(label, label) for label in labels)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for task in tasks:
        row = [f"{task['task']} ({task['role']}){'' if task['decided'] else ' †'}", f"{task['zero_shot']['loss']:.3f}"]
        lines.append("| " + " | ".join([*row, *(_cell(task["methods"][label]) for label in labels)]) + " |")
    seeds = len(tasks[0]["methods"][mine]["seeds"])
    chosen = "each method at its own searched one" if results["lr_mode"] == "search" else "given beforehand"
    lines += [
        "",
        f"Test loss, and the task's metric (accuracy, exact match or F1) in brackets; mean ± standard deviation over "
        f"{seeds} seeds. {results['forwards']} forward passes a run, batch {results['batch_size']}, "
        f"ε {results['epsilon']:g}; learning rates: {chosen}. Base: {results['base']}. zoft {results['zoft_version']}.",
    ]
    if not all(task["decided"] for task in tasks):
        lines.append("† undecided: no method leaves zero-shot.")
    return lines


def _cell(values: Mapping[str, Any]) -> str:
    losses = [math.inf if loss is None else float(loss) for loss in values["loss"]]
    metrics = [float(metric) for metric in values["metric"] if metric is not None]
    text = _spread(losses)
    if metrics:
        text += f" ({sum(metrics) / len(metrics):.3f})"
    return text + (f", {values['divergences']} diverged" if values["divergences"] else "")


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if not math.isfinite(mean):
        return "∞"
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)):.3f}"


def _structure(config: TunerConfig) -> str:
    shapes = [shape for shape in config.blocks.shapes if shape is not None]
    turns = ""
    if config.turns is not None:
        turns = f" A direction is of some of the blocks: {len(set(config.turns.of))} parts take turns."
    if config.structure is None:
        return turns
    return f" Within a block it knows which directions matter ({described(config.structure, shapes)}).{turns}"


def _limit(provenance: Mapping[str, Any]) -> str:
    if provenance.get(CONVERTED):
        return "The published code draws its directions from another generator: no trajectory of it comes back exactly."
    if provenance.get(RESULTS):
        return "The results above are all that is known of it."
    return "No results are recorded with it."


def _front_matter(config: TunerConfig) -> str:
    content: dict[str, Any] = {"library_name": "zoft"}
    if HUB_NAME.fullmatch(config.base_model_name_or_path) and "@" not in config.base_model_name_or_path:
        content |= {"base_model": config.base_model_name_or_path, "base_model_relation": "adapter"}
    return yaml.safe_dump({**content, "tags": list(TAGS)}, sort_keys=False, allow_unicode=True)


def _versions(config: TunerConfig, provenance: Mapping[str, Any]) -> str:
    lines = [f"- zoft {config.zoft_version}, tuner format {config.format}"]
    if config.base_model_revision:
        lines.append(f"- `{base_of(config)}` at commit `{config.base_model_revision}`")
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        known = {name: value for name, value in versions.items() if isinstance(value, str) and name != "zoft"}
        lines += [f"- {_text(name)} {_text(value)}" for name, value in known.items()]
    return "\n".join(lines)


def _text(value: Any) -> str:
    """``value`` in one line, without what Markdown or a terminal would act upon."""
    text = "".join(c if c.isprintable() and c not in "`<>|[]" else " " for c in str(value))
    return " ".join(text.split())[:200]
