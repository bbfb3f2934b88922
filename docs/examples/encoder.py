"""zoft with an encoder and a fixed output layer: nothing here is a language model's head.

Texts and label names go through the same encoder; the logits are 20 times the cosine between a text and
the label names as the unchanged encoder embeds them. So the output layer is fixed, and all fine-tuning
happens in the encoder, by forward passes alone.

Run it with: python docs/examples/encoder.py FOLDER texts.jsonl
FOLDER is any encoder that transformers' AutoModel loads; texts.jsonl has one {"text": ..., "label": ...} a line.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from transformers import AutoModel, AutoTokenizer

import zoft
from meta_train import MetaTrainConfig
from zoft.tasks.function import FunctionTask

Batch = dict[str, Tensor]


def pooled(model: nn.Module, batch: Batch) -> Tensor:
    """Unit vectors [B, hidden]: the mean over each text's tokens."""
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def make_task(name: str, model: nn.Module, tokenizer, rows: list[dict[str, str]], batch_size: int = 16) -> FunctionTask:
    """A classification task whose output layer is the label names' embeddings, computed once."""
    labels = sorted({row["label"] for row in rows})
    with torch.no_grad():
        layer = pooled(model, tokenizer(labels, padding=True, return_tensors="pt"))

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        return 20 * pooled(model, batch) @ layer.T

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(logits(model, batch).float(), batch["labels"], reduction="none")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return losses(model, batch).mean()

    def metrics(model: nn.Module, batch: Batch) -> dict[str, float]:
        return {"accuracy": float((logits(model, batch).argmax(-1) == batch["labels"]).float().mean())}

    batches = []
    for first in range(0, len(rows) - batch_size + 1, batch_size):
        part = rows[first : first + batch_size]
        batch = dict(tokenizer([row["text"] for row in part], padding=True, truncation=True, return_tensors="pt"))
        batches.append({**batch, "labels": torch.tensor([labels.index(row["label"]) for row in part])})
    held = max(1, len(batches) // 5)
    return FunctionTask(name, batches[held:], loss, evaluation=batches[:held], metrics=metrics, losses=losses)


def main(folder: str, data: str, meta_steps: int = 40, steps: int = 100) -> dict[str, float]:
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    task = make_task("texts", model, tokenizer, rows)
    print("zero-shot:", task.evaluate(model))

    config = MetaTrainConfig(steps=meta_steps)
    tuner = zoft.meta_train(model, [task], config, base_model_name_or_path=folder)

    recommended = tuner.config.recommended  # the rate, how many directions a step, and from which losses
    settings = {"lr": recommended.lr, **recommended.estimate}
    optimizer = zoft.ZerothOrder(model, method="zo-finetuner", tuner=tuner.bind(model), **settings)
    schedule = LinearLR(optimizer, 1.0, 0.0, steps)
    batches = task.train_batches(batch_size=16, seed=1)
    for _ in range(steps):
        batch = next(batches)
        optimizer.step(lambda batch=batch: task.part_losses(model, batch))  # the losses of the examples, not their mean
        schedule.step()
    result = task.evaluate(model)
    print("fine-tuned:", result)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:5]))
