"""Evidence made in parts: what of it to make now, and how figures that are there already go together with new ones.

A whole evidence takes longer than a machine may be at hand, and its runs need not outlive that machine. So the figures
themselves are carried on: what was made earlier with the same settings, tuners and base stays as it is, and new tasks,
budgets and regimes are put beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.compare_config import CompareConfig
from finetune.compare_jobs import UNTUNED
from finetune.evidence_config import EvidenceBase, EvidenceConfig
from zoft.config import unknown
from zoft.errors import UsageError

#: What the figures keep of a view: all that the page is made of, by task but for the first two and ``recommended``.
KEPT = ("regime", "forwards", "tasks", "search", "recommended", "reach", "curves")

_BY_TASK = ("search", "reach", "curves")


@dataclass(frozen=True)
class Part:
    """What of the evidence to make now; what is empty narrows nothing.

    Attributes:
        bases: names. ``regimes``, ``budgets``, ``tasks``: as in the configuration.
    """

    bases: Sequence[str] = ()
    regimes: Sequence[str] = ()
    budgets: Sequence[int] = ()
    tasks: Sequence[str] = ()

    def check(self, config: EvidenceConfig) -> None:
        """Raise a UsageError for what is not in the configuration."""
        reported = dict.fromkeys(task for base in config.bases for task in base.reported)
        known = (
            ("base", self.bases, [base.name for base in config.bases]),
            ("regime", self.regimes, config.regimes),
            ("budget", map(str, self.budgets), list(map(str, config.budgets))),
            ("task", self.tasks, list(reported)),
        )
        for kind, given, there in known:
            for name in given:
                if name not in there:
                    raise UsageError(unknown(f"{kind} of the evidence", name, there))

    def of(self, config: EvidenceConfig, base: EvidenceBase) -> CompareConfig | None:
        """The comparison that makes this part's runs on a base; None where there are none."""
        whole = config.comparison(base)
        tasks = [task for task in whole.tasks if not self.tasks or task in self.tasks]
        if not tasks or (self.bases and base.name not in self.bases):
            return None
        regimes = [regime for regime in config.regimes if not self.regimes or regime in self.regimes]
        budgets = [forwards for forwards in config.budgets if not self.budgets or forwards in self.budgets]
        return whole.model_copy(update={"tasks": tasks, "regimes": regimes, "budgets": budgets})


def merged(
    config: EvidenceConfig, base: EvidenceBase, entries: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """A base's figures from several entries, of which later ones go first, task by task.

    Returns:
        The entry, None where there is no figure; and what of the plan it lacks: regime, budget, tasks.

    Raises:
        UsageError: the entries are of different weights.
    """
    if any(entry["base"] != entries[0]["base"] for entry in entries):
        raise UsageError(
            f"evidence of {base.name} with other weights is there already",
            "Give that base its weights back, or leave its runs out: training it on another processor changes it.",
        )
    views, lacking = [], []
    for regime in config.regimes:
        for forwards in config.budgets:
            found = [v for e in entries for v in e["views"] if (v["regime"], v["forwards"]) == (regime, forwards)]
            by_task = {task["task"]: (task, view) for view in found for task in view["tasks"]}
            tasks = [task for task in base.reported if task in by_task]
            if left := [task for task in base.reported if task not in by_task]:
                lacking.append({"base": base.name, "regime": regime, "forwards": forwards, "tasks": left})
            if tasks:
                parts: dict[str, Any] = {
                    "tasks": [by_task[task][0] for task in tasks],
                    "recommended": found[-1]["recommended"] if regime == UNTUNED else {},
                    **{key: {task: by_task[task][1][key][task] for task in tasks} for key in _BY_TASK},
                }
                views.append({"regime": regime, "forwards": forwards, **{k: parts[k] for k in KEPT if k in parts}})
    if not views:
        return None, lacking
    notes = dict.fromkeys(note for entry in entries for note in entry["notes"])
    return {**entries[-1], "notes": list(notes), "views": _decided(views)}, lacking


def _decided(views: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The views with a task decided at a budget if it is in any regime, as one comparison of all of them has it."""
    decided = {(view["forwards"], task["task"]) for view in views for task in view["tasks"] if task["decided"]}
    return [
        {**view, "tasks": [{**t, "decided": (view["forwards"], t["task"]) in decided} for t in view["tasks"]]}
        for view in views
    ]
