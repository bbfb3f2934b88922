"""Gains of rows and columns: what is learned of them, which blocks have them, controls, what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zoft
from finetune.controls import CONTROLS
from meta_train import MetaTrainConfig, checkpoint, meta_train
from meta_train.signal import Signal, batch_gradients
from meta_train.signal_gains import SignalGains
from tests.models import TiedLM, build, interrupted, randn
from tests.structures import structure_for
from zoft.blocks import Block, Blocks
from zoft.errors import Interrupted, UsageError
from zoft.objective import Objective
from zoft.tasks.function import FunctionTask
from zoft.tuner import Tuner
from zoft.tuner.gains import dealt_out, gained, gains_of, unlearned
from zoft.tuner.structure import StructureConfig, factor_shapes

SETTINGS = StructureConfig(kind="gains", storage="float32")


class Net(nn.Module):
    """A matrix, a norm's weights and a bias of zeros, all of which a linear loss sees."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 4))
        self.norm = nn.Parameter(torch.zeros(4))
        self.bias = nn.Parameter(torch.zeros(2))


def net() -> Net:
    """With weights of different sizes, and a bias of zeros."""
    model = build(Net)
    with torch.no_grad():
        model.matrix.copy_(0.2 * randn(3, 4, seed=5))
        model.norm.copy_(1 + 0.1 * randn(4, seed=6))
        model.bias.zero_()
    return model


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The gradients are the batch itself."""
    total: torch.Tensor = sum((p * g).sum() for p, g in zip(model.parameters(), batch, strict=True))  # type: ignore
    return total


def batches(count: int, seed: int) -> list[Any]:
    """Gradients with a mean in some rows, columns and entries, and noise in all."""
    made = []
    for number in range(count):
        matrix, norm, bias = (randn(*shape, seed=seed + 3 * number + k) for k, shape in enumerate(((3, 4), (4,), (2,))))
        matrix[0] += 1.5
        norm[1] += 2.0
        made.append((matrix, norm, bias))
    return made


def config(**changes: Any) -> MetaTrainConfig:
    """Gains from the signal."""
    settings = {"structure": "gains", "structure_share": 1.0, "structure_storage": "float32", "batch_size": 4}
    return MetaTrainConfig(**{**settings, **changes})


def test_gains_are_learned_from_the_signal_in_float64() -> None:
    model = net()
    blocks = Blocks.of(model)
    theta = [p.detach().double().numpy() for p in model.parameters()]
    sizes = [1.0, float(np.sqrt((theta[1] ** 2).mean())), 1.0]
    signal = Signal(2, len(blocks))
    learner = SignalGains(config(structure_power=1.5, structure_floor=0.2), blocks, signal)
    shares = []
    for task in range(2):
        found = []
        for visit in range(2):
            made = batches(4, seed=1000 * task + 100 * visit)
            _, gradients = batch_gradients(model, blocks, loss, made, learner.take)
            after = signal.after(task, gradients)
            assert after is not None
            signal.load(after.state())
            learner.commit(task, gradients)
            slopes = []
            for matrix, norm, bias in made:
                products = matrix.double().numpy() * theta[0]
                slopes.append(
                    np.concatenate(
                        [products.sum(1), products.sum(0), norm.double().numpy() * sizes[1], bias.double().numpy()]
                    )
                )
            pairs = [slopes[a] * slopes[b] for a in range(4) for b in range(4) if a != b]
            noise = np.mean(np.square(slopes), axis=0)
            found.append((np.mean(pairs, axis=0) / noise.sum(), noise / noise.sum()))
        g, f = np.mean(found, axis=0)
        shares.append((g / g.sum(), f / f.sum()))
    assert learner.count == 16
    for without, kept in ((None, shares), (0, shares[1:])):
        g, f = np.mean(kept, axis=0)
        ratios = (np.maximum(g, 0) / (f + 0.2 * f.mean())) ** 1.5
        ratios /= ratios.mean()
        structure = learner.structure(1.0, without=without)
        left, right = (factor.double().numpy() for factor in structure.factors["matrix"])
        trace = (theta[0] ** 2 * (ratios[:3, None] + ratios[3:7])).sum()
        np.testing.assert_allclose(left, ratios[:3] * 12 / trace, rtol=1e-5)
        np.testing.assert_allclose(right, ratios[3:7] * 12 / trace, rtol=1e-5)
        vector = ratios[7:11]
        np.testing.assert_allclose(structure.factors["norm"][0].numpy(), vector / vector.mean(), rtol=1e-5)
        # A bias of zeros moves as much as inner.weight of the matrices; the weights are what the traces are of d.
        expected = [trace / 12, vector.mean() * sizes[1] ** 2, ratios[11:].mean() * (theta[0] ** 2).mean()]
        np.testing.assert_allclose(structure.weight.numpy(), expected, rtol=1e-5)
        assert structure.share.tolist() == [1.0, 1.0, 1.0]


def test_without_a_signal_all_gains_are_alike() -> None:
    model = net()
    blocks = Blocks.of(model)
    structure = SignalGains(config(), blocks, Signal(1, len(blocks))).structure(1.0)
    rule = unlearned(structure, blocks)
    assert rule is not None
    for name, both in structure.factors.items():
        for mine, flat in zip(both, rule.factors[name], strict=True):
            assert torch.equal(mine, flat)
            assert len(mine.unique()) == 1
    assert torch.equal(structure.weight, rule.weight)
    assert unlearned(structure_for(model, "scales"), blocks) is None


def test_a_matrix_of_zeros_is_isotropic() -> None:
    model = net()
    torch.nn.init.zeros_(model.matrix)
    blocks = Blocks.of(model)
    structure = SignalGains(config(), blocks, Signal(1, len(blocks))).structure(1.0)
    assert structure.share.tolist() == [0.0, 1.0, 1.0]
    bound = structure.bind(blocks.names, blocks.shapes)
    assert bound.power[0] == 1
    assert bound.uses_noise(blocks[0])
    assert bound.everywhere is False


class Headed(nn.Module):
    """A table, a layer and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)


def test_embeddings_and_heads_stay_at_rest() -> None:
    model = build(Headed)
    blocks = Blocks.of(model)
    assert [block.name for block in gained(blocks)] == ["layer.weight", "layer.bias", "head.bias"]
    ratios = {
        block.name: tuple(torch.ones(size) for size in factor_shapes(SETTINGS, block.shape) or ())
        for block in gained(blocks)
    }
    structure = gains_of(SETTINGS, blocks.names, blocks.shapes, blocks, ratios, 1.0)  # type: ignore[arg-type]
    bound = Tuner.untrained(model).structured(structure).bind(model)
    method = zoft.get_optimizer("zo-finetuner", tuner=bound)
    state = method.init(blocks)
    method.begin(state, blocks)
    for block in blocks:
        span = zoft.noise.Span(block, 0, block.numel)
        z = method.direction(
            state, span, method.draw(zoft.noise.get_noise("gaussian-table"), zoft.noise.Key(1, 2), span)
        )
        assert bool(z.any()) == (block in gained(blocks)), block.name


def test_a_run_moves_only_gains() -> None:
    model, start = build(TiedLM), build(TiedLM)
    structure = unlearned(structure_for(model, "gains", share=1.0, storage="float32"), Blocks.of(model))
    tuner = Tuner.untrained(model).structured(structure)
    optimizer = zoft.ZerothOrder(model, "zo-finetuner", tuner=tuner.bind(model), lr=1e-3, seed=9, directions=3)
    batch = torch.arange(12).view(2, 6) % 11
    optimizer.step(lambda: nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten()))
    for (name, moved), first in zip(model.named_parameters(), start.parameters(), strict=True):
        if name.startswith("embed"):
            assert torch.equal(moved, first)
        elif moved.ndim > 1:
            gains = (moved / first - 1).detach()
            assert float(gains.abs().max()) > 1e-5
            # (g_i + h_j): what is left of a matrix after its rows' and columns' means is rounding.
            rest = gains - gains.mean(0) - gains.mean(1, keepdim=True) + gains.mean()
            assert float(rest.abs().max()) < 0.02 * float(gains.abs().max())


@pytest.mark.parametrize("held", [False, True])
def test_what_is_at_rest_is_not_copied(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, copied = build(TiedLM), []
    structure = unlearned(structure_for(model, "gains", share=1.0), Blocks.of(model))
    whole = zoft.perturb.shifted

    def noted(block: Block, shift: Any) -> torch.Tensor:
        copied.append(block.name)
        return whole(block, shift)

    monkeypatch.setattr("zoft.perturb.shifted", noted)
    tokens = torch.arange(12).view(2, 6) % 11
    objective = Objective(
        model,
        lambda model, batch: nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten()),
        [tokens],
        held=held,
    )
    tuner = Tuner.untrained(model).structured(structure).bind(model)
    result = zoft.ZerothOrder(model, "zo-finetuner", tuner=tuner, lr=0.0, seed=1).step_on(objective)
    (probe,) = result.probes
    assert probe.loss_plus != probe.loss_minus
    assert set(copied) == {block.name for block in gained(Blocks.of(model))}


@pytest.mark.parametrize("name", ["hizoo", "hizoo-l", "zo-adamu"])
def test_methods_that_need_every_block_refuse_gains_alone(name: str) -> None:
    model = build(TiedLM)
    tuner = Tuner.untrained(model)
    alone = tuner.structured(structure_for(model, "gains", share=1.0)).bind(model)
    with pytest.raises(UsageError, match="leaves some at rest; take another method"):
        zoft.get_optimizer(name, tuner=alone)
    zoft.get_optimizer(name, tuner=tuner.structured(structure_for(model, "gains", share=0.9)).bind(model))
    zoft.get_optimizer(name, tuner=tuner.structured(structure_for(model, "scales", share=1.0)).bind(model))


def test_controls_keep_what_is_a_rule() -> None:
    model = build(TiedLM)
    blocks = Blocks.of(model)
    structure = structure_for(model, "gains", share=1.0, storage="float32", weights=True)
    at_rest = [block.index for block in blocks if block not in gained(blocks)]
    structure.weight[at_rest] = 0
    rule = unlearned(structure, blocks)
    assert rule is not None
    tuner = Tuner.untrained(model).structured(structure)
    made: dict[str, Any] = {name: control(tuner, model, 1) for name, control in CONTROLS.items()}
    assert made["untrained"].structure.config == structure.config
    assert all(
        torch.equal(a, b) for a, b in zip(made["untrained"].structure.tensors().values(), rule.tensors().values())
    )
    assert not torch.equal(
        made["random-basis"].structure.factors["hidden.weight"][0], structure.factors["hidden.weight"][0]
    )
    assert len({one.digest for one in made.values()} | {tuner.digest}) == 5
    # Mean ratios change places among the blocks that have some; sizes do not.
    dealt = dealt_out(structure, blocks, lambda count: torch.arange(count).roll(1))
    old, new = (one.weight / rule.weight for one in (structure, dealt))
    moving = [block.index for block in gained(blocks)]
    torch.testing.assert_close(new[moving], old[moving].roll(1))
    assert not dealt.weight[at_rest].any()
    power = made["permuted"].bind(model).structure.power
    assert not power[at_rest].any()
    assert not torch.allclose(power, tuner.bind(model).structure.power)


def task(after: int | None = None) -> FunctionTask:
    """Batches of the linear loss; Ctrl-C at a call of it."""
    return FunctionTask("linear", batches(40, seed=0), interrupted(loss, after))


def test_meta_training_learns_them_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    settings = config(steps=8, save_every=3, lookahead_lr=1e-4, step_size="none")
    straight = meta_train(net(), [task()], settings)
    assert straight.structure is not None
    assert straight.structure.kind == "gains"
    left = straight.structure.factors["matrix"][0]
    assert float(left[0]) > 3 * float(left[1:].max())
    norm = straight.structure.factors["norm"][0]
    assert float(norm[1]) > 3 * float(norm[[0, 2, 3]].max())
    with pytest.raises(Interrupted):
        meta_train(net(), [task(after=40)], settings, output_dir=tmp_path)
    assert checkpoint.read_record(tmp_path)["done"] in range(1, 8)  # type: ignore[index]
    assert meta_train(net(), [task()], settings, output_dir=tmp_path, resume=True).digest == straight.digest
    again = Tuner.from_pretrained(tmp_path)
    assert again.digest == straight.digest


def test_refusals() -> None:
    with pytest.raises(UsageError, match="set structure_from to signal"):
        MetaTrainConfig.build({"structure": "gains", "structure_from": "energy"})
