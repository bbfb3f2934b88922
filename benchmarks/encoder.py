"""A real pretrained encoder on real texts: a tuner learned on one labelling, compared on another.

    python benchmarks/encoder.py learn   --encoder FOLDER --data DIR --task kind --output-dir runs/tuners/encoder-kind
    python benchmarks/encoder.py compare --encoder FOLDER --data DIR --task topic --tuner runs/tuners/encoder-kind

FOLDER is an encoder that transformers' AutoModel loads; DIR has TASK.train.jsonl, TASK.validation.jsonl and
TASK.test.jsonl, with {"text": ..., "label": ...} a line. The output layer is fixed: 20 times the cosine of a text's
mean state and the label names', as the unchanged encoder embeds them. So all fine-tuning happens in the encoder. Every
task counts as development: this says whether a tuner carries over to another labelling of like texts, and proves no
more. ``compare`` writes what ``zoft compare`` writes, and goes on from what is there; the tuner and its controls have
the rate that the tuner recommends, the other methods the best that a search finds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import zoft
from finetune.compare import compare
from finetune.compare_config import CompareConfig
from finetune.run_spec import Bench
from meta_train import MetaTrainConfig
from zoft.objective import evaluating
from zoft.tasks.base import SPLITS
from zoft.tuner import Tuner

#: What the cosines are multiplied by.
SCALE = 20.0


class LabelledTexts:
    """Texts whose label is the nearest of the label names: a :class:`~zoft.tasks.base.Task`.

    Args:
        name: of the files.
        folder: where they are.
        model, tokenizer: the encoder at its initial weights, which embeds the label names.
    """

    def __init__(self, name: str, folder: Path, model: nn.Module, tokenizer: Any) -> None:
        self.name, self._tokenizer = name, tokenizer
        self._device = next(model.parameters()).device
        self._rows = {split: _read(folder / f"{name}.{split}.jsonl") for split in SPLITS}
        self._labels = sorted({row["label"] for row in self._rows["train"]})
        self.content = hashlib.sha256(json.dumps(self._rows, sort_keys=True).encode()).hexdigest()[:32]
        with torch.no_grad(), evaluating(model):
            self._layer = _pooled(model, self._encoded(self._labels))

    def train_batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Endless batches of whole epochs, each in another order."""
        rows = self._rows["train"]
        each = len(rows) // batch_size
        epoch, first = divmod(start, each)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(rows))
            for at in range(first, each):
                yield self._batch([rows[place] for place in order[at * batch_size : (at + 1) * batch_size]])
            epoch, first = epoch + 1, 0

    def part_losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of every text, [B]."""
        return nn.functional.cross_entropy(self._logits(model, batch), batch["labels"], reduction="none")

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return self.part_losses(model, batch).mean()

    def evaluate(self, model: nn.Module, split: str = "test", limit: int | None = None) -> dict[str, float]:
        """Mean loss and accuracy over the split's first ``limit`` texts."""
        rows = sorted(self._rows[split][:limit], key=lambda row: len(row["text"]))
        total, right = 0.0, 0
        with torch.inference_mode(), evaluating(model):
            for first in range(0, len(rows), 64):
                batch = self._batch(rows[first : first + 64])
                logits = self._logits(model, batch)
                total += float(nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"))
                right += int((logits.argmax(-1) == batch["labels"]).sum())
        return {"loss": total / len(rows), "accuracy": right / len(rows)}

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        texts = {name: values for name, values in batch.items() if name != "labels"}
        return (SCALE * _pooled(model, texts) @ self._layer.T).float()

    def _batch(self, rows: Sequence[dict[str, str]]) -> dict[str, Tensor]:
        labels = torch.tensor([self._labels.index(row["label"]) for row in rows], device=self._device)
        return {**self._encoded([row["text"] for row in rows]), "labels": labels}

    def _encoded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = self._tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
        return {name: values.to(self._device) for name, values in encoded.items()}


def _pooled(model: nn.Module, texts: dict[str, Tensor]) -> Tensor:
    """Unit vectors [B, hidden]: the mean over each text's tokens."""
    states = model(**texts).last_hidden_state
    mask = texts["attention_mask"].unsqueeze(-1).to(states.dtype)
    return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def _read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def encoder(folder: str, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The encoder without its pooler, which nothing uses, and its tokenizer."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval().to(device)
    return model, AutoTokenizer.from_pretrained(folder)


def bench(
    base: str, tasks: Sequence[str], device: str = "cpu", dtype: str | None = None, data_dir: str | None = None
) -> Bench:
    """What every process of the comparison makes."""
    model, tokenizer = encoder(base, device)
    made = {name: LabelledTexts(name, Path(str(data_dir)), model, tokenizer) for name in tasks}
    return Bench(
        model=model,
        tasks=made,
        roles=dict.fromkeys(tasks, "development"),
        data={name: task.content for name, task in made.items()},
        base=Path(base).name,
    )


def learn(given: argparse.Namespace) -> None:
    """Learn a tuner on one task and save it."""
    model, tokenizer = encoder(given.encoder)
    task = LabelledTexts(given.task, given.data, model, tokenizer)
    config = MetaTrainConfig(steps=given.steps, seed=given.seed)
    tuner = zoft.meta_train(model, [task], config, base_model_name_or_path=Path(given.encoder).name)
    print(tuner.save_pretrained(given.output_dir))


def against(given: argparse.Namespace) -> None:
    """Compare a tuner and its controls, all at the rate that it recommends, with methods tuned for a task that it has
    not seen."""
    rate = Tuner.from_pretrained(given.tuner).config.recommended.lr
    values = {
        "base": given.encoder, "data_dir": str(given.data), "tasks": [given.task], "optimizers": given.optimizers,
        "tuners": {"default": given.tuner}, "controls": given.controls, "rivals": given.optimizers,
        "forwards": given.forwards, "lr_start": given.lr_start,
        "lrs": dict.fromkeys([*given.controls, "default"], rate), "seeds": given.seeds, "recommend": False,
        "selection_seeds": given.selection_seeds, "eval_points": 5, "validation_examples": 200, "tensorboard": False,
        "keep_bytes": 1 << 30, "cache_bytes": 0, "workers": given.workers, "output_dir": given.output_dir,
    }  # fmt: skip
    made = compare(CompareConfig.build(values, source="encoder"), factory=bench)
    print(made.table, made.verdict, sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)
    for name, call in (("learn", learn), ("compare", against)):
        command = commands.add_parser(name)
        command.set_defaults(call=call)
        command.add_argument("--encoder", required=True, help="folder")
        command.add_argument("--data", required=True, type=Path, help="folder")
        command.add_argument("--task", required=True)
        command.add_argument("--output-dir", required=True)
        if name == "learn":
            command.add_argument("--steps", type=int, default=200)
            command.add_argument("--seed", type=int, default=0)
            continue
        command.add_argument("--tuner", required=True, help="folder")
        command.add_argument("--optimizers", nargs="*", default=["mezo"])
        command.add_argument("--controls", nargs="*", default=["untrained", "random-basis"])
        command.add_argument("--forwards", type=int, default=600)
        command.add_argument("--lr-start", type=float, default=1e-4)
        command.add_argument("--seeds", type=int, default=5)
        command.add_argument("--selection-seeds", type=int, default=1)
        command.add_argument("--workers", type=int)
    given = parser.parse_args(arguments)
    given.call(given)


if __name__ == "__main__":
    main()
