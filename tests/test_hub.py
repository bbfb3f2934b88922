"""Tuners and the Hub, through the real client over HTTP against an emulator on this machine."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.hub_emulator import Hub, Repo
from tests.test_cli import run
from tests.test_finetune import tiny_loaded, untrained, write_reviews
from tests.tiny import save_tiny
from zoft.errors import ArtifactError, UsageError
from zoft.models import base_blocks, load_model
from zoft.tuner import Tuner
from zoft.tuner.hub import search

ROOT = Path(__file__).parent.parent

FILES = ("README.md", "meta_train.json", "tuner.safetensors", "tuner_config.json")


def tuner_for(base: str = "user/base", **recommended: Any) -> Tuner:
    """An untrained tuner of the tiny model, under the base's name."""
    tuner = untrained(tiny_loaded(), **recommended)
    config = tuner.config.model_copy(update={"base_model_name_or_path": base})
    return Tuner(config, tuner.network, {"tasks": ["one", "two"]})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def published(hub: Hub, tmp_path: Path, repo: str = "user/tuner", **options: Any) -> Repo:
    """A repository that holds a tuner."""
    return hub.add(repo, files_of(tuner_for().save_pretrained(tmp_path / "published", name=repo)), **options)


def same(one: Tuner, other: Tuner) -> bool:
    """Whether two tuners compute the same."""
    return one.config == other.config and one.digest == other.digest


def fails(name: str, **options: Any) -> ArtifactError:
    """The error of reading a tuner, of one line and with a remedy."""
    with pytest.raises(ArtifactError) as caught:
        Tuner.from_pretrained(name, **options)
    assert "\n" not in caught.value.cause
    assert caught.value.remedy
    assert caught.value.exit_code == 3
    return caught.value


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's retries without the pauses between them, and little patience with answers that do not come."""
    import huggingface_hub.file_download
    import huggingface_hub.utils._http as http

    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.setattr(huggingface_hub.file_download, "_ETAG_RETRY_TIMEOUT", 0.5, raising=False)
    defaults = inspect.unwrap(huggingface_hub.hf_hub_download).__kwdefaults__
    monkeypatch.setitem(defaults, "etag_timeout", 0.5)


def test_pushed_and_read_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    tuner = tuner_for(lr=1e-4)
    address = tuner.push_to_hub("alice/tuner", commit_message="First")
    repo = hub.repos["alice/tuner"]
    assert address == f"{hub.url}/alice/tuner/commit/{repo.refs['main']}"
    assert repo.messages[-1] == "First"
    assert set(FILES) <= set(repo.commits[repo.refs["main"]])
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert "zoft finetune --tuner alice/tuner --task TASK" in card
    assert 'from_pretrained("alice/tuner")' in card
    again = Tuner.from_pretrained("alice/tuner")
    assert same(again, tuner)
    assert again.provenance == {"tasks": ["one", "two"]}
    assert str(again.origin) == f"alice/tuner at commit {repo.refs['main']}"


def test_a_pinned_revision_stays(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    first, second = tuner_for(lr=1e-4), tuner_for(lr=2e-4)
    first.push_to_hub("alice/tuner")
    commit = hub.repos["alice/tuner"].refs["main"]
    second.push_to_hub("alice/tuner", revision="next")
    assert same(Tuner.from_pretrained("alice/tuner"), first)
    assert same(Tuner.from_pretrained("alice/tuner@next"), second)
    assert same(Tuner.from_pretrained("alice/tuner", revision="next"), second)
    second.push_to_hub("alice/tuner")
    assert same(Tuner.from_pretrained("alice/tuner"), second)
    for name in (f"alice/tuner@{commit}", f"hf://alice/tuner@{commit}"):
        pinned = Tuner.from_pretrained(name)
        assert same(pinned, first)
        assert pinned.origin is not None
        assert pinned.origin.commit == commit
    hub.log.clear()
    assert same(Tuner.from_pretrained(f"alice/tuner@{commit}"), first)
    assert hub.log == []  # what is pinned and in the cache asks nobody
    with pytest.raises(UsageError, match="two revisions"):
        Tuner.from_pretrained("alice/tuner@next", revision="main")


def test_private_ones_need_the_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    tuner_for().push_to_hub("alice/secret", private=True)
    assert hub.repos["alice/secret"].private
    assert same(Tuner.from_pretrained("alice/secret", cache_dir=tmp_path / "one"), tuner_for())
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no tuner alice/secret on the Hub, or it is private" in fails("alice/secret").cause
    assert "HF_TOKEN" in fails("alice/secret", token="hf_bob").remedy
    assert same(Tuner.from_pretrained("alice/secret", token="hf_alice"), tuner_for())
    hub.repos["alice/secret"].commit({"tuner_config.json": None, "tuner.pth": b"a pickle"}, "pickled")
    assert "holds a pickle" in fails("alice/secret@pickled", token="hf_alice").cause
    assert "does not accept the token" in fails("alice/other", token="hf_stale").cause


def test_what_may_not_be_pushed(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path)
    with pytest.raises(ArtifactError, match=r"(?s)^no token for the Hub is set.*HF_TOKEN"):
        tuner_for().push_to_hub("user/tuner")
    with pytest.raises(ArtifactError, match=r"(?s)^the Hub does not accept the token.*HF_TOKEN"):
        tuner_for().push_to_hub("user/tuner", token="hf_stale")
    with pytest.raises(ArtifactError, match=r"does not let this account do that to user/tuner"):
        tuner_for().push_to_hub("user/tuner", token="hf_alice")
    with pytest.raises(UsageError, match="no repository on the Hub"):
        tuner_for().push_to_hub("tuner", token="hf_alice")
    before = dict(hub.repos["user/tuner"].refs)
    address = tuner_for(lr=3e-4).push_to_hub("user/tuner", create_pr=True, token="hf_alice")
    assert re.fullmatch(rf"{hub.url}/user/tuner/discussions/\d+", address)
    assert hub.repos["user/tuner"].refs["main"] == before["main"]
    assert Tuner.from_pretrained("user/tuner@refs/pr/1").config.recommended.lr == 3e-4


def test_a_base_in_a_folder_does_not_spoil_the_card(hub: Hub) -> None:
    tuner_for(base="/home/somebody/models/base").push_to_hub("alice/tuner", token="hf_alice")
    repo = hub.repos["alice/tuner"]
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert "base_model" not in card
    assert "somebody" not in card


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "gated": ({"gated": True}, "user/tuner", "user/tuner is gated, and this account has no access"),
    "no repository": ({}, "user/absent", "there is no tuner user/absent on the Hub, or it is private"),
    "no revision": ({}, "user/tuner@v9", "user/tuner has no revision 'v9'"),
    "no folder": ({}, "hf://user/tuner/deep", "has no tuner_config.json: it holds no complete tuner"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_has_its_own_sentence(case: str, hub: Hub, tmp_path: Path) -> None:
    options, name, message = REFUSALS[case]
    published(hub, tmp_path, **options)
    assert message in fails(name).cause


def test_missing_files_and_pickles(hub: Hub, tmp_path: Path) -> None:
    repo = published(hub, tmp_path)
    repo.commit({"tuner.safetensors": None}, "broken")
    assert "user/tuner@broken has no tuner.safetensors" in fails("user/tuner@broken").cause
    repo.commit({"tuner_config.json": None, "tuner.pth": b"a pickle"}, "pickled")
    error = fails("user/tuner@pickled")
    assert "holds a pickle (tuner.pth) and no tuner" in error.cause
    assert "zoft tuner convert" in error.remedy
    repo.commit({"meta_train.json": None}, "bare")
    assert Tuner.from_pretrained("user/tuner@bare").provenance == {}
    files = repo.commits[repo.refs["main"]]
    hub.add("user/many", {f"one/{name}": data for name, data in files.items()})
    assert "hf://user/many/one" in fails("user/many").remedy
    found = Tuner.from_pretrained("hf://user/many/one")
    assert same(found, Tuner.from_pretrained("user/many", subfolder="one"))
    assert found.origin is not None
    assert found.origin.name == "user/many/one"
    assert same(Tuner.from_pretrained(found.origin.pinned), found)


def test_a_file_too_large_is_not_downloaded(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(hub, tmp_path)
    monkeypatch.setitem(sys.modules["zoft.tuner.layout"].LARGEST, "tuner.safetensors", 100)
    assert "more than any tuner's" in fails("user/tuner").cause
    assert ("GET", f"/user/tuner/resolve/{hub.repos['user/tuner'].refs['main']}/tuner.safetensors") not in hub.log


def test_damage_on_the_hub_is_found(hub: Hub, tmp_path: Path) -> None:
    repo = published(hub, tmp_path)
    data = bytearray(repo.commits[repo.refs["main"]]["tuner.safetensors"])
    data[-2] ^= 1
    repo.commit({"tuner.safetensors": bytes(data)})
    assert "its hash differs" in fails("user/tuner").cause


def test_without_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    repo = published(hub, tmp_path)
    error = fails("user/tuner", local_files_only=True)
    assert "user/tuner is not in the local cache" in error.cause
    known = Tuner.from_pretrained("user/tuner")
    assert same(Tuner.from_pretrained("user/tuner", local_files_only=True), known)
    for fault in ("500", "drop", "slow"):
        repo.fault = fault
        assert same(Tuner.from_pretrained("user/tuner"), known), fault  # from the cache
    messages = {
        "500": "user/tuner is not in the local cache, and the Hub answers with a server error (500)",
        "drop": "user/tuner is not in the local cache, and the Hub cannot be reached",
        "slow": "user/tuner is not in the local cache, and the Hub does not answer in time",
    }
    for fault, message in messages.items():
        repo.fault = fault
        assert message in fails("user/tuner", cache_dir=tmp_path / fault).cause
    repo.fault, repo.fault_on = "500", "tuner.safetensors"
    assert "server error (500)" in fails("user/tuner", cache_dir=tmp_path / "half").cause
    with pytest.raises(UsageError, match="local_files_only forbids it"):
        Tuner.from_pretrained("user/tuner", force_download=True, local_files_only=True)


def test_pushing_to_a_hub_that_is_down(hub: Hub, impatient: None) -> None:
    hub.add("alice/tuner", fault="503")
    with pytest.raises(ArtifactError, match=r"^the Hub answers with a server error \(503\)"):
        tuner_for().push_to_hub("alice/tuner", token="hf_alice")


def test_force_download(hub: Hub, tmp_path: Path) -> None:
    repo = published(hub, tmp_path)
    Tuner.from_pretrained("user/tuner")
    hub.log.clear()
    Tuner.from_pretrained("user/tuner")
    assert [path for method, path in hub.log if method == "GET"] == []
    Tuner.from_pretrained("user/tuner", force_download=True)
    got = {path.rpartition("/")[2] for method, path in hub.log if method == "GET"}
    assert got == {"tuner_config.json", "tuner.safetensors", "meta_train.json"}
    pinned = [path for method, path in hub.log if method == "GET" and repo.refs["main"] in path]
    assert len(pinned) == 2  # all of the commit that the first one was of


def test_a_local_folder_of_that_name_wins_and_it_is_said(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(hub, tmp_path)
    monkeypatch.chdir(tmp_path)
    tuner_for(lr=7e-4).save_pretrained(tmp_path / "user" / "tuner")
    with pytest.warns(UserWarning, match="user/tuner is a local folder, and is used as such"):
        assert Tuner.from_pretrained("user/tuner").config.recommended.lr == 7e-4
    assert Tuner.from_pretrained("hf://user/tuner").config.recommended.lr is None
    (tmp_path / "user" / "tuner" / "tuner_config.json").unlink()
    with pytest.warns(UserWarning, match="looking on the Hub"):
        assert Tuner.from_pretrained("user/tuner").config.recommended.lr is None


def test_tuners_are_found_by_their_tag(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path)
    hub.add("user/model", {"README.md": b"---\nlibrary_name: transformers\ntags: [text-generation]\n---\n"})
    tuner_for(base="other/base").push_to_hub("alice/tuner", token="hf_alice")
    assert [(found.repo, found.base) for found in search()] == [
        ("user/tuner", "user/base"),
        ("alice/tuner", "other/base"),
    ]
    assert [found.repo for found in search(base="other/base")] == ["alice/tuner"]
    assert [found.repo for found in search(author="user")] == ["user/tuner"]


def test_the_command_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    tuner_for(lr=1e-4).save_pretrained("mine")
    code, out, err = run(capsys, "tuner", "push", "mine", "alice/tuner", "--private", "--message", "Mine")
    assert (code, err) == (0, "")
    commit = hub.repos["alice/tuner"].refs["main"]
    assert out.splitlines()[0] == f"{hub.url}/alice/tuner/commit/{commit}"
    assert "zoft finetune --tuner alice/tuner" in out
    assert (hub.repos["alice/tuner"].private, hub.repos["alice/tuner"].messages[-1]) == (True, "Mine")
    code, out, err = run(capsys, "tuner", "pull", "alice/tuner", "copy")
    assert (code, err) == (0, "")
    assert out == f"alice/tuner at commit {commit}\ntuner: copy\n"
    assert sorted(path.name for path in Path("copy").iterdir()) == sorted(FILES)
    assert same(Tuner.from_pretrained("copy"), Tuner.from_pretrained("mine"))
    assert run(capsys, "tuner", "pull", "alice/tuner", "copy")[0] == 2
    assert run(capsys, "tuner", "pull", "mine", "other")[0] == 2
    code, out, err = run(capsys, "tuner", "show", "alice/tuner", "--plot", "sigma.png")
    assert code == 0
    assert err == f"zoft: tuner alice/tuner at commit {commit}\n"
    assert re.search(rf"^commit +{commit}$", out, re.MULTILINE)
    assert Path("sigma.png").read_bytes().startswith(b"\x89PNG")
    local = json.loads(run(capsys, "tuner", "show", "mine", "--json")[1])
    remote = json.loads(run(capsys, "tuner", "show", "alice/tuner", "--json")[1])
    assert {**remote, "tuner": "mine", "use": local["use"]} == {**local, "commit": commit}
    assert "alice/tuner" in run(capsys, "tuner", "list", "--hub", "--base", "user/base")[1]
    code, _, err = run(capsys, "tuner", "pull", "alice/absent", "other")
    assert code == 3
    assert err.splitlines()[0] == "zoft: error: there is no tuner alice/absent on the Hub, or it is private"


def test_fine_tuning_with_a_tuner_and_a_base_from_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = hub.add("user/base", files_of(save_tiny("llama", tmp_path / "base")))
    repo = published(hub, tmp_path)
    data = str(write_reviews(tmp_path))
    args = ["finetune", "--tuner", "user/tuner", "--dataset", data, "--template", "{text} it was", "--steps", "2"]
    args += ["--batch-size", "2", "--eval-limit", "4", "--device", "cpu", "--output-dir", "run"]
    code, out, err = run(capsys, *args)
    assert code == 0, err
    assert err.count(f"zoft: tuner user/tuner at commit {repo.refs['main']}\n") == 1
    assert f"zoft: model user/base at commit {base.refs['main']}\n" in err
    assert "model: user/base" in out  # the tuner's base is the model by default
    record = json.loads(Path("run/run.json").read_text())
    assert record["config"]["tuner"] == "user/tuner"
    assert record["inputs"]["tuner_revision"] == repo.refs["main"]
    assert record["inputs"]["model_revision"] == base.refs["main"]
    assert load_model("run/final").kind == "causal"
    repo.commit(files_of(tuner_for(lr=0.5).save_pretrained(tmp_path / "newer")))
    code, _, err = run(capsys, *args, "--resume")
    assert code == 2
    assert "tuner_revision" in err


def test_a_tuner_whose_base_is_a_folder_of_its_author(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_tiny("llama", tmp_path / "base")
    hub.add("user/tuner", files_of(tuner_for(base=str(folder)).save_pretrained(tmp_path / "tuner")))
    code, _, err = run(capsys, "finetune", "--tuner", "user/tuner", "--task", "mood", "--dry-run")
    assert code == 2
    assert "no model is given" in err


def test_a_comparison_pins_its_tuners(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.compare_config import CompareConfig
    from finetune.methods import pinned

    repo = published(hub, tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "runs/mine"):
        tuner_for().save_pretrained(folder)
    with pytest.warns(UserWarning, match="runs/mine is a local folder"):
        config = pinned(CompareConfig(tuners={"hub": "user/tuner", "local": "mine", "other": "runs/mine"}))
    assert config.tuners == {"hub": f"hf://user/tuner@{repo.refs['main']}", "local": "mine", "other": "./runs/mine"}
    hub.log.clear()
    assert pinned(config) == config
    assert hub.log == []


def test_the_base_of_a_conversion_is_asked_for_its_configuration_alone(hub: Hub, tmp_path: Path) -> None:
    repo = hub.add("user/base", files_of(save_tiny("llama", tmp_path / "base")))
    table, commit = base_blocks("user/base")
    model: nn.Module = tiny_loaded().model
    assert table.names == [name for name, _ in model.named_parameters()]
    assert table == tuner_for().config.blocks
    assert commit == repo.refs["main"]
    got = {path.rpartition("/")[2] for method, path in hub.log if method == "GET" and "/resolve/" in path}
    assert got == {"config.json"}


OFFLINE = """
import sys
from zoft.tuner import Tuner
from zoft.errors import ArtifactError
for name in sys.argv[1:]:
    try:
        print(Tuner.from_pretrained(name).origin)
    except ArtifactError as error:
        print(error.cause)
"""


def test_offline_mode(hub: Hub, tmp_path: Path) -> None:
    repo = published(hub, tmp_path)
    home = tmp_path / "home"
    Tuner.from_pretrained("user/tuner", cache_dir=home / "hub")
    hub.log.clear()
    # The client reads HF_HUB_OFFLINE when it is imported, hence a process of its own.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OFFLINE, "user/tuner", "user/absent"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    cached, absent = done.stdout.splitlines()
    assert cached == f"user/tuner at commit {repo.refs['main']}"
    assert absent == "user/absent is not in the local cache, and the Hub cannot be reached: offline mode is on"
    assert hub.log == []


def test_the_guard_refuses_what_leaves_the_machine(network_log: Path) -> None:
    import socket

    with pytest.raises(OSError, match="tests stay on this machine"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="tests stay on this machine"):
        socket.getaddrinfo("huggingface.co", 443)
    child = "import socket; socket.getaddrinfo('pypi.org', 443)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False, timeout=60)
    assert "tests stay on this machine" in done.stderr
    tried = network_log.read_text().splitlines()
    assert tried == [
        "socket.getaddrinfo '192.0.2.1'",
        "socket.getaddrinfo 'huggingface.co'",
        "socket.getaddrinfo 'pypi.org'",
    ]
    network_log.write_text("")


def test_a_suite_that_reaches_out_fails_even_if_it_copes(tmp_path: Path) -> None:
    (tmp_path / "test_reaching.py").write_text(
        textwrap.dedent(
            """
            import socket

            def test_that_copes():
                try:
                    socket.create_connection(("example.com", 80), timeout=1)
                except OSError:
                    pass

            def test_of_this_machine():
                server = socket.create_server(("127.0.0.1", 0))
                socket.create_connection(server.getsockname(), timeout=1).close()
                server.close()
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "reached beyond this machine" in done.stdout
    assert "2 passed, 1 error" in done.stdout


def test_the_emulated_hub_is_the_one_that_models_are_read_from(hub: Hub, tmp_path: Path) -> None:
    repo = hub.add("user/base", files_of(save_tiny("llama", tmp_path / "base")))
    loaded = load_model("user/base")
    assert (loaded.name, loaded.revision) == ("user/base", repo.refs["main"])
    assert torch.equal(next(loaded.model.parameters()), next(tiny_loaded().model.parameters()))
