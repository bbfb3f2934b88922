"""What an oracle search found: its JSON and its table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.intervals import interval
from finetune.oracle_config import OracleConfig
from finetune.processes import Record
from finetune.report import number, to_json
from finetune.run_spec import Bench

if TYPE_CHECKING:
    from finetune.oracle import Found
    from finetune.oracle_spaces import SearchSpace

#: A loss that is not finite counts as so many times the zero-shot loss, as a diverged run does in the search.
_DIVERGED = math.e


def _interval(values: Sequence[float]) -> dict[str, float]:
    """The mean over seeds and its 95 % interval, as every comparison's; see :mod:`finetune.intervals`."""
    found = interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def content(config: OracleConfig, bench: Bench, space: SearchSpace, found: Found, mezo: Found) -> dict[str, Any]:
    """oracle.json."""
    tasks = {
        task: _task(_of(found.records, task), _of(mezo.records, task), bench.chance.get(task)) for task in config.tasks
    }
    differences = np.asarray([task["log_ratio"] for task in tasks.values()]).mean(0).tolist()
    coordinates = found.candidate.coordinates or ()
    return {
        "format": 1,
        "zoft_version": metadata.version("zoft"),
        "config": config.to_dict(),
        "base": {"name": bench.base, "revision": bench.revision, "weights": bench.fingerprint},
        "space": {"name": space.name, "coordinates": list(space.names)},
        "found": {
            "coordinates": dict(zip(space.names, coordinates, strict=True)),
            "lr": found.candidate.lr,
            "score": found.score,
            "search_runs": found.search_runs,
            "meaning": space.described(coordinates),
        },
        "mezo": {"lr": mezo.candidate.lr, "score": mezo.score, "search_runs": mezo.search_runs},
        "tasks": tasks,
        "overall": {"log_ratio": differences, "interval": _interval(differences)},
        "trail": found.trail,
        "mezo_trail": mezo.trail,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table, and what was found, from oracle.json."""
    config, found, mezo = result["config"], result["found"], result["mezo"]
    rows = [
        "| task | zero-shot | mezo | oracle | oracle / mezo (95 % interval) | seeds better | diverged, mezo / oracle |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in result["tasks"].items():
        both = [_mean(task[method]["loss"]) for method in ("mezo", "oracle")]
        rows.append(
            f"| {name} | {task['zero_shot_loss']:.3f} | {both[0]:.3f} | {both[1]:.3f} | {_ratio(task['interval'])} "
            f"| {task['wins']} of {len(task['log_ratio'])} "
            f"| {task['mezo']['diverged']} / {task['oracle']['diverged']} |"
        )
    rows.append(f"| geometric mean | | | | {_ratio(result['overall']['interval'])} | | |")
    return "\n".join(
        [
            *rows,
            "",
            f"Base {result['base']['name']}; {config['forwards']} forward passes a run, batch {config['batch_size']}, "
            f"one learning rate for all tasks each; final test loss, means over {config['seeds']} seeds that nothing "
            "was chosen on; ratios are geometric means of paired runs.",
            "",
            f"Oracle over {result['space']['name']}: lr {found['lr']:.3g}, chosen with {found['search_runs']} runs; "
            f"MeZO: lr {mezo['lr']:.3g}, chosen with {mezo['search_runs']} runs. "
            "The oracle was fitted to these tasks: this bounds what such a tuner gives, and is no evidence for one.",
            "",
            f"Found: `{json.dumps(found['meaning'])}`",
        ]
    )


def write(file: Path, result: dict[str, Any]) -> None:
    """Write oracle.json."""
    text = json.dumps(to_json(result), indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def _of(records: Sequence[Record], task: str) -> list[Record]:
    return [record for record in records if record["settings"]["task"] == task]


def _task(oracle: Sequence[Record], mezo: Sequence[Record], chance: float | None) -> dict[str, Any]:
    """One task's losses by seed, and the log of their quotient, paired."""
    zero = number(mezo[0]["zero_shot"]["test_loss"])
    pairs = [
        (_bounded(mine["test_loss"], zero), _bounded(other["test_loss"], zero))
        for mine, other in zip(oracle, mezo, strict=True)
    ]
    differences = [math.log(mine / other) for mine, other in pairs]
    return {
        "zero_shot_loss": zero,
        "zero_shot_metric": mezo[0]["zero_shot"].get("test_metric"),
        "chance": chance,
        "metric": mezo[0]["metric"],
        "seeds": [record["settings"]["seed"] for record in mezo],
        "oracle": _method(oracle),
        "mezo": _method(mezo),
        "log_ratio": differences,
        "interval": _interval(differences),
        "wins": sum(value < 0 for value in differences),
    }


def _method(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "loss": [record["test_loss"] for record in records],
        "metric": [record.get("test_metric") for record in records],
        "diverged": sum(record["diverged"] is not None for record in records),
    }


def _bounded(loss: float | None, zero: float) -> float:
    return min(max(number(loss), 1e-6 * zero), _DIVERGED * zero)


def _mean(values: Sequence[float | None]) -> float:
    return sum(map(number, values)) / len(values)


def _ratio(found: dict[str, float]) -> str:
    mean, low, high = (math.exp(found[key]) for key in ("mean", "low", "high"))
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
