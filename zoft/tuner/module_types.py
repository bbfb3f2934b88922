"""What kind of module a block belongs to, and how deep in the model it is."""

from __future__ import annotations

import torch
from torch import Tensor

from zoft.blocks import Blocks
from zoft.tuner.show import by_layer


def module_types(blocks: Blocks) -> list[str]:
    """The module type of every block: the module's name within its layer; all biases and all norms are one each."""
    kinds, _, places = by_layer(blocks.names)
    types = []
    for block, (row, _) in zip(blocks, places, strict=True):
        module, _, last = kinds[row].rpartition(".")
        if last == "bias":
            types.append("biases")
        elif not block.is_matrix:
            types.append("norms")
        else:
            types.append(module if last == "weight" else kinds[row])
    return types


def depths(blocks: Blocks) -> Tensor:
    """Where in the model every block is, float32 [B]: from −1 in the first layer to 1 in the last; 0 in none."""
    _, layers, places = by_layer(blocks.names)
    numbers = [layer for layer in layers if layer is not None]
    last = max(numbers, default=0)
    found = [layers[column] for _, column in places]
    return torch.tensor([0.0 if layer is None or not last else 2 * layer / last - 1 for layer in found])
