"""Names of models, loading, saving; and one clear error for each thing that may be missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import CONTEXT, FAMILIES, save_tiny, tiny_config, tiny_model
from zoft.errors import ArtifactError, UsageError, ZoftError
from zoft.models import context_length, load_model, new_causal_lm, save_model
from zoft.names import ALIASES, EMBEDDED, EMBEDDED_FOLDER, Resolved, resolve_model


def same_weights(one: Any, other: Any) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./a/b", Resolved("a/b", is_local=True)),
        ("/a/b", Resolved("/a/b", is_local=True)),
        ("user/repo", Resolved("user/repo")),
        ("user/repo@v1", Resolved("user/repo", "v1")),
        ("user/repo@refs/pr/3", Resolved("user/repo", "refs/pr/3")),
        ("hf://user/repo@v1", Resolved("user/repo", "v1")),
        ("hf://user/repo@v1/sub/folder", Resolved("user/repo", "v1", subfolder="sub/folder")),
        ("llama-3.1-8b", Resolved("meta-llama/Llama-3.1-8B")),
        ("opt-30b@abc", Resolved("facebook/opt-30b", "abc")),
        (EMBEDDED, Resolved(str(EMBEDDED_FOLDER), is_local=True)),
    ],
)
def test_names_resolve_without_a_network(name: str, expected: Resolved) -> None:
    found = resolve_model(name)
    assert (found.path_or_repo.removeprefix("./"), found.revision) == (expected.path_or_repo, expected.revision)
    assert (found.is_local, found.subfolder) == (expected.is_local, expected.subfolder)


def test_unknown_names_are_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"did you mean llama-3\.1-8b"):
        resolve_model("llama-31-8b")
    with pytest.raises(UsageError, match="no name of a model on the Hub"):
        resolve_model("a/b/c")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match=r"Write \./mine for the folder"):
        resolve_model("mine")


def test_a_local_folder_of_a_hub_name_wins_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("llama", tmp_path / "user" / "repo")
    monkeypatch.chdir(tmp_path)
    found = resolve_model("user/repo")
    assert found.is_local
    assert "local folder" in found.note
    assert not resolve_model("hf://user/repo").is_local
    assert load_model("user/repo").name == "user/repo"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_load_and_save_keep_every_weight(family: str, tied: bool, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "one", tied)
    loaded = load_model(str(folder))
    assert loaded.kind == ("masked" if family == "roberta" else "causal")
    assert (loaded.name, loaded.revision) == (str(folder), None)
    assert not loaded.model.training
    assert same_weights(loaded.model, tiny_model(family, tied))
    assert context_length(loaded.model) == CONTEXT
    again = load_model(str(save_model(loaded, tmp_path / "two")))
    assert same_weights(again.model, loaded.model)
    text = "It was great"
    assert again.tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]


def test_dtype_is_the_checkpoints_unless_given(tmp_path: Path) -> None:
    folder = str(tmp_path)
    save_tiny("llama", folder)
    tiny_model("llama").bfloat16().save_pretrained(folder)
    assert load_model(folder).model.dtype == torch.bfloat16
    assert load_model(folder, dtype="fp32").model.dtype == torch.float32
    assert load_model(folder, dtype=torch.float16).model.dtype == torch.float16


def test_a_saved_model_is_one_for_transformers(tmp_path: Path) -> None:
    folder = save_model(load_model(str(save_tiny("llama", tmp_path / "one"))), tmp_path / "two")
    assert same_weights(AutoModelForCausalLM.from_pretrained(folder), tiny_model("llama"))
    assert AutoTokenizer.from_pretrained(folder).bos_token == "<s>"
    assert list(folder.glob("*.safetensors"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write the model"):
        save_model(load_model(str(folder)), tmp_path / "file")


def test_a_new_model_is_a_function_of_the_seed() -> None:
    config = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config["intermediate_size"] = 8
    one, again, other = (new_causal_lm(config, seed) for seed in (1, 1, 2))
    assert same_weights(one, again)
    assert not same_weights(one, other)
    with pytest.raises(UsageError, match="did you mean hidden_size"):
        new_causal_lm({"hiden_size": 8}, 0)


def folder_error(folder: Path, **options: Any) -> str:
    with pytest.raises(ZoftError) as caught:
        load_model(str(folder), **options)
    assert isinstance(caught.value, ArtifactError)
    assert "\n" not in caught.value.cause
    assert caught.value.remedy
    return str(caught.value)


def test_what_a_folder_may_lack(tmp_path: Path) -> None:
    complete = save_tiny("llama", tmp_path / "complete")
    folder = tmp_path / "folder"
    assert "there is no folder" in folder_error(folder)
    folder.mkdir()
    assert "no config.json" in folder_error(folder)
    (folder / "config.json").write_bytes((complete / "config.json").read_bytes())
    assert "no weights in safetensors format" in folder_error(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert "pickles are never read" in folder_error(folder)
    (folder / "model.safetensors").write_bytes((complete / "model.safetensors").read_bytes())
    assert "no tokenizer" in folder_error(folder)
    (folder / "tokenizer.json").write_bytes((complete / "tokenizer.json").read_bytes())
    assert load_model(str(folder)).kind == "causal"


def test_what_may_be_wrong_in_a_folder(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    removed = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the model's weights, the first is model.norm.weight" in folder_error(folder)
    save_file(
        {**weights, "model.norm.weight": torch.ones(len(removed) + 1)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert "cannot be loaded" in folder_error(folder)
    (folder / "model.safetensors").write_bytes(b"not a safetensors file")
    assert "cannot be loaded" in folder_error(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "nonsense", "architectures": ["XForCausalLM"]}))
    assert "nonsense" in folder_error(folder)
    (folder / "config.json").write_text("{")
    assert "not a valid JSON file" in folder_error(folder)


def test_wrong_options_are_usage_errors(tmp_path: Path) -> None:
    folder = str(save_tiny("roberta", tmp_path))
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"kind": "causal"}, "RobertaForMaskedLM, not a causal"),
        ({"kind": "mask"}, "unknown kind of model"),
        ({"dtype": "float31"}, "unknown dtype"),
        ({"device": "gpu"}, "unknown device"),
    )
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            load_model(folder, **options)
    config = tiny_config("llama").to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    with pytest.raises(UsageError, match=r"cannot tell .* \(LlamaModel\)"):
        load_model(folder)


def test_aliases_are_hub_names() -> None:
    assert len(ALIASES) == 30
    assert all(resolve_model(target).path_or_repo == target for target in ALIASES.values())
    assert all(name == name.lower() for name in ALIASES)


ERRORS = {
    "/user/gated": (403, "GatedRepo"),
    "/user/absent": (404, "RepoNotFound"),
    "/user/old": (404, "RevisionNotFound"),
    "/user/empty": (404, "EntryNotFound"),
}


class RefusingHub(BaseHTTPRequestHandler):
    """Answers every request for one of the repositories with its error."""

    def do_GET(self) -> None:
        status, code = next((error for name, error in ERRORS.items() if name in self.path), (404, "RepoNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), RefusingHub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


PROBE = """
import json, sys
from zoft.errors import ArtifactError
from zoft.models import load_model
answers = {}
for name in sys.argv[1:]:
    try:
        load_model(name)
    except ArtifactError as error:
        answers[name] = [error.cause, error.remedy]
print(json.dumps(answers))
"""


def probe(home: Path, names: list[str], **variables: str) -> dict[str, list[str]]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", **variables}
    # The Hub client reads its settings when it is imported, hence a process of its own.
    command = [sys.executable, "-c", PROBE, *names]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    answers: dict[str, list[str]] = json.loads(run.stdout.splitlines()[-1])
    assert len(answers) == len(names)
    assert all("\n" not in cause and remedy for cause, remedy in answers.values())
    return answers


def test_each_failure_of_the_hub_has_its_own_sentence(hub: str, tmp_path: Path) -> None:
    names = ["user/gated", "user/absent", "user/old@v9", "user/empty"]
    answers = probe(tmp_path, names, HF_ENDPOINT=hub)
    causes = [answers[name][0] for name in names]
    assert "is gated" in causes[0]
    assert "no model user/absent on the Hub" in causes[1]
    assert causes[2] == "user/old has no revision 'v9'"
    assert "user/empty" in causes[3]
    assert len(set(causes)) == 4


def test_offline_is_said(tmp_path: Path) -> None:
    answers = probe(tmp_path, ["user/repo"], HF_HUB_OFFLINE="1")
    assert "the Hub cannot be reached" in answers["user/repo"][0]
