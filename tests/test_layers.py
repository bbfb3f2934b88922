"""The layers: imports go downward only, and some libraries are imported in their one place only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Level of every package or module; the longest prefix counts.
LEVELS = {
    "zoft": 5,
    "zoft.errors": 0,
    "zoft.config": 0,
    "zoft.blocks": 0,
    "zoft.noise": 0,
    "zoft.lazy": 0,
    "zoft.philox": 0,
    "zoft.curvature": 0,
    "zoft.uninterrupted": 0,
    "zoft.rounding": 1,
    "zoft.names": 1,
    "zoft.evolution": 1,
    "zoft.hub_errors": 1,
    "zoft.perturb": 1,
    "zoft.objective": 1,
    "zoft.step": 1,
    "zoft.optimizers": 2,
    "zoft.tuner": 2,
    "zoft.tasks": 3,
    "zoft.models": 3,
    "zoft.adapters": 3,
    "zoft.memory": 3,
    "zoft.runs": 3,
    "zoft.stack": 3,
    "zoft.assets": 4,
    "meta_train": 4,
    "finetune": 4,
    "zoft.cli": 5,
}

#: Where a library may be imported; nowhere else.
ONLY_IN = {
    "transformers": (
        "zoft.models",
        "zoft.tasks",
        "finetune.trainer",
        "finetune.task_trainer",
        "finetune.first_order_trainer",
        "zoft.assets.kinds",
        "zoft.assets.make_base",
    ),
    "datasets": ("zoft.models", "zoft.tasks", "finetune.trainer"),
    "huggingface_hub": ("zoft.tuner.hub",),
    "higher": ("meta_train.unroll",),
    "peft": ("zoft.adapters",),
    "cma": ("zoft.evolution",),
    "matplotlib": ("finetune.plots", "zoft.tuner.show"),
    "tensorboard": ("zoft.runs.reporters",),
    "torch.utils.tensorboard": ("zoft.runs.reporters",),
}


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _name(file): file for package in ("zoft", "meta_train", "finetune") for file in (ROOT / package).rglob("*.py")
}


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def level(module: str) -> int:
    """The level of a module by its longest listed prefix."""
    return LEVELS[max((prefix for prefix in LEVELS if _within(module, prefix)), key=len)]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, those in functions too; not those for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from imports(other)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES or whole in ONLY_IN else str(node.module)
        yield from imports(node)


def _imported(module: str) -> list[str]:
    return sorted(set(imports(ast.parse(MODULES[module].read_text(encoding="utf-8")))))


def test_every_module_has_a_level_of_its_own() -> None:
    assert len(MODULES) > 60
    at_the_top = {module for module in MODULES if level(module) == 5}
    assert {module for module in at_the_top if not _within(module, "zoft.cli")} == {"zoft"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downward(module: str) -> None:
    own = [other for other in _imported(module) if other.partition(".")[0] in ("zoft", "meta_train", "finetune")]
    assert [other for other in own if level(other) > level(module)] == []


@pytest.mark.parametrize(("module", "other"), [("meta_train", "finetune"), ("finetune", "meta_train")])
def test_the_applications_do_not_know_each_other(module: str, other: str) -> None:
    members = [name for name in MODULES if _within(name, module)]
    assert members
    assert [name for name in members for found in _imported(name) if _within(found, other)] == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_library_is_imported_in_its_place_only(library: str) -> None:
    importing = {module for module in MODULES for found in _imported(module) if _within(found, library)}
    allowed = {module for module in importing if any(_within(module, place) for place in ONLY_IN[library])}
    assert importing - allowed == set()


def test_the_walk_sees_lazy_imports_and_skips_those_for_types() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import finetune
def later():
    from zoft import step
    import torch.utils.tensorboard
"""
    assert sorted(imports(ast.parse(source))) == ["torch.utils.tensorboard", "typing", "zoft.step"]
