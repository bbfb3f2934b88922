"""The model card: complete, and nothing in it that the tuner does not hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.compare import compare
from tests.compare_toys import planted_tuner, toy_bench
from tests.models import TiedLM, build
from tests.test_cli import run
from tests.test_compare import config, quiet
from zoft.errors import UsageError
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.card import TAGS, card

PROVENANCE: dict[str, Any] = {
    "tasks": ["one", "two"],
    "steps": 500,
    "config": {"lookahead_steps": 4, "batch_size": 16},
    "seeds": {"run": 3},
    "versions": {"zoft": "0.1.0", "torch": "2.13.0"},
}


def a_tuner(base: str = "user/base", **changes: Any) -> Tuner:
    tuner = Tuner.untrained(build(TiedLM), NetworkConfig(hidden=4), base_model_name_or_path=base)
    return Tuner(tuner.config.model_copy(update=changes), tuner.network, dict(PROVENANCE))


def test_the_front_matter_is_what_the_hub_reads() -> None:
    text = card(a_tuner().config, PROVENANCE, "user/tuner")
    assert text.startswith("---\n")
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "zoft",
        "base_model": "user/base",
        "base_model_relation": "adapter",
        "tags": ["zoft", "zo-tuner", "zeroth-order", "learned-optimizer"],
    }
    assert list(TAGS) == ["zoft", "zo-tuner", "zeroth-order", "learned-optimizer"]
    for base in ("zoft-base", "./folder", "/home/me/base", "", "a b/c", "a/b\nlicense: mit"):
        front = yaml.safe_load(card(a_tuner(base).config, PROVENANCE, "user/tuner").split("---\n")[1])
        assert set(front) == {"library_name", "tags"}


def test_the_card_says_everything_that_there_is_to_say() -> None:
    tuner = a_tuner(base_model_revision="c" * 40).recommending(lr=1.25e-4, epsilon=2e-3, batch_size=8)
    text = card(tuner.config, PROVENANCE, "user/tuner")
    for words in (
        "This is an optimizer for `user/base` and its derivatives, **not a language model**",
        "zoft finetune --tuner user/tuner --task TASK",
        'zoft.Tuner.from_pretrained("user/tuner")',
        'settings = {"lr": 0.000125}',
        "each of the 5 parameter blocks",
        "the same parameter names and shapes",
        "learning rate 0.000125, perturbation scale 0.002, batch size 8",
        "Tasks: one, two.",
        "steps 500, lookahead steps 4, batch size 16, seed 3",
        "None were given",
        "arXiv:2510.00419",
        f"`user/base` at commit `{'c' * 40}`",
        "- torch 2.13.0",
        "tuner format 1",
    ):
        assert words in text, words
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Use",
        "## Which models it fits",
        "## How it was learned",
        "## Results",
        "## Limits",
        "## Citation",
        "## Versions",
    ]
    assert "$" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "It was not: these are its initial values" in card(tuner.config, {}, "user/tuner")


def test_the_python_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a_tuner().recommending(lr=1e-3).save_pretrained("mine", name="./mine")
    code = re.findall(r"```python\n(.*?)```", Path("mine/README.md").read_text(), re.DOTALL)
    assert len(code) == 1

    class Model(TiedLM):
        def forward(self, tokens: Any) -> Any:
            return type("Output", (), {"loss": super().forward(tokens).square().mean()})

    import torch

    names: dict[str, Any] = {"model": build(Model), "batch": {"tokens": torch.tensor([[1, 2]])}}
    exec(code[0], names)
    assert float(names["loss"]) > 0


def test_damaged_provenance_makes_a_card_all_the_same() -> None:
    odd: dict[str, Any] = {"tasks": ["one"], "config": 3, "seeds": [], "versions": {"a`b\n": "<script>", "c": 1}}
    text = card(a_tuner().config, {**odd, "results": {"tasks": []}}, "x")
    assert "the record of them is damaged" in text
    assert "<script>" not in text
    assert "- a b script" in text


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tuner's folder, and the comparison that it was in."""
    folder = tmp_path_factory.mktemp("compared")
    tuner = planted_tuner(folder / "tuner")
    rates = dict.fromkeys(("mezo", "hizoo", "untrained", "permuted", "planted"), 1e-3)
    values: dict[str, Any] = {"tasks": ["dev", "flat"], "tuners": {"planted": str(tuner)}, "seeds": 2, "forwards": 12}
    values |= {"lr_mode": "fixed", "lrs": rates}
    compare(config(folder / "out", **values), say=quiet, factory=toy_bench)
    return tuner, folder / "out" / "compare.json"


def test_the_results_of_a_comparison(
    compared: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner, file = compared
    with_results = Tuner.from_pretrained(tuner).with_results(file)
    text = (with_results.save_pretrained(tmp_path) / "README.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| task | zero-shot | mezo | hizoo | untrained control | **this tuner** |"
    content = json.loads(file.read_text())
    assert len(table) == 2 + len(content["tasks"]) == 4
    for line, task in zip(table[2:], content["tasks"], strict=True):
        losses = task["cells"]["planted"]["loss"]
        assert line.startswith(f"| {task['task']} (development)")
        assert line.split("|")[-2].startswith(f" {sum(losses) / 2:.3f} ± ")
    assert ("†" in text) is any(not task["decided"] for task in content["tasks"])
    assert "2 seeds. 12 forward passes a run" in text
    code, out, _ = run(capsys, "tuner", "show", str(tmp_path))
    assert code == 0
    assert table[0] in out
    assert (
        run(capsys, "tuner", "show", str(tmp_path), "--card")[1].strip()
        == text.replace("./FOLDER", str(tmp_path)).strip()
    )
    again = Tuner.from_pretrained(tmp_path)
    assert again.provenance["results"] == with_results.provenance["results"]
    assert again.digest == with_results.digest


def test_results_of_another_tuner_are_refused(compared: tuple[Path, Path], tmp_path: Path) -> None:
    _, file = compared
    with pytest.raises(UsageError, match="this tuner is not in the comparison; its tuners are"):
        a_tuner().with_results(file)
    for content in ("{", "[]", "{}", '{"methods": 3}', '{"methods": {"a": {}}}'):
        (tmp_path / "wrong.json").write_text(content)
        with pytest.raises(UsageError, match=r"compare\.json"):
            a_tuner().with_results(tmp_path / "wrong.json")
    with pytest.raises(UsageError, match="cannot read"):
        a_tuner().with_results(tmp_path / "absent.json")
    tuner, content = compared[0], json.loads(file.read_text())
    content["methods"]["planted"]["tuners"] *= 2
    with pytest.raises(UsageError, match="judged 2 tuners together, and a card is of one"):
        Tuner.from_pretrained(tuner).with_results(content)
