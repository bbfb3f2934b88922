"""Every code block of docs/trainers.md runs, in order and in one namespace."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from finetune.run import _global_generators_kept

PAGE = Path(__file__).parents[1] / "docs" / "trainers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
WITH_TRL = [block for block in BLOCKS if "from trl" in block]
PLAIN = [block for block in BLOCKS if block not in WITH_TRL]


def run(blocks: list[str]) -> dict[str, Any]:
    """The names that the blocks leave."""
    names: dict[str, Any] = {"__name__": "trainers"}
    with _global_generators_kept():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert (len(PLAIN), len(WITH_TRL)) == (6, 1)
    names = run(PLAIN)
    out = capsys.readouterr().out
    assert "the closure is not deterministic: it gave" in out
    assert "\n8\n" in out
    assert names["trainer"].forwards == 8
    assert (tmp_path / "optimizer.safetensors").is_file()


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_block_with_trl_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(WITH_TRL)["trainer"].forwards == 8
