"""The offline tasks and the embedded base: fixed, balanced, apart from each other and the base's text."""

import itertools
import json
import random
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoft.assets import make_base
from zoft.errors import UsageError
from zoft.tasks.base import ROLES, SPLITS
from zoft.tasks.offline import OFFLINE_TASKS
from zoft.tasks.offline.family import SIZES, choose, reserved, split_of
from zoft.tasks.offline.grammar import Words
from zoft.tasks.offline.prose import DOCUMENTS, documents

NAMES = [task.name for task in OFFLINE_TASKS]
each_task = pytest.mark.parametrize("task", OFFLINE_TASKS, ids=NAMES)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(make_base.SHIPPED)


def test_the_family_covers_every_kind_in_every_role():
    assert len(OFFLINE_TASKS) == len(set(NAMES)) == 13
    assert Counter(task.role for task in OFFLINE_TASKS) == {
        "meta-training": 5,
        "development": 4,
        "held-out": 4,
    }
    for role in ROLES:
        kinds = {task.kind for task in OFFLINE_TASKS if task.role == role}
        assert kinds == {"classification", "choice", "completion"}
    assert all(name == name.lower() and " " not in name and "_" not in name for name in NAMES)


@each_task
def test_examples_are_well_formed_and_the_same_at_every_call(task):
    for split in SPLITS:
        examples = task().examples(split)
        assert len(examples) == SIZES[split]
        assert examples == task().examples(split)
        for example in examples:
            assert example.prompt == example.prompt.strip()
            assert all(candidate.startswith(" ") for candidate in example.candidates)
            assert len(set(example.candidates)) == len(example.candidates)
            assert 0 <= example.label < len(example.candidates)
            if task.kind == "completion":
                assert example.candidates == (f" {example.references[0]}",)
            else:
                assert len(example.candidates) >= 2
                assert example.references == ()


@each_task
def test_splits_are_disjoint_and_reserved(task):
    prompts = {split: {example.prompt for example in task().examples(split)} for split in SPLITS}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == sum(SIZES.values())
    assert all(reserved(prompt) and split_of(prompt) == split for split in SPLITS for prompt in prompts[split])


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        OFFLINE_TASKS[0]().examples("dev")


def test_drawing_examples_leaves_the_global_generator_alone():
    state = random.getstate()
    task = OFFLINE_TASKS[0]
    list(itertools.islice(documents(random.Random(0)), 10))
    task().draw(Words(random.Random(0), even=True))
    assert random.getstate() == state


@each_task
def test_labels_are_balanced(task):
    examples = task().examples("train")
    if task.kind == "completion":
        commonest = Counter(example.candidates[0] for example in examples).most_common(1)[0][1]
        assert commonest / len(examples) < 0.15
        return
    counts = Counter(example.label for example in examples)
    labels = len(examples[0].candidates)
    assert len(counts) == labels
    assert max(counts.values()) / len(examples) < 1.25 / labels


def test_no_prompt_of_a_task_is_in_the_text_of_the_base():
    prompts = {e.prompt for task in OFFLINE_TASKS for split in SPLITS for e in task().examples(split)}
    told = itertools.islice(documents(random.Random(f"{make_base.SEED} text")), 10_000)
    texts = [prompt + continuation for prompt, continuation in told]
    assert len(texts) == 10_000
    assert not [text for text in texts if any(text[:end] in prompts for end in range(10, len(text) + 1))]


def test_every_kind_of_document_is_told_and_text_is_a_function_of_the_seed():
    assert len(DOCUMENTS) == 12
    texts = [list(itertools.islice(documents(random.Random(seed)), 50)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_text_gives_rivals_as_often_as_the_draw_says():
    rng = random.Random(0)
    clear, even, leaning = (
        choose("Is it", ("a", "b"), "a", rivals, lean) for rivals, lean in (((), 1), ("b", 1), ("b", 2))
    )
    assert {clear.told(rng) for _ in range(20)} == {" a"}
    shares = [sum(draw.told(rng) == " b" for _ in range(3000)) / 3000 for draw in (even, leaning)]
    assert shares == pytest.approx([1 / 2, 2 / 3], abs=0.03)  # three standard errors


@each_task
def test_answers_are_single_tokens(task, tokenizer):
    examples = task().examples("train")[:200]
    words = {word for example in examples for candidate in example.candidates for word in candidate.split()}
    for word in words:
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word
    assert max(len(tokenizer.encode(example.prompt)) for example in examples) <= 48


@pytest.mark.parametrize("text", ["Anna has the key.", "Ünïcode, 漢字 and 🙂\n\ttabs", "SELECT * FROM x;"])
def test_the_tokenizer_takes_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_shipped_base_is_what_its_record_says():
    record = json.loads((make_base.SHIPPED / "make_base.json").read_text(encoding="utf-8"))
    assert make_base.sha256(make_base.SHIPPED / "model.safetensors") == record["sha256"]
    assert sum(file.stat().st_size for file in make_base.SHIPPED.iterdir()) < 12e6
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in make_base.SHIPPED.iterdir()
    }
    model = AutoModelForCausalLM.from_pretrained(make_base.SHIPPED)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(value.numel() for value in model.parameters()) == record["parameters"]
    assert 0.5e6 <= record["parameters"] <= 3e6


def test_making_the_base_twice_gives_the_same_bytes(tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = make_base.make(tmp_path / "first", steps=20)
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        second = make_base.make(tmp_path / "second", steps=20)
    assert first["sha256"] == second["sha256"]
    assert torch.get_num_threads() == threads
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_another_seed_gives_another_base(tmp_path):
    first, second = (make_base.make(tmp_path / str(seed), steps=2, seed=seed) for seed in (0, 1))
    assert first["sha256"] != second["sha256"]
