"""The comparison as an instrument: on planted problems it must say what is so, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from finetune.compare import RUNS_FILE, Comparison, compare
from finetune.compare_config import CONTROL_NAMES, SELECTION_OFFSET, CompareConfig, MethodEntry
from finetune.methods import with_all
from finetune.run_spec import NO_BETTER, NOT_FINITE, with_course
from tests.compare_toys import mlp_bench, planted_tuner, toy_bench
from zoft.errors import Interrupted, UsageError
from zoft.models import load_model
from zoft.optimizers import OPTIMIZERS, get_optimizer
from zoft.tasks import TASKS, get_task
from zoft.tasks.lm import LMTask


def quiet(line: str) -> None:
    """Say nothing."""


def config(folder: Path, **values: object) -> CompareConfig:
    """A comparison of a second or so, in this process."""
    fixed = {"base": "toy", "forwards": 60, "lr_start": 1e-2, "lr_reach": 12, "workers": 1, "tensorboard": False}
    return CompareConfig.build({**fixed, "tasks": ["dev"], "output_dir": str(folder), **values})


def records(folder: Path) -> list[dict]:
    """Every record in a comparison's folder."""
    return [json.loads(line) for line in (folder / RUNS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """MeZO, HiZOO, the planted tuner and its control on a task of each kind."""
    folder = tmp_path_factory.mktemp("planted")
    tuner = planted_tuner(folder / "tuner")
    values = {"tasks": ["dev", "flat", "held"], "tuners": {"planted": str(tuner)}, "tensorboard": True}
    return compare(config(folder / "out", **values), say=quiet, factory=toy_bench), folder / "out"


def test_without_mezo_nothing_is_said_of_it(planted: tuple[Comparison, Path], tmp_path: Path) -> None:
    values = {"optimizers": [], "tuners": {"planted": str(planted[1].with_name("tuner"))}, "seeds": 2}
    compare(config(tmp_path, **values), say=quiet, factory=toy_bench)
    ((found,),) = (
        [view["standings"]["planted"]] for view in json.loads((tmp_path / "compare.json").read_text())["views"]
    )
    assert found["tasks"] == 1
    assert found["metric"] is None
    assert (found["reach"], found["reach_runs"]) == (None, 0)
    assert "MeZO" not in (tmp_path / "compare.md").read_text()


def test_a_method_that_is_better_at_any_lr_is_reported_as_better(planted: tuple[Comparison, Path]) -> None:
    for task in planted[0].tasks:
        cell = task.cells["planted"]
        if task.decided:
            assert cell.outcome == "ahead"
            assert (cell.wins, cell.losses) == (5, 0)
            assert max(cell.loss) < min(task.cells["mezo"].loss)
    assert [task.task for task in planted[0].tasks if task.decided] == ["dev", "held"]


def test_identical_methods_differ_by_exactly_nothing(planted: tuple[Comparison, Path]) -> None:
    for task in planted[0].tasks:
        mezo, untrained = task.cells["mezo"], task.cells["untrained"]
        assert untrained.difference == [0.0] * 5
        assert (untrained.wins, untrained.losses, untrained.outcome) == (0, 0, "open")
        assert (untrained.lr, untrained.loss) == (mezo.lr, mezo.loss)


def test_a_task_that_no_method_learns_is_undecided_and_counted_as_diverged(planted: tuple[Comparison, Path]) -> None:
    flat = next(task for task in planted[0].tasks if task.task == "flat")
    assert not flat.decided
    assert all(cell.divergences == 5 and cell.not_finite == 0 for cell in flat.cells.values())
    assert "(no method is 2% below zero-shot, beyond the spread over its seeds): flat" in planted[0].table
    result = json.loads((planted[1] / "compare.json").read_text())
    assert result["overall"]["planted"]["ahead"] == 2
    assert result["overall"]["planted"]["pairs_won"] == 10
    assert result["overall"]["untrained"]["better"] == result["overall"]["untrained"]["worse"] == 0


def test_every_lr_is_bracketed_by_both_neighbours(planted: tuple[Comparison, Path]) -> None:
    result = json.loads((planted[1] / "compare.json").read_text())
    for task in ("dev", "held"):
        for label, values in result["search"][task].items():
            points = sorted((float(lr), loss if loss is not None else float("inf")) for lr, loss in values.items())
            at = min(range(len(points)), key=lambda index: points[index][1])
            assert 0 < at < len(points) - 1, (task, label)
            assert points[at + 1][0] / points[at][0] == pytest.approx(2**0.5)
            assert points[at][0] / points[at - 1][0] == pytest.approx(2**0.5)


def test_reported_seeds_choose_nothing_and_only_they_see_the_test_split(planted: tuple[Comparison, Path]) -> None:
    seen = {(record["settings"]["seed"], record["settings"]["test"]) for record in records(planted[1])}
    assert {seed for seed, test in seen if test} == {0, 1, 2, 3, 4}
    assert {seed for seed, test in seen if not test} == {SELECTION_OFFSET, SELECTION_OFFSET + 1}
    for first, reported, chosen in ((0, 1, 1), (7, 5, 3), (0, SELECTION_OFFSET, 4)):
        made = CompareConfig(seed=first, seeds=reported, selection_seeds=chosen)
        assert not set(made.reported_seeds) & set(made.chosen_on_seeds)
        assert len(made.reported_seeds) == reported


def test_all_methods_have_the_same_budget_and_the_same_start(planted: tuple[Comparison, Path]) -> None:
    for record in records(planted[1]):
        cost = 3 if record["settings"]["optimizer"] == "hizoo" else 2
        assert record["steps"] == 60 // cost
        assert record["forwards"] == 60
    starts = {
        record["zero_shot"]["validation_loss"] for record in records(planted[1]) if record["settings"]["task"] == "dev"
    }
    assert len(starts) == 1


def test_the_recommended_lr_comes_from_development_tasks_alone(
    planted: tuple[Comparison, Path], tmp_path: Path
) -> None:
    alone = compare(config(tmp_path, tasks=["dev", "flat"], optimizers=["mezo"]), say=quiet, factory=toy_bench)
    assert planted[0].recommended["mezo"] == alone.recommended["mezo"]
    held = next(task for task in planted[0].tasks if task.task == "held")
    assert planted[0].recommended["mezo"]["lr"] > 6 * held.cells["mezo"].lr
    found = CompareConfig.load(planted[1] / "recommended-lrs.yaml")
    assert found.lrs == {label: value["lr"] for label, value in planted[0].recommended.items()}


def test_table_plots_logs_and_configuration_are_written(planted: tuple[Comparison, Path]) -> None:
    comparison, folder = planted
    assert comparison.table in (folder / "compare.md").read_text()
    assert sorted(file.name for file in comparison.plots) == sorted(
        f"{task}-{kind}.png" for task in ("dev", "flat", "held") for kind in ("loss", "lr")
    )
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in comparison.plots)
    assert len(list((folder / "tb").rglob("events.*"))) == 3 * 5 * 5
    assert CompareConfig.load(folder / "config.yaml").tasks == ["dev", "flat", "held"]


def test_without_a_tuner_the_untrained_control_is_there(tmp_path: Path) -> None:
    comparison = compare(config(tmp_path, tasks=["t"], optimizers=["mezo"], seeds=2), say=quiet, factory=mlp_bench)
    cells = comparison.tasks[0].cells
    assert list(cells) == ["mezo", "untrained"]
    assert cells["untrained"].difference == [0.0, 0.0]
    assert cells["mezo"].divergences == 0


def test_divergences_are_counted_by_kind(tmp_path: Path) -> None:
    made = {}
    for lr in (1e-3, 3.0, 1e30):
        values = {"lr_mode": "fixed", "lrs": {"mezo": lr, "untrained": lr}, "optimizers": ["mezo"]}
        comparison = compare(config(tmp_path, **values), say=quiet, factory=toy_bench)
        made[lr] = comparison.tasks[0].cells["mezo"]
    assert (made[1e-3].divergences, made[1e-3].not_finite) == (0, 0)
    assert made[3.0].divergences == 5
    assert (made[1e30].divergences, made[1e30].not_finite) == (5, 5)
    kinds = {record["diverged"] for record in records(tmp_path)}
    assert {None, NOT_FINITE} <= kinds <= {None, NOT_FINITE, NO_BETTER}


def test_a_method_may_have_a_learning_rate_for_each_task(tmp_path: Path) -> None:
    by_task = {"dev": 1e-3, "flat": 2e-3, "held": 3e-3}
    values = {"lr_mode": "fixed", "lrs": {"mezo": by_task, "untrained": 4e-3}, "optimizers": ["mezo"], "seeds": 2}
    values |= {"tasks": list(by_task)}
    said: list[str] = []
    comparison = compare(config(tmp_path, **values), say=said.append, factory=toy_bench)
    assert {task.task: task.cells["mezo"].lr for task in comparison.tasks} == by_task
    assert {task.cells["untrained"].lr for task in comparison.tasks} == {4e-3}
    assert any("mezo (dev 0.001, flat 0.002, held 0.003), untrained 0.004" in line for line in said)
    assert "on all tasks, given beforehand, but mezo: one for each task." in (tmp_path / "compare.md").read_text()


def test_a_method_whose_learning_rates_are_given_is_not_searched(tmp_path: Path) -> None:
    values = {"lrs": {"untrained": {"dev": 4e-3, "flat": 5e-3}}, "optimizers": ["mezo"], "tasks": ["dev", "flat"]}
    comparison = compare(config(tmp_path, **values), say=quiet, factory=toy_bench)
    for task, lr in {"dev": 4e-3, "flat": 5e-3}.items():
        (cells,) = [one.cells for one in comparison.tasks if one.task == task]
        assert (cells["untrained"].lr, cells["untrained"].search_runs, cells["untrained"].interior) == (lr, 0, None)
        assert cells["mezo"].search_runs > 0
        assert cells["mezo"].interior is not None
    assert set(comparison.recommended) == {"mezo"}
    assert "; given beforehand of untrained, but untrained: one for each task." in (tmp_path / "compare.md").read_text()


def test_an_interrupted_comparison_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    values = {"optimizers": ["mezo"], "seeds": 2}
    whole = compare(config(tmp_path / "whole", **values), say=quiet, factory=toy_bench)
    made: list[str] = []

    def interrupt(line: str) -> None:
        made.append(line)
        if sum("validation loss" in line for line in made) == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="5 finished runs are kept"):
        compare(config(tmp_path / "cut", **values), say=interrupt, factory=toy_bench)
    file = tmp_path / "cut" / RUNS_FILE
    with file.open("a") as stream:
        stream.write('{"key": "cut off in the mid')
    second: list[str] = []
    resumed = compare(config(tmp_path / "cut", **values), say=second.append, factory=toy_bench)
    assert sum("validation loss" in line for line in second) == len(records(tmp_path / "whole")) - 5
    assert resumed.table == whole.table
    assert resumed.recommended == whole.recommended
    third: list[str] = []
    compare(config(tmp_path / "cut", **values), say=third.append, factory=toy_bench)
    assert not any("validation loss" in line for line in third)


def _killed(folder: str) -> None:
    made: list[str] = []

    def kill(line: str) -> None:
        made.append(line)
        if sum("validation loss" in line for line in made) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    compare(config(Path(folder), optimizers=["mezo"], workers=2), say=kill, factory=toy_bench)


def test_killed_processes_leave_their_runs_and_several_processes_find_the_same(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(str(tmp_path / "killed"),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(records(tmp_path / "killed")) == 4
    resumed = compare(config(tmp_path / "killed", optimizers=["mezo"]), say=quiet, factory=toy_bench)
    alone = compare(config(tmp_path / "alone", optimizers=["mezo"]), say=quiet, factory=toy_bench)
    assert resumed.table == alone.table


def test_tasks_that_a_tuner_was_learned_on_are_refused(tmp_path: Path) -> None:
    tuner = planted_tuner(tmp_path / "tuner", tasks=["meta", "dev"])
    values = {"tuners": {"planted": str(tuner)}, "optimizers": ["mezo"], "seeds": 1, "selection_seeds": 1}
    with pytest.raises(UsageError, match="meta-trained on dev, so a result there is no evidence"):
        compare(config(tmp_path / "out", **values), say=quiet, factory=toy_bench)
    allowed = compare(config(tmp_path / "out", **values, allow_meta_training_tasks=True), say=quiet, factory=toy_bench)
    assert "meta-trained on by planted: no evidence" in allowed.table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizers": ["mezzo"]}, "did you mean mezo"),
        ({"optimizers": ["hizoo:smoothscale=1"]}, "did you mean smooth_scale"),
        ({"optimizers": ["mezo:lr=1"]}, "which the comparison sets itself"),
        ({"optimizers": ["mezo:epsilon"]}, "not of the form"),
        ({"optimizers": ["mezo", "mezo"]}, "given twice"),
        ({"tasks": ["dev", "dev"]}, "given twice"),
        ({"tuners": {"untrained": "x"}}, "cannot be a tuner's label"),
        ({"tuners": {"mezo": "x"}}, "both a method and a tuner's label"),
        ({"lr_mode": "fixed"}, "needs lrs"),
        ({"lr_mode": "fixed", "lrs": {"mezo": 1e-3}}, "no learning rate for hizoo, untrained"),
        ({"lr_mode": "fixed", "lrs": {"mezoo": 1e-3}}, "did you mean mezo"),
        ({"lrs": {"mezoo": 1e-3}}, "did you mean mezo"),
        ({"lrs": {"mezo": 1e-3}, "regimes": ["tuned", "untuned"]}, "leave untuned out"),
        ({"lrs": {"mezo": -1.0}}, "not a positive number"),
        ({"lrs": {"mezo": {"dev": -1.0}}}, "not a positive number"),
        (
            {"lr_mode": "fixed", "lrs": {"mezo": {"deva": 1e-3}, "untrained": 1e-3}, "optimizers": ["mezo"]},
            "no learning rate of mezo for dev",
        ),
        ({"forwards": 2}, "less than one step of hizoo"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(config(tmp_path, **values), say=quiet, factory=toy_bench)
    assert not (tmp_path / RUNS_FILE).exists()


def test_an_entry_is_a_method_with_its_hyper_parameters() -> None:
    entry = MethodEntry.parse("hizoo:smooth-scale=1e-4:directions=2")
    assert (entry.name, entry.hyper) == ("hizoo", {"smooth_scale": 1e-4, "directions": 2})
    assert entry.label == "hizoo:smooth-scale=1e-4:directions=2"


def hyper(entry: str) -> dict:
    """The hyper-parameters of an entry."""
    return MethodEntry.parse(entry).hyper


def test_all_stands_for_every_method_that_needs_no_tuner_and_is_not_named(tmp_path: Path) -> None:
    plain = [name for name in OPTIMIZERS if name != "zo-finetuner"]
    assert with_all(["all"]) == plain
    assert len(plain) >= 11
    given = ["fzoo:directions=4", "all", "mezo", "lozo+zo-adam"]
    others = [name for name in plain if name not in ("fzoo", "mezo")]
    assert with_all(given) == ["fzoo:directions=4", *others, "mezo", "lozo+zo-adam"]
    assert with_all(["hizoo"]) == ["hizoo"]

    lrs = dict.fromkeys([*plain, "untrained"], 1e-4)
    values = {"optimizers": ["all"], "lr_mode": "fixed", "lrs": lrs, "seeds": 1, "forwards": 40}
    comparison = compare(config(tmp_path, **values), say=quiet, factory=toy_bench)
    assert list(comparison.tasks[0].cells) == [*plain, "untrained"]
    assert CompareConfig.load(tmp_path / "config.yaml").optimizers == plain
    made = {record["settings"]["optimizer"]: record["forwards"] for record in records(tmp_path)}
    assert set(made) == {*plain, "zo-finetuner"}
    assert all(32 <= forwards <= 40 for forwards in made.values())


def test_the_example_configurations_are_of_tasks_with_the_right_role_and_lack_no_learning_rate() -> None:
    folder = Path(__file__).parents[1] / "finetune" / "configs"
    files = [file for file in sorted(folder.glob("*.yaml")) if file.read_text().startswith("# zoft compare ")]
    comparisons = ["candidates", "development-one-rate", "development", "methods", "one-rate", "quick"]
    assert [file.stem for file in files] == [*(f"compare-{name}" for name in comparisons), "demo"]
    for file in files:
        assert file.read_text().splitlines()[0] == f"# zoft compare --config finetune/configs/{file.name}"
        made = CompareConfig.load(file)
        for name in with_all(made.optimizers):
            assert get_optimizer(MethodEntry.parse(name).name, **with_course(hyper(name))[0])
        role = "held-out" if file.stem in ("compare-one-rate", "demo") else "development"
        assert {TASKS[task].role for task in made.tasks} == {role}
        if made.lr_mode == "fixed":
            controls = CONTROL_NAMES if made.controls is None else made.controls
            assert set(made.lrs) == {entry.label for entry in made.entries} | {*controls, *made.tuners}


def test_language_models_are_compared_on_registered_tasks(tmp_path: Path) -> None:
    values = {"base": "zoft-base", "tasks": ["question-colour"], "optimizers": ["mezo"], "forwards": 4, "batch_size": 2}
    values |= {"seeds": 2, "validation_examples": 4, "test_examples": 4, "lr_mode": "fixed"}
    comparison = compare(config(tmp_path, **values, lrs={"mezo": 1e-5, "untrained": 1e-5}), say=quiet)
    task = comparison.tasks[0]
    assert (task.role, task.metric, task.chance) == ("development", "exact_match", None)
    assert task.cells["untrained"].difference == [0.0, 0.0]
    record = records(tmp_path)[0]
    assert (record["steps"], record["forwards"]) == (2, 4)
    model = load_model("zoft-base")
    zero = LMTask(get_task("question-colour"), model.tokenizer).evaluate(model.model, "validation", 4)["loss"]
    assert record["zero_shot"]["validation_loss"] == pytest.approx(zero, rel=1e-6)
