"""σ by the outcomes of whole runs: what is planted is found, nothing is kept where nothing is to be had, resuming."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from meta_train import MetaTrainConfig, meta_train, recipe
from meta_train.outcomes import constant_network
from meta_train.signal_scales import SignalScales
from tests.models import build, interrupted, randn
from zoft.errors import Interrupted, UsageError
from zoft.tasks.function import FunctionTask
from zoft.tuner import NetworkConfig, PertNN, Tuner

pytest.importorskip("cma")


class Net(nn.Module):
    """Two maps of the same input: what is learned is all in ``useful``, and ``noisy`` only blurs it."""

    def __init__(self) -> None:
        super().__init__()
        self.useful = nn.Linear(4, 1, bias=False)
        self.noisy = nn.Linear(64, 1, bias=False)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Squared errors of a linear function of the four inputs; the other 64 are noise."""
    small, large, target = batch
    found: torch.Tensor = model.useful(small) + model.noisy(large)  # type: ignore[operator]
    return (found[:, 0] - target).square().mean()


def task(name: str = "planted", seed: int = 0, after: int | None = None) -> FunctionTask:
    """Batches of 8; Ctrl-C at a call of the loss."""
    batches = []
    for number in range(40):
        small, large = randn(8, 4, seed=seed + 2 * number), 3 * randn(8, 64, seed=seed + 2 * number + 1)
        batches.append((small, large, small.sum(1)))
    return FunctionTask(name, batches, interrupted(loss, after))


def config(**changes: Any) -> MetaTrainConfig:
    """A short search after a few meta-steps."""
    settings = {
        "steps": 4,
        "batch_size": 8,
        "network": {"hidden": 4, "bound": 4.0},
        "lookahead_lr": 1e-3,
        "structure": "none",
        "step_size": "gauss-newton",
        "outcome_generations": 5,
        "outcome_population": 6,
        "outcome_forwards": 180,
        "outcome_examples": 80,
    }
    return MetaTrainConfig(**{**settings, **changes})


def half_the_calls(settings: MetaTrainConfig) -> int:
    """Half of what a meta-training on two tasks calls the second one's loss."""
    calls = 0

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(model, batch)

    counting = FunctionTask("two", task("two", seed=900)._batches, counted)
    meta_train(build(Net, scale=0), [task("one"), counting], settings)
    return calls // 2


def sigma_of(tuner: Tuner) -> torch.Tensor:
    """σ by block, which is the same whatever the networks see."""
    found = tuner.network(torch.zeros(2, 5))
    assert torch.equal(found, tuner.network(torch.ones(2, 5)))
    return found


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def scalars(self, step: int, values: Any) -> None:
        pass

    def note(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


def test_what_is_planted_is_found_and_the_model_left_as_it_was() -> None:
    model, notes = build(Net, scale=0), Notes()
    tuner = meta_train(model, [task("one"), task("two", seed=900)], config(), reporter=notes)
    said = [text.removeprefix("outcomes: ") for text in notes.said if text.startswith("outcomes: ")]
    assert said[:2] == ["a search of 68 runs of 180 forward passes each", "generation 1 of 5" + said[1][17:]]
    assert [text for text in said if text.endswith("runs")] == [f"{count} of 68 runs" for count in (20, 40, 60)]
    assert said[-1].endswith(": kept")
    useful, noisy = sigma_of(tuner).tolist()
    assert useful > 3 * noisy
    assert not any(parameter.any() for parameter in model.parameters())
    found = tuner.provenance["outcomes"]
    assert found["runs"] == 2 * (5 * 6 + 2 * 2) == 68
    assert found["checked"]["kept"]
    assert found["checked"]["found"] < found["checked"]["sigma_1"] - 0.1
    assert found["log_sigma"]["useful"] > found["log_sigma"]["noisy"]
    assert tuner.config.step_rule is not None
    assert tuner.config.recommended.lr == 1


class Twins(nn.Module):
    """Two blocks that are read alike, of two module types."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 1, bias=False)
        self.right = nn.Linear(4, 1, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.left(inputs) + self.right(inputs)
        return found


def test_sigma_stays_one_where_the_mean_is_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    def squared(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0])[:, 0] - batch[1]).square().mean()

    monkeypatch.setattr("meta_train.outcome_runs.log_ratio", lambda final, zero: 0.0)  # all runs are alike
    inputs = randn(8, 4)
    tuner = meta_train(
        build(Twins), [FunctionTask("t", [(inputs, inputs.sum(1))], squared)], config(outcome_generations=2)
    )
    assert sigma_of(tuner).tolist() == [1.0, 1.0]
    assert not tuner.provenance["outcomes"]["checked"]["kept"]


def straight_and_resumed(settings: MetaTrainConfig, folder: Path) -> tuple[Tuner, Tuner]:
    """Tuners of a straight run and of one that Ctrl-C broke among its searches' runs, in ``folder``."""
    straight = meta_train(build(Net, scale=0), [task("one"), task("two", seed=900)], settings)
    broken = task("two", seed=900, after=half_the_calls(settings))
    with pytest.raises(Interrupted, match="runs of the search by outcomes; saved"):
        meta_train(build(Net, scale=0), [task("one"), broken], settings, output_dir=folder)
    resumed = meta_train(build(Net, scale=0), [task("one"), task("two", seed=900)], settings, output_dir=folder)
    assert Tuner.from_pretrained(folder).digest == straight.digest
    return straight, resumed


def test_interrupted_in_the_search_and_resumed_gives_the_bits_of_a_straight_run(tmp_path: Path) -> None:
    settings = config(outcome_generations=2, structure="scales", structure_from="signal")
    straight, resumed = straight_and_resumed(settings, tmp_path)
    assert torch.equal(sigma_of(resumed), sigma_of(straight))
    assert resumed.provenance["outcomes"] == straight.provenance["outcomes"]


def tasks_left_out(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Of every structure that is asked for from now on, in their order."""
    asked = []
    whole = SignalScales.structure

    def noted(self: SignalScales, share: float, without: int | None = None) -> Any:
        asked.append(without)
        return whole(self, share, without)

    monkeypatch.setattr(SignalScales, "structure", noted)
    return asked


def test_a_tasks_runs_have_the_structure_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tasks_left_out(monkeypatch)
    settings = config(outcome_generations=1, outcome_checks=1, structure="scales", structure_from="signal")
    meta_train(build(Net, scale=0), [task("one"), task("two", seed=900)], settings)
    assert asked == [None, 0, 1]
    asked.clear()
    meta_train(build(Net, scale=0), [task("one")], settings)
    assert asked == [None]


@pytest.mark.parametrize("output", ["bounded", "exp"])
def test_a_constant_network_gives_its_sigma(output: Any) -> None:
    plain = PertNN(3, NetworkConfig(hidden=2, output=output, bound=4.0))
    sigma = torch.tensor([0.05, 1.0, 20.0])
    made = constant_network(plain, sigma)
    torch.testing.assert_close(made(randn(3, 5)), sigma)
    assert not plain.out.bias.any()


def test_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="step_size is gauss-newton"):
        config(step_size="slopes")
    with pytest.raises(ValueError, match="constant σ"):
        config(learn_sigma=True)
    model = build(lambda: nn.Linear(4, 1, bias=False))
    only = FunctionTask("t", [randn(8, 4)], lambda model, batch: model(batch).square().mean())
    with pytest.raises(UsageError, match="one module type"):
        meta_train(model, [only], config())


def test_without_the_library_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UsageError, match="needs the library cma"):
        meta_train(build(Net), [task(after=0)], config(), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_recipe_searches_by_outcomes() -> None:
    settings = MetaTrainConfig.load(base=recipe("outcomes"))
    assert settings.outcome_generations > 0
    assert settings.network.bound > MetaTrainConfig().network.bound
