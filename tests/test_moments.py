"""The structure that meta-training learns: second moments against float64, resuming, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from meta_train import MetaTrainConfig, checkpoint, meta_train, recipe
from meta_train.moments import Moments
from tests.models import build, interrupted, randn
from zoft.blocks import Blocks
from zoft.errors import Interrupted, UsageError
from zoft.tasks.function import FunctionTask
from zoft.tuner import Tuner

STRUCTURED: dict[str, dict[str, Any]] = {
    "scales": {"structure": "scales", "structure_vectors": "elementwise", "structure_storage": "float32"},
    "low-rank": {"structure": "low-rank", "structure_rank": 2, "structure_storage": "float32"},
}


class Net(nn.Module):
    """Two layers, one of which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(7, 5)
        self.idle = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.used(inputs)
        return out


def task(name: str = "sum", after: int | None = None) -> FunctionTask:
    """A regression on a few directions of the input; Ctrl-C at a call of the loss."""
    inputs = randn(64, 7, seed=3) * torch.tensor([3.0, 2, 1, 0.5, 0.1, 0.1, 0.1])
    batches = [(inputs[i : i + 8], inputs[i : i + 8, :5].cumsum(1)) for i in range(0, 64, 8)]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        error: torch.Tensor = model(batch[0]) - batch[1]
        return error.square().mean()

    return FunctionTask(name, batches, interrupted(loss, after))


def config(kind: str, **changes: Any) -> MetaTrainConfig:
    """A short run."""
    return MetaTrainConfig(
        **{
            **recipe("lookahead"),
            "steps": 6,
            "lookahead_lr": 1e-3,
            "lookahead_steps": 2,
            "structure_share": 0.5,
            **STRUCTURED[kind],
            **changes,
        }
    )


def gradients(blocks: Blocks, count: int) -> list[dict[str, torch.Tensor]]:
    """Gradients of rank 2 and of very different sizes, in float64."""
    found = []
    for number in range(count):
        scale = 10.0 ** (number % 3)
        made = {}
        for index, block in enumerate(blocks):
            columns = block.numel // block.shape[0]
            left = randn(block.shape[0], 2, seed=100 * index).double()
            middle = randn(2, 2, seed=1000 + 10 * number + index).double()
            right = randn(columns, 2, seed=100 * index + 1).double()
            made[block.name] = scale * (left @ middle @ right.T).reshape(block.shape)
        found.append(made)
    return found


def test_moments_are_the_means_over_gradients_of_norm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks.of(build(Net))
    for kind in STRUCTURED:
        moments = Moments(config(kind, structure_block_power=0.5, structure_power=0.7, structure_floor=0.01), blocks)
        energy, left, right = np.zeros(len(blocks)), np.zeros((5, 5)), np.zeros((7, 7))
        for number, made in enumerate(gradients(blocks, 9)):
            total = sum(float(g.square().sum()) for g in made.values())
            for block in reversed(blocks):
                moments.take(block, made[block.name].float())
            if number == 4:
                moments.discard()
                continue
            moments.commit()
            matrix = made["used.weight"].numpy()
            left, right = left + matrix @ matrix.T / total, right + matrix.T @ matrix / total
            energy += [float(made[name].square().sum()) / total for name in blocks.names]
        structure = moments.structure(0.5)
        assert moments.count == 8
        sizes = np.array([block.numel for block in blocks])
        weight = (energy / sizes) ** 0.5
        np.testing.assert_allclose(structure.weight.numpy(), weight * sizes.sum() / (sizes * weight).sum(), rtol=1e-5)
        for factor, whole in zip(structure.factors["used.weight"], (left, right), strict=True):
            if kind == "scales":
                expected = (np.diag(whole) / np.diag(whole).mean() + 0.01) ** 0.7
                np.testing.assert_allclose(factor.numpy(), expected / expected.mean(), rtol=1e-4)
            else:
                values, vectors = np.linalg.eigh(whole)
                spectrum = values[::-1][:2] ** 0.7
                basis = vectors[:, ::-1][:, :2]
                expected = basis * spectrum @ basis.T
                expected *= len(whole) / np.trace(expected)
                found = factor.double().numpy()
                np.testing.assert_allclose(found @ found.T, expected, rtol=1e-3, atol=1e-4)
                # The gradients have rank 2, so a sketch finds the same.
                monkeypatch.setattr("meta_train.moments.EXACT", 0)
                sketched = Moments(config(kind, structure_power=0.7), blocks)
                for number, made in enumerate(gradients(blocks, 9)):
                    for block in blocks:
                        sketched.take(block, made[block.name].float())
                    sketched.discard() if number == 4 else sketched.commit()
                side = 0 if whole is left else 1
                again = sketched.structure(0.5).factors["used.weight"][side].double().numpy()
                np.testing.assert_allclose(again @ again.T, expected, rtol=0.01, atol=1e-3)
                monkeypatch.undo()


@pytest.mark.parametrize("kind", STRUCTURED)
def test_meta_training_learns_a_structure_and_nothing_else_changes(kind: str, tmp_path: Path) -> None:
    model = build(Net)
    tuner = meta_train(model, [task(), task("other")], config(kind), output_dir=tmp_path / "run")
    plain = meta_train(model, [task(), task("other")], config(kind, structure="none"))
    structure = tuner.structure
    assert structure is not None
    assert plain.structure is None
    for ours, theirs in zip(tuner.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert Tuner.from_pretrained(tmp_path / "run").digest == tuner.digest
    said = json.loads((tmp_path / "run" / "meta_train.json").read_text())["structure"]
    assert (said["gradients"], said["bytes"], said["model_bytes"]) == (6, structure.nbytes, 4 * (5 * 8 + 2 * 4))
    # Its directions have more curvature, and so a lower rate.
    assert tuner.config.recommended.lr == said["edge_lr"] / 4
    assert said["edge_lr"] < 0.8 * tuner.provenance["lookahead_lr"]
    # What no gradient reached stays isotropic.
    shares = dict(zip(structure.names, structure.share.tolist(), strict=True))
    assert shares == {"used.weight": 0.5, "used.bias": 0.5, "idle.weight": 0.0, "idle.bias": 0.0}
    right = structure.factors["used.weight"][1].double()
    by_column = right if kind == "scales" else right.square().sum(1)
    assert float(by_column[0]) > 5 * float(by_column[4:].max())  # the inputs' scales are the gradients'


@pytest.mark.parametrize("kind", STRUCTURED)
def test_interrupted_and_resumed_gives_the_bits_of_a_straight_run(kind: str, tmp_path: Path) -> None:
    straight = meta_train(build(Net), [task()], config(kind))
    with pytest.raises(Interrupted):
        meta_train(build(Net), [task(after=23)], config(kind), output_dir=tmp_path)
    assert checkpoint.read_record(tmp_path)["done"] in range(2, 7)  # type: ignore[index]
    assert meta_train(build(Net), [task()], config(kind), output_dir=tmp_path, resume=True).digest == straight.digest


def test_a_run_from_before_there_were_structures_is_still_this_run(tmp_path: Path) -> None:
    settings = config(
        "scales", structure="none", structure_share=None, structure_vectors="isotropic", structure_storage="float16"
    )
    tuner = meta_train(build(Net), [task()], settings, output_dir=tmp_path)
    file = tmp_path / "meta_train.json"
    content = json.loads(file.read_text())
    content["config"] = {key: value for key, value in content["config"].items() if not key.startswith("structure")}
    file.write_text(json.dumps(content))
    assert meta_train(build(Net), [task()], settings, output_dir=tmp_path).digest == tuner.digest
    with pytest.raises(UsageError, match='structure is null there, "scales" asked for'):
        meta_train(build(Net), [task()], config("scales"), output_dir=tmp_path)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="closed form's backward passes"):
        MetaTrainConfig.build({**recipe("lookahead"), "structure": "scales", "meta_gradient": "higher"})
    with pytest.raises(UsageError, match="structure: input should be"):
        MetaTrainConfig.build({"structure": "kronecker"})


def test_the_rank_is_the_largest_within_2_percent() -> None:
    model = build(lambda: nn.Linear(800, 500, bias=False))
    found = Moments(config("low-rank", structure_rank=None, structure_storage="float16"), Blocks.of(model)).settings
    assert found.rank == int(0.02 * 4 * 800 * 500 / (2 * 1300))


def test_the_share_is_balanced_where_none_is_given() -> None:
    """At a balanced share the learned part has half of the curvature: the edge is half of plain noise's."""
    tuner = meta_train(build(Net), [task()], config("scales", structure_share=None))
    assert tuner.structure is not None
    share = float(tuner.structure.share[0])
    alone = meta_train(build(Net), [task()], config("scales", structure_share=1.0))
    curvatures = [1 / each.provenance["structure"]["edge_lr"] for each in (tuner, alone)]
    plain = 1 / tuner.provenance["lookahead_lr"]
    assert 0.05 < share < 0.5  # the learned part meets more
    assert share * curvatures[1] == pytest.approx((1 - share) * plain, rel=0.25)
    assert curvatures[0] == pytest.approx(2 * (1 - share) * plain, rel=0.25)
