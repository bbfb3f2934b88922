"""Files as the tuners were published: ``torch.save`` of a dictionary of networks by parameter name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from tests.models import filled


def networks(names: Iterable[str], hidden: int = 64, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """A ``Sequential(Linear, Tanh, Linear)`` for every name, with seeded values."""
    made: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for seed, name in enumerate(names):
            module = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 1))
            made[name] = filled(module, seed).to(dtype)
    return made


def save_published(content: object, file: Path, device: str = "cpu") -> Path:
    """Write ``content``, with another device tag on its storages."""
    stream = io.BytesIO()
    torch.save(content, stream)
    tag = f"X{chr(len(device))}\x00\x00\x00{device}".encode()
    return rewrite(stream.getvalue(), file, {"data.pkl": lambda data: data.replace(b"X\x03\x00\x00\x00cpu", tag)})


def rewrite(
    archive: bytes, file: Path, changes: dict[str, Callable[[bytes], bytes | None]], compress: bool = False
) -> Path:
    """Write the archive with some entries changed (None leaves one out), with right checksums."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(file, "w", kind) as target:
        for name in source.namelist():
            change = changes.get(name.partition("/")[2], lambda data: data)
            data = change(source.read(name))
            if data is not None:
                target.writestr(name, data)
    return file
