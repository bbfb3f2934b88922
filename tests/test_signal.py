"""The expected meta-objective: against float64, against what is planted, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from meta_train import MetaTrainConfig, checkpoint, meta_train, recipe
from meta_train.signal import Signal, batch_gradients
from meta_train.signal_scales import SignalScales
from tests.models import build, interrupted, randn
from zoft.blocks import Blocks
from zoft.errors import Interrupted, UsageError
from zoft.tasks.function import FunctionTask
from zoft.tuner import Tuner


class Net(nn.Module):
    """Two linear layers on the same input, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.steady = nn.Linear(6, 4, bias=False)
        self.noisy = nn.Linear(6, 4, bias=False)
        self.idle = nn.Linear(3, 2)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Linear in the weights: the gradient of ``steady`` is the batch's mean, of ``noisy`` a sign that cancels."""
    steady, noisy = batch
    value: torch.Tensor = (model.steady.weight * steady).sum() + (model.noisy.weight * noisy).sum()  # type: ignore[operator]
    return value + 100


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients: in ``steady`` the first row has signal and the second noise; ``noisy`` is noise in its third row."""
    found = []
    for number in range(count):
        steady, noisy = torch.zeros(4, 6), torch.zeros(4, 6)
        steady[0] = 1 + 0.1 * randn(6, seed=seed + 3 * number)
        steady[1] = 2 * randn(6, seed=seed + 3 * number + 1)
        noisy[2] = 3 * randn(6, seed=seed + 3 * number + 2)
        found.append((steady, noisy))
    return found


def task(name: str = "planted", after: int | None = None) -> FunctionTask:
    """Endless batches; Ctrl-C at a call of the loss."""
    return FunctionTask(name, batches(200), interrupted(loss, after))


def config(**changes: Any) -> MetaTrainConfig:
    """A short run of the expected objective."""
    settings = {
        "objective": "expected",
        "learn_sigma": True,
        "steps": 60,
        "network_lr": 1e-2,
        "lookahead_lr": 1e-4,
        "structure": "scales",
        "structure_from": "signal",
        "structure_share": 0.5,
        "structure_storage": "float32",
    }
    return MetaTrainConfig(**{**settings, **changes})


def products(gradients: list[np.ndarray[Any, Any]]) -> tuple[float, float]:
    """Mean product of two different ones, and mean square, by going through all pairs."""
    count = len(gradients)
    pairs = [float((gradients[a] * gradients[b]).sum()) for a in range(count) for b in range(count) if a != b]
    return sum(pairs) / len(pairs), sum(float((g * g).sum()) for g in gradients) / count


def test_signal_and_noise_are_the_means_over_pairs_in_float64() -> None:
    model = build(Net)
    blocks = Blocks.of(model)
    signal = Signal(2, len(blocks))
    settings = config(structure_power=1.5, structure_floor=0.2, structure_block_power=0.5)
    rows = SignalScales(settings, blocks, signal)
    expected: dict[str, list[tuple[float, float]]] = {"steady": [], "noisy": []}
    by_row: list[list[tuple[float, float]]] = [[] for _ in range(4)]
    for visit in range(3):
        made = batches(4, seed=100 * visit)
        value, gradients = batch_gradients(model, blocks, loss, made, rows.take)
        assert value == pytest.approx(np.mean([float(loss(model, batch).detach()) for batch in made]))
        after = signal.after(1, gradients)
        assert after is not None
        signal.load(after.state())
        rows.commit(1, gradients)
        whole = [np.stack([part.double().numpy() for part in batch]) for batch in made]
        total = products(whole)[1]
        for place, name in enumerate(expected):
            expected[name].append(tuple(x / total for x in products([w[place] for w in whole])))  # type: ignore[arg-type]
        for row in range(4):
            by_row[row].append(tuple(x / total for x in products([w[0, row] for w in whole])))  # type: ignore[arg-type]
    for name, found in expected.items():
        index = blocks.names.index(f"{name}.weight")
        means = np.mean(found, axis=0)
        assert float(signal.signal[1, index]) == pytest.approx(means[0], rel=1e-5, abs=1e-9)
        assert float(signal.noise[1, index]) == pytest.approx(means[1], rel=1e-5)
    assert not signal.noise[0].any()
    assert signal.after(0, batch_gradients(model, blocks, lambda m, b: 0 * loss(m, b), batches(2))[1]) is None
    # Scales: ratios of the shares, to the power.
    all_signal, all_noise = (sum(np.mean(found, axis=0)[k] for found in expected.values()) for k in (0, 1))
    g, f = (
        np.array([np.mean(found, axis=0)[k] for found in by_row]) / total
        for k, total in ((0, all_signal), (1, all_noise))
    )
    ratios = np.clip(g / (f + 0.2 * f.mean()) / (g.sum() / f.sum()), 1 / 20, 20) ** 1.5
    structure = rows.structure(0.5)
    np.testing.assert_allclose(structure.factors["steady.weight"][0].numpy(), ratios / ratios.mean(), rtol=1e-4)
    by_name = {name: row for row, name in enumerate(structure.names)}
    assert structure.share[by_name["idle.weight"]] == 0
    # Blocks: the same of the whole block, against the model's.
    means = np.mean(expected["steady"], axis=0)
    ratio = np.clip(means[0] / all_signal / (means[1] / all_noise), 0.1, 10) ** 0.5
    assert float(structure.weight[by_name["steady.weight"]]) == pytest.approx(ratio, rel=1e-5)
    assert structure.weight[by_name["idle.weight"]] == 1
    assert rows.count == 12


def test_the_gradient_is_that_of_the_logarithm_of_the_gain() -> None:
    signal = Signal(1, 5)
    signal.signal[0] = torch.tensor([0.3, 0.1, -0.02, 0.05, 0.0])
    signal.noise[0] = torch.tensor([0.2, 0.4, 0.1, 0.2, 0.1])
    scales = randn(5, seed=1).abs() + 0.3
    variable = scales.double().requires_grad_()
    squares = variable.square()
    gain = ((squares * signal.signal[0]).sum() / (squares * signal.noise[0]).sum()) ** 2
    gain = gain / (signal.signal[0].sum() / signal.noise[0].sum()) ** 2
    (-gain.log()).backward()
    assert variable.grad is not None
    torch.testing.assert_close(signal.gradient(0, scales)[0], variable.grad, rtol=1e-10, atol=1e-12)
    assert signal.gain(0, scales) == pytest.approx(float(gain.detach()), rel=1e-10)
    assert signal.gain(0, torch.ones(5)) == 1


def test_no_signal_at_all_gives_finite_numbers() -> None:
    signal = Signal(1, 2)
    signal.signal[0], signal.noise[0] = torch.tensor([-0.1, 0.0]), torch.tensor([0.5, 0.5])
    assert torch.isfinite(signal.gradient(0, torch.ones(2))).all()
    assert signal.gain(0, torch.tensor([2.0, 0.5])) == 1


def test_what_is_planted_is_found() -> None:
    tuner = meta_train(build(Net), [task(), task("again")], config())
    bound = tuner.bind(build(Net))
    blocks = Blocks.of(build(Net))
    state = bound.init(blocks)
    bound.begin(state, blocks)
    sigma = dict(zip(blocks.names, state["tuner/sigma"].tolist(), strict=True))
    assert sigma["steady.weight"] > 2.5
    assert sigma["noisy.weight"] < 0.35
    assert tuner.structure is not None
    rows = tuner.structure.factors["steady.weight"][0]
    assert float(rows[0]) > 20 * float(rows[1])


def test_sigma_may_stay_as_it_is() -> None:
    tuner = meta_train(build(Net), [task()], config(learn_sigma=False, steps=20))
    begun = Tuner.untrained(build(Net), config().network)
    for ours, theirs in zip(tuner.network.parameters(), begun.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert tuner.structure is not None
    rows = tuner.structure.factors["steady.weight"][0]
    assert float(rows[0]) > 20 * float(rows[1])


def test_the_lookahead_is_as_it_was_and_sees_no_signal() -> None:
    tuner = meta_train(
        build(Net), [task()], MetaTrainConfig.build({**recipe("lookahead"), "lookahead_lr": 1e-4, "steps": 3})
    )
    assert tuner.structure is None
    assert tuner.config.recommended.lr == 1e-4 / 4


@pytest.mark.parametrize("source", ["signal", "energy"])
def test_interrupted_and_resumed_gives_the_bits_of_a_straight_run(source: str, tmp_path: Path) -> None:
    settings = config(steps=8, structure_from=source, gradient_batches=3, save_every=2)
    straight = meta_train(build(Net), [task()], settings)
    for after in (12, 30):
        with pytest.raises(Interrupted):
            meta_train(build(Net), [task(after=after)], settings, output_dir=tmp_path)
    assert checkpoint.read_record(tmp_path)["done"] in range(2, 8)  # type: ignore[index]
    assert meta_train(build(Net), [task()], settings, output_dir=tmp_path, resume=True).digest == straight.digest
    assert Tuner.from_pretrained(tmp_path).digest == straight.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": "none", "learn_sigma": True, "meta_gradient": "higher"}, "unrolls nothing"),
        ({"objective": "lookahead"}, "objective expected"),
        ({"structure": "low-rank"}, "learns scales"),
        ({"structure": "none"}, "nothing is learned"),
        ({"step_size": "curvature"}, "needs both sides"),
        ({"gradient_batches": 1}, "greater than or equal to 2"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MetaTrainConfig.build(changes)
