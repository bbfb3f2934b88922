"""Reading a file of ``torch.save`` without unpickling it.

A pickle is a program for a small stack machine, and unpickling runs it. This module walks over its opcodes
(``pickletools.genops`` only parses) and carries out the harmless ones on inert values: text, numbers, lists,
dictionaries, and the stand-ins below for modules and tensors. A name in the program is looked up nowhere. It is
compared with :data:`ALLOWED`, and any other one is refused by its name, as is any opcode that is not needed. There
is no import, no call of anything that the file names, and no pickle module.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoft.errors import ArtifactError

#: The names that a file may hold, as ``module name``, and what stands for them here.
ALLOWED: dict[str, str] = {
    "collections OrderedDict": "mapping",
    "__builtin__ set": "set",
    "builtins set": "set",
    "torch.nn.modules.container Sequential": "module",
    "torch.nn.modules.linear Linear": "module",
    "torch.nn.modules.activation Tanh": "module",
    "torch._utils _rebuild_parameter": "parameter",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
}

#: Limits on bytes, entries of the archive and opcodes of the program. A network needs 4 entries and some 550
#: opcodes, so that they leave room for well over a thousand blocks and bound the time that any file can take.
_LARGEST_PROGRAM, _LARGEST_FILE, _MOST_ENTRIES, _MOST_OPCODES = 16 * 2**20, 64 * 2**20, 20_000, 1_000_000
_ENTRY = b"PK\x01\x02"  # begins every entry of an archive's directory
_NEXT = "Give a file of the published tuners, as `torch.save` wrote it, or one that zoft wrote."


@dataclass(frozen=True)
class Name:
    """An allowed name: nothing but its text and what stands for it."""

    text: str
    role: str


@dataclass
class Module:
    """Stands for an ``nn.Module``: the name of its class and its attributes."""

    kind: str
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """Stands for a tensor's storage: an entry of the archive."""

    dtype: str
    key: str
    device: str
    count: int


@dataclass(frozen=True)
class TensorOf:
    """Stands for a tensor: a contiguous view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]


class Archive:
    """A file of ``torch.save`` in its zip format (torch 1.6 and later).

    Args:
        file: the file.

    Raises:
        ArtifactError: it is none, or it holds a name or an opcode that is not allowed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with _damaged(file):
            if file.stat().st_size > _LARGEST_FILE:
                raise refused(file, "it is larger than any tuner")
            if not file.is_file():  # a pipe or a device states no size, and may never end
                raise refused(file, "it is no regular file")
            data = file.read_bytes()
            if data[:4] != b"PK\x03\x04":
                raise refused(file, _other_format(data[:4]))
            if data.count(_ENTRY) > _MOST_ENTRIES:  # counted before an object is made of each
                raise refused(file, "it has too many entries")
            # In memory a read ends where the data ends, whatever size a damaged directory states.
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            entries = self._zip.infolist()
            self._entries = {entry.filename: entry for entry in entries}
            if len(self._entries) < len(entries):  # readers differ in which one they take
                raise refused(file, "it has two entries of the same name")
            programs = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(programs) != 1:
                raise refused(file, "it is a zip file, but not one of torch.save")
            #: Name of the folder in the archive, which torch makes of the name that was saved to.
            self.root = programs[0].removesuffix("/data.pkl")
            self._left = file.stat().st_size
            order = f"{self.root}/byteorder"
            if order in self._entries and self._bytes(order, 16) != b"little":
                raise refused(file, "its numbers are not little-endian")
            #: What the program built.
            self.content = interpret(self._bytes(programs[0], _LARGEST_PROGRAM), file)

    def array(self, tensor: TensorOf) -> NDArray[np.float32]:
        """The values of a tensor, as float32 (exact from float16)."""
        storage, size = tensor.storage, 1
        for length in tensor.shape:
            size *= length
        with _damaged(self.file):
            data = self._bytes(f"{self.root}/data/{storage.key}", _LARGEST_FILE)
            values = np.frombuffer(data, dtype=storage.dtype)
            if len(values) != storage.count or tensor.offset + size > len(values):
                raise refused(self.file, f"storage {storage.key} has another size than its tensor says")
            return values[tensor.offset : tensor.offset + size].astype(np.float32).reshape(tensor.shape)

    def _bytes(self, name: str, most: int) -> bytes:
        """An entry; in all no more than the file's own size, so that overlapping entries gain nothing."""
        entry = self._entries.get(name)
        if entry is None:
            raise refused(self.file, f"it lacks the entry {name[:80]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > min(most, self._left):
            raise refused(self.file, f"the entry {name[:80]!r} is compressed or too large")
        self._left -= entry.file_size
        return self._zip.read(entry)


def refused(file: Path, why: str) -> ArtifactError:
    """The error for a file that is not read."""
    return ArtifactError(f"{file} is not read: {why}", _NEXT)


def interpret(program: bytes, file: Path) -> Any:
    """What the pickle ``program`` builds, of inert values.

    Args:
        file: for messages.

    Raises:
        ArtifactError: a name or an opcode that is not allowed, or a program that makes no sense.
    """
    machine = _Machine(file)
    with _damaged(file):
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if count >= _MOST_OPCODES:
                raise refused(file, "its pickle is longer than any tuner's")
            if opcode.name == "STOP":
                return machine.pop()
            machine.do(opcode.name, argument)
    raise refused(file, "its pickle has no end")


def _other_format(begin: bytes) -> str:
    if begin[:1] == b"\x80":
        return "it is a pickle without torch's archive around it (torch before 1.6, or no torch file)"
    return "it is no file of torch.save"


@contextmanager
def _damaged(file: Path) -> Iterator[None]:
    """Within: what a damaged archive or program makes Python's modules raise becomes an ArtifactError."""
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}", "Give the path of a file.") from None
    except (zipfile.BadZipFile, ArithmeticError, EOFError, LookupError, MemoryError, RuntimeError) as error:
        raise _spoilt(file, error) from None
    except (TypeError, ValueError) as error:
        raise _spoilt(file, error) from None


def _spoilt(file: Path, error: Exception) -> ArtifactError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return refused(file, f"it is damaged ({reason})")


_MARK = object()

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"})


class _Machine:
    """The stack machine: values, marks and a memo."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._verbs: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "MARK": lambda _: self._stack.append(_MARK),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "TUPLE": lambda _: self._stack.append(tuple(self._to_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": self._get,
            "LONG_BINGET": self._get,
            "GLOBAL": self._name,
            "STACK_GLOBAL": lambda _: self._name_of(self._last(2)),
            "SETITEM": lambda _: self._items(self._last(2)),
            "SETITEMS": lambda _: self._items(self._to_mark()),
            "REDUCE": self._reduce,
            "NEWOBJ": self._new,
            "BUILD": self._build,
            "BINPERSID": self._storage,
        }

    def do(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        if opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in self._verbs:
            self._verbs[opcode](argument)
        else:
            raise refused(self._file, f"its pickle uses the opcode {opcode}, which no tuner needs")

    def pop(self) -> Any:
        """The value on top."""
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark in place of a value")
        return value

    def _last(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def _to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _tuple(self, count: int) -> None:
        self._stack.append(tuple(self._last(count)))

    def _put(self, index: Any) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    def _name(self, text: str) -> None:
        if text not in ALLOWED:
            shown = "".join(c if c.isprintable() else "?" for c in text)[:120].replace(" ", ".", 1)
            raise refused(self._file, f"it names {shown}, which no tuner needs and a pickle could run")
        self._stack.append(Name(text, ALLOWED[text]))

    def _name_of(self, parts: list[Any]) -> None:
        # Nothing else is made into text: a tuple of tuples shared by the memo has exponentially much of it.
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("a name that is no text")
        self._name(" ".join(parts))

    def _items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(flat) % 2 or not all(isinstance(key, str) for key in flat[::2]):
            raise ValueError("items that are no pairs of a text and a value")
        target.update(zip(flat[::2], flat[1::2], strict=True))

    def _reduce(self, _: Any) -> None:
        name, arguments = self._last(2)
        role = name.role if isinstance(name, Name) else ""
        if role == "mapping" and arguments == ():
            self._stack.append({})
        elif role == "set" and arguments == ([],):
            self._stack.append(frozenset())
        elif role == "tensor":
            self._stack.append(_tensor(arguments))
        elif role == "parameter" and isinstance(arguments[0], TensorOf):
            self._stack.append(arguments[0])
        else:
            raise ValueError("a call that no tuner needs")

    def _new(self, _: Any) -> None:
        name, arguments = self._last(2)
        if not isinstance(name, Name) or name.role != "module" or arguments != ():
            raise ValueError("an object that is no module")
        self._stack.append(Module(name.text.rpartition(" ")[2]))

    def _build(self, _: Any) -> None:
        state = self.pop()
        module = self._stack[-1]
        if not isinstance(module, Module) or not isinstance(state, dict) or module.state:
            raise ValueError("a state that is no module's")
        module.state = state

    def _storage(self, _: Any) -> None:
        tag, kind, key, device, count = self.pop()
        fits = tag == "storage" and isinstance(kind, Name) and kind.role.startswith("<")
        if not fits or not re.fullmatch(r"[0-9]{1,9}", key) or not isinstance(device, str) or not _is_size(count):
            raise ValueError("a storage that is none")
        self._stack.append(Storage(kind.role, key, device, count))


def _tensor(arguments: Any) -> TensorOf:
    """``_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)`` of a contiguous tensor."""
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or len(shape) > 4:
        raise ValueError("a tensor without a storage")
    if not all(map(_is_size, (offset, *shape))):
        raise ValueError("a tensor of an impossible size")
    expected, step = [], 1
    for length in reversed(shape):
        expected.append(step)
        step *= length
    lengthy = [(have, want) for length, have, want in zip(shape, stride, expected[::-1], strict=True) if length != 1]
    if any(have != want for have, want in lengthy):
        raise ValueError("a tensor that is not contiguous")
    return TensorOf(storage, offset, shape)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31
