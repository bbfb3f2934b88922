"""The kinds of base, derivatives, and the page that shows what was measured on them."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks import bases_page, tasks_table
from tests.tiny import save_tiny
from zoft.assets import make_base, make_derivative
from zoft.assets.kinds import KINDS, SHIPPED_KIND
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.models import load_model
from zoft.tasks import TASKS, get_task
from zoft.tasks.lm import LMTask
from zoft.tasks.offline import OFFLINE_TASKS, prose

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "validation", "test")
OTHERS = [name for name in KINDS if name != SHIPPED_KIND]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(make_base.SHIPPED)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with every kind that is not shipped, after three steps, and a derivative of one after three more."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        # The tokenizer is the shipped one, and takes most of the time to make.
        patch.setattr(make_base, "make_tokenizer", lambda seed: tokenizer)
        for name in OTHERS:
            make_base.make(folder / name, steps=3, kind=name)
    make_derivative.make(str(folder / "qwen2"), folder / "derived", seed=1, steps=3)
    return folder


def test_the_shipped_kind_is_the_shipped_bases(tokenizer: PreTrainedTokenizerFast) -> None:
    shipped = json.loads((make_base.SHIPPED / "config.json").read_text(encoding="utf-8"))
    model = KINDS[SHIPPED_KIND].build(tokenizer, 0)
    config = model.config.to_dict()
    assert {key: config[key] for key in shipped if key not in ("architectures", "dtype", "transformers_version")} == {
        key: value for key, value in shipped.items() if key not in ("architectures", "dtype", "transformers_version")
    }
    recorded = json.loads((make_base.SHIPPED / make_base.RECORD).read_text(encoding="utf-8"))
    assert sum(value.numel() for value in model.parameters()) == recorded["parameters"]
    assert recorded["steps"] == KINDS[SHIPPED_KIND].steps
    assert recorded["command"] == f"python -m zoft.assets.make_base --steps {recorded['steps']} --seed 0"


def test_the_kinds_differ_in_size_family_and_what_a_block_is(tokenizer: PreTrainedTokenizerFast) -> None:
    state = torch.get_rng_state()
    blocks = {name: Blocks.of(KINDS[name].build(tokenizer, 0)) for name in KINDS}
    assert torch.equal(state, torch.get_rng_state())
    sizes = {name: each.numel for name, each in blocks.items()}
    assert 250e3 <= sizes["gpt2-small"] <= 300e3
    assert 0.9e6 <= sizes["qwen2"] <= 1.0e6
    biases = {name: sum(block.name.endswith(".bias") for block in each) for name, each in blocks.items()}
    assert biases == {"llama": 0, "gpt2-small": 4 * 6 + 1, "qwen2": 4 * 3}
    assert {name: each.named("lm_head.weight") is not None for name, each in blocks.items()} == {
        "llama": False,
        "gpt2-small": False,
        "qwen2": True,
    }
    assert blocks["gpt2-small"].named("transformer.wpe.weight") is not None
    query, key = (blocks["qwen2"].named(f"model.layers.0.self_attn.{part}_proj.weight") for part in "qk")
    assert query is not None
    assert key is not None
    assert query.shape[0] == 2 * key.shape[0]


@pytest.mark.parametrize("name", OTHERS)
def test_a_kind_is_made_loaded_and_used(made: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    record = json.loads((made / name / make_base.RECORD).read_text(encoding="utf-8"))
    assert record["command"] == f"python -m zoft.assets.make_base --kind {name} --steps 3 --seed 0"
    assert record["sha256"] == make_base.sha256(made / name / "model.safetensors")
    assert record["losses"]["3"] == record["final_loss"]
    assert set(record["platform"]) >= {"machine", "cpu_capability", "torch", "transformers"}
    loaded = load_model(str(made / name))
    assert loaded.kind == "causal"
    assert sum(value.numel() for value in loaded.model.parameters()) == record["parameters"]
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    text = "Anna has the key, and Ünïcode 漢字.\n"
    assert loaded.tokenizer.encode(text) == tokenizer.encode(text)
    assert (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id) == (0, 2)
    found = LMTask(get_task("mood"), loaded.tokenizer).evaluate(loaded.model, "test", 20)
    assert 0 < found["loss"] < 10


def test_a_kind_made_twice_has_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(make_base, "make_tokenizer", lambda seed: tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = make_base.make(tmp_path, steps=3, kind="gpt2-small")
    assert again["sha256"] == make_base.sha256(made / "gpt2-small" / "model.safetensors")


def test_training_lowers_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    model = KINDS["gpt2-small"].build(tokenizer, 0)
    batch = next(make_base.batches(tokenizer, prose.documents(random.Random(0))))
    seen: list[float] = []
    curve = make_base.train(model, itertools.repeat(batch), 12, 3e-3, lambda step, loss: seen.append(loss), warm_up=2)
    assert len(seen) == 12
    first = seen[0]
    last = 12 * seen[-1] - 11 * seen[-2]  # of running means
    assert last < 0.8 * first
    assert curve[-1] == (12, seen[-1])


def test_a_derivative_has_the_bases_names_and_shapes_and_other_weights(made: Path) -> None:
    base, derived = (load_model(str(made / name)) for name in ("qwen2", "derived"))
    assert Blocks.of(base.model).signature == Blocks.of(derived.model).signature
    record = json.loads((made / "derived" / make_derivative.RECORD).read_text(encoding="utf-8"))
    assert record["signature"] == Blocks.of(base.model).signature
    away = size = 0.0
    for (_, old), (_, new) in zip(base.model.named_parameters(), derived.model.named_parameters(), strict=True):
        away += float((new.detach() - old.detach()).double().square().sum())
        size += float(old.detach().double().square().sum())
    assert record["moved"]["whole"] == pytest.approx((away / size) ** 0.5, abs=1e-4)
    assert 0 < record["moved"]["least_block"] < record["moved"]["whole"] < record["moved"]["greatest_block"]
    assert record["base"]["name"] == str(made / "qwen2")
    assert record["sha256"] == make_base.sha256(made / "derived" / "model.safetensors")
    assert (record["seed"], record["steps"], record["losses"]["3"]) == (1, 3, record["final_loss"])


def test_nothing_of_a_development_or_held_out_task_is_in_a_derivatives_text() -> None:
    roles = {task: {name for name, cls in TASKS.items() if cls.role == task} for task in ("development", "held-out")}
    others = [task() for task in OFFLINE_TASKS if task.role != "meta-training"]
    assert {task.name for task in others} == {task.name for task in OFFLINE_TASKS} & (
        roles["development"] | roles["held-out"]
    )
    prompts = {example.prompt for task in others for split in SPLITS for example in task.examples(split)}
    own = {e.prompt: e.candidates[e.label] for task in make_derivative.trained_tasks() for e in task.examples("train")}
    kept_back = {
        e.prompt
        for task in make_derivative.trained_tasks()
        for split in ("validation", "test")
        for e in task.examples(split)
    }
    texts = list(itertools.islice(make_derivative.mixture(3), 1500))
    from_tasks = [text for text in texts if text[0] in own]
    assert all(own[prompt] == answer for prompt, answer in from_tasks)
    assert len(from_tasks) / len(texts) == pytest.approx(make_derivative.TASK_SHARE, abs=0.04)
    for prompt, continuation in texts:
        text = prompt + continuation
        assert not any(text[:end] in prompts or text[:end] in kept_back for end in range(10, len(text) + 1))
    assert prose.asked not in make_derivative.proportions(3)
    assert len(make_derivative.proportions(3)) == len(prose.DOCUMENTS) - 1


def test_a_mixture_is_a_function_of_its_seed() -> None:
    texts = [list(itertools.islice(make_derivative.mixture(seed), 50)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    shifts = [make_derivative.proportions(seed) for seed in (1, 1, 2)]
    assert shifts[0] == shifts[1] != shifts[2]


def test_what_cannot_be_derived_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny("roberta", tmp_path / "masked")
    with pytest.raises(UsageError, match="is a masked language model"):
        make_derivative.make(str(tmp_path / "masked"), tmp_path / "out")
    with pytest.raises(UsageError, match="0 steps"):
        make_derivative.make("zoft-base", tmp_path / "out", steps=0)
    assert make_derivative.main(["--base", "nothing-of-that-name", "--output-dir", str(tmp_path / "out")]) == 2
    assert "nothing-of-that-name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_scripts_write_where_bases_are(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / make_base.BASES).symlink_to(made)
    assert make_derivative.main(["--base", "gpt2-small", "--steps", "1", "--seed", "5"]) == 0
    record = json.loads((make_base.BASES / "gpt2-small-derivative-5" / make_derivative.RECORD).read_text())
    assert record["base"]["name"] == "runs/bases/gpt2-small"
    assert json.loads(capsys.readouterr().out) == record
    with pytest.raises(SystemExit):
        make_base.main(["--kind", "gpt3"])
    assert "invalid choice: 'gpt3'" in capsys.readouterr().err


def row(task: str, metric: float, chance: float) -> dict[str, Any]:
    """A row of a table without first-order fine-tuning."""
    bent = {"trace": 100.0, "trace_standard_error": 5.0, "gradient_squared": 2.0, "gain": None}
    zero = {"loss": 0.7, "metric": metric}
    return {
        "task": task,
        "role": "held-out",
        "chance": chance,
        "zero_shot": zero,
        "curvature": bent,
        "first_order": None,
    }


def test_a_task_at_chance_is_unusable(tmp_path: Path) -> None:
    # 1.96 standard errors of 500 fair guesses are 4.4 points.
    assert not bases_page.is_above_chance(row("x", 0.540, 0.5))
    assert bases_page.is_above_chance(row("x", 0.546, 0.5))
    record = json.loads((make_base.SHIPPED / make_base.RECORD).read_text(encoding="utf-8"))
    moved = {"whole": 0.034, "least_block": 0.001, "greatest_block": 0.1}
    (tmp_path / "bases").mkdir()
    content = {"base": {**record, "moved": moved}, "rows": [row("mood", 0.26, 0.25), row("headline", 0.5, 1 / 6)]}
    (tmp_path / "bases" / "mine.json").write_text(json.dumps(content))
    text = bases_page.page(tmp_path)
    assert "| mood (unusable) | held-out | 25.0% | 26.0% |" in text
    assert "1 of 2 tasks are usable on mine (unusable: mood)" in text
    assert "11 tasks were not measured" in text
    assert "| 3.4% |" in text


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8")
    assert page == bases_page.page(ROOT / "docs"), "run python benchmarks/bases_page.py"


def test_the_table_finds_what_made_a_base(made: Path, tmp_path: Path) -> None:
    assert tasks_table.record_of(made / "qwen2")["kind"] == "qwen2"
    assert "moved" in tasks_table.record_of(made / "derived")
    with pytest.raises(FileNotFoundError, match=r"make_base\.json"):
        tasks_table.record_of(tmp_path)
