"""Damaged and hostile tuners by the thousand: ``python -m tests.fuzz_tuners --count 20000 --seed 0``.

Every case is a valid tuner (a plain one, one with scales and one with a low rank in turn) with one mutation, and a
function of the seed and its number (``--only NUMBER`` repeats one). It goes through the command line in this process
(``zoft tuner show FOLDER``, or the conversion of a published file), and must end as a ``ZoftError`` with exit code 3
or 4: no traceback, no more than 5 seconds of the processor (and a watchdog for what hangs without using it), no more
than 1 GB, nothing written beside its own folder.

Some mutations leave a tuner valid: another digit in the recommended learning rate, a blank in the JSON, a bit of an
archive that nothing reads. Such a case may be accepted, and is then checked to be valid: its σ is finite, it binds or
is refused as incompatible, and written and read again it is the same tuner. The table counts it under ``same`` where
it computes with exactly what the tuner without the mutation does (``Tuner.digest``), and under ``valid`` where it
computes with other values that the layout allows; ``other`` counts every other exit code. Of a kind that damages what
a tuner computes with, no case may be accepted.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tests.models import TiedLM, build
from tests.published import networks, rewrite, save_published
from tests.structures import structure_for
from zoft.blocks import Blocks
from zoft.cli import main as command_line
from zoft.errors import ZoftError
from zoft.models import base_blocks
from zoft.tuner import NetworkConfig, Tuner
from zoft.tuner.config import BlockTable
from zoft.tuner.convert import convert
from zoft.tuner.show import sigma_of
from zoft.tuner.step_rule import StepRuleConfig

SECONDS, BYTES = 5.0, 10**9

CONFIG, WEIGHTS, RECORD = "tuner_config.json", "tuner.safetensors", "meta_train.json"

Random = random.Random

#: Values that a reader may not expect.
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, -1e308, 5e-324, 0.5, "", "x", " ", "1", "nan", [], {}, [[]]),
    *([1] * 1000, {"a": {"b": {}}}, "\ud800", "\x1b[2J", "a\nb", "../../etc/passwd", "/etc/passwd", "~root"),
    *("hf://a/b", "C:\\con", "a\0b", "x" * 10_000, "\u202e", "${HOME}", "%s%n", "__proto__"),
)

NAMES = ("../../x", "/etc/passwd", "..\\x", "a/../b", "~", "\0", "\x1b[31mred", "a\nb", "", " ", "x" * 4096, "\ud800")


def odd(rng: Random) -> Any:
    """One of :data:`ODD`, of its own: the next mutation may change it."""
    return copy.deepcopy(rng.choice(ODD))


class Plain(dict[str, Any]):
    """Files by name: bytes, or a function that puts something else there."""


def spoil_bytes(rng: Random, data: bytes) -> bytes:
    """Truncated, with bits flipped, or with a part doubled, removed or put in."""
    how = rng.randrange(5)
    if how == 0:
        return data[: rng.randrange(len(data))]
    if how == 1:
        spoilt = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        return bytes(spoilt)
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice((1, 4, 64, 1000)))
    if how == 2:
        return data[:begin] + data[end:]
    if how == 3:
        return data[:end] + data[begin:end] + data[end:]
    return data[:begin] + rng.randbytes(rng.choice((1, 8, 300))) + data[begin:]


def bytes_of_weights(rng: Random, files: Plain) -> None:
    """Damaged bytes in the weights."""
    files[WEIGHTS] = spoil_bytes(rng, files[WEIGHTS])


def bytes_of_config(rng: Random, files: Plain) -> None:
    """Damaged bytes in the configuration or the record."""
    name = rng.choice((CONFIG, CONFIG, CONFIG, RECORD))
    files[name] = spoil_bytes(rng, files[name])


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key in it."""
    found: list[tuple[Any, Any]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += [(value, key), *_spots(inner)]
    return found


def values_of_config(rng: Random, files: Plain) -> None:
    """Odd values at odd places, keys lost, renamed or unheard of."""
    name = rng.choice((CONFIG, CONFIG, CONFIG, RECORD))
    content = json.loads(files[name])
    for _ in range(rng.choice((1, 1, 3))):
        spots = _spots(content)
        if not spots:
            break
        owner, key = rng.choice(spots)
        how = rng.randrange(5)
        if how == 0:
            del owner[key]
        elif how == 1 and isinstance(owner, dict):
            owner[rng.choice(NAMES)] = owner.pop(key)
        elif how == 2 and isinstance(owner, dict):
            owner.update({f"key-{i}": odd(rng) for i in range(rng.choice((1, 20, 5000)))})
        else:
            owner[key] = odd(rng)
    files[name] = _json(content)


def _json(content: Any) -> bytes:
    try:
        return json.dumps(content).encode("utf-8", "surrogatepass")
    except ValueError:  # a number too long to be written out
        return b'{"format": ' + b"9" * 5000 + b"}"


def names_of_blocks(rng: Random, files: Plain) -> None:
    """Blocks called by what may be a path, a command to a terminal, or another block's name."""
    content = json.loads(files[CONFIG])
    names = content["blocks"]["names"]
    names[rng.randrange(len(names))] = rng.choice([*NAMES, names[0] + "x", *names[1:2]])
    if names == json.loads(files[CONFIG])["blocks"]["names"]:
        names.pop()
    files[CONFIG] = _json(content)


def shapes_of_blocks(rng: Random, files: Plain) -> None:
    """Sizes that are wrong, negative, huge or no numbers."""
    content = json.loads(files[CONFIG])
    shapes = content["blocks"]["shapes"]
    owner, key = rng.choice(_spots(shapes))
    fitting = [value for value in ODD if value != owner[key] and not (value is None and owner is shapes)]
    owner[key] = copy.deepcopy(rng.choice(fitting))
    files[CONFIG] = _json(content)


def sizes_of_networks(rng: Random, files: Plain) -> None:
    """A network that is not the one in the weights, or too large to be made."""
    content = json.loads(files[CONFIG])
    content["network"]["hidden"] = rng.choice((1, 7, 9, 65536, 65537, 10**9, 2**62, 10**30, -8, 0, "8x", 8.5, None, []))
    files[CONFIG] = _json(content)


def tensors(rng: Random, files: Plain) -> None:
    """Tensors of wrong shapes, dtypes and names, with NaN and infinities, missing ones and more."""
    held = load(files[WEIGHTS])
    name = rng.choice(sorted(held))
    tensor = held[name]
    how = rng.randrange(8)
    if how == 0:
        del held[name]
    elif how == 1:
        held[rng.choice(("more", "../x", "hidden.weight.", "x" * 2000))] = torch.zeros(rng.choice((0, 1, 1000)))
    elif how == 2:
        held[name] = tensor.reshape(-1)
    elif how == 3:
        held[name] = torch.cat([tensor, tensor])
    elif how == 4:
        held[name] = tensor.to(rng.choice((torch.float16, torch.float64, torch.bfloat16, torch.int32, torch.bool)))
    elif how == 5:
        flat = tensor.clone().view(-1)
        flat[rng.randrange(len(flat))] = rng.choice((float("nan"), float("inf"), -float("inf")))
        held[name] = flat.view(tensor.shape)
    elif how == 6:
        held = {f"t{i}": torch.zeros(1) for i in range(rng.choice((1, 3000)))}
    else:
        held[name] = tensor + 1
    files[WEIGHTS] = save({key: value.contiguous() for key, value in held.items()})


def headers(rng: Random, files: Plain) -> None:
    """Headers of the weights that are huge, deep, contradictory or no JSON."""
    length = struct.unpack("<Q", files[WEIGHTS][:8])[0]
    header, data = json.loads(files[WEIGHTS][8 : 8 + length]), files[WEIGHTS][8 + length :]
    how = rng.randrange(6)
    if how == 0:
        files[WEIGHTS] = (
            struct.pack("<Q", rng.choice((0, 1, length - 1, length + 9, 10**8, 2**40, 2**64 - 1)))
            + (files[WEIGHTS][8:])
        )
        return
    entry = header[rng.choice([key for key in header if key != "__metadata__"])]
    text: bytes | None = None
    if how == 1:
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**60], [-4, 4], [8, 4], [0, 4], "all", [], None))
    elif how == 2:
        entry["shape"] = rng.choice(([], [2**40, 2**40], [-1], [1.5], "5", None, [1] * 500))
    elif how == 3:
        entry["dtype"] = rng.choice(("F8_E5M2", "U64", "C64", "F4", "float32", "", None, 32))
    elif how == 4:
        depth = rng.choice((100, 5_000, 200_000))
        text = b'{"a":' * depth + b"1" + b"}" * depth
    else:
        header |= {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    text = text if text is not None else _json(header)
    files[WEIGHTS] = struct.pack("<Q", len(text)) + text + data


def deep_json(rng: Random, files: Plain) -> None:
    """JSON nested until a parser gives up, or as large as a reader accepts."""
    depth = rng.choice((50, 900, 2_000, 100_000, 1_000_000))
    kind = rng.randrange(4)
    text = [
        b"[" * depth + b"]" * depth,
        b'{"format":' * depth + b"1" + b"}" * depth,
        b'{"format": 1, "blocks": ' + b"[" * depth + b"]" * depth + b"}",
        b'{"format": 1, "blocks": {"names": [' + b'"a",' * depth + b'"a"], "shapes": [' + b"[]," * depth + b"[]]}}",
    ][kind]
    # A record that is merely deep is one all the same.
    in_record = kind == 0 or (kind == 1 and depth >= 100_000 and rng.random() < 0.5)
    files[RECORD if in_record else CONFIG] = text


def formats(rng: Random, files: Plain) -> None:
    """Other versions of the layout."""
    content = json.loads(files[CONFIG])
    content["format"] = rng.choice((2, 3, 10**6, 10**300, 0, -1, 1.5, True, "1", None, [], {}))
    content["zoft_version"] = rng.choice(("9.1", "", None, [], {"a": 1}, "x" * 5000, "\x1b[2J", 2))
    files[CONFIG] = _json(content)


def huge_files(rng: Random, files: Plain) -> None:
    """Files with a hole of a gigabyte in them."""
    name = rng.choice((CONFIG, WEIGHTS, RECORD))
    data, size = files[name], rng.choice((3 * 10**8, 10**9, 10**11))

    def put(path: Path) -> None:
        path.write_bytes(data)
        os.truncate(path, size)

    files[name] = put


def strange_files(rng: Random, files: Plain) -> None:
    """No file, an empty one, a folder, a pipe, a device, a loop of links, a pickle."""
    name = rng.choice((CONFIG, WEIGHTS))
    choice = rng.randrange(8)
    puts: list[Callable[[Path], Any]] = [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("/nowhere"),
        lambda path: path.with_suffix(".pth").write_bytes(b"\x80\x04."),
    ]
    files[name] = puts[choice]


def bytes_of_archive(rng: Random, files: Plain) -> None:
    """A published file with damaged bytes."""
    files["tuner.pth"] = spoil_bytes(rng, files["tuner.pth"])


#: Programs that a pickle could run, and what is none.
PROGRAMS = (
    b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    b"ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
    b"(S'true'\nios\nsystem\n.",
    b"(cos\nsystem\nS'true'\no.",
    b"ccollections\nOrderedDict\n" + b")R" + b"0.",
    b"P1\n.",
    b"\x82\x01.",
    b"}" + b"(" * 100_000 + b".",
    b"(" * 3 + b"t" * 9 + b".",
    b"h\xff.",
    b"\x8b" + struct.pack("<I", 2**31 - 1) + b"1.",
    b"B" + struct.pack("<I", 2**32 - 1) + b".",
    b"].",
    b"}.",
    b"N.",
    b"N" * 1_000_001 + b".",
    b")" + b"q\x00h\x00\x86" * 60 + b"q\x01h\x01\x93.",
    b")" + b"q\x00h\x00\x86" * 60 + b"Q.",
    b"",
)


def programs(rng: Random, files: Plain) -> None:
    """A published file whose pickle is another program, in an archive that is in order."""
    how = rng.randrange(4)
    with zipfile.ZipFile(io.BytesIO(files["tuner.pth"])) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    storages = [name for name in names if name.startswith("data/")]
    changes: dict[str, Callable[[bytes], bytes | None]] = {}
    if how == 0:
        changes["data.pkl"] = lambda data: rng.choice((b"", b"\x80\x02", b"\x80\x04")) + rng.choice(PROGRAMS)
    elif how == 1:
        changes["data.pkl"] = lambda data: spoil_bytes(rng, data)
    elif how == 2:
        old = rng.choice((b"torch.nn.modules.linear", b"Tanh", b"torch._utils", b"FloatStorage", b"OrderedDict"))
        new = rng.choice((b"os", b"Sigmoid", b"subprocess", b"ByteStorage", b"defaultdict", b"\xff\xfe"))
        changes["data.pkl"] = lambda data: data.replace(old, new, rng.choice((1, -1)))
    else:
        changes[rng.choice([*storages, "byteorder", "data.pkl"])] = lambda data: rng.choice(
            (None, b"", data[:-1], data * 2, b"big", struct.pack("<f", float("nan")) * (len(data) // 4))
        )
    compress = rng.random() < 0.1
    with tempfile.NamedTemporaryFile() as file:
        rewrite(files["tuner.pth"], Path(file.name), changes, compress)
        files["tuner.pth"] = Path(file.name).read_bytes()


#: Every kind of mutation, and whether a tuner may still be one after it.
FOLDER_KINDS: dict[str, tuple[Callable[[Random, Plain], None], bool]] = {
    "bytes of the weights": (bytes_of_weights, False),
    "bytes of the configuration": (bytes_of_config, True),
    "values of the configuration": (values_of_config, True),
    "names of blocks": (names_of_blocks, False),
    "shapes of blocks": (shapes_of_blocks, False),
    "sizes of networks": (sizes_of_networks, False),
    "tensors": (tensors, False),
    "headers of the weights": (headers, False),
    "deep JSON": (deep_json, False),
    "formats": (formats, False),
    "huge files": (huge_files, False),
    "strange files": (strange_files, False),
}
ARCHIVE_KINDS: dict[str, tuple[Callable[[Random, Plain], None], bool]] = {
    "bytes of a published file": (bytes_of_archive, True),
    "programs in a published file": (programs, True),
}
KINDS = FOLDER_KINDS | ARCHIVE_KINDS


@dataclass
class Outcome:
    """How a case ended: its exit code, and what is wrong with that, if anything."""

    number: int
    kind: str
    code: int
    seconds: float
    problem: str = ""
    error: str = ""
    same: bool = False


@dataclass
class Fuzzer:
    """Makes the cases of a seed in a folder of its own, and runs them.

    Args:
        seed: of everything that is drawn.
        root: an empty folder.
    """

    seed: int
    root: Path
    folders: list[tuple[Plain, str]] = field(init=False)
    archive: bytes = field(init=False)
    blocks: BlockTable = field(init=False)
    converted: str = field(init=False)
    digest: str = field(init=False)
    _by_command: bool = field(init=False, default=False)
    _same: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.model = build(TiedLM)
        plain = Tuner.untrained(self.model, NetworkConfig(hidden=8, init="linear"), base_model_name_or_path="user/base")
        plain.provenance = {"tasks": ["one", "two"], "config": {"steps": 3}, "curve": [[1, 0.5, 0.25]] * 20}
        structures = (None, structure_for(self.model, "scales"), structure_for(self.model, "low-rank", rank=2), None)
        #: The files of valid tuners, two without and two with a structure, and what they compute with.
        self.folders = []
        gauss_newton = StepRuleConfig(kind="gauss-newton", damping=2.0)
        rules = (None, StepRuleConfig(curvature=300.0), StepRuleConfig(kind="slopes", slope=7.0), gauss_newton)
        for structure, rule in zip(structures, rules, strict=True):
            tuner = plain.structured(structure)
            tuner.config = tuner.config.model_copy(update={"step_rule": rule})
            valid = tuner.save_pretrained(self.root / "valid")
            files = Plain({path.name: path.read_bytes() for path in valid.iterdir()})
            self.folders.append((files, tuner.digest))
        blocks = Blocks.of(self.model)
        self.blocks = BlockTable.of(blocks.names, blocks.shapes)
        file = save_published(networks(blocks.names, hidden=8), self.root / "valid" / "published.pth", "cuda:0")
        self.archive = file.read_bytes()
        self.converted = convert(file, "user/base", None, self.blocks).digest
        file.unlink()

    def run(self, number: int) -> Outcome:
        """Make and run one case."""
        rng = Random(f"{self.seed}/{number}")
        kind = list(KINDS)[number % len(KINDS)]
        mutate, may_pass = KINDS[kind]
        case = self.root / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        if kind in ARCHIVE_KINDS:
            files = Plain({"tuner.pth": self.archive})
            mutate(rng, files)
            may_pass = may_pass and files["tuner.pth"] != self.archive
            self.digest = self.converted
        else:
            valid, self.digest = self.folders[number // len(KINDS) % len(self.folders)]
            files = Plain(valid)
            mutate(rng, files)
        for name, content in files.items():
            content(case / name) if callable(content) else (case / name).write_bytes(content)
        self._by_command = number // len(KINDS) % 10 == 0
        self._same = False
        began = time.process_time()
        runner = self._convert if kind in ARCHIVE_KINDS else self._show
        code, error, problem = runner(case)
        seconds = time.process_time() - began
        if seconds > SECONDS:
            problem = f"took {seconds:.1f} s"
        elif code == 0 and not may_pass and not problem:
            problem = "was accepted"
        elif code not in (0, 3, 4) and not problem:
            problem = f"exit code {code}: {error}"
        return Outcome(number, kind, code, seconds, problem, error, self._same)

    def _show(self, case: Path) -> tuple[int, str, str]:
        """``zoft tuner show FOLDER``: exit code, the error, a problem."""
        code, error, problem = self._command("tuner", "show", str(case))
        if code == 0 and not problem:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem = self._check(Tuner.from_pretrained(case))
        return code, error, problem

    def _convert(self, case: Path) -> tuple[int, str, str]:
        """A conversion: mostly by the function that the command calls, now and then by the command, for a base
        that the file is not for.
        """
        file = case / "tuner.pth"
        if self._by_command:
            return self._command("tuner", "convert", str(file), "--base", "zoft-base", "--output-dir", str(case / "x"))
        try:
            tuner = convert(file, "user/base", None, self.blocks)
        except ZoftError as error:
            return error.exit_code, str(error)[:300], ""
        except Exception as error:
            return 1, repr(error)[:300], ""
        return 0, "", self._check(tuner)

    def _command(self, *args: str) -> tuple[int, str, str]:
        """The command line in this process: exit code, the error, a problem."""
        out, err = io.StringIO(), io.StringIO()
        code = 1
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command_line(list(args))
            except SystemExit as end:
                code = int(end.code or 0)
        said = err.getvalue()
        problem = "a traceback" if "Traceback" in said else ""
        if len(said) > 10_000:
            problem = f"{len(said)} characters of messages"
        errors = [line for line in said.splitlines() if not line.startswith("zoft: warning")]
        return code, " ".join(errors)[:300], problem

    def _check(self, tuner: Tuner) -> str:
        """What is wrong with a tuner that was accepted; empty if nothing."""
        sigma: Tensor = sigma_of(tuner)
        if not bool(torch.isfinite(sigma).all()):
            return "σ is not finite"
        self._same = tuner.digest == self.digest
        try:
            if Tuner.from_folder(tuner.save_pretrained(self.root / "case" / "again")).digest != tuner.digest:
                return "written and read again it is another tuner"
        except ZoftError as error:
            return f"written again it is refused: {error}"[:300]
        try:
            tuner.bind(self.model)
        except ZoftError as error:
            return "" if error.exit_code == 4 else f"binding: exit code {error.exit_code}"
        return ""


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory() -> None:
    """Let no allocation go far beyond the limit, even one that would never be touched."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, resource.RLIM_INFINITY))


def fuzz(seed: int, numbers: Iterable[int], root: Path) -> list[Outcome]:
    """Run the cases."""
    fuzzer = Fuzzer(seed, root)
    base_blocks("zoft-base")  # what the first one would import is not its own time
    outcomes = []
    for number in numbers:
        outcomes.append(fuzzer.run(number))
        if set(os.listdir(root)) != {"valid", "case"}:
            outcomes[-1].problem = f"wrote beside its folder: {sorted(os.listdir(root))}"
    return outcomes


#: How a case can end; the module says what they are.
CLASSES = ("exit 3", "exit 4", "same", "valid", "other")


def _class(outcome: Outcome) -> str:
    if outcome.code == 0:
        return "same" if outcome.same else "valid"
    return f"exit {outcome.code}" if outcome.code in (3, 4) else "other"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="repeat one case")
    parser.add_argument("--kind", default="", help="only the kinds of mutation with this in their name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers = (
        range(given.only, given.only + 1) if given.only is not None else range(given.first, given.first + given.count)
    )
    limit_memory()
    faulthandler.dump_traceback_later(1200 + given.count // 10, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        chosen = [number for number in numbers if given.kind in list(KINDS)[number % len(KINDS)]]
        outcomes = fuzz(given.seed, chosen, Path(folder))
    table: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for outcome in outcomes:
        table[outcome.kind][_class(outcome)] += 1
    table["all"] = sum(table.values(), Counter())
    print(f"{'mutation':32}{'cases':>7}" + "".join(f"{name:>8}" for name in CLASSES))
    for kind, counts in table.items():
        print(f"{kind:32}{counts.total():7}" + "".join(f"{counts[name]:8}" for name in CLASSES))
    problems = [outcome for outcome in outcomes if outcome.problem]
    for outcome in problems[:20]:
        print(f"case {outcome.number} ({outcome.kind}): {outcome.problem}")
    slowest, peak = max(outcome.seconds for outcome in outcomes), peak_memory()
    print(f"{len(outcomes)} cases, {len(problems)} problems; slowest {slowest:.2f} s, peak memory {peak / 1e6:.0f} MB")
    sys.exit(1 if problems or peak > BYTES else 0)


if __name__ == "__main__":
    main()
