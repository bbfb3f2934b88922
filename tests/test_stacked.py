"""Runs stacked along a leading dimension give what each of them gives alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.compare import compare
from finetune.compare_run import Runner, language_model_bench
from finetune.processes import Record
from finetune.run_spec import NOT_FINITE, Bench, RunSpec, TunerSource
from finetune.stack_bench import CannotStack, StackBench
from finetune.stack_run import Stack
from finetune.stacked import InStacks, Stacker, group_of
from tests.models import build, mlp
from tests.structures import structure_for
from tests.test_compare import config, quiet, records
from tests.test_compare_parts import spec
from tests.test_finetune import tiny_loaded
from tests.test_meta_language_models import Colours
from tests.tiny import FAMILIES, MASKED_FAMILIES, MORE_FAMILIES
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.models import load_model
from zoft.noise import NOISES, Key, get_noise
from zoft.optimizers import OPTIMIZERS
from zoft.philox import words_of
from zoft.runs.steps import GIVE_UP
from zoft.stack import StackedModel
from zoft.tasks import get_task
from zoft.tasks.encoding import collate
from zoft.tasks.lm import LMTask
from zoft.tasks.table import ExampleTable
from zoft.tuner import Tuner
from zoft.tuner.step_rule import StepRuleConfig

CAUSAL = [family for family in (*FAMILIES, *MORE_FAMILIES) if family not in MASKED_FAMILIES]
STACKABLE = [name for name, method in OPTIMIZERS.items() if method.stacks is not None and name != "zo-finetuner"]
SHIPPED = str(Path(__file__).parents[1] / "pretrained_tuners" / "zoft-base-scales")

#: What a learning rate must be for some progress in a few steps on the embedded base.
RATES = {"zo-adam": 1e-3, "fzoo": 1e-5, "zo-sgd-sign": 3e-4}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return language_model_bench("zoft-base", ["review-negation", "question-colour"])


def one(bench: Bench, **values: Any) -> RunSpec:
    """A run of a few steps, evaluated on few examples."""
    base = {"task": "review-negation", "forwards": 10, "eval_points": 2, "lr": 2e-4, "test": True}
    few = {"fingerprint": bench.fingerprint, "batch_size": 4, "validation_examples": 8, "test_examples": 8}
    return spec(**{**base, **few, **values})


def source(bench: Bench, control: str | None = None, seed: int = 0, folder: str = SHIPPED) -> TunerSource:
    made = TunerSource(folder, control, seed)
    return replace(made, digest=made.load(bench.model).digest)


def assert_alike(stacked: Sequence[Record] | None, alone: Sequence[Record]) -> None:
    """The same records up to the last bits of sums, and times."""
    assert stacked is not None
    assert len(stacked) == len(alone) > 0
    for left, right in zip(stacked, alone, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"seconds", "curve", "zero_shot"}:
            expected = right[key]
            assert left[key] == (pytest.approx(expected, abs=2e-5) if isinstance(expected, float) else expected), key
        assert left["zero_shot"] == pytest.approx(right["zero_shot"])
        points = zip(left["curve"], right["curve"], strict=True)
        assert all(mine == pytest.approx(theirs, abs=2e-5, nan_ok=True) for mine, theirs in points)


def both(bench: Bench, specs: Sequence[RunSpec]) -> list[Record]:
    """The records of the runs one by one, once a stack has given the same."""
    assert len({group_of(spec) for spec in specs}) == 1
    runner = Runner(bench)
    alone = [runner(spec) for spec in specs]
    assert_alike(Stacker(runner).stacked(specs), alone)
    return alone


@pytest.mark.parametrize("name", STACKABLE)
def test_every_method_that_stacks_gives_what_it_gives_alone(bench: Bench, name: str) -> None:
    lr, forwards = RATES.get(name, 2e-4), 27 if name == "fzoo" else 10
    specs = [
        one(bench, optimizer=name, lr=lr * factor, seed=seed, forwards=forwards, hyper=hyper)
        for factor, seed, hyper in ((1, 0, {}), (2, 1, {"schedule": "linear"}), (0.5, 0, {"schedule": "cosine"}))
    ]
    alone = both(bench, specs)
    assert len({record["validation_loss"] for record in alone}) == 3


def test_a_stack_has_the_threads_of_the_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, seen = torch.get_num_threads(), []
    monkeypatch.setattr(Stack, "records", lambda self: seen.append(torch.get_num_threads()) or [])
    Stacker(Runner(bench, threads=threads + 1)).stacked([one(bench)])
    assert seen == [threads + 1]
    assert torch.get_num_threads() == threads


def test_methods_with_options_give_what_they_give_alone(bench: Bench) -> None:
    both(bench, [one(bench, optimizer="hizoo", hyper={"subtract_inverse": True, "directions": 2}, forwards=10)])
    both(bench, [one(bench, hyper={"weight_decay": 0.1, "directions": 2}, forwards=8)])
    both(bench, [one(bench, hyper={"estimator": "one-sided", "directions": 3}, forwards=8)])
    both(bench, [one(bench, noise="rademacher", seed=seed) for seed in (0, 1)])


def test_tuners_and_their_controls_share_a_stack(bench: Bench) -> None:
    usage = dict(Tuner.from_pretrained(SHIPPED).config.recommended.usage)
    tuned = [source(bench), source(bench, "untrained"), source(bench, "permuted", 1), source(bench, "random-basis", 2)]
    specs = [
        one(bench, optimizer="zo-finetuner", tuner=tuner, hyper=usage, lr=5e-4, forwards=27, seed=at)
        for at, tuner in enumerate(tuned)
    ]
    specs.append(one(bench, optimizer="mezo", tuner=source(bench, "biases-only"), hyper=usage, lr=1e-2, forwards=27))
    specs.append(one(bench, optimizer="mezo", hyper=usage, forwards=27))
    assert len({record["validation_loss"] for record in both(bench, specs)}) == len(specs)


def test_gains_share_a_stack_with_their_controls_and_others(bench: Bench, tmp_path: Path) -> None:
    shipped = Tuner.from_pretrained("zoft-base-default")
    assert shipped.structure is not None
    folder = str(Path(SHIPPED).with_name("zoft-base-default"))
    partly = replace(shipped.structure, share=torch.full_like(shipped.structure.share, 0.7))
    shipped.structured(partly).save_pretrained(tmp_path / "partly")
    usage = dict(shipped.config.recommended.usage)
    tuned = [source(bench, control, 1, folder) for control in (None, "untrained", "permuted", "random-basis")]
    offsets = structure_for(load_model("zoft-base").model, "gains-and-offsets", share=1.0)
    shipped.structured(offsets).save_pretrained(tmp_path / "offsets")
    tuned += [source(bench, folder=str(tmp_path / name)) for name in ("partly", "offsets")] + [source(bench)]
    specs = [
        one(bench, optimizer="zo-finetuner", tuner=tuner, hyper=usage, lr=lr, forwards=36, seed=at // 2)
        for at, (tuner, lr) in enumerate(zip(tuned, (1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 5e-4), strict=True))
    ]
    specs.append(
        one(bench, optimizer="mezo", tuner=source(bench, "biases-only", 0, folder), hyper=usage, lr=1.0, forwards=36)
    )
    specs.append(one(bench, optimizer="mezo", hyper=usage, forwards=36))
    assert len({record["validation_loss"] for record in both(bench, specs)}) == len(specs)


def test_gains_of_other_methods_are_made_one_by_one(bench: Bench) -> None:
    folder = str(Path(SHIPPED).with_name("zoft-base-default"))
    runner = Runner(bench)
    assert Stacker(runner).stacked([one(bench, optimizer="zo-adam", tuner=source(bench, folder=folder))]) is None


def test_a_step_size_head_by_examples_sees_each_runs_own(bench: Bench, tmp_path: Path) -> None:
    shipped = Tuner.from_pretrained(SHIPPED)
    rule = StepRuleConfig(kind="gauss-newton", damping=1.0, decay=0.8)
    Tuner(shipped.config.model_copy(update={"step_rule": rule}), shipped.network).structured(
        shipped.structure
    ).save_pretrained(tmp_path / "headed")
    headed = [source(bench, control, folder=str(tmp_path / "headed")) for control in (None, "untrained", "permuted")]
    usage = {"directions": 3, "estimator": "one-sided", "schedule": "linear"}
    specs = [
        one(bench, optimizer="zo-finetuner", tuner=tuner, hyper=usage, lr=lr, forwards=20, seed=at)
        for at, (tuner, lr) in enumerate(zip(headed, (0.5, 0.2, 1.0), strict=True))
    ]
    specs.append(one(bench, optimizer="mezo", hyper=usage, forwards=20))
    specs.append(replace(specs[0], lr=1e38))
    alone = both(bench, specs)
    assert len({record["validation_loss"] for record in alone}) == len(specs)
    assert alone[-1]["diverged"]
    both(bench, [replace(spec, task="question-colour", test=False) for spec in specs[:3]])


def test_a_tuner_scales_the_directions_of_other_methods_too(bench: Bench) -> None:
    both(bench, [one(bench, optimizer=name, tuner=source(bench)) for name in ("hizoo",)])
    both(bench, [one(bench, optimizer=name, tuner=source(bench)) for name in ("hizoo-l",)])


def test_a_completion_is_judged_by_what_each_run_generates(bench: Bench) -> None:
    alone = both(bench, [one(bench, task="question-colour", lr=lr, test_examples=24) for lr in (1e-4, 3e-3)])
    assert {record["metric"] for record in alone} == {"exact_match"}


def test_a_run_that_is_lost_is_given_up_and_leaves_the_others(bench: Bench) -> None:
    specs = [one(bench, lr=lr, forwards=40, seed=seed, optimizer="zo-adam") for lr, seed in ((1e-4, 0), (1e38, 0))]
    kept, lost = both(bench, specs)
    assert lost["diverged"] == NOT_FINITE
    assert lost["skipped_steps"] >= GIVE_UP
    assert lost["validation_loss"] is None
    assert kept["skipped_steps"] == 0
    assert kept["steps"] == 20


def test_a_skipped_step_changes_nothing_of_a_run(bench: Bench) -> None:
    """One run's losses are made not finite at one step: it goes on as if that step had not been."""
    runner, at = Runner(bench), 2
    specs = [one(bench, optimizer="zo-adam", lr=1e-3, test=False, eval_points=1, seed=seed) for seed in (0, 1)]
    expected = Stacker(runner).stacked(specs)
    runner.reset()
    stack = Stack(StackBench(runner), specs)
    losses = stack._losses
    calls = []

    def spoiled(rows: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(rows)
        found = losses(rows, batch)
        return torch.where(torch.tensor([[True], [False]]), math.nan, found) if len(calls) == 2 * at else found

    stack._losses = spoiled  # type: ignore[method-assign]
    first, second = stack.records()
    runner.reset()
    assert expected is not None
    assert (first["skipped_steps"], second["skipped_steps"]) == (1, 0)
    assert second["validation_loss"] == expected[1]["validation_loss"]
    assert first["validation_loss"] != expected[0]["validation_loss"]
    assert stack._state["adam/count"].flatten().tolist() == [4.0, 5.0]


@pytest.mark.parametrize("values", [{"optimizer": "lozo"}, {"optimizer": "zo-sgd-cons"}])
def test_what_cannot_be_stacked_is_made_alone(bench: Bench, values: dict[str, Any]) -> None:
    specs = [one(bench, **values, seed=seed) for seed in (0, 1)]
    runner = Runner(bench)
    stacker = Stacker(runner)
    assert stacker.stacked(specs) is None
    assert_alike(stacker(specs), [runner(spec) for spec in specs])


def test_a_stack_that_the_memory_does_not_hold_is_made_in_halves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [one(bench, test=False, eval_points=1, seed=seed) for seed in range(5)]
    stacker, tried, holds = Stacker(Runner(bench)), [], 2
    expected = stacker.stacked(specs)

    def stack(bench: StackBench, specs: Sequence[RunSpec]) -> Stack:
        tried.append(len(specs))
        if len(specs) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Stack(bench, specs)

    monkeypatch.setattr("finetune.stacked.Stack", stack)
    assert expected is not None
    assert_alike(stacker.stacked(specs), expected)
    assert tried == [5, 2, 3, 1, 2]
    holds = 0
    with pytest.raises(torch.OutOfMemoryError):
        stacker.stacked(specs)


def test_a_tuner_that_follows_the_run_is_not_stacked(bench: Bench, tmp_path: Path) -> None:
    tuner = Tuner.untrained(bench.model)
    with torch.no_grad():
        tuner.network.out.weight.fill_(0.01)
    tuner.save_pretrained(tmp_path / "tuner")
    follows = source(bench, folder=str(tmp_path / "tuner"))
    with pytest.raises(CannotStack):
        Stack(StackBench(Runner(bench)), [one(bench, optimizer="zo-finetuner", tuner=follows)])


def test_the_largest_group_is_taken_first() -> None:
    few, many = [spec(seed=seed, optimizer="hizoo") for seed in range(2)], [spec(seed=seed) for seed in range(5)]
    runs = InStacks(Stacker(Runner(Bench(mlp(), {}, {}))), 4)
    queue = deque([*few, *many])
    runs.submit(queue)
    assert not runs.has_room()
    assert runs._waiting == many[:4]
    assert list(queue) == [*few, many[4]]


def test_a_comparison_is_the_same_with_stacks(tmp_path: Path) -> None:
    """In this process and in two."""
    values = {
        "base": "zoft-base", "tasks": ["review-negation"], "optimizers": ["mezo", "zo-adam"], "lr_mode": "fixed",
        "lrs": {"mezo": 2e-4, "zo-adam": 1e-3, "untrained": 2e-4}, "seeds": 2, "forwards": 6, "eval_points": 1,
        "validation_examples": 8, "test_examples": 8, "plots": False, "batch_size": 4,
    }  # fmt: skip
    made = {}
    for at_once, workers in ((1, 1), (8, 1), (2, 2)):
        folder = tmp_path / str(at_once)
        chosen = {**values, "runs_at_once": at_once, "workers": workers}
        compare(config(folder, **chosen), say=quiet, factory=language_model_bench)
        made[at_once] = {record["key"]: record for record in records(folder)}
    for other in (2, 8):
        assert made[1].keys() == made[other].keys()
        assert_alike([made[other][key] for key in made[1]], list(made[1].values()))


@pytest.mark.parametrize("family", CAUSAL)
def test_a_model_with_the_tensors_of_several_runs(family: str) -> None:
    """Families with other layers, tied and scaled embeddings, biases: each row's logits are those of its own run."""
    loaded = tiny_loaded(family)
    batch = collate(LMTask(Colours(), loaded.tokenizer, loaded.kind).dataset("train")[:3], 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    blocks = Blocks.of(loaded.model)
    layout = get_noise("gaussian-table").layout(blocks)
    rows = 0.1 * torch.randn(2, layout.width, generator=torch.Generator().manual_seed(0))
    for block in blocks:
        layout.of(rows, block).add_(block.parameter.data)
    before = [block.parameter.data.clone() for block in blocks]
    with torch.no_grad():
        stacked = StackedModel(loaded.model, layout, 2)
        with stacked.running():
            stacked.use(rows)
            found = loaded.model(**{name: torch.cat([value, value]) for name, value in inputs.items()}).logits
        assert all(torch.equal(block.parameter, kept) for block, kept in zip(blocks, before, strict=True))
        for run, logits in enumerate(found.chunk(2)):
            for block in blocks:
                block.parameter.data.copy_(layout.of(rows[run], block))
            torch.testing.assert_close(logits, loaded.model(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_module_takes_rows_of_all_runs_and_anything_else_as_it_is() -> None:
    model = build(lambda: torch.nn.Bilinear(2, 3, 1))
    noise = get_noise("gaussian-table")
    stacked = StackedModel(model, noise.layout(Blocks.of(model)), 2)
    left, right = torch.ones(4, 2), torch.arange(12.0).view(4, 3)
    rows = torch.randn(2, stacked.layout.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), stacked.running():
        stacked.use(rows)
        found = model(left, right)
        with pytest.raises(UsageError, match="Bilinear"):
            model(left[:3], right[:3])
    with torch.no_grad():
        for run in range(2):
            for block in stacked.layout.blocks:
                block.parameter.copy_(stacked.layout.of(rows[run], block))
            own = slice(2 * run, 2 * run + 2)
            torch.testing.assert_close(found[own], model(left[own], right[own]))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_is_shared_by_all_runs(frozen: str) -> None:
    model = build(lambda: torch.nn.Linear(3, 2))
    getattr(model, frozen).requires_grad_(False)
    (block,) = Blocks.of(model)
    stacked = StackedModel(model, get_noise("gaussian-table").layout(Blocks.of(model)), 2)
    inputs = torch.arange(12.0).view(4, 3)
    rows = torch.randn(2, stacked.layout.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with stacked.running():
            stacked.use(rows)
            found = model(inputs)
        for run in range(2):
            block.parameter.copy_(stacked.layout.of(rows[run], block))
            torch.testing.assert_close(found[2 * run : 2 * run + 2], model(inputs[2 * run : 2 * run + 2]))


def test_tensors_of_a_module_with_others_within_are_refused() -> None:
    attention = build(lambda: torch.nn.MultiheadAttention(4, 2))
    with pytest.raises(UsageError, match="MultiheadAttention"):
        StackedModel(attention, get_noise("gaussian-table").layout(Blocks.of(attention)), 2)


@pytest.mark.parametrize("kind", NOISES)
def test_all_blocks_at_once_have_the_bits_of_each(kind: str, bench: Bench) -> None:
    noise, blocks = get_noise(kind), Blocks.of(bench.model)
    layout, key = noise.layout(blocks), Key(2**63 + 5, 3, 1, 2)
    seeds = [key.seed, 7, key.seed]
    rows = noise.joined(key, seeds, layout)
    keys, numbers, *_ = layout.on(torch.device("cpu"))
    elsewhere = noise._from_tensor(words_of(seeds, keys, numbers, (key.step, key.draw, 1 + key.part)))
    assert torch.equal(rows, elsewhere)
    assert rows.shape == (3, layout.width)
    assert len({*layout.starts}) == len(blocks)
    for seed, row in zip(seeds, rows, strict=True):
        own = key._replace(seed=seed)
        assert all(torch.equal(layout.of(row, block), noise.block(own, block)) for block in blocks)


@pytest.mark.parametrize("entries", [5, 3000])
@pytest.mark.parametrize("kind", NOISES)
def test_the_first_entries_of_blocks_have_the_bits_of_all(kind: str, entries: int, bench: Bench) -> None:
    noise, blocks = get_noise(kind), Blocks.of(bench.model)
    layout, key, seeds = noise.layout(blocks), Key(0, 3, 1, 32), [2**63 + 5, 7]
    lengths = [0 if block.index % 3 == 1 else min(entries, block.numel) for block in blocks]
    rows, some = noise.joined(key, seeds, layout), noise.joined(key, seeds, layout, lengths=lengths)
    starts = layout.on(torch.device("cpu"), lengths).starts
    assert some.shape[1] < rows.shape[1]
    for block, start, length in zip(blocks, starts, lengths, strict=True):
        assert torch.equal(some[:, start : start + length], layout.of(rows, block).flatten(1)[:, :length])
    assert noise.joined(key, seeds, layout, lengths=[0] * len(blocks)).shape == (2, 0)


@pytest.mark.parametrize("name", ["choice-cause", "review-negation", "question-place"])
def test_a_table_gives_the_batches_of_the_task(bench: Bench, name: str) -> None:
    shown = bench.tasks["review-negation"]
    assert isinstance(shown, LMTask)
    task = LMTask(get_task(name), shown.tokenizer)
    members = task.trained_on(task.dataset("train")[:50])
    table = ExampleTable(members, task.pad_id, "cpu")
    places = np.array([[3, 41], [7, 3]])
    found, expected = table.batch(places), task.collate([members[place] for place in places.flatten()])
    assert found.keys() == expected.keys()
    assert torch.equal(found["labels"], expected["labels"])
    assert torch.equal(found["indices"], expected["indices"])
    with torch.no_grad():
        assert torch.equal(task.losses(bench.model, found), task.losses(bench.model, expected))


def test_long_candidates_that_share_their_context_have_no_table() -> None:
    loaded = tiny_loaded("llama")
    task = LMTask(Colours(), loaded.tokenizer, loaded.kind)
    long = replace(task.dataset("train")[0], context=tuple(range(1, 9)) * 4, candidates=((3, 4), (5, 6), (7, 8)))
    with pytest.raises(UsageError, match="long candidates"):
        ExampleTable([long], task.pad_id, "cpu")
