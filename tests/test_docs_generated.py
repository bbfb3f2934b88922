"""The generated pages of the documentation are current, complete, and made from the registry alone."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from docs import generate
from tests.test_finetune import tiny_loaded, untrained
from zoft.cli import main
from zoft.optimizers import OPTIMIZERS, ZOOptimizer

ROOT = Path(__file__).parents[1]


def test_the_pages_are_current() -> None:
    assert generate.outdated(ROOT) == [], "run python docs/generate.py"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The generated files, to be changed."""
    shutil.copytree(ROOT / generate.FOLDER, tmp_path / generate.FOLDER)
    shutil.copy(ROOT / generate.NAV, tmp_path)
    return tmp_path


def test_what_is_not_current_is_found_and_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy / generate.FOLDER
    assert generate.outdated(copy) == []
    (folder / "mezo.md").write_text("# other\n")
    (folder / "index.md").unlink()
    (folder / "gone.md").write_text("# gone\n")
    nav = (copy / generate.NAV).read_text()
    (copy / generate.NAV).write_text(nav.replace("      - mezo: optimizers/mezo.md\n", ""))
    wrong = {folder / "mezo.md", folder / "index.md", folder / "gone.md", copy / generate.NAV}
    assert set(generate.outdated(copy)) == wrong
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    assert generate.main(copy) == 1
    assert capsys.readouterr().out.count("is not current") == len(wrong)
    assert set(generate.outdated(copy)) == wrong
    monkeypatch.setattr("sys.argv", ["generate.py"])
    assert generate.main(copy) == 0
    assert generate.outdated(copy) == []
    assert (copy / generate.NAV).read_text() == nav


def test_a_new_method_has_a_page_and_is_in_the_lists(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class New(OPTIMIZERS["mezo"]):
        """Nothing new.

        z = u.

        Cost: 2 forwards a step.

        Reference: arXiv 2305.17333.
        """

        name = "new"

    monkeypatch.setitem(OPTIMIZERS, "new", New)
    changed = {file.relative_to(copy).as_posix() for file in generate.outdated(copy)}
    lists = {"docs/optimizers/index.md", "docs/optimizers/compositions.md", "mkdocs.yml"}
    assert changed == {*lists, "docs/optimizers/new.md"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_page_has_everything(name: str) -> None:
    cls, text = OPTIMIZERS[name], generate.page(name)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"# {name}",
        "## Use",
        "## Hyper-parameters",
        "## Published settings",
        "## Cost",
        "## Reference",
    ]
    for key, field in cls.model_fields.items():
        assert f"| `{key}` |" in text
        assert str(field.description).replace("|", "\\|") in text
    cost = text.partition("## Cost")[2]
    blocks = generate.reference_blocks()
    method = generate.method(name, blocks)
    assert f"| forward passes a step | {method.forwards}" in cost
    assert (f"{method.state_bytes(blocks):,} bytes" if method.state_bytes(blocks) else "| none |") in cost
    assert f"arxiv.org/abs/{cls.paper.removeprefix('arXiv ')}" in text


@pytest.mark.parametrize("page", [*OPTIMIZERS, "compositions"])
def test_the_command_of_a_page_runs_dry(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / generate.FOLDER / f"{page}.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```bash\nzoft (.*)\n```$", text, re.MULTILINE)
    if "my-tuner" in command:
        untrained(tiny_loaded()).save_pretrained(tmp_path / "my-tuner")
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command), "--dry-run"])
    out, err = capsys.readouterr()
    assert (ended.value.code or 0, err) == (0, "")
    assert "model: zoft-base" in out


def test_every_pair_is_possible_or_refused_with_its_reason() -> None:
    possible, refused = generate.compositions().split("that are refused")
    pairs = OPTIMIZERS.compositions()
    assert len(pairs) == math.comb(sum(bool(cls.parts) for cls in OPTIMIZERS.values()), 2)
    for name, reason in pairs.items():
        assert f"`{name}`" in (possible if reason is None else refused)
        assert reason is None or f"{reason}." in refused
    assert f"## {sum(reason is None for reason in pairs.values())} that are possible" in possible


def test_the_navigation_lists_every_method() -> None:
    nav = yaml.safe_load((ROOT / generate.NAV).read_text(encoding="utf-8"))["nav"]
    (listed,) = (entry["Methods"] for entry in nav if "Methods" in entry)
    assert [title for entry in listed for title in entry] == ["Overview", *OPTIMIZERS, "Compositions"]
    assert len(OPTIMIZERS) >= 12
    assert all((ROOT / "docs" / path).is_file() for entry in listed for path in entry.values())
    with pytest.raises(ValueError, match=r"mkdocs\.yml has no lines"):
        generate.navigation("nav: []\n")


def test_forwards_that_are_no_linear_function_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZOOptimizer, "forwards", property(lambda self: 2**self.directions))
    with pytest.raises(ValueError, match="mezo: 4, 8, 16 forwards"):
        generate.forwards("mezo")


def test_docstrings_become_markdown() -> None:
    note = "Note:\n    Of :class:`zoft.X` in ``y`` < arXiv\n    2305.17333.\n\nLast."
    text = f"One.\n\nTwo\nlines.\n\nCost: 2\n    more.\n\n{note}"
    found = list(generate.sections(text))
    assert [heading for heading, _ in found] == ["", "Cost", "Note", ""]
    assert found[1][1] == "2\nmore."
    assert found[3][1] == "Last."
    assert generate.markdown(found[2][1]) == (
        "Of `zoft.X` in `y` &lt; [arXiv 2305.17333](https://arxiv.org/abs/2305.17333)."
    )
