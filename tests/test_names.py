"""Names of tuners: the same rules as for models, the index of short names, and what comes with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import TiedLM, build
from tests.test_cli import run
from zoft.assets.list_tuner import list_tuner
from zoft.blocks import Blocks
from zoft.errors import ArtifactError, UsageError
from zoft.models import load_model
from zoft.names import ALIASES, EMBEDDED, HUB_NAME, Resolved, resolve, resolve_model
from zoft.tuner import NetworkConfig, Tuner, index
from zoft.tuner.config import FILES
from zoft.tuner.index import BUNDLED, Index, read_index, resolve_tuner, sha256_of, write_index
from zoft.tuner.module_types import by_layer
from zoft.tuner.show import sigma_of


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_tuner() -> Tuner:
    return Tuner.untrained(build(TiedLM), NetworkConfig(hidden=4, init="linear"), base_model_name_or_path="user/base")


SAME = {
    "./a/b": Resolved("a/b", is_local=True),
    "/a/b": Resolved("/a/b", is_local=True),
    "..": Resolved("..", is_local=True),
    "user/repo": Resolved("user/repo"),
    "user/repo@v1": Resolved("user/repo", "v1"),
    "hf://user/repo@v1/sub/folder": Resolved("user/repo", "v1", subfolder="sub/folder"),
}


@pytest.mark.parametrize("name", SAME)
def test_models_and_tuners_resolve_by_the_same_rules(name: str) -> None:
    assert resolve_model(name) == SAME[name]
    assert resolve_tuner(name) == SAME[name]
    if not SAME[name].is_local:
        assert str(SAME[name]) == name.removeprefix("hf://")


WRONG = (
    "a/b/c",
    "hf://user",
    "hf://user/repo/../../x",
    "user/re po",
    "user/repo@",
    "-x/y",
    "user/repo@v 1",
    "~nobody-/x",
)


@pytest.mark.parametrize("name", WRONG)
def test_names_that_are_none(name: str) -> None:
    for resolve_name in (resolve_model, resolve_tuner):
        with pytest.raises(UsageError) as caught:
            resolve_name(name)
        assert caught.value.remedy


def test_short_names_win_over_folders_and_take_revisions() -> None:
    a_tuner().save_pretrained("known")
    short = {"known": "user/known@" + "a" * 40, "here": "/somewhere/here"}
    assert resolve("known", "tuner", ("tuner_config.json",), short) == Resolved("user/known", "a" * 40)
    assert resolve("known@v2", "tuner", ("tuner_config.json",), short) == Resolved("user/known", "v2")
    assert resolve("here", "tuner", ("tuner_config.json",), short) == Resolved("/somewhere/here", is_local=True)
    with pytest.raises(UsageError, match="unknown tuner 'here@v2'"):
        resolve("here@v2", "tuner", ("tuner_config.json",), short)
    assert resolve("known", "tuner", ("tuner_config.json",), {}) == Resolved("known", is_local=True)
    with pytest.raises(UsageError, match="did you mean zoft-base-default"):
        resolve_tuner("zoft-base-defalt")
    Path("empty").mkdir()
    with pytest.raises(UsageError, match=r"Write \./empty for the folder"):
        resolve_tuner("empty")


def test_a_path_is_always_a_folder() -> None:
    a_tuner().save_pretrained("zoft-base-default")
    assert len(Tuner.from_pretrained(Path("zoft-base-default")).config.blocks.names) == 5
    shipped = Tuner.from_pretrained("zoft-base-default")
    assert shipped.config.base_model_name_or_path == EMBEDDED
    with pytest.raises(UsageError, match="has no revisions"):
        Tuner.from_pretrained("./zoft-base-default", revision="main")
    with pytest.raises(UsageError, match="leads out of"):
        Tuner.from_pretrained("./zoft-base-default", subfolder="../x")
    a_tuner().save_pretrained("many/one")
    assert Tuner.from_pretrained("./many", subfolder="one").digest == a_tuner().digest


def test_the_index_that_comes_with_the_package_is_in_order() -> None:
    content = json.loads((BUNDLED / "index.json").read_text())
    listed = Index.model_validate(content)
    assert listed.tuners
    assert listed.to_dict() == content
    folders = {path.name for path in BUNDLED.iterdir() if path.is_dir()}
    assert {entry.location for entry in listed.tuners.values() if not entry.on_hub} == folders
    for name, entry in listed.tuners.items():
        assert entry.base in {EMBEDDED, *ALIASES} or HUB_NAME.fullmatch(entry.base)
        if entry.on_hub:
            continue
        folder = BUNDLED / entry.location
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert sha256_of(folder / "tuner.safetensors") == entry.sha256
        tuner = Tuner.from_pretrained(name)
        assert tuner.config.base_model_name_or_path == entry.base
        assert tuner.provenance["tasks"]
        written = tuner.save_pretrained(f"again/{name}", name=name)
        assert (written / "README.md").read_text() == (folder / "README.md").read_text()


def test_the_tuner_of_the_embedded_base_fits_it() -> None:
    tuner = Tuner.from_pretrained("zoft-base-default")
    model = load_model(EMBEDDED).model
    bound = tuner.bind(model)
    assert bound.notes == ()
    assert tuner.config.blocks.signature == Blocks.of(model).signature
    sigma = sigma_of(tuner, model)
    assert sigma.shape == (len(Blocks.of(model)),)
    assert bool(torch.isfinite(sigma).all())
    structure = tuner.structure
    assert structure is not None
    assert structure.nbytes < 0.02 * 4 * Blocks.of(model).numel
    # It has learned something of every block but the embedding, which stays at rest.
    spread = {name: float(left.float().std() / left.float().mean()) for name, (left, _) in structure.factors.items()}
    at_rest = [name for name, weight in zip(structure.names, structure.weight.tolist(), strict=True) if not weight]
    assert at_rest == ["model.embed_tokens.weight"]
    assert min(value for name, value in spread.items() if name not in at_rest) > 0.3


def test_a_tuner_that_is_not_the_listed_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(index, "BUNDLED", tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    a_tuner().save_pretrained("mine")
    entry = list_tuner("other", Path("mine"), lr=0.25, into=tmp_path / "bundle")
    listed = read_index(tmp_path / "bundle")
    assert listed.tuners == {"other": entry}
    monkeypatch.setattr(index, "_bundled", lambda: listed)
    tuner = Tuner.from_pretrained("other")
    assert tuner.config.recommended.lr == 0.25
    assert "--tuner other --task" in (tmp_path / "bundle" / "other" / "README.md").read_text()
    changed = a_tuner()
    with torch.no_grad():
        changed.network.out.bias.add_(1)
    changed.save_pretrained(tmp_path / "bundle" / "other")
    with pytest.raises(ArtifactError, match="not the tuner that the index lists as other"):
        Tuner.from_pretrained("other")
    write_index(listed, tmp_path / "bundle")
    monkeypatch.setattr(index, "_bundled", lambda: read_index(tmp_path / "bundle"))
    assert Tuner.from_pretrained("other").digest == changed.digest


ENTRY = {"location": "mine", "base": "user/base", "sha256": "0" * 64, "licence": "MIT"}

BAD_ENTRIES: dict[str, Any] = {
    "format": {"format": 2, "tuners": {}},
    "key": {"tuners": {"a": {**ENTRY, "colour": "blue"}}},
    "name": {"tuners": {"A B": ENTRY}},
    "location": {"tuners": {"a": {**ENTRY, "location": "../mine"}}},
    "unpinned": {"tuners": {"a": {**ENTRY, "location": "user/repo"}}},
    "branch": {"tuners": {"a": {**ENTRY, "location": "user/repo@main"}}},
    "hash": {"tuners": {"a": {**ENTRY, "sha256": "abc"}}},
    "licence": {"tuners": {"a": {**ENTRY, "licence": ""}}},
    "list": [],
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_damaged_index(case: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps(BAD_ENTRIES[case]))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"tuners": {"a": ENTRY}}))
    assert read_index(tmp_path).tuners["a"].location == "mine"
    assert read_index(tmp_path / "nowhere") == Index()


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "tuner", "list")
    assert (code, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines()} == set(read_index().tuners)
    assert run(capsys, "tuner", "list", "--base", "gpt2")[1] == "none; --hub looks on the Hub\n"
    rows = json.loads(run(capsys, "tuner", "list", "--base", EMBEDDED, "--json")[1])
    assert "zoft-base-default" in [row["name"] for row in rows]
    code, out, err = run(capsys, "tuner", "show", "zoft-base-default", "--model", EMBEDDED, "--plot", "plots/sigma.png")
    assert (code, err) == (0, "")
    for word in ("not a language model", EMBEDDED, "least", "median", "recommended", "plots/sigma.png"):
        assert word in out
    assert Path("plots/sigma.png").read_bytes().startswith(b"\x89PNG")
    Path("file").touch()
    assert run(capsys, "tuner", "show", "zoft-base-default", "--plot", "file/sigma.png")[0] == 2
    assert run(capsys, "tuner", "show", "./absent")[0] == 3


def test_blocks_by_layer_and_module_type() -> None:
    kinds, layers, places = by_layer(
        [
            "embed.weight",
            "model.layers.0.q.weight",
            "model.layers.0.k.weight",
            "model.layers.10.q.weight",
            "h.2.b",
        ]
    )
    assert kinds == ["embed.weight", "q.weight", "k.weight", "b"]
    assert layers == [None, 0, 2, 10]
    assert places == [(0, 0), (1, 1), (2, 1), (1, 3), (3, 2)]


def test_fine_tuning_by_the_short_name(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["finetune", "--tuner", "zoft-base-default", "--task", "mood", "--steps", "1", "--batch-size", "2"]
    code, _, err = run(capsys, *args, "--eval-limit", "2", "--device", "cpu", "--quiet", "--output-dir", "run")
    assert code == 0, err
    record = json.loads(Path("run/run.json").read_text())
    assert record["config"]["tuner"] == "zoft-base-default"
    assert record["config"]["model"] == EMBEDDED
