"""What kind of module a block belongs to, and how deep in the model it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from zoft.blocks import Blocks

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")


def by_layer(names: Sequence[str]) -> tuple[list[str], list[int | None], list[tuple[int, int]]]:
    """Where each block stands in a table of module types by layers.

    Returns:
        The module types (names without their layer's number), the layers (None for blocks in no layer),
        and for every name its row and column.
    """
    found = []
    for name in names:
        match = _LAYER.search(name)
        layer = int(match[1]) if match else None
        found.append((name if match is None else name[match.end() + 1 :], layer))
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    layers = sorted({layer for _, layer in found}, key=lambda layer: -1 if layer is None else layer)
    return kinds, layers, [(kinds.index(kind), layers.index(layer)) for kind, layer in found]


def types_of(names: Sequence[str], matrices: Sequence[bool]) -> list[str]:
    """The module type of every block: the module's name within its layer; all biases and all norms are one each.

    Args:
        names: canonical names of the blocks.
        matrices: whether they have two dimensions or more.
    """
    kinds, _, places = by_layer(names)
    types = []
    for is_matrix, (row, _) in zip(matrices, places, strict=True):
        module, _, last = kinds[row].rpartition(".")
        if last == "bias":
            types.append("biases")
        elif not is_matrix:
            types.append("norms")
        else:
            types.append(module if module and last == "weight" else kinds[row])
    return types


def module_types(blocks: Blocks) -> list[str]:
    """:func:`types_of` a model's blocks."""
    return types_of(blocks.names, [block.is_matrix for block in blocks])


def depths(blocks: Blocks) -> Tensor:
    """Where in the model every block is, float32 [B]: from −1 in the first layer to 1 in the last; 0 in none."""
    _, layers, places = by_layer(blocks.names)
    numbers = [layer for layer in layers if layer is not None]
    last = max(numbers, default=0)
    found = [layers[column] for _, column in places]
    return torch.tensor([0.0 if layer is None or not last else 2 * layer / last - 1 for layer in found])
