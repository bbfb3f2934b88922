"""Own data on the command line: what a dry run shows, chat messages, and what cannot be used."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import one_or_two_lines, run
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from zoft.errors import UsageError
from zoft.tasks.base import SPLITS, Example
from zoft.tasks.chat import CHAT_ROLES
from zoft.tasks.dataset import load_dataset_task
from zoft.tasks.lm import LMTask
from zoft.tasks.preview import outline, rendered

#: A template of the common kind: a header for each turn, and a token that ends it.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>\n{{ message['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)

CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Is {number} good?"},
            {"role": "assistant", "content": ("yes", "no")[number % 2]},
        ]
    }
    for number in range(12)
]
LABELLED = [{"text": f"It was {number}.", "label": ("great", "terrible")[number % 2]} for number in range(12)]
COMPLETED = [{"prompt": f"Say {number}:", "completion": "yes"} for number in range(12)]


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def chatty() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_tiny("llama", tmp_path_factory.mktemp("base"))
    chatty().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dry(capsys: pytest.CaptureFixture[str], base: str, *args: str) -> list[str]:
    code, out, err = run(capsys, "evaluate", "--model", base, *args, "--dry-run")
    assert (code, err) == (0, "")
    shown = out[out.index("# example") :].splitlines()
    assert sum(line.startswith("# example") for line in shown) == 3
    return shown


def test_a_dry_run_marks_the_scored_tokens(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = dry(capsys, base, "--dataset", write("a.jsonl", LABELLED), "--template", "{text} All in all it was")
    assert shown[0].startswith("# example 1 of 10 (train, a.jsonl, row ")
    assert shown[0].endswith("2 scored")
    assert shown[1].startswith("    <s>It was ")
    assert shown[1].endswith((" All in all it was⟦ great⟧", " All in all it was⟦ terrible⟧"))
    assert shown[2] in ("    or ⟦ great⟧", "    or ⟦ terrible⟧")
    shown = dry(capsys, base, "--dataset", write("b.jsonl", COMPLETED))
    assert shown[1].endswith(":⟦ yes|\\n⟧")
    shown = dry(capsys, base, "--dataset", write("c.jsonl", CHAT))
    assert shown[1:6] == ["    <s><system>", "    Be brief.</s>", "    <user>", shown[4], "    <assistant>"]
    assert shown[6].endswith("|</s>⟧")
    assert len(shown) == 3 * 7


def test_what_is_marked_is_what_is_scored() -> None:
    tokenizer = tiny_tokenizer("masked")
    task = load_dataset_task(write("a.jsonl", LABELLED), template="{text} It was")
    lines = rendered(LMTask(task, tokenizer, "masked"), "test", 2)
    assert lines[1].startswith("    <s>It was")
    assert lines[1].endswith(("⟦ great⟧</s>", "⟦ terrible⟧</s>"))
    assert rendered(LMTask(task, tokenizer, "masked"), "test", 0) == []


def test_the_outline_of_a_model_has_no_weights(base: str) -> None:
    loaded = outline(base)
    assert loaded.kind == "causal"
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}
    assert loaded.tokenizer("a")["input_ids"] == tiny_tokenizer()("a")["input_ids"]


def test_chat_messages_are_what_the_template_makes_of_them() -> None:
    task = load_dataset_task(write("a.jsonl", CHAT), tokenizer=chatty())
    assert (task.kind, task.metric) == ("completion", "exact_match")
    assert sum(len(task.examples(split)) for split in SPLITS) == 12
    example = next(e for split in SPLITS for e in task.examples(split) if e.where == "a.jsonl, row 3")
    assert example == Example(
        "<s><system>\nBe brief.</s>\n<user>\nIs 2 good?</s>\n<assistant>\n", ("yes</s>",), 0, ("yes",)
    )
    lm = LMTask(task, chatty())
    encoded = lm.dataset("train")[0]
    assert encoded.context.count(0) == 1  # the template's own <s>, and no other
    assert encoded.candidates[0][-1] == 2
    assert set(lm.evaluate(tiny_model("llama"))) == {"loss", "exact_match"}
    text = [{"messages": json.dumps(row["messages"])} for row in CHAT]  # as in a CSV file
    assert load_dataset_task(write("b.jsonl", text), tokenizer=chatty()).examples("train") == task.examples("train")


def test_a_template_that_writes_the_answers_turn_differently() -> None:
    tokenizer = chatty()
    tokenizer.chat_template = TEMPLATE.replace("<assistant>", "<think>")
    task = load_dataset_task(write("a.jsonl", CHAT), tokenizer=tokenizer)
    assert task.examples("train")[0].prompt.endswith("<assistant>\n")
    assert task.examples("train")[0].candidates in (("yes</s>",), ("no</s>",))
    tokenizer.chat_template = "{% for message in messages %}x{% endfor %}"
    with pytest.raises(UsageError, match=r"row \d+: the chat template leaves the answer out"):
        load_dataset_task("a.jsonl", tokenizer=tokenizer)


def changed(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """``rows`` with other values in the seventh one."""
    return [*rows[:6], {**rows[6], **values}, *rows[7:]]


def said(*roles: str, content: str = "x") -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role in roles]


BAD: dict[str, tuple[list[Any], list[str], str]] = {
    "no label": (changed(LABELLED, label=None), [], "bad.jsonl, row 7: no label"),
    "no such column": (LABELLED, ["--template", "{txt}"], "bad.jsonl, row 1: template '{txt}': unknown column 'txt'"),
    "empty": ([], [], "bad.jsonl: the train split is empty: it has no row 1"),
    "unknown role": (
        changed(CHAT, messages=said("user", "asistant")),
        [],
        "bad.jsonl, row 7, message 2: unknown role 'asistant'; did you mean assistant?",
    ),
    "the user's last": (changed(CHAT, messages=said("user", "user")), [], "row 7: the last message is the user's"),
    "one message": (changed(CHAT, messages=said("assistant")), [], "row 7: not a list of two or more messages"),
    "no content": (changed(CHAT, messages=[{"role": "user"}] * 2), [], "row 7: message 1 has no role and content"),
    "empty content": (
        changed(CHAT, messages=said("user", "assistant", content=" ")),
        [],
        "row 7: message 1 has no text",
    ),
    "no JSON": (changed(CHAT, messages="user: hi"), [], "row 7: the messages are not valid JSON"),
    "template and chat": (CHAT, ["--template", "{messages}"], "a template was given"),
    "empty candidate": (
        changed([{"prompt": "It", "candidates": ["red", "blue"], "label": 0}] * 12, candidates=["red", " "]),
        [],
        "row 7: candidate 1 is empty",
    ),
    "shared first token": (
        [{"prompt": "It was", "candidates": ["red car", "red"], "label": 0}] * 12,
        ["--one-token"],
        "bad.jsonl, row ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_said_with_file_and_row(
    case: str, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, args, message = BAD[case]
    code, _, err = run(capsys, "evaluate", "--model", base, "--dataset", write("bad.jsonl", rows), *args)
    assert code == 2
    assert one_or_two_lines(err)
    assert message in err
    if case == "shared first token":
        assert "' red car' and ' red' begin with the same token ' red'" in err


def test_a_label_without_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a.jsonl: the label 'great' has an empty text"):
        load_dataset_task(write("a.jsonl", LABELLED), labels={"great": " ", "terrible": "bad"})


def test_a_candidate_without_tokens_is_said_with_file_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = changed([{"prompt": "It", "candidates": ["red", "blue"], "label": 0}] * 12, candidates=["red", "<pad>"])
    task = load_dataset_task(write("a.jsonl", rows))
    tokenizer = tiny_tokenizer()
    whole = type(tokenizer).__call__

    def dropping(self: Any, texts: Any, **options: Any) -> Any:
        clean = [text.replace(" <pad>", "") for text in texts] if isinstance(texts, list) else texts
        return whole(self, clean, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", dropping)
    with pytest.raises(
        UsageError, match=r"a.jsonl, row 7: candidate ' <pad>' has no tokens after its prompt"
    ) as caught:
        for split in SPLITS:
            LMTask(task, tokenizer).dataset(split)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_chat_needs_a_tokenizer_with_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    data = write("a.jsonl", CHAT)
    with pytest.raises(UsageError, match="need a tokenizer"):
        load_dataset_task(data)
    with pytest.raises(UsageError, match="no chat template"):
        load_dataset_task(data, tokenizer=tiny_tokenizer())
    strict = chatty()
    strict.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(UsageError, match=r"a.jsonl, row \d+: the chat template refuses the messages: no system role"):
        load_dataset_task(data, tokenizer=strict)
    assert len(CHAT_ROLES) == 5
    code, _, err = run(
        capsys, "finetune", "--model", "zoft-base", "--optimizer", "mezo", "--dataset", data, "--dry-run"
    )
    assert code == 2
    assert "no chat template" in err


def test_the_validation_split_has_the_share_that_is_asked_for(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = write("a.jsonl", LABELLED)
    args = ["evaluate", "--model", base, "--dataset", data, "--template", "{text} it was"]
    code, out, _ = run(capsys, *args, "--validation-fraction", "0.25", "--json", "--limit", "none")
    assert code == 0
    assert {split: values["examples"] for split, values in json.loads(out).items()} == {"validation": 3, "test": 3}
    code, _, err = run(capsys, *args, "--validation-fraction", "0.7")
    assert code == 2
    assert "validation_fraction" in err


def test_flags_of_tasks_and_of_data_are_not_mixed(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["finetune", "--model", base, "--optimizer", "mezo", "--lr", "1e-3"]
    code, _, err = run(capsys, *common, "--dataset", write("a.jsonl", LABELLED), "--per-class", "4")
    assert code == 2
    assert "per_class given without a task" in err
    code, _, err = run(capsys, *common, "--task", "sst2", "--data-dir", "nowhere")
    assert code == 3
    assert "there is no train.parquet or train.jsonl in nowhere/sst2 and nowhere" in err


def test_the_pages_example_shows_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    rows, command = re.search(r"cat > reviews.jsonl <<'END'\n(.*?)END\n(zoft .*?)\n", page, re.DOTALL).groups()
    Path("reviews.jsonl").write_text(rows, encoding="utf-8")
    code, out, err = run(capsys, *shlex.split(command)[1:])
    assert (code, err) == (0, "")
    assert re.search(r"```text\n(# example.*?)```", page, re.DOTALL)[1] in out
