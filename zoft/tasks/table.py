"""The examples of a split as tensors on a device, so that a batch is a gather and not made anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zoft.errors import UsageError
from zoft.tasks.encoding import ABSENT, Encoded, collate


class ExampleTable:
    """Encoded examples, each with as many rows as that with the most, from which batches are gathered.

    Where every example has as many rows as any other a batch is that of :func:`zoft.tasks.encoding.collate`; others
    get copies of their first row, which no candidate refers to.

    Args:
        examples: for a causal model.
        pad_id: the padding token.
        device: where the tensors are kept.

    Raises:
        UsageError: the examples are for a masked model, or share their contexts among long candidates.
    """

    def __init__(self, examples: Sequence[Encoded], pad_id: int, device: torch.device | str) -> None:
        batches = [collate([example], pad_id) for example in examples]
        if any("suffix_ids" in batch or "mask_at" in batch for batch in batches):
            raise UsageError(
                "examples of a masked model, or of long candidates, cannot be made a table of", "Collate batches."
            )
        #: Tokens of every example's longest row.
        self.lengths = np.array([batch["input_ids"].shape[1] for batch in batches])
        self._rows = max(len(batch["input_ids"]) for batch in batches)
        width = int(self.lengths.max())
        self._inputs = {
            name: torch.stack([_placed(batch[name], self._rows, width, fill) for batch in batches]).to(device)
            for name, fill in (("input_ids", pad_id), ("attention_mask", 0), ("position_ids", 0))
        }
        candidates = max(batch["targets"].shape[1] for batch in batches)
        tokens = max(batch["targets"].shape[2] for batch in batches)
        targets = torch.full((len(batches), candidates, tokens), ABSENT)
        rows = torch.zeros(len(batches), candidates, dtype=torch.long)
        for at, batch in enumerate(batches):
            _, count, length = batch["targets"].shape
            targets[at, :count, tokens - length :] = batch["targets"][0]
            rows[at, :count] = batch["rows"][0]
        about = {"targets": targets, "rows": rows}
        about |= {name: torch.cat([batch[name] for batch in batches]) for name in ("labels", "indices")}
        self._about = {name: tensor.to(device) for name, tensor in about.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, places: np.ndarray) -> dict[str, Tensor]:
        """A batch of the examples at ``places``, int64 of any shape, in its flattened order.

        Returns:
            What :func:`zoft.tasks.encoding.collate` gives, on the table's device, padded to the longest of them.
        """
        used = int(self.lengths[places].max())
        device = self._about["rows"].device
        at = torch.from_numpy(np.ascontiguousarray(places).reshape(-1)).to(device)
        batch = {name: tensor[at, :, -used:].flatten(0, 1) for name, tensor in self._inputs.items()}
        batch |= {name: tensor[at] for name, tensor in self._about.items()}
        batch["rows"] = batch["rows"] + self._rows * torch.arange(len(at), device=device)[:, None]
        return batch


def _placed(rows: Tensor, count: int, width: int, fill: int) -> Tensor:
    """``rows`` [r, t] at the right of [count, width]; missing rows are copies of the first."""
    placed = torch.full((count, width), fill)
    placed[: len(rows), width - rows.shape[1] :] = rows
    placed[len(rows) :] = placed[0]
    return placed
