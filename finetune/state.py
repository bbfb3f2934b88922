"""What a checkpoint holds besides the weights, as safetensors and JSON: nothing in it is a pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoft.errors import ArtifactError, UsageError
from zoft.models import without_bars
from zoft.optimizers import ZerothOrder

OPTIMIZER_TENSORS, OPTIMIZER_JSON = "optimizer.safetensors", "optimizer.json"
SCHEDULER_JSON = "scheduler.json"


def save_optimizer(optimizer: ZerothOrder, folder: Path) -> None:
    """Write the method's state, the step, the seed and the parameter groups."""
    content = optimizer.state_dict()
    mine = dict(content["zoft"])
    tensors: dict[str, Tensor] = mine.pop("state")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / OPTIMIZER_TENSORS)
    write_json(folder / OPTIMIZER_JSON, {"param_groups": content["param_groups"], "zoft": mine})


def load_optimizer(optimizer: ZerothOrder, folder: Path) -> None:
    """Go on from :func:`save_optimizer`, bit for bit.

    Raises:
        ArtifactError: a file is missing or damaged.
        UsageError: it was saved by another method, noise or for another model.
    """
    content = read_json(folder / OPTIMIZER_JSON)
    try:
        tensors = load_file(folder / OPTIMIZER_TENSORS)
    except (OSError, SafetensorError) as error:
        raise damaged(folder / OPTIMIZER_TENSORS, error) from None
    if not {"param_groups", "zoft"} <= content.keys():
        raise damaged(folder / OPTIMIZER_JSON, "keys are missing")
    optimizer.load_state_dict(
        {"state": {}, "param_groups": content["param_groups"], "zoft": {**content["zoft"], "state": tensors}}
    )


def generator_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of the global generators of Python, numpy and torch: tensors, and JSON-able values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "torch": torch.random.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda/{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    values = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {"name": name, "position": int(position), "has_gauss": int(has_gauss), "cached": float(cached)},
    }
    return tensors, values


def set_generator_states(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Undo what happened to the global generators since :func:`generator_states`."""
    python, numpy = values["python"], values["numpy"]
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["gauss"]))
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.random.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda/{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda/{index}"], index)


def save_generators(folder: Path, rank: int) -> None:
    """Write :func:`generator_states` of this process."""
    tensors, values = generator_states()
    save_file(tensors, folder / f"rng_{rank}.safetensors")
    write_json(folder / f"rng_{rank}.json", values)


def load_generators(folder: Path, rank: int) -> None:
    """Read what :func:`save_generators` wrote; nothing where there was no such process."""
    if (folder / f"rng_{rank}.json").is_file():
        set_generator_states(load_file(folder / f"rng_{rank}.safetensors"), read_json(folder / f"rng_{rank}.json"))


def write_json(file: Path, content: Any) -> None:
    """Write ``content``; floats come back with the same bits."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(file, error) from None
    if not isinstance(content, dict):
        raise damaged(file, "not a JSON object")
    return content


def damaged(file: Path, reason: object) -> ArtifactError:
    return ArtifactError(f"cannot resume from {file}: {reason}", "Resume from another checkpoint, or start again.")


class CheckpointsWithoutPickles:
    """Replaces what ``transformers.Trainer`` writes with torch.save: optimizer, scheduler, generators, arguments."""

    args: Any
    lr_scheduler: Any

    @property
    def _zeroth_order(self) -> ZerothOrder:
        raise NotImplementedError

    def _counters(self) -> dict[str, Any]:
        raise NotImplementedError

    def _set_counters(self, counters: dict[str, Any]) -> None:
        raise NotImplementedError

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            folder = Path(output_dir)
            self._write_optimizer(folder)
            schedule = {"scheduler": self.lr_scheduler.state_dict(), "counters": self._counters()}
            write_json(folder / SCHEDULER_JSON, schedule)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if not (folder / OPTIMIZER_JSON).is_file():
            raise UsageError(f"{folder} has no {OPTIMIZER_JSON}", "Resume from a checkpoint that zoft wrote.")
        self._read_optimizer(folder)
        content = read_json(folder / SCHEDULER_JSON)
        self.lr_scheduler.load_state_dict(content["scheduler"])
        self._set_counters(content["counters"])

    def _write_optimizer(self, folder: Path) -> None:
        save_optimizer(self._zeroth_order, folder)

    def _read_optimizer(self, folder: Path) -> None:
        load_optimizer(self._zeroth_order, folder)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_generators(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_generators(Path(checkpoint), self.args.process_index)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with without_bars():
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
            write_json(folder / "training_args.json", json.loads(self.args.to_json_string()))
