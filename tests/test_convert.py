"""Published tuners: read without running a byte of them, and computing what they computed."""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import TiedLM, build
from tests.published import networks, rewrite, save_published
from tests.test_cli import run
from tests.tiny import save_tiny
from zoft.blocks import Blocks
from zoft.errors import ArtifactError, IncompatibleError
from zoft.models import base_blocks
from zoft.optimizers import ZerothOrder
from zoft.tuner import Tuner
from zoft.tuner.bound import BoundTuner
from zoft.tuner.config import BlockTable
from zoft.tuner.convert import convert
from zoft.tuner.features import block_statistics
from zoft.tuner.pickled import ALLOWED

NAMES = [name for name, _ in build(TiedLM).named_parameters()]


def table() -> BlockTable:
    """The blocks of the model that the files are for."""
    blocks = Blocks.of(build(TiedLM))
    return BlockTable.of(blocks.names, blocks.shapes)


def reference(module: nn.Sequential, x: np.ndarray) -> float:
    """σ of one published network in float64, from its raw tensors."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in module.parameters())
    return abs(float((w2 @ np.tanh(w1 @ x + b1) + b2)[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "cuda:7"])
def test_sigma_of_every_block_is_the_published_networks(dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    content = networks(NAMES, dtype=dtype)
    file = save_published(content, tmp_path / "published.pth", device)
    assert device.encode() in file.read_bytes()
    tuner = convert(file, "user/base", blocks=table())
    assert tuner.config.blocks.names == NAMES
    network = tuner.config.network
    assert (network.features, network.hidden, network.activation, network.output) == ("raw", 64, "tanh", "abs")
    bound = tuner.bind(build(TiedLM))
    statistics = block_statistics(Blocks.of(build(TiedLM)))
    previous = torch.linspace(0.1, 2, len(NAMES))
    sigma = bound.sigma(statistics, torch.tensor([0.7, 1.1]), previous)
    for row, (name, module) in enumerate(content.items()):
        x = np.array([*statistics[row].tolist(), np.float32(0.7), np.float32(1.1), float(previous[row])])
        assert float(sigma[row]) == pytest.approx(reference(module, x), abs=1e-6), name


def test_a_step_is_the_published_codes(tmp_path: Path) -> None:
    """ν and the order of the features: two steps against a transcript of the public code, on its own σ and losses."""
    content = networks(NAMES, hidden=8)
    tuner = convert(save_published(content, tmp_path / "published.pth"), "user/base", blocks=table())
    model = build(TiedLM)
    batch_size, epsilon = 3, 1e-3
    bound: BoundTuner = tuner.bind(model, batch_size)
    optimizer = ZerothOrder(model, method="zo-finetuner", tuner=bound, lr=1e-2, epsilon=epsilon)
    tokens = torch.tensor([[1, 2, 3, 4]])
    losses, sigma = (0.0, 0.0), dict.fromkeys(NAMES, 1.0)
    for _ in range(2):
        values = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
        sizes = {name: float(value.size) for name, value in values.items()}
        sizes["embed.weight"] = 15 * batch_size * values["embed.weight"].shape[1]  # more than the table has
        assert sizes["embed.weight"] > values["embed.weight"].size
        for name, value in values.items():
            x = np.array([value.mean(), value.var(ddof=1), *losses, sigma[name]])
            sigma[name] = reference(content[name], x)
        nu = np.sqrt(sum(sizes.values()) / sum(sizes[name] * sigma[name] ** 2 for name in NAMES))
        result = optimizer.step(lambda: nn.functional.cross_entropy(model(tokens)[0], tokens[0]))
        assert result is not None
        state = optimizer.state_dict()["zoft"]["state"]
        np.testing.assert_allclose(state["tuner/scale"], [nu * sigma[name] for name in NAMES], rtol=2e-5)
        losses = tuple(state["tuner/losses"].tolist())


def test_names_and_shapes_are_those_of_the_base(tmp_path: Path) -> None:
    file = save_published(networks(reversed(NAMES)), tmp_path / "published.pth")
    checked = convert(file, "user/base", "a" * 40, table())
    assert checked.config.blocks == table()
    assert checked.config.base_model_revision == "a" * 40
    unchecked = convert(file, "user/base")
    assert unchecked.config.blocks.names == NAMES[::-1]
    assert (set(unchecked.config.blocks.signature), unchecked.config.blocks.shapes) == (set(), [None] * len(NAMES))
    again = Tuner.from_pretrained(unchecked.save_pretrained(tmp_path / "unchecked"))
    with pytest.warns(UserWarning, match="only the names were compared"):
        bound = again.bind(build(TiedLM))
    expected = checked.bind(build(TiedLM))
    x = torch.rand(len(NAMES), 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bound.network(x), expected.network(x))
    with pytest.raises(IncompatibleError, match="4 of its 5 networks have one of the base's 5 blocks; other: not in"):
        convert(save_published(networks([*NAMES[:4], "other"]), tmp_path / "other.pth"), "user/base", blocks=table())


def test_wrapped_names(tmp_path: Path) -> None:
    file = save_published(networks([f"module.{name}" for name in NAMES]), tmp_path / "published.pth")
    assert convert(file, "user/base", blocks=table()).config.blocks == table()


class Runs:
    """Unpickling it would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def hostile(content: Any, tmp_path: Path) -> Path:
    return save_published(content, tmp_path / "hostile.pth")


def test_a_file_that_would_run_a_command_does_not(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content: dict[str, Any] = {**networks(NAMES), "extra": Runs(f"touch {trace}")}
    with pytest.raises(ArtifactError, match=r"it names posix\.system, which no tuner needs and a pickle could run"):
        convert(hostile(content, tmp_path), "user/base")
    hidden = networks(NAMES)
    hidden[NAMES[0]][0].register_forward_hook(print)
    with pytest.raises(ArtifactError, match=r"it names \S*print"):
        convert(hostile(hidden, tmp_path), "user/base")
    assert not trace.exists()


def _with_program(program: bytes, tmp_path: Path) -> Path:
    good = save_published(networks(NAMES, hidden=2), tmp_path / "good.pth")
    return rewrite(good.read_bytes(), tmp_path / "bad.pth", {"data.pkl": lambda data: program})


PROGRAMS: dict[str, tuple[bytes, str]] = {
    "by global": (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", r"names os\.system"),
    "by stack global": (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", r"names builtins\.eval"),
    "by inst": (b"(S'id'\nios\nsystem\n.", "uses the opcode STRING"),
    "by obj": (b"(cos\nsystem\no.", r"names os\.system"),
    "by extension": (b"\x82\x01.", "uses the opcode EXT1"),
    "torch itself": (b"ctorch\nload\n.", r"names torch\.load"),
    "a part of an allowed name": (b"ctorch.nn.modules.linear\nLinear.__init__\n.", r"Linear\.__init__"),
    "an allowed name that is no function": (b"ctorch.nn.modules.linear\nLinear\n)R.", "a call that no tuner needs"),
    "a function with other arguments": (b"ccollections\nOrderedDict\nK\x01\x85R.", "a call that no tuner needs"),
    "an object of no class": (b"ccollections\nOrderedDict\n)\x81.", "an object that is no module"),
    "a state of a dictionary": (b"}}b.", "a state that is no module's"),
    "a persistent id in text": (b"Pstorage\n.", "uses the opcode PERSID"),
    "a storage elsewhere": (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x05\x00\x00\x00../..X\x03\x00\x00\x00cpuK\x01tQ.",
        "a storage that is none",
    ),
    "no end": (b"}", "is damaged"),
    "an empty stack": (b".", "is damaged"),
    "a memo that is not there": (b"h\x09.", "is damaged"),
    "not a dictionary": (b"].", "no dictionary of networks"),
    "an empty dictionary": (b"}.", "no dictionary of networks"),
    "other values": (b"}X\x01\x00\x00\x00aK\x01s.", "a is no Sequential"),
    "keys that are no text": (b"}K\x01K\x02s.", "no pairs of a text and a value"),
    "nothing": (b"", "is damaged"),
    # 2**60 tuples for whoever writes them out
    "a name that is a bomb": (b")" + b"q\x00h\x00\x86" * 60 + b"q\x01h\x01\x93.", "a name that is no text"),
    "a storage that is a bomb": (b")" + b"q\x00h\x00\x86" * 60 + b"Q.", "is damaged"),
    "a program without end": (b"N" * 1_000_001 + b".", "longer than any tuner's"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_that_are_refused(case: str, tmp_path: Path) -> None:
    program, message = PROGRAMS[case]
    (tmp_path / "plain").mkdir()
    with pytest.raises(ArtifactError):  # what reading any file imports, such as the encoding of names in an archive
        convert(_with_program(b"", tmp_path / "plain"), "user/base")
    before = set(sys.modules)
    with pytest.raises(ArtifactError, match=message) as caught:
        convert(_with_program(program, tmp_path), "user/base")
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    assert set(sys.modules) == before  # nothing that a file names is imported


def test_the_reader_uses_no_unpickler() -> None:
    import zoft.tuner.pickled as module

    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert "import pickle\n" not in source
    for word in ("getattr(", "import_module", "__import__", "eval(", "exec(", "Unpickler"):
        assert word not in source
    assert len(ALLOWED) == 10


def test_other_networks_are_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        wrong: dict[str, tuple[nn.Module, str]] = {
            "deeper": (
                nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()),
                "deeper is no Sequential",
            ),
            "inputs": (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), r"hidden\.weight of shape \(4, 6\)"),
            "no bias": (nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)), "lacks a bias"),
            "ReLU": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)), r"names torch.*ReLU"),
            "double": (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double(), r"torch\.DoubleStorage"),
        }
    for name, (module, message) in wrong.items():
        with pytest.raises(ArtifactError, match=message):
            convert(hostile({name: module}, tmp_path), "user/base")
    for name in ("", " a", "a" * 513, "a\nb"):  # the layout could not hold them
        with pytest.raises(ArtifactError, match="is no name of a parameter"):
            convert(hostile(networks([name], hidden=2), tmp_path), "user/base")
    with pytest.raises(ArtifactError, match=r"hidden units of shape \(65537,\)"):
        convert(hostile(networks(["a"], hidden=65537), tmp_path), "user/base")
    different = {**networks(["a"], hidden=4), **networks(["b"], hidden=8)}
    with pytest.raises(ArtifactError, match="network of b has"):
        convert(hostile(different, tmp_path), "user/base")
    broken = networks(["a"])
    with torch.no_grad():
        broken["a"][0].bias[3] = float("nan")
    with pytest.raises(ArtifactError, match="not finite"):
        convert(hostile(broken, tmp_path), "user/base")


def test_archives_that_are_refused(tmp_path: Path) -> None:
    good = save_published(networks(NAMES, hidden=2), tmp_path / "good.pth")
    data, bad = good.read_bytes(), tmp_path / "bad.pth"
    cases: list[tuple[Path, str]] = [
        (rewrite(data, bad, {}, compress=True), "is compressed or too large"),
        (rewrite(data, tmp_path / "1.pth", {"data/3": lambda d: None}), "lacks the entry"),
        (rewrite(data, tmp_path / "2.pth", {"data/3": lambda d: d + b"\0\0\0\0"}), "another size"),
        (rewrite(data, tmp_path / "3.pth", {"byteorder": lambda d: b"big"}), "not little-endian"),
        (rewrite(data, tmp_path / "4.pth", {"data.pkl": lambda d: None}), "not one of torch.save"),
    ]
    for number, content in enumerate((b"", b"\x80\x02}.", b"PK\x03\x04", data[:-30], b"\x7fELF")):
        (tmp_path / f"raw{number}.pth").write_bytes(content)
        cases.append((tmp_path / f"raw{number}.pth", "is not read: it is|is not read: "))
    spoilt = bytearray(data)
    with zipfile.ZipFile(good) as archive:
        entry = next(item for item in archive.infolist() if item.filename.endswith("data/3"))
        name_length, extra_length = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
        spoilt[entry.header_offset + 30 + name_length + extra_length] ^= 1
    (tmp_path / "crc.pth").write_bytes(bytes(spoilt))
    cases.append((tmp_path / "crc.pth", "CRC"))
    end = data.rindex(b"PK\x05\x06")
    huge = data[: end + 12] + struct.pack("<I", 2**32 - 16) + data[end + 16 :]  # the size of the directory
    (tmp_path / "huge.pth").write_bytes(huge)
    cases.append((tmp_path / "huge.pth", "is damaged"))
    twice = tmp_path / "twice.pth"
    twice.write_bytes(data)
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"")
    cases.append((twice, "two entries of the same name"))
    entry_of_directory = data[data.index(b"PK\x01\x02") : data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)]
    (tmp_path / "many.pth").write_bytes(data[:end] + entry_of_directory * 20_001 + data[end:])
    cases.append((tmp_path / "many.pth", "too many entries"))
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "device.pth").symlink_to("/dev/zero")
    cases += [(path, "is no regular file") for path in (tmp_path, tmp_path / "pipe.pth", tmp_path / "device.pth")]
    cases.append((tmp_path / "absent.pth", "cannot be read"))
    for file, message in cases:
        with pytest.raises(ArtifactError, match=message):
            convert(file, "user/base")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    base = str(save_tiny("llama", tmp_path / "base"))
    names = base_blocks(base)[0].names
    save_published(networks(names, dtype=torch.float16), tmp_path / "published.pth", "cuda:3")
    args = ["tuner", "convert", "published.pth", "--base", base]
    code, out, err = run(capsys, *args, "--output-dir", "converted")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{len(names)} networks of 64 hidden units, names and shapes as in {base}"
    assert run(capsys, *args, "--output-dir", "converted")[0] == 2
    config = json.loads(Path("converted/tuner_config.json").read_text())
    assert config["normalization"] == {"kind": "published", "embedding_rows": 15}
    record = json.loads(Path("converted/meta_train.json").read_text())["converted"]
    assert (record["file"], record["names_checked"]) == ("published.pth", True)
    assert "does not record what it was learned on" in Path("converted/README.md").read_text()
    shown = json.loads(run(capsys, "tuner", "show", "./converted", "--json")[1])
    assert shown["tasks"] == "not recorded in the file that it was converted from"
    assert run(capsys, "tuner", "show", "./converted", "--plot", "sigma.png", "--model", base)[0] == 0
    assert Path("sigma.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, *args[:3], "--base", "zoft-base", "--output-dir", "other")
    assert code == 4
    assert "is for another base" in err
    code, _, err = run(capsys, *args[:3], "--base", "user/absent", "--output-dir", "unchecked")
    assert code == 0
    assert "names in the file are not checked" in err
    assert Tuner.from_pretrained("./unchecked").config.blocks.names == names
