"""Structure finer than a block: covariance, norm, determinism, the artifact, every method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoft
from tests.models import TiedLM, build, randn
from tests.structures import covariance, structure_for
from zoft.blocks import Block, Blocks
from zoft.cli import main as command_line
from zoft.errors import ArtifactError, UsageError
from zoft.noise import Key, Span, get_noise, spans
from zoft.optimizers import OPTIMIZERS, ZOOptimizer
from zoft.step import State
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.normalization import effective_sizes
from zoft.tuner.parts import NOISE_PART, PARTS
from zoft.tuner.structure import StructureConfig, largest_rank, stored_bytes, stored_tensors

KINDS = {"scales": 1, "low-rank": 2, "gains": 1, "gains-and-offsets": 1}


class Small(nn.Module):
    """A matrix, a convolution (a matrix of [2, 6]), a vector and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(randn(4, 5, seed=1))
        self.convolution = nn.Parameter(randn(2, 3, 2, seed=2))
        self.vector = nn.Parameter(randn(6, seed=3))
        self.scalar = nn.Parameter(torch.ones(()))


def structured(model: nn.Module, kind: str, *, init: str = "neutral", **settings: object) -> Tuner:
    """An untrained tuner with a random structure."""
    tuner = Tuner.untrained(model, NetworkConfig(hidden=8, init=init))
    return tuner.structured(structure_for(model, kind, rank=KINDS[kind], **settings))  # type: ignore[arg-type]


def begun(model: nn.Module, tuner: Tuner, name: str = "zo-finetuner") -> tuple[ZOOptimizer, State, Blocks]:
    """A method at the beginning of a step."""
    blocks, method = Blocks.of(model), zoft.get_optimizer(name, tuner=tuner.bind(model))
    state = method.init(blocks)
    method.begin(state, blocks)
    return method, state, blocks


def direction(method: ZOOptimizer, state: State, block: Block, key: Key, kind: str = "gaussian-table") -> torch.Tensor:
    """z of a whole block."""
    span = Span(block, 0, block.numel)
    return method.direction(state, span, method.draw(get_noise(kind), key, span))


@pytest.mark.parametrize(("kind", "noise"), [*((kind, "gaussian-table") for kind in KINDS), ("low-rank", "rademacher")])
def test_directions_have_the_stated_covariance(kind: str, noise: str) -> None:
    model, count = Small(), 1200
    tuner = structured(model, kind, weights=True)
    assert tuner.structure is not None
    method, state, blocks = begun(model, tuner)
    scale = float(method.scale(state, blocks[0]))
    for block in blocks:
        draws = torch.stack([direction(method, state, block, Key(3, step), noise) for step in range(count)])
        draws = draws.double().numpy() / scale
        expected = covariance(tuner.structure, block.name, block.parameter)
        found = draws.T @ draws / count
        error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / count)
        # 5 standard errors of normal directions; the largest of 210 entries exceeds 4.5 once in 1,000 times.
        assert np.abs((found - expected) / error).max() < 5, block.name
        if block.name in tuner.structure.factors:
            assert np.abs((found - np.eye(len(found))) / error).max() > 8, block.name


@pytest.mark.parametrize("name", ["zo-finetuner", "lozo", "fzoo"])
@pytest.mark.parametrize("kind", KINDS)
def test_directions_agree_with_the_formula_in_float64(kind: str, name: str) -> None:
    model = Small().double()
    tuner = structured(model, kind, init="linear", weights=True, storage="float32")
    structure = tuner.structure
    assert structure is not None
    method, state, blocks = begun(model, tuner, name)
    key, noise = Key(5, 7, 1), get_noise("gaussian-table")
    for block in blocks:
        span = Span(block, 0, block.numel)
        rows, columns = (block.shape[0], block.columns) if block.is_matrix else (block.numel, 1)
        u, spread = noise(key, span).double().numpy(), 1.0
        if name == "fzoo":
            u = np.sign(u)
        if name == "lozo" and block.is_matrix:
            rank = 4
            left = noise(key, Span(block, 0, rows * rank)).double().numpy().reshape(rows, rank)
            kept = key._replace(step=0, part=1)
            right = noise(kept, Span(block, 0, columns * rank)).double().numpy().reshape(columns, rank)
            u, spread = (left @ right.T).ravel(), float(rank)
        factors = structure.factors.get(block.name)
        sizes = np.array([math.prod(shape) for shape in structure.shapes], dtype=np.float64)
        share, weight = structure.share.double().numpy(), structure.weight.double().numpy()
        learned = (share * weight * (sizes * share).sum() / (sizes * share * weight).sum())[block.index]
        plain = 1 - share[block.index]
        if factors is None:
            z = u * math.sqrt(plain + learned)
        elif kind.startswith("gains"):
            left, right = (factor.double().numpy().reshape(len(factor), -1) for factor in factors)
            gains = [
                np.sqrt(part)
                * noise(key._replace(part=(1 + at) * NOISE_PART), Span(block, 0, len(part))).double().numpy()
                for at, part in enumerate((left[:, 0], right[:, 0], *left.T[1:]))
            ]
            theta = block.parameter.detach().numpy().reshape(rows, columns)
            moved = (gains[0][:, None] + gains[1]) * theta if block.is_matrix else gains[0]
            if block.is_matrix and len(gains) > 2:
                moved = moved + np.outer(gains[2], right[:, 1])
            z = math.sqrt(plain) * u + math.sqrt(learned * spread) * moved.ravel()
        elif factors[0].ndim == 1:
            r, c = (factor.double().numpy() / factor.double().numpy().mean() for factor in factors)
            z = u * np.sqrt(plain + learned * np.outer(r, c).ravel())
        else:
            a, b = (f * math.sqrt(len(f)) / np.linalg.norm(f) for f in (f.double().numpy() for f in factors))
            core = noise(key._replace(part=NOISE_PART), Span(block, 0, a.shape[1] * b.shape[1])).double().numpy()
            z = math.sqrt(plain) * u
            z += math.sqrt(learned * spread) * (a @ core.reshape(a.shape[1], b.shape[1]) @ b.T).ravel()
        z *= method.scale(state, block)
        np.testing.assert_allclose(direction(method, state, block, key).numpy(), z, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_is_that_of_plain_noise(kind: str) -> None:
    model = Small()
    tuner = structured(model, kind, init="linear", weights=True)
    assert tuner.structure is not None
    method, state, blocks = begun(model, tuner)
    sizes = effective_sizes(blocks, 16, tuner.config.normalization).double().numpy()
    traces = [np.trace(covariance(tuner.structure, block.name, block.parameter)) / block.numel for block in blocks]
    scales = np.array([method.scale(state, block) for block in blocks])
    assert len(set(traces)) == len(blocks)  # the blocks' weights differ
    # The traces of gains are those of the file, which has float16; the others are made exact.
    close = 1e-3 if kind.startswith("gains") else 1e-5
    np.testing.assert_allclose((sizes * scales**2 * traces).sum(), sizes.sum(), rtol=close)
    alone = structured(model, kind, weights=True)
    power = alone.bind(model).structure.power.double().numpy()  # type: ignore[union-attr]
    numbers = np.array([block.numel for block in blocks])
    np.testing.assert_allclose((numbers * power).sum(), blocks.numel, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_entry_depends_on_how_a_block_is_cut(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoft.tuner.parts._TILE", 256)
    model = build(lambda: nn.Linear(70, 90))
    method, state, blocks = begun(model, structured(model, kind))
    for keep in (0, 1 << 20):
        noise, key = get_noise("gaussian-table", keep), Key(1, 2)
        for block in blocks:
            whole = direction(method, state, block, key)
            for chunk in (1, 64, 71, 1000, 6300):
                if chunk == 1 and block.is_matrix:
                    continue
                pieces = [method.direction(state, s, method.draw(noise, key, s)) for s in spans(block, chunk)]
                assert torch.equal(torch.cat(pieces), whole), (block.name, chunk)
            assert torch.equal(direction(method, state, block, key), whole)
            assert not torch.equal(direction(method, state, block, Key(1, 3)), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_0_is_no_structure_bit_for_bit(kind: str) -> None:
    model = build(TiedLM)
    plain = Tuner.untrained(model, NetworkConfig(hidden=8, init="linear"))
    key = Key(4, 5)
    for block in Blocks.of(model):
        found = []
        for tuner in (plain, plain.structured(structure_for(model, kind, share=0.0))):
            method, state, _ = begun(model, tuner)
            found.append(direction(method, state, block, key))
        assert torch.equal(*found)


def run(
    model: nn.Module, name: str, tuner: Tuner, steps: int, state: dict[str, object] | None = None
) -> zoft.ZerothOrder:
    """Fine-tune a little."""
    batch = torch.arange(12).view(2, 6) % 11
    optimizer = zoft.ZerothOrder(model, name, tuner=tuner.bind(model), lr=1e-4, seed=9)
    if state is not None:
        optimizer.load_state_dict(state)  # type: ignore[arg-type]
    for _ in range(steps):
        optimizer.step(lambda: nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten()))
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*OPTIMIZERS, "hizoo+zo-adam", "lozo+fzoo"])
def test_every_method_takes_it_and_goes_on_bit_for_bit(name: str, kind: str) -> None:
    model = build(TiedLM)
    tuner = structured(model, kind)
    straight, halved, without = build(TiedLM), build(TiedLM), build(TiedLM)
    run(straight, name, tuner, 4)
    kept = run(halved, name, tuner, 2).state_dict()
    run(halved, name, tuner, 2, kept)
    run(without, name, tuner.structured(None), 4)
    for ours, again, plain in zip(straight.parameters(), halved.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, again)
        assert bool(torch.isfinite(ours).all())
        assert not torch.equal(ours, plain)


def test_hizoo_sees_the_curvature_apart_from_the_structure() -> None:
    """On ½·|θ|² every h is the mean of |Δ|/2ε²·u²: with u² over its variance no entry's H drifts off the others'."""
    model = Small()
    tuner = structured(model, "low-rank", share=0.9)
    method, _, blocks = begun(model, tuner, "hizoo")
    span = Span(blocks[0], 0, blocks[0].numel)
    variance = method.tuner.structure.variance(span)  # type: ignore[union-attr]
    draws = torch.stack([method.draw(get_noise("gaussian-table"), Key(1, step), span) for step in range(2000)])
    mean = draws.double().square().mean(0)
    assert float((mean / variance - 1).abs().max()) < 0.15
    assert float((mean - 1).abs().max()) > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_binding_and_controls(kind: str, tmp_path: Path) -> None:
    model = build(TiedLM)
    tuner = structured(model, kind, weights=True)
    again = Tuner.from_pretrained(tuner.save_pretrained(tmp_path / "one"))
    assert tuner.structure is not None
    assert again.structure is not None
    assert (again.digest, again.structure.kind) == (tuner.digest, kind)
    assert torch.equal(again.structure.share, tuner.structure.share)
    assert again.digest != tuner.structured(None).digest
    assert "structure" not in json.loads(
        (tuner.structured(None).save_pretrained(tmp_path / "two") / "tuner_config.json").read_text()
    )
    control, other = tuner.structure.random_like(1), tuner.structure.random_like(2)
    assert len({tuner.digest, tuner.structured(control).digest, tuner.structured(other).digest}) == 3
    for name, both in tuner.structure.factors.items():
        for mine, random in zip(both, control.factors[name], strict=True):
            assert (random.shape, random.dtype) == (mine.shape, mine.dtype)
            if mine.ndim == 1:
                assert torch.equal(mine.sort().values, random.sort().values)
            else:
                old, new = mine.double(), random.double()
                np.testing.assert_allclose(new.T @ new, old.T @ old, rtol=0.01, atol=0.02)
    with pytest.raises(UsageError, match="for other blocks"):
        tuner.structured(structure_for(Small(), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_row_order_frozen_parts_and_resized_vocabularies(kind: str) -> None:
    tuner = structured(build(TiedLM), kind)
    frozen = build(TiedLM)
    frozen.embed.weight.requires_grad_(False)
    whole, part = begun(build(TiedLM), tuner), begun(frozen, tuner)
    for block in part[2]:
        same = whole[2].named(block.name)
        assert same is not None
        ours, theirs = direction(part[0], part[1], block, Key(1, 1)), direction(whole[0], whole[1], same, Key(1, 1))
        ratio = part[0].scale(part[1], block) / whole[0].scale(whole[1], same)
        torch.testing.assert_close(ours, theirs * ratio)
    for size in (9, 14):
        with pytest.warns(UserWarning, match="vocabulary"):
            method, _, blocks = begun(build(lambda size=size: TiedLM(vocabulary=size)), tuner)
        span = Span(blocks[0], 0, blocks[0].numel)
        assert method.draw(get_noise("gaussian-table"), Key(0, 0), span).shape == (size * 6,)
        power = method.tuner.structure.power  # type: ignore[union-attr]
        torch.testing.assert_close(power, torch.ones(len(blocks)))


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "tuner_config.json"
    content = json.loads(file.read_text())
    content["structure"].update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "weights_sha256"}))


def _tensor(folder: Path, name: str, change: object) -> None:
    tensors = load_file(folder / "tuner.safetensors")
    tensors[name] = change(tensors[name])  # type: ignore[operator]
    save_file(tensors, folder / "tuner.safetensors")
    _edit(folder)


def _without(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "tuner.safetensors")
    save_file({name: t for name, t in tensors.items() if name not in names}, folder / "tuner.safetensors")


def _drop(folder: Path, key: str) -> None:
    file = folder / "tuner_config.json"
    content = json.loads(file.read_text())
    del content["structure"][key]
    file.write_text(json.dumps(content))


DAMAGE = {
    "kind": (
        lambda f: _edit(f, kind="dense"),
        r"structure\.kind: input should be 'scales', 'low-rank', 'gains' or 'gains-and-offsets'",
    ),
    "rank": (lambda f: _edit(f, rank=10**9), r"structure\.rank"),
    "other rank": (lambda f: _edit(f, rank=3), r"structure\.left is F16 \(\d+,\), not F16 \(\d+,\)"),
    "vectors": (lambda f: _edit(f, vectors="isotropic"), r"structure\.left is F16"),
    "storage": (lambda f: _edit(f, storage="float32"), r"structure\.left is F16 \(\d+,\), not F32"),
    "unknown": (lambda f: _edit(f, colour="blue"), "colour"),
    "silent default": (lambda f: _drop(f, "vectors"), r"does not state structure\.vectors"),
    "missing": (lambda f: _without(f, "structure.right"), r"holds .*, not .*structure\.right"),
    "shape": (lambda f: _tensor(f, "structure.share", lambda t: t[:-1].clone()), r"structure\.share is F32 \(4,\)"),
    "share": (lambda f: _tensor(f, "structure.share", lambda t: t + 1), "share has values outside 0 to 1"),
    "weight": (lambda f: _tensor(f, "structure.weight", lambda t: -t), "weight has negative values"),
    "no weight": (lambda f: _tensor(f, "structure.weight", lambda t: t * 0), "weight is 0 wherever"),
    "zeros": (lambda f: _tensor(f, "structure.left", lambda t: t * 0), "has only zeros"),
    "not finite": (lambda f: _tensor(f, "structure.right", lambda t: t / 0), "not finite"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_malformed_structures_are_refused_by_name(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    folder = structured(build(TiedLM), "low-rank").save_pretrained(tmp_path / "tuner")
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as error:
        Tuner.from_pretrained(folder)
    assert error.value.exit_code == 3
    assert error.value.remedy


def test_negative_scales_are_refused(tmp_path: Path) -> None:
    folder = structured(build(TiedLM), "scales").save_pretrained(tmp_path / "tuner")
    _tensor(folder, "structure.left", lambda t: -t)
    with pytest.raises(ArtifactError, match=r"embed\.weight has negative scales"):
        Tuner.from_pretrained(folder)


def test_a_reader_that_knows_no_structure_refuses_its_tensors(tmp_path: Path) -> None:
    """What a zoft without structures does: it warns of the section, and the file holds other tensors than it may."""
    folder = structured(build(TiedLM), "scales").save_pretrained(tmp_path / "tuner")
    file = folder / "tuner_config.json"
    content = json.loads(file.read_text())
    del content["structure"]
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"holds .*structure\.left"):
        Tuner.from_pretrained(folder)


def test_sizes_are_counted_without_making_anything() -> None:
    model = Small()
    for kind, rank in KINDS.items():
        structure = structure_for(model, kind, rank=rank)
        made = structure.tensors()
        said = stored_tensors(structure.config, structure.shapes)
        assert {name: (t.dtype, tuple(t.shape)) for name, t in made.items()} == said
        assert structure.nbytes == sum(t.numel() * t.element_size() for t in made.values())
    shapes = [(4096, 4096), (4096,)]
    config = StructureConfig(kind="low-rank")
    rank = largest_rank(config, shapes, 4 * 4096 * 4097)
    sizes = [stored_bytes(config.model_copy(update={"rank": r}), shapes) / (4 * 4096 * 4097) for r in (rank, rank + 1)]
    assert sizes[0] <= 0.02 < sizes[1]
    assert largest_rank(config, [(3, 3)], 10**9) == 3
    assert sorted(PARTS) == sorted(KINDS)


def test_show_and_card_say_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuner = structured(build(TiedLM), "low-rank", share=0.25)
    folder = tuner.save_pretrained(tmp_path / "tuner")
    with pytest.raises(SystemExit) as ended:
        command_line(["tuner", "show", str(folder)])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "low-rank of rank 2, 0.2 KiB" in out
    assert "learned share 0.25" in out
    assert "which directions matter (low-rank of rank 2" in " ".join((folder / "README.md").read_text().split())
