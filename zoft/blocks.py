"""Blocks: the trainable parameter tensors of a model, in order, under names that wrappers cannot change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import nn

from zoft.errors import UsageError

#: Path segments that wrappers insert anywhere (torch.compile, FSDP, activation checkpointing).
_INSERTED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

#: Path segments that wrappers put in front (DataParallel and DDP; PEFT).
_PREFIXES = (("module",), ("base_model", "model"))


def canonical_name(name: str) -> str:
    """The parameter name in the bare model: without the prefixes that wrappers add.

    ``module.``, ``base_model.model.`` in front and ``_orig_mod.`` anywhere are dropped, in any nesting.
    """
    parts = [part for part in name.split(".") if part not in _INSERTED]
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if len(parts) > len(prefix) and tuple(parts[: len(prefix)]) == prefix:
                parts = parts[len(prefix) :]
                stripped = True
    return ".".join(parts)


@dataclass(frozen=True, eq=False)
class Block:
    """One trainable parameter tensor; tied tensors are one block.

    Attributes:
        index: position among the model's blocks.
        name: canonical name (see :func:`canonical_name`); of a tied tensor, the first one.
        parameter: the tensor itself.
        is_embedding: whether it is the table of an ``nn.Embedding``, of which a batch touches only
            some rows.
        key: 64-bit identity for the noise, a hash of the name. It does not depend on which other
            parameters are trainable.
    """

    index: int
    name: str
    parameter: nn.Parameter
    is_embedding: bool = False
    key: int = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.name.encode()).digest()
        object.__setattr__(self, "key", int.from_bytes(digest[:8], "little"))

    @property
    def numel(self) -> int:
        """Number of entries."""
        return self.parameter.numel()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.parameter.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it has two dimensions or more: a matrix of its first by the others."""
        return self.parameter.ndim > 1

    @property
    def columns(self) -> int:
        """Entries of a row of that matrix."""
        return self.numel // self.shape[0]


class Blocks(Sequence[Block]):
    """The blocks of a model in the order of ``named_parameters()``."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = tuple(blocks)
        self._by_name = {block.name: block for block in self._blocks}

    @classmethod
    def of(cls, model: nn.Module, *, values: bool = True) -> Blocks:
        """The trainable parameters of ``model``, each tied tensor once.

        Args:
            values: whether the parameters must have values; without, a model on the meta device will do,
                for counting.

        Raises:
            UsageError: nothing is trainable, or a parameter is on the meta device (an offloaded
                module), where there are no values to perturb.
        """
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        blocks: list[Block] = []
        taken: set[str] = set()
        for full_name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if values and parameter.is_meta:
                raise UsageError(
                    f"parameter {full_name} is on the meta device (offloaded, or never loaded)",
                    "Load the whole model onto one device, without a device map that offloads.",
                )
            name = canonical_name(full_name)
            if name in taken:
                name = full_name
            taken.add(name)
            blocks.append(Block(len(blocks), name, parameter, id(parameter) in embeddings))
        if not blocks:
            raise UsageError("the model has no trainable parameter", "Set requires_grad on what shall be trained.")
        return cls(blocks)

    def without_values(self) -> Blocks:
        """The same blocks on the meta device: names, shapes and dtypes without memory."""
        return Blocks([replace(block, parameter=nn.Parameter(block.parameter.to("meta"))) for block in self])

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Blocks: ...
    def __getitem__(self, index: int | slice) -> Block | Blocks:
        return Blocks(self._blocks[index]) if isinstance(index, slice) else self._blocks[index]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def named(self, name: str) -> Block | None:
        """The block with that canonical name, or None."""
        return self._by_name.get(name)

    @property
    def names(self) -> list[str]:
        """Canonical names in order."""
        return [block.name for block in self]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes in order."""
        return [block.shape for block in self]

    @property
    def numel(self) -> int:
        """Number of trainable entries in all, d."""
        return sum(block.numel for block in self)

    @property
    def signature(self) -> str:
        """Hash of names and shapes: equal for two models exactly when a tuner for one fits the other."""
        return signature_of(self.names, self.shapes)


def signature_of(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """:attr:`Blocks.signature` from the canonical names and the shapes, in order."""
    text = "\n".join(f"{name}:{','.join(map(str, shape))}" for name, shape in zip(names, shapes, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Hash of the names and bits of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
