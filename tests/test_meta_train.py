"""Meta-training as a whole: what it gives, resumption, restarts, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import nn

import zoft
from meta_train import RECIPES, MetaTrainConfig, meta_train, progress, recipe
from meta_train.checkpoint import CHECKPOINT_FILE
from meta_train.feed import Feed
from tests.models import TiedLM, build, generator, randn
from zoft.errors import DivergedError, Interrupted, UsageError
from zoft.tasks.base import Task
from zoft.tasks.function import FunctionTask

INPUTS = randn(12, 8, 5, seed=1)


def make_mlp() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)), seed=2)


def squared(model: nn.Module, batch) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def regression(name: str = "sum", column: int = 0) -> FunctionTask:
    batches = [(x, x[:, column : column + 2].sum(1, keepdim=True).tanh()) for x in INPUTS]
    return FunctionTask(name, batches, squared)


def small(**changes) -> MetaTrainConfig:
    values = {"steps": 12, "lookahead_steps": 2, "lookahead_lr": 1e-2, "inner_lr": 1e-2, "restart_every": 5, **changes}
    return MetaTrainConfig.build(
        {**recipe("lookahead"), "network": {"hidden": 6}, "save_every": 4, "log_every": 4, **values}
    )


def weights(tuner: zoft.Tuner) -> dict[str, torch.Tensor]:
    return tuner.network.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Collected:
    """A reporter that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.notes: list[str] = []

    def scalars(self, step: int, values) -> None:
        self.rows.append((step, dict(values)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None: ...


def stopping(task: FunctionTask, after: int, error: type[BaseException] = KeyboardInterrupt) -> FunctionTask:
    """The task, whose loss raises once it was called ``after`` times."""
    calls = itertools.count()

    def loss(model, batch):
        if next(calls) == after:
            raise error
        return task.loss(model, batch)

    return FunctionTask(task.name, task._batches, loss)


def test_learns_something_and_leaves_the_model_as_it_was():
    model = make_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    tuner = meta_train(model, [regression(), regression("other", 2)], small())
    untrained = zoft.Tuner.untrained(model, tuner.config.network)
    assert same(before, model.state_dict())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(weights(tuner)["out.weight"], weights(untrained)["out.weight"])
    assert all(torch.isfinite(value).all() for value in weights(tuner).values())


def test_the_same_seed_gives_the_same_tuner_and_another_does_not():
    one, two, other = (meta_train(make_mlp(), [regression()], small(seed=s)) for s in (0, 0, 1))
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))


def test_a_tuner_with_provenance_is_written_and_fits_the_model(tmp_path):
    model = make_mlp()
    tuner = meta_train(model, [regression()], small(), output_dir=tmp_path, base_model_name_or_path="mlp")
    read = zoft.Tuner.from_pretrained(tmp_path)
    assert same(weights(read), weights(tuner))
    assert read.config.base_model_name_or_path == "mlp"
    record = json.loads((tmp_path / "meta_train.json").read_text())
    assert record["tasks"] == ["sum"]
    assert MetaTrainConfig.build(record["config"]) == small()
    assert record["curve"][-1]["step"] == record["steps"] == 12
    assert all(math.isfinite(point["meta_loss"]) for point in record["curve"])
    assert set(record["versions"]) == {"zoft", "torch"}
    assert not (tmp_path / CHECKPOINT_FILE).exists()
    zoft.ZerothOrder(model, method="zo-finetuner", tuner=read.bind(model), lr=1e-2).step(
        lambda: squared(model, (INPUTS[0], 0))
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inner": "first-order", "inner_schedule": "linear", "lookahead_steps": 1, "lookahead_batch": "same"},
        {"network_optimizer": "sgd", "network_lr": None, "inner_lr": None, "task_order": "shuffled", "accumulate": 3},
        {
            "meta_gradient": "higher",
            "restart_sigma": False,
            "normalization_gradient": "constant",
            "gradient_scale": "none",
        },
    ],
)
@pytest.mark.parametrize("stop", [30, 47])
def test_interrupted_and_resumed_gives_the_bits_of_a_straight_run(tmp_path, changes, stop):
    tasks = [regression(), regression("other", 2)]
    straight = meta_train(make_mlp(), tasks, small(**changes))
    if changes.get("inner") == "first-order":
        stop -= 10
    with pytest.raises(Interrupted):
        meta_train(make_mlp(), [stopping(tasks[0], stop // 2), tasks[1]], small(**changes), output_dir=tmp_path)
    done, finished = progress(tmp_path)
    assert 0 < done < 12
    assert not finished
    resumed = meta_train(make_mlp(), tasks, small(**changes), output_dir=tmp_path, resume=True)
    assert same(weights(straight), weights(resumed))
    assert straight.provenance == resumed.provenance
    assert progress(tmp_path) == (12, True)


def test_a_crash_resumes_from_the_latest_checkpoint(tmp_path):
    straight = meta_train(make_mlp(), [regression()], small())
    with pytest.raises(ZeroDivisionError):
        meta_train(make_mlp(), [stopping(regression(), 45, ZeroDivisionError)], small(), output_dir=tmp_path)
    assert progress(tmp_path) == (8, False)
    assert same(weights(straight), weights(meta_train(make_mlp(), [regression()], small(), output_dir=tmp_path)))


def test_a_finished_run_says_so_and_a_different_one_is_refused(tmp_path):
    reporter = Collected()
    tuner = meta_train(make_mlp(), [regression()], small(), output_dir=tmp_path)
    again = meta_train(make_mlp(), [regression()], small(log_every=7), output_dir=tmp_path, reporter=reporter)
    assert same(weights(tuner), weights(again))
    assert "finished" in reporter.notes[0]
    with pytest.raises(UsageError, match=r"network\.hidden is 6 there, 7 asked"):
        meta_train(make_mlp(), [regression()], small(network={"hidden": 7}), output_dir=tmp_path)
    with pytest.raises(UsageError, match="tasks is"):
        meta_train(make_mlp(), [regression("b")], small(), output_dir=tmp_path)
    other = make_mlp()
    nn.init.zeros_(other[0].bias)
    with pytest.raises(UsageError, match="base model has other weights"):
        meta_train(other, [regression()], small(), output_dir=tmp_path)
    with pytest.raises(UsageError, match="holds a finished tuner"):
        meta_train(make_mlp(), [regression()], small(), output_dir=tmp_path, resume=False)


def test_an_unfinished_run_is_not_mixed_with_another(tmp_path):
    with pytest.raises(Interrupted):
        meta_train(make_mlp(), [stopping(regression(), 30)], small(), output_dir=tmp_path)
    with pytest.raises(UsageError, match=r"seed is 0 there, 1 asked") as caught:
        meta_train(make_mlp(), [regression()], small(seed=1), output_dir=tmp_path)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="holds a run of"):
        meta_train(make_mlp(), [regression()], small(), output_dir=tmp_path, resume=False)
    with pytest.raises(UsageError, match="no run to continue"):
        meta_train(make_mlp(), [regression()], small(), output_dir=tmp_path / "empty", resume=True)


def test_nonfinite_losses_are_skipped_and_recorded():
    calls = itertools.count()

    def loss(model, batch):
        value = squared(model, batch)
        return value * math.nan if next(calls) in (20, 21, 22) else value

    tuner = meta_train(make_mlp(), [FunctionTask("sum", regression()._batches, loss)], small())
    assert 1 <= tuner.provenance["skipped"] <= 3
    assert all(torch.isfinite(value).all() for value in weights(tuner).values())


@pytest.mark.parametrize("inner", ["zeroth-order", "first-order"])
def test_gives_up_after_enough_nonfinite_losses_and_saves(tmp_path, inner):
    calls = itertools.count()

    def loss(model, batch):
        value = squared(model, batch)
        return value * math.inf if next(calls) > 40 else value

    task = FunctionTask("sum", regression()._batches, loss)
    with pytest.raises(DivergedError, match="6 steps in a row") as caught:
        meta_train(make_mlp(), [task], small(steps=40, nonfinite_limit=3, inner=inner), output_dir=tmp_path)
    assert caught.value.exit_code == 5
    assert progress(tmp_path)[0] > 6


def test_reports_scalars_by_task_and_block_group():
    reporter = Collected()
    meta_train(make_mlp(), [regression(), regression("other", 2)], small(), reporter=reporter)
    assert [step for step, _ in reporter.rows] == [4, 8, 12]
    names = set(reporter.rows[0][1])
    assert {"meta/loss", "meta/loss_before", "meta/improvement", "meta/loss/sum", "meta/loss/other"} <= names
    assert {"sigma/weight", "sigma/bias", "sigma/spread", "meta/network_lr"} <= names
    assert all(math.isfinite(value) for _, row in reporter.rows for value in row.values())


def test_the_lookahead_is_what_fine_tuning_does():
    """K lookahead steps move the weights as K steps of the learned method do, bit for bit."""
    from meta_train.lookahead import LearnedStep, look_ahead
    from zoft.blocks import Blocks
    from zoft.noise import Key, get_noise
    from zoft.objective import Objective
    from zoft.perturb import Perturber

    tuner = meta_train(make_mlp(), [regression()], small())
    batches = regression()._batches[:3]
    left, right = make_mlp(), make_mlp()
    optimizer = zoft.ZerothOrder(left, method="zo-finetuner", tuner=tuner.bind(left), seed=3, lr=0.05)
    for batch in batches:
        optimizer.step(lambda batch=batch: squared(left, batch))
    blocks = Blocks.of(right)
    method = LearnedStep(tuner.bind(right), blocks, 1e-3)
    objectives = [Objective(right, squared, [batch]) for batch in batches]
    noises = [get_noise("gaussian-table", 1 << 20) for _ in batches]
    state = method.initial()
    record = look_ahead(method, state, blocks, Perturber(right, blocks), objectives, noises, Key(3, 0), 0.05)
    assert record is not None
    assert same(left.state_dict(), right.state_dict())
    assert same(state, method.initial())


def test_low_precision_and_tied_weights():
    def loss(model, tokens):
        logits = model(tokens[:, :-1]).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    model = build(TiedLM, dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = list(torch.randint(0, 11, (5, 4, 6), generator=generator(1)))
    tuner = meta_train(model, [FunctionTask("tokens", tokens, loss)], small(steps=7))
    assert len(tuner.config.blocks.names) == 5
    assert same(before, model.state_dict())


def test_frozen_parameters_are_no_blocks():
    model = make_mlp()
    model[0].requires_grad_(False)
    tuner = meta_train(model, [regression()], small(steps=3))
    assert tuner.config.blocks.names == ["2.weight", "2.bias"]
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_feed_is_a_function_of_the_step(shuffled):
    tasks = [regression("a"), regression("b", 1), regression("c", 2)]
    straight = Feed(tasks, 8, 0, 2, shuffled)
    seen = [(straight.task_at(step), [id(b[0]) for b in straight.batches(step)]) for step in range(30)]
    late = Feed(tasks, 8, 0, 2, shuffled)
    assert [(late.task_at(step), [id(b[0]) for b in late.batches(step)]) for step in range(17, 30)] == seen[17:]
    for first in range(0, 30, 3):
        assert sorted(index for index, _ in seen[first : first + 3]) == [0, 1, 2]


class Endless:
    """A task by the protocol alone, without a way to skip."""

    name = "counting"

    def train_batches(self, batch_size, seed):
        return ((INPUTS[k % 12], INPUTS[k % 12].sum(1, keepdim=True)) for k in itertools.count(seed % 5))

    def loss(self, model, batch):
        return squared(model, batch)

    def evaluate(self, model, split="test", limit=None):
        return {"loss": 0.0}


def test_any_task_by_the_protocol_is_enough(tmp_path):
    assert isinstance(Endless(), Task)
    straight = meta_train(make_mlp(), [Endless()], small())
    with pytest.raises(ZeroDivisionError):
        meta_train(make_mlp(), [stopping_protocol(45)], small(), output_dir=tmp_path)
    assert same(weights(straight), weights(meta_train(make_mlp(), [Endless()], small(), output_dir=tmp_path)))


def stopping_protocol(after: int) -> Endless:
    task, calls = Endless(), itertools.count()

    def loss(model, batch):
        if next(calls) == after:
            raise ZeroDivisionError
        return squared(model, batch)

    task.loss = loss  # type: ignore[method-assign]
    return task


def test_refuses_what_it_cannot_learn_from():
    model = make_mlp()
    with pytest.raises(UsageError, match="needs a task"):
        meta_train(model, [], small())
    with pytest.raises(UsageError, match="same name"):
        meta_train(model, [regression(), regression()], small())
    with pytest.raises(UsageError, match="no batches"):
        meta_train(model, [FunctionTask("none", [], squared)], small())
    detached = FunctionTask("metric", regression()._batches, lambda m, b: squared(m, b).detach())
    with pytest.raises(UsageError, match="differentiable loss"):
        meta_train(model, [detached], small())
    short = FunctionTask("short", lambda size, seed: iter(INPUTS[:2]), squared)
    with pytest.raises(UsageError, match="end"):
        meta_train(model, [short], small())


def test_the_lookahead_rate_is_measured_where_it_is_not_given():
    """On a quadratic ½·h·|θ|², uᵀHu is h·|u|²: the rate is 0.2 / (h·d) up to the noise of 16 directions."""
    model = build(lambda: nn.Linear(100, 1, bias=False), dtype=torch.float64)
    task = FunctionTask("bowl", [None], lambda model, batch: 2.0 * model.weight.square().sum())
    tuner = meta_train(model, [task], small(steps=1, lookahead_lr=None, inner_lr=None))
    assert tuner.provenance["lookahead_lr"] == pytest.approx(0.2 / 400, rel=0.1)
    assert tuner.config.recommended.lr == tuner.provenance["lookahead_lr"] / 4
    flat = FunctionTask("flat", [None], lambda model, batch: 0.0 * model.weight.sum())
    with pytest.raises(UsageError, match="no finite curvature"):
        meta_train(model, [flat], small(lookahead_lr=None))


def test_recipes_are_valid_and_every_field_is_explained():
    assert sorted(RECIPES) == ["default", "lookahead", "outcomes", "paper", "scales"]
    configs = {name: MetaTrainConfig.load(base=recipe(name)) for name in RECIPES}
    assert configs["default"] == MetaTrainConfig(rate_seeds=1)
    paper = configs["paper"]
    assert paper.network.output == "abs"
    assert paper.network.features == "raw"
    assert (paper.network_optimizer, paper.network_rate(1), paper.network_rate(3)) == ("sgd", 0.1, 0.05)
    assert (paper.inner, paper.inner_rate(1, 1e-6), paper.inner_momentum) == ("first-order", 0.01, 0.8)
    assert (paper.lookahead_steps, paper.lookahead_lr, paper.lookahead_batch) == (1, 1e-6, "same")
    for name, field in MetaTrainConfig.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", "?")), name
    for file in RECIPES.values():
        assert file.read_text().startswith("# zoft meta-train ")
    with pytest.raises(UsageError, match="did you mean paper"):
        recipe("papr")


def test_flags_win_over_the_file_which_wins_over_the_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 7\nbatch_size: 4\n")
    config = MetaTrainConfig.load(file, {"batch_size": 2, "seed": None}, base=recipe("paper"))
    assert (config.steps, config.batch_size, config.lookahead_lr) == (7, 2, 1e-6)


def test_the_paper_recipe_runs():
    config = MetaTrainConfig.load(None, {"steps": 6, "restart_every": 4}, base=recipe("paper"))
    tuner = meta_train(make_mlp(), [regression(), regression("other", 2)], config)
    assert tuner.provenance["steps"] == 6


def test_function_tasks():
    task = regression()
    order = [id(batch) for batch in itertools.islice(task.train_batches(8, 1), 30)]
    assert order == [id(batch) for batch in itertools.islice(task.train_batches(8, 1), 30)]
    assert order[7:] == [id(batch) for batch in itertools.islice(task.train_batches(8, 1, start=7), 23)]
    assert sorted(order[:12]) == sorted(order[12:24])
    assert order[:12] != order[12:24]
    loader = torch.utils.data.DataLoader(INPUTS, batch_size=None, generator=generator())
    looped = FunctionTask("loader", loader, squared).train_batches(8, 0, start=11)
    assert torch.equal(next(looped), INPUTS[11])
    assert torch.equal(next(looped), INPUTS[0])
    scored = FunctionTask("scored", task._batches, squared, metrics=lambda model, batch: {"accuracy": 0.5})
    assert scored.evaluate(make_mlp(), limit=3)["accuracy"] == 0.5
    with pytest.raises(UsageError, match="no evaluation batches"):
        FunctionTask("generated", lambda size, seed: iter([]), squared).evaluate(make_mlp())
