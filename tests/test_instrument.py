"""What a comparison adds for evidence: regimes, budgets, tuner seeds, controls, wins, shared noise; its self-test."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from finetune.compare import Comparison, compare
from finetune.compare_config import CONTROL_NAMES, SELECTION_OFFSET, CompareConfig
from finetune.compare_run import Runner
from finetune.controls import CONTROLS, derangement
from finetune.methods import plan_methods
from finetune.processes import take
from finetune.report import Chosen, summarise_task
from finetune.run_cache import CachedNoise, RunCache, cache_size, cached_batches
from finetune.run_spec import RunSpec, TunerSource
from finetune.self_test import SelfTest, most, self_test
from finetune.wins import contest, median, reach
from tests.compare_toys import Useful, mlp_bench, planted_tuner, toy_bench
from tests.test_cli import run
from tests.test_compare import config, quiet, records
from tests.test_compare_parts import chosen, spec
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.noise import Key, Span, get_noise
from zoft.optimizers import ZerothOrder
from zoft.step import Probe
from zoft.tuner import Tuner
from zoft.tuner.step_rule import StepRuleConfig
from zoft.tuner.structure import Structure, StructureConfig, stored_tensors

INF = math.inf


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, dict[str, Any], list[dict]]:
    """Two regimes and budgets on held-out tasks, one as steep as the development task and one sixteen times so."""
    folder = tmp_path_factory.mktemp("evidence")
    values = {
        "tasks": ["alike", "held"], "choose_on": ["dev"], "tuners": {"planted": str(planted_tuner(folder / "tuner"))},
        "optimizers": ["mezo"], "seeds": 4, "selection_seeds": 1, "regimes": ["tuned", "untuned"], "budgets": [20, 40],
        "plots": False, "lr_reach": 16,
    }  # fmt: skip
    made = compare(config(folder / "out", **values), say=quiet, factory=toy_bench)
    return made, json.loads((folder / "out" / "compare.json").read_text()), records(folder / "out")


def test_every_regime_and_budget_is_a_view_of_its_own(evidence: tuple[Comparison, dict[str, Any], list[dict]]) -> None:
    made, content, runs = evidence
    names = [("tuned", 20), ("tuned", 40), ("untuned", 20), ("untuned", 40)]
    assert [view.view.name for view in made.views] == [f"{regime}-{forwards}" for regime, forwards in names]
    assert [(view["regime"], view["forwards"]) for view in content["views"]] == names
    assert content["tasks"] == content["views"][0]["tasks"]
    assert content["config"]["forwards"] == 20
    assert {run["forwards"] for run in runs} == {20, 40}
    for heading in ("## tuned, 20 forward passes", "## untuned, 40 forward passes"):
        assert heading in made.table
    losses = [view.tasks[0].cells["mezo"].loss for view in made.views[:2]]
    assert losses[0] != losses[1]


def test_untuned_has_one_lr_from_development_tasks_alone(
    evidence: tuple[Comparison, dict[str, Any], list[dict]], tmp_path: Path
) -> None:
    made, content, runs = evidence
    values = {"optimizers": ["mezo"], "forwards": 20, "selection_seeds": 1, "lr_reach": 16, "plots": False, "seeds": 1}
    alone = compare(config(tmp_path, tasks=["dev"], **values), say=quiet, factory=toy_bench)
    tuned, untuned = made.views[0].tasks, made.views[2].tasks
    assert f"{alone.recommended['mezo']['lr']:.4g}" == f"{untuned[0].cells['mezo'].lr:.4g}"
    assert untuned[0].cells["mezo"].lr == untuned[1].cells["mezo"].lr
    # The rate of the development task is lost on the steep one, and only there.
    assert untuned[1].cells["mezo"].lr > 6 * tuned[1].cells["mezo"].lr
    assert [task.cells["mezo"].divergences for task in (*tuned, *untuned)] == [0, 0, 0, 4]
    assert [view["overall"]["mezo"]["divergences"] for view in content["views"]] == [0, 0, 4, 4]
    assert content["choose_on"] == ["dev"]
    reported = [run["settings"] for run in runs if run["settings"]["test"]]
    chosen_on = [run["settings"] for run in runs if not run["settings"]["test"]]
    assert {settings["task"] for settings in reported} == {"alike", "held"}
    assert {settings["seed"] for settings in reported} == {0, 1, 2, 3}
    assert {settings["seed"] for settings in chosen_on} == {SELECTION_OFFSET}


def test_only_development_tasks_may_choose(tmp_path: Path) -> None:
    for task in ("held", "meta"):
        with pytest.raises(UsageError, match=f"{task} cannot choose a learning rate"):
            compare(config(tmp_path, regimes=["untuned"], choose_on=[task]), say=quiet, factory=toy_bench)


def test_a_recipe_of_several_seeds_is_one_method(tmp_path: Path) -> None:
    tuners = [str(planted_tuner(tmp_path / f"tuner{seed}", seed=seed)) for seed in (0, 1)]
    values = {"tasks": ["dev"], "tuners": {"planted": tuners}, "optimizers": ["mezo"], "seeds": 4, "plots": False}
    values |= {"lr_mode": "fixed", "lrs": dict.fromkeys(("mezo", "untrained", "permuted", "planted"), 1e-2)}
    made = compare(config(tmp_path / "out", **values), say=quiet, factory=toy_bench)
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    cells = made.tasks[0].cells
    assert list(cells) == ["mezo", "untrained", "permuted", "planted"]
    assert content["rivals"] == {"planted": ["mezo", "untrained", "permuted"]}
    assert (len(cells["planted"].seeds), len(cells["planted"].loss), cells["planted"].wins) == (4, 8, 8)
    assert len(cells["untrained"].loss) == 4  # both start at σ = 1: one will do
    assert len(cells["permuted"].loss) == 8
    assert len(content["methods"]["planted"]["tuners"]) == 2
    assert content["views"][0]["regime"] == "given"
    # Both were planted alike, so that every run is there twice, and the second tuner's are paired as the first's are.
    loss, difference = cells["planted"].loss, cells["planted"].difference
    assert (loss[:4], difference[:4]) == (loss[4:], difference[4:])


def test_every_method_chooses_its_rate_on_as_many_runs(tmp_path: Path) -> None:
    tuners = [str(planted_tuner(tmp_path / f"tuner{seed}", seed=seed)) for seed in (0, 1)]
    values = {"tasks": ["dev"], "tuners": {"planted": tuners}, "optimizers": ["mezo"], "seeds": 2, "plots": False}
    compare(
        config(tmp_path / "out", **values, forwards=20, selection_seeds=3, recommend=False),
        say=quiet,
        factory=toy_bench,
    )
    found: dict[tuple[str, str | None, float], list[tuple[int, str]]] = {}
    for record in records(tmp_path / "out"):
        settings = record["settings"]
        if not settings["test"]:
            tuner = settings["tuner"] or {"control": None, "folder": ""}
            place = (settings["optimizer"], tuner["control"], settings["lr"])
            found.setdefault(place, []).append((settings["seed"] - SELECTION_OFFSET, str(tuner["folder"])[-1:]))
    with_tuners = {place: sorted(runs) for place, runs in found.items() if place[1] in (None, "permuted")}
    assert {len(runs) for runs in found.values()} == {3}
    learned = [runs for (optimizer, _, _), runs in with_tuners.items() if optimizer != "mezo"]
    assert learned
    assert all(runs == [(0, "0"), (1, "1"), (2, "0")] for runs in learned)


def test_the_planted_tuner_wins_where_its_rate_fits_and_missing_controls_are_said(
    evidence: tuple[Comparison, dict[str, Any], list[dict]],
) -> None:
    made, content, _ = evidence
    for view in made.views:
        alike, steep = view.contests
        assert (alike.task, alike.outcome, set(alike.against.values())) == ("alike", "win", {"win"})
        # Decided, because tuned methods learn it; but who has diverged there wins nothing.
        assert view.tasks[1].decided
        assert steep.outcome == ("win" if view.view.regime == "tuned" else "open")
        assert view.standings["planted"].tasks == 2
    assert made.views[0].standings["planted"].reach < 0.7
    assert made.views[0].standings["planted"].over == {"mezo": 2, "untrained": 2, "permuted": 2}
    assert "| planted | alike | " in made.table
    assert "every parameter of the base has one dimension" in made.table
    assert "no control random-basis of planted: it has no structured part" in content["notes"]
    assert "and so no rivals here: hizoo, hizoo-l, zo-adam" in made.table
    crossed = [(item["forwards"], item["task"], item["outcome"]) for item in content["untuned_against_tuned"]]
    assert crossed == [(20, "alike", "win"), (20, "held", "open"), (40, "alike", "win"), (40, "held", "open")]


def test_the_controls_are_those_of_the_configuration() -> None:
    assert tuple(CONTROLS) == CONTROL_NAMES
    with pytest.raises(UsageError, match="did you mean permuted"):
        CompareConfig.build({"controls": ["permute"]})
    for label in ("permuted-x", "biases-only", "random-basis1"):
        with pytest.raises(UsageError, match="cannot be a tuner's label"):
            CompareConfig.build({"tuners": {label: "x"}})
    with pytest.raises(UsageError, match="no folder, or one twice"):
        CompareConfig.build({"tuners": {"a": ["x", "x"]}})


def mlp() -> nn.Module:
    """Four blocks: two matrices and their biases."""
    return mlp_bench("", ["t"]).model


def learned(model: nn.Module, values: list[float]) -> Tuner:
    """A tuner whose networks' outputs are these, whatever they see."""
    tuner = Tuner.untrained(model)
    with torch.no_grad():
        tuner.network.out.bias.copy_(torch.tensor(values)[:, None])
    return tuner


def test_permuted_deals_the_same_sigma_out_to_other_blocks() -> None:
    model = mlp()
    tuner = learned(model, [-1.0, 0.0, 0.5, 1.0])
    blocks = Blocks.of(model)
    for seed in (0, 1, 2):
        control = CONTROLS["permuted"](tuner, model, seed)
        assert isinstance(control, Tuner)
        plain, mixed = tuner.bind(model), control.bind(model)
        states = plain.init(blocks), mixed.init(blocks)
        plain.begin(states[0], blocks)
        mixed.begin(states[1], blocks)
        order = derangement(4, seed)
        assert not (order == torch.arange(4)).any()
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        sigma = states[0]["tuner/sigma"]
        assert torch.equal(states[1]["tuner/sigma"], sigma)  # the networks' own inputs are as they were
        scales = torch.tensor([mixed.scale(states[1], block) for block in blocks])
        torch.testing.assert_close(scales / scales[0], sigma[order] / sigma[order][0])
        sizes = torch.tensor([float(block.numel) for block in blocks])
        assert float((sizes * scales**2).sum() / sizes.sum()) == pytest.approx(1.0, rel=1e-5)
    digests = {CONTROLS["permuted"](tuner, model, seed).digest for seed in (0, 1)} | {tuner.digest}  # type: ignore[union-attr]
    assert len(digests) == 3
    assert CONTROLS["permuted"](Tuner.untrained(model), model, 0) == "it has the same scale for every block"


def test_biases_only_moves_nothing_else_and_as_mezo_does() -> None:
    bench = mlp_bench("", ["t"])
    control = CONTROLS["biases-only"](Tuner.untrained(bench.model), bench.model, 0)
    assert isinstance(control, Tuner)
    bound = control.bind(bench.model)
    scales = [bound.scale({}, block) for block in Blocks.of(bench.model)]
    assert scales == [0.0, 1.0, 0.0, 1.0]
    bound.begin({}, Blocks.of(bench.model))
    bound.end({}, [Probe(Key(0, 0), 1.0, 2.0, 1e-3)])

    masked = Runner(bench)(spec(optimizer="mezo", tuner=_saved_source("biases-only"), task="t", lr=1e-2, forwards=20))
    frozen = mlp_bench("", ["t"])
    for block in Blocks.of(frozen.model):
        block.parameter.requires_grad_(block.parameter.ndim < 2)
    alone = Runner(frozen)(spec(task="t", lr=1e-2, forwards=20))
    assert masked["validation_loss"] == alone["validation_loss"] != masked["zero_shot"]["validation_loss"]
    assert isinstance(CONTROLS["biases-only"](Tuner.untrained(Useful()), Useful(), 0), str)


def _saved_source(control: str) -> TunerSource:
    return TunerSource(None, control)


def test_the_untrained_control_is_what_a_seed_gives(tmp_path: Path) -> None:
    model = mlp()
    tuner = learned(model, [-1.0, 0.0, 0.5, 1.0])
    made = CONTROLS["untrained"](tuner, model, 3)
    assert isinstance(made, Tuner)
    assert made.digest == Tuner.untrained(model, seed=3).digest


@pytest.mark.parametrize(("noise", "limit"), [("gaussian-table", 1 << 20), ("rademacher", 700)])
def test_shared_noise_and_batches_leave_every_bit(noise: str, limit: int) -> None:
    specs = [
        spec(task="t", optimizer=name, lr=lr, seed=seed, forwards=12, eval_points=3, test=True, noise=noise)
        for name in ("mezo", "lozo", "fzoo")
        for seed in (0, 1)
        for lr in (1e-3, 2e-3)
    ]
    plain, cached = Runner(mlp_bench("", ["t"])), Runner(mlp_bench("", ["t"]), cache_bytes=limit)
    for one in specs:
        left, right = plain(one), cached(one)
        assert {**left, "seconds": 0} == {**right, "seconds": 0}


def test_the_cache_keeps_to_its_size_and_forgets_the_oldest_seed() -> None:
    cache = RunCache(100)
    cache.use(1)
    cache.put(1, "a", "x", 60)
    cache.put(1, "b", "y", 60)
    assert (cache.get(1, "a"), cache.get(1, "b")) == ("x", None)
    cache.use(2)
    cache.put(2, "a", "z", 60)
    assert (cache.get(1, "a"), cache.get(2, "a")) == (None, "z")
    cache.use(3)
    cache.put(3, "a", "w", 200)
    assert cache.get(3, "a") is None
    assert 0 <= cache_size(4) <= cache_size(1) <= 1 << 30


def test_what_is_kept_is_not_made_again() -> None:
    bench = mlp_bench("", ["t"])
    cache, made = RunCache(1 << 20), []
    cache.use(0)

    class Counted:
        name = "t"

        def train_batches(self, batch_size: int, seed: int) -> Any:
            for batch in bench.tasks["t"].train_batches(batch_size, seed):
                made.append(1)
                yield batch

    first = [batch for batch, _ in zip(cached_batches(Counted(), 4, 0, cache), range(5), strict=False)]
    count = len(made)
    again = [batch for batch, _ in zip(cached_batches(Counted(), 4, 0, cache), range(5), strict=False)]
    assert len(made) == count
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    noise = CachedNoise("gaussian-table", 0, cache)
    block = Blocks.of(bench.model)[0]
    key, span = Key(0, 3), Span(block, 0, block.numel)
    noise(key, span).zero_()  # the caller may overwrite what it is given
    assert torch.equal(noise(key, span), get_noise("gaussian-table")(key, span))


def test_a_process_goes_on_with_its_seed() -> None:
    queue = deque(spec(seed=seed, lr=lr) for lr in (1.0, 2.0) for seed in (0, 1))
    made = []
    lasts: list[int | None] = [None, None]
    for turn in (0, 1, 0, 1):
        one: RunSpec = take(queue, lasts[turn], [lasts[1 - turn]])
        lasts[turn] = one.seed
        made.append((turn, one.seed, one.lr))
    assert made == [(0, 0, 1.0), (1, 1, 1.0), (0, 0, 2.0), (1, 1, 2.0)]
    assert not queue


def test_runs_of_before_are_still_found() -> None:
    # Keys as the first release of the format made them; a run under another key would be made again.
    assert spec().key == "bf654a8fa2f70da1ac788ee1c2133c56"
    tuned = spec(tuner=TunerSource("x", "untrained", 0, "1"), hyper={"a": 1.5})
    assert tuned.key == "10c63ee71d3a3856665d32c8ef8a13e6"


def test_the_best_rival_is_the_one_to_beat() -> None:
    losses = {"mezo": [0.7] * 5, "hizoo": [0.5] * 5, "untrained": [0.71] * 5, "mine": [0.55, 0.54, 0.56, 0.55, 0.55]}
    task = summarise_task("t", "", {label: chosen(values) for label, values in losses.items()}, "mezo")
    found = contest(task, "mine", ["mezo", "hizoo", "untrained"])
    assert (found.rival, found.outcome) == ("hizoo", "loss")
    assert found.against == {"mezo": "win", "hizoo": "loss", "untrained": "win"}
    lucky = {"mezo": [0.7] * 5, "hizoo": [0.5, INF, 0.5, 0.5, 0.5], "mine": [0.6] * 5}
    task = summarise_task("t", "", {label: chosen(values) for label, values in lucky.items()}, "mezo")
    found = contest(task, "mine", ["mezo", "hizoo"])
    assert (found.rival, found.outcome) == ("mezo", "win")
    assert found.against["hizoo"] == "open"  # it diverged once, and is ahead otherwise


def run_with(curve: list[list[float | None]], zero: float = 1.0) -> dict:
    """A record with this validation curve."""
    last = curve[-1][1]
    return {
        "curve": curve,
        "validation_loss": last,
        "zero_shot": {"validation_loss": zero},
        "settings": {"forwards": 100},
    }


def test_forwards_to_the_same_loss_are_read_off_the_curve() -> None:
    mezo = [run_with([[0, 1.0, None], [50, 0.8, 0.9], [100, 0.6, 0.7]]), run_with([[0, 1.0, None], [100, 1.2, 1.0]])]
    mine = [run_with([[0, 1.0, None], [50, 0.4, 0.5], [100, None, None]]), run_with([[0, 1.0, None], [100, 0.5, 0.6]])]
    reference = Chosen(1e-3, True, 1, mezo)
    # 1 → 0.4 over 50 forwards passes 0.6 at 33.3; MeZO's second run never left zero-shot and sets no mark.
    assert reach(Chosen(1e-3, True, 1, mine), reference) == pytest.approx([1 / 3])
    assert reach(reference, reference) == [1.0]
    both_seeds = Chosen(1e-3, True, 1, [*mine, *mezo], tuners=2)
    assert reach(both_seeds, reference) == pytest.approx([1 / 3, 1.0])
    never = Chosen(1e-3, True, 1, [run_with([[0, 1.0, None], [100, 0.61, 0.7]])])
    assert reach(never, Chosen(1e-3, True, 1, mezo[:1])) == [INF]
    assert (median([INF, 0.5, 0.2]), median([0.5, INF]), median([])) == (0.5, INF, None)


def test_the_self_test_finds_the_planted_gain_and_no_other() -> None:
    found = self_test(planted=1, irrelevant=1, tuners=1, seeds=5, sets=100, selection_seeds=1)
    assert found.planted == (2, 2)
    assert found.irrelevant[1] == found.permuted[1] == 1
    assert found.irrelevant[0] == 0
    assert found.passed
    assert found.lines[-1] == "self-test passed"
    assert all(0 <= share <= 0.09 for share in found.level.values())


def test_how_many_false_wins_are_accepted() -> None:
    assert (most(1), most(24), most(1000)) == (1, 4, 42)


@pytest.mark.parametrize("passed", [True, False])
def test_the_command_of_the_self_test(
    passed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = SelfTest((1, 1), (0, 1), (0, 1), {}, ["what was found"], passed)
    monkeypatch.setattr("finetune.self_test.self_test", lambda: made)
    code, out, _ = run(capsys, "compare", "--self-test")
    assert (code, out) == (0 if passed else 1, "what was found\n")


@pytest.mark.parametrize("kind", ["low-rank", "scales"])
def test_a_structure_has_controls_of_its_own(kind: str) -> None:
    model = mlp()
    blocks, generator = Blocks.of(model), torch.Generator().manual_seed(0)
    config = StructureConfig(kind=kind, rank=2 if kind == "low-rank" else 1, storage="float32")
    tensors = {
        name: torch.rand(shape, generator=generator).to(dtype)
        for name, (dtype, shape) in stored_tensors(config, blocks.shapes).items()
    }
    structure = Structure.from_tensors(config, blocks.names, blocks.shapes, tensors)
    tuner = Tuner.untrained(model).structured(structure)
    made: dict[str, Any] = {name: control(tuner, model, 1) for name, control in CONTROLS.items()}
    power = {name: one.bind(model).structure for name, one in made.items()}
    assert power["untrained"] is power["biases-only"] is None
    # Another basis of the same weights; and the same factors with weights dealt out to other blocks.
    learned_power = tuner.bind(model).structure.power
    assert torch.equal(power["random-basis"].power, learned_power)
    assert not torch.equal(power["permuted"].power, learned_power)
    left = {name: one.structure.factors["0.weight"][0] for name, one in made.items() if power[name] is not None}
    original = structure.factors["0.weight"][0]
    assert not torch.equal(left["random-basis"], original)
    assert torch.equal(left["permuted"], original)
    assert len({one.digest for one in made.values()} | {tuner.digest}) == 5
    sizes = torch.tensor([float(block.numel) for block in blocks])
    for name in ("permuted", "random-basis"):
        bound = made[name].bind(model)
        state = bound.init(blocks)
        bound.begin(state, blocks)
        scales = torch.tensor([bound.scale(state, block) for block in blocks])
        spread = float((sizes * scales.square() * power[name].power).sum() / sizes.sum())
        assert spread == pytest.approx(1.0, rel=1e-5)


def test_a_tuner_and_its_controls_are_used_as_the_tuner_recommends(tmp_path: Path) -> None:
    learned = Tuner.from_pretrained(planted_tuner(tmp_path / "plain"))
    rule = StepRuleConfig(kind="slopes", slope=3.0, power=1.0)
    headed = Tuner(learned.config.model_copy(update={"step_rule": rule}), learned.network)
    several = headed.recommending(directions=3, estimator="one-sided", lr=0.02, schedule="linear")
    several.save_pretrained(tmp_path / "several")
    values = {"tasks": ["dev"], "optimizers": ["mezo"], "seeds": 2, "plots": False, "forwards": 24}
    values |= {"tuners": {"plain": str(tmp_path / "plain"), "several": str(tmp_path / "several")}}
    settings = config(tmp_path / "out", **values)
    plans, _ = plan_methods(settings, toy_bench("", ["dev"]))
    by_label = {plan.label: plan for plan in plans}
    usage = {"directions": 3, "estimator": "one-sided", "schedule": "linear"}
    for name in ("several", "untrained-several", "permuted-several"):
        assert (by_label[name].hyper, by_label[name].forwards, by_label[name].begin) == (usage, 4, 0.02)
        made = by_label[name].tuners[0].load(toy_bench("", ["dev"]).model)
        assert made.bind(toy_bench("", ["dev"]).model).step_rule == rule
    for name in ("plain", "untrained-plain", "permuted-plain"):
        assert (by_label[name].hyper, by_label[name].forwards) == ({}, 2)
    made = compare(settings, say=quiet, factory=toy_bench)
    assert {cell: len(found.loss) for cell, found in made.tasks[0].cells.items() if "several" in cell} == {
        "several": 2,
        "untrained-several": 2,
        "permuted-several": 2,
    }
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    steps = {run["steps"] for run in runs if run["settings"]["hyper"]}
    assert steps == {6}
    falling = ", ".join(f"{name} (linear)" for name in ("untrained-several", "permuted-several", "several"))
    assert f"They fall to 0 over the run: {falling}." in made.table
    mixed = config(tmp_path, tuners={"both": [str(tmp_path / "plain"), str(tmp_path / "several")]})
    with pytest.raises(UsageError, match="recommend different directions"):
        plan_methods(mixed, toy_bench("", ["dev"]))


@pytest.mark.parametrize("course", ["linear", "cosine", None])
def test_a_schedule_is_that_of_fine_tuning(course: str | None) -> None:
    """The loss after a run: that of an optimizer whose rates transformers' schedules set."""
    bench, by_hand = mlp_bench("", ["t"]), mlp_bench("", ["t"])
    record = Runner(bench)(spec(hyper={"schedule": course} if course else {}, task="t", lr=1e-2, forwards=20))
    optimizer = ZerothOrder(by_hand.model, "mezo", seed=0, lr=1e-2)
    rates = get_scheduler(course or "constant", optimizer, num_warmup_steps=0, num_training_steps=10)
    task = by_hand.tasks["t"]
    for _, batch in zip(range(10), task.train_batches(4, 0), strict=False):
        optimizer.step(lambda batch=batch: task.loss(by_hand.model, batch))
        rates.step()
    assert record["validation_loss"] == pytest.approx(task.evaluate(by_hand.model)["loss"], rel=1e-6)


def test_an_unknown_schedule_is_refused(tmp_path: Path) -> None:
    values = {"tasks": ["dev"], "optimizers": ["mezo:schedule=steps"], "forwards": 24}
    with pytest.raises(UsageError, match="unknown schedule 'steps'"):
        compare(config(tmp_path, **values), say=quiet, factory=toy_bench)


def test_a_tuner_that_changes_during_a_comparison_is_noticed(tmp_path: Path) -> None:
    """Its runs would be recorded under a digest that they do not have."""
    folder, model = planted_tuner(tmp_path / "tuner"), toy_bench("", ["dev"]).model
    before = TunerSource(str(folder), digest=Tuner.from_pretrained(folder).digest)
    assert before.load(model).digest == before.digest
    other = Tuner.from_pretrained(folder).network
    with torch.no_grad():
        other.out.bias.add_(0.5)
    Tuner(Tuner.from_pretrained(folder).config, other).save_pretrained(folder)
    with pytest.raises(UsageError, match="has changed while it was being compared"):
        before.load(model)
