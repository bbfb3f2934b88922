"""The tuner: features, networks, the artifact on disk, binding."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models import TiedLM, build, mlp, randn
from zoft.blocks import Blocks
from zoft.errors import ArtifactError, IncompatibleError
from zoft.tuner import NetworkConfig, NormalizationConfig, PertNN, Tuner
from zoft.tuner.features import FeatureConstants, block_statistics, features
from zoft.tuner.normalization import effective_sizes, normalization


@pytest.fixture
def tuner():
    return Tuner.untrained(build(TiedLM), NetworkConfig(init="linear"), base_model_name_or_path="somebody/base")


@pytest.fixture
def folder(tuner, tmp_path):
    tuner.provenance = {"tasks": ["one", "two"]}
    return tuner.save_pretrained(tmp_path / "tuner")


def sigma_of(tuner, model):
    bound = tuner.bind(model)
    return bound.sigma(block_statistics(Blocks.of(model)), torch.tensor([0.5, 0.6]), torch.ones(len(Blocks.of(model))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_block_statistics_over_chunks(dtype, monkeypatch):
    model = build(lambda: nn.Linear(40, 30), dtype=dtype)
    model.extra = nn.Parameter(torch.full((1,), 3.0, dtype=dtype))
    monkeypatch.setattr("zoft.noise.spans.__defaults__", (100,))
    found = block_statistics(Blocks.of(model)).numpy()
    for row, p in zip(found, model.parameters()):
        values = p.detach().double().numpy().ravel()
        expected = [values.mean(), values.var(ddof=1) if values.size > 1 else 0.0]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)
    assert found.dtype == np.float32


def test_features():
    statistics = torch.tensor([[0.1, 0.04], [-0.2, 0.0], [5.0, 1.0]])
    constants = FeatureConstants.of(statistics)
    losses, sigma = torch.tensor([0.7, 0.9]), torch.tensor([1.0, 2.0, 0.5])
    raw = features("raw", constants, statistics, losses, sigma)
    assert torch.equal(raw[1], torch.tensor([-0.2, 0.0, 0.7, 0.9, 2.0]))
    standard = features("standardised", constants, statistics, losses, sigma)
    assert standard.shape == (3, 5)
    assert bool((standard.abs() <= 5).all())
    np.testing.assert_allclose(standard[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(standard[:, 1].std(correction=0), 1, rtol=1e-5)
    np.testing.assert_allclose(standard[:, 2], np.log1p(0.7), rtol=1e-6)
    np.testing.assert_allclose(standard[:, 4], np.log([1, 2, 0.5]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("output", ["abs", "exp", "bounded"])
def test_one_batched_call_is_the_networks_one_by_one(output):
    network = PertNN(4, NetworkConfig(output=output, init="linear"), seed=1)
    x = randn(4, 5)
    sigma = network(x)
    for i in range(4):
        single = nn.Sequential(*build(lambda: nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 1))))
        with torch.no_grad():
            single[0].weight.copy_(network.hidden.weight[i])
            single[0].bias.copy_(network.hidden.bias[i])
            single[2].weight.copy_(network.out.weight[i])
            single[2].bias.copy_(network.out.bias[i])
        y = single(x[i])[0]
        expected = {"abs": y.abs(), "exp": y.exp(), "bounded": (1.2 * y.tanh()).exp()}[output]
        torch.testing.assert_close(sigma[i], expected)
    assert sum(p.numel() for p in network.parameters()) == 4 * 449
    assert bool((PertNN(4, NetworkConfig(output=output, init="neutral"))(x) == 1).all())


def test_normalization_keeps_the_norm_of_the_perturbation():
    blocks = Blocks.of(build(lambda: TiedLM(vocabulary=500)))
    config = NormalizationConfig()
    sizes = effective_sizes(blocks, 2, config)
    assert sizes.tolist() == [15 * 2 * 6, 36, 6, 6, 6]
    assert effective_sizes(blocks, 1000, config)[0] == 3000
    sigma = torch.tensor([0.1, 2.0, 1.0, 0.0, 3.0], requires_grad=True)
    nu = normalization(sigma, sizes, config)
    assert (sizes * (nu * sigma).square()).sum().item() == pytest.approx(sizes.sum().item(), rel=1e-6)
    nu.backward()
    assert sigma.grad is not None
    assert normalization(sigma, sizes, NormalizationConfig(kind="none")) == 1


def test_round_trip(tuner, folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "meta_train.json",
        "tuner.safetensors",
        "tuner_config.json",
    ]
    again = Tuner.from_pretrained(folder)
    assert again.config == tuner.config
    assert again.provenance == {"tasks": ["one", "two"]}
    assert torch.equal(sigma_of(again, build(TiedLM)), sigma_of(tuner, build(TiedLM)))
    tensors = load_file(folder / "tuner.safetensors")
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "hidden.weight": (torch.float32, (5, 64, 5)),
        "hidden.bias": (torch.float32, (5, 64)),
        "out.weight": (torch.float32, (5, 1, 64)),
        "out.bias": (torch.float32, (5, 1)),
    }
    card = (folder / "README.md").read_text()
    assert "base_model: somebody/base" in card
    assert "library_name: zoft" in card
    assert "one, two" in card


def test_saving_is_reproducible(tuner, folder, tmp_path):
    other = tuner.save_pretrained(tmp_path / "other")
    assert all((other / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_recommended_settings_change_nothing_else(tuner):
    changed = tuner.recommending(lr=1e-4)
    assert changed.config.recommended.lr == 1e-4
    assert changed.network is tuner.network
    assert tuner.config.recommended.lr is None


def test_wrappers_and_row_order_do_not_matter(tuner):
    model = build(TiedLM)

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    expected = sigma_of(tuner, model)
    assert torch.equal(sigma_of(tuner, Wrapper(model)), expected)
    model.hidden.requires_grad_(False)
    assert torch.allclose(sigma_of(tuner, model), expected[[0, 3, 4]])


def test_binding_reports_what_differs(tuner):
    with pytest.raises(IncompatibleError) as wrong:
        tuner.bind(mlp())
    assert "0 of 4 blocks match; 0.weight: not in the tuner; 0.bias: not in the tuner; 2.weight" in wrong.value.cause
    assert "and 6 more" in wrong.value.cause
    wide = build(lambda: TiedLM(width=8))
    with pytest.raises(IncompatibleError, match=r"0 of 5 blocks match; embed.weight: 11x6 in the tuner, 11x8 here"):
        tuner.bind(wide)
    more = build(TiedLM)
    more.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(IncompatibleError, match="5 of 6 blocks match; extra: not in the tuner"):
        tuner.bind(more)


def test_a_resized_vocabulary_binds_with_a_warning(tuner):
    larger = build(lambda: TiedLM(vocabulary=16))
    with pytest.warns(UserWarning, match="vocabulary has 16 entries, the tuner's base had 11"):
        bound = tuner.bind(larger)
    assert len(bound.notes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuner.bind(build(TiedLM)).notes == ()


def edit(folder, **changes):
    file = folder / "tuner_config.json"
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def test_unknown_keys_warn_and_newer_formats_are_refused(folder):
    network = json.loads((folder / "tuner_config.json").read_text())["network"]
    edit(folder, colour="blue", network={**network, "depth": 3})
    with pytest.warns(UserWarning, match="unknown key") as seen:
        Tuner.from_pretrained(folder)
    assert sorted(str(w.message) for w in seen) == [
        "tuner_config.json: network: unknown key 'depth' is ignored",
        "tuner_config.json: unknown key 'colour' is ignored",
    ]
    edit(folder, format=2, zoft_version="9.1")
    with pytest.raises(ArtifactError, match=r"(?s)format 2, .* up to 1.*Install zoft 9\.1"):
        Tuner.from_pretrained(folder)


def edit_blocks(folder, **changes):
    blocks = json.loads((folder / "tuner_config.json").read_text())["blocks"]
    edit(folder, blocks={**blocks, **changes})


def _tensors(change):
    def apply(folder):
        tensors = load_file(folder / "tuner.safetensors")
        change(tensors)
        save_file(tensors, folder / "tuner.safetensors")

    return apply


NETWORK = NetworkConfig(init="linear").to_dict()

DAMAGE = {
    "no config": (lambda f: (f / "tuner_config.json").unlink(), "no tuner_config.json"),
    "no weights": (lambda f: (f / "tuner.safetensors").unlink(), r"no tuner\.safetensors"),
    "not JSON": (lambda f: (f / "tuner_config.json").write_text("{"), "not valid JSON"),
    "not an object": (lambda f: (f / "tuner_config.json").write_text("[]"), "not a JSON object"),
    "no format": (lambda f: edit(f, format=None), "does not state its format"),
    "wrong type": (
        lambda f: edit(f, network=NETWORK | {"hidden": "many"}),
        "network.hidden: input should be a valid integer",
    ),
    "unpaired": (lambda f: edit(f, blocks={"names": ["a"], "shapes": [], "signature": ""}), "do not pair up"),
    "noise": (lambda f: edit(f, noise={"kind": "pink", "version": 1}), "noise 'pink' version 1"),
    "truncated": (
        lambda f: (f / "tuner.safetensors").write_bytes((f / "tuner.safetensors").read_bytes()[:100]),
        "cannot be read",
    ),
    "missing tensor": (_tensors(lambda t: t.pop("out.bias")), r"holds hidden\.bias, hidden\.weight, out\.weight, not"),
    "wrong shape": (_tensors(lambda t: t.update({"out.bias": torch.zeros(4, 1)})), r"out\.bias is .* \(4, 1\)"),
    "wrong dtype": (_tensors(lambda t: t.update({"out.bias": t["out.bias"].half()})), "is F16"),
    "other weights": (_tensors(lambda t: t["out.bias"].add_(1)), "not the file that was written"),
    "silent default": (lambda f: edit(f, network={"hidden": 64}), r"does not state network\.features"),
    "signature": (lambda f: edit_blocks(f, signature="0" * 64), "signature is not that of the names and shapes"),
    "name": (lambda f: edit_blocks(f, names=["\x1b[31m", "b", "c", "d", "e"]), "is no name of a block"),
    "path": (lambda f: edit(f, base_model_name_or_path="a\n../b"), "is no name of a base"),
    "not a number": (lambda f: edit(f, constants={"mean_shift": float("nan")}), "NaN is no number"),
    "tasks": (lambda f: (f / "meta_train.json").write_text('{"tasks": [3]}'), "tasks is no list of names"),
    "large": (lambda f: (f / "tuner_config.json").write_bytes(b" " * (4 * 2**20 + 1)), "larger than any"),
    "not finite": (_tensors(lambda t: t["out.bias"].fill_(float("nan"))), "not finite"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_tuners_are_refused_by_name(case, folder):
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as error:
        Tuner.from_pretrained(folder)
    assert error.value.exit_code == 3
    assert error.value.remedy


def test_pickles_are_refused(tmp_path, folder):
    with pytest.raises(ArtifactError, match="zoft tuner convert"):
        Tuner.from_pretrained(tmp_path / "llama.pth")
    (folder / "tuner.safetensors").rename(folder / "tuner.bin")
    with pytest.raises(ArtifactError, match=r"holds a pickle \(tuner.bin\)"):
        Tuner.from_pretrained(folder)
    with pytest.raises(ArtifactError, match="no tuner folder"):
        Tuner.from_pretrained(tmp_path / "nowhere")
