"""Every configuration that comes along validates, and begins with the command that runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune.compare_config
from finetune.config import FinetuneConfig
from finetune.evaluate import EvaluateConfig
from meta_train import RECIPES, recipe
from zoft.cli import VERBS
from zoft.cli.meta_train import RunConfig, resolved
from zoft.config import read_yaml
from zoft.optimizers import OPTIMIZERS
from zoft.tasks import TASKS

ROOT = Path(__file__).parent.parent

FILES = sorted(
    file.relative_to(ROOT)
    for app in ("finetune", "meta_train")
    for file in (ROOT / app / "configs").rglob("*.yaml")
    if file.name != "evidence.yaml"  # of no verb; see test_evidence.py
)

PUBLISHED = [file for file in FILES if file.parent.name == "published"]

KINDS: dict[str, Any] = {
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "compare": finetune.compare_config.CompareConfig,
    "meta-train": RunConfig,
}


def command(file: Path) -> list[str]:
    """The words of the command in a file's first line."""
    first = (ROOT / file).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# zoft ")
    return shlex.split(first.removeprefix("# "))


def test_how_many_there_are() -> None:
    counts = {app: sum(file.parts[0] == app for file in PUBLISHED) for app in ("finetune", "meta_train")}
    assert counts == {"finetune": 19, "meta_train": 5}
    assert len(FILES) - len(PUBLISHED) == 14
    models = {read_yaml(ROOT / file).get("model") or read_yaml(ROOT / file)["base"] for file in PUBLISHED}
    wanted = {"opt-13b", "opt-30b", "llama-3.2-1b", "llama-3.1-8b", "qwen2.5-14b", "phi-2", "roberta-large"}
    assert models == wanted


@pytest.mark.parametrize("file", FILES, ids=str)
def test_it_validates_under_its_command(file: Path) -> None:
    _, verb, flag, *rest = command(file)
    assert verb in VERBS
    if file.stem in RECIPES and file.parent.name == "configs" and file.parts[0] == "meta_train":
        assert (flag, rest[0]) == ("--recipe", file.stem)
        RunConfig.build(recipe(file.stem))
        return
    assert (flag, rest[0]) == ("--config", str(file))
    config = resolved(str(ROOT / file), {}) if verb == "meta-train" else KINDS[verb].load(ROOT / file)
    # It reads back from what a run would print.
    assert KINDS[verb].build(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("file", PUBLISHED, ids=str)
def test_it_says_where_its_numbers_are_from(file: Path) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines())
    assert re.search(r"arXiv (2305\.17333|2402\.15173|2510\.00419)", comment)
    assert re.search(r"Table \d+|appendix E|public (code|scripts)", comment)
    values = read_yaml(ROOT / file)
    assert set(values.get("tasks", [values.get("task")])) <= set(TASKS)
    if values.get("optimizer") in OPTIMIZERS or "tuner" in command(file):
        assert {"lr", "epsilon"} <= values["hyper"].keys()
