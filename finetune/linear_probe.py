"""Linear probing: logistic regression on a frozen model's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoft.errors import UsageError
from zoft.objective import evaluating
from zoft.tasks.encoding import Encoded
from zoft.tasks.lm import LMTask
from zoft.tasks.metrics import get_metric, measure
from zoft.tasks.scoring import last_hidden, on_device

#: L2 strengths λ that are tried: the loss is the mean cross-entropy + λ/2·‖W‖² over standardised features.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

_ITERATIONS = 200


def probe(
    model: nn.Module, task: LMTask, splits: Sequence[str], limit: int | None = None, batch_size: int = 64
) -> dict[str, dict[str, Any]]:
    """Fit a linear classifier on the train split's features and evaluate it.

    The features are the last layer's hidden state at the prompt's last token, or at the mask token of a
    masked model, in float64, standardised by the train split. The classifier is multinomial logistic
    regression by L-BFGS; its L2 strength is the one of :data:`STRENGTHS` with the least loss on the
    validation split. Nothing is drawn.

    Args:
        splits: what to evaluate on.
        limit: examples of a split that is evaluated, the first ones; the train split is used whole.

    Returns:
        for each split ``loss`` (cross-entropy), the task's metric, ``strength`` and ``examples``.

    Raises:
        UsageError: the task has no fixed classes.
    """
    if task.text_task.kind != "classification":
        raise UsageError(
            f"task {task.name!r} is a {task.text_task.kind}, and a linear probe needs classes that are fixed",
            "Use a classification task, or evaluate without --linear-probe.",
        )
    wanted = dict.fromkeys(["train", "validation", *splits])
    data = {split: _features(model, task, split, None if split == "train" else limit, batch_size) for split in wanted}
    features, _ = data["train"]
    mean, spread = features.mean(0), features.std(0, correction=0).clamp(min=1e-8)
    scaled = {split: ((values - mean) / spread, own) for split, (values, own) in data.items()}
    classes = max(len(example.candidates) for example in task.dataset("train"))
    fits = {strength: fit(*scaled["train"], classes, strength) for strength in STRENGTHS}
    losses = {strength: _loss(fits[strength], *scaled["validation"]) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: losses[strength])
    return {split: {**_figures(task, split, fits[best], *scaled[split]), "strength": best} for split in splits}


def fit(features: Tensor, labels: Tensor, classes: int, strength: float) -> Tensor:
    """Weights of a multinomial logistic regression, the bias last.

    Args:
        features: float64 [N, D].
        labels: int64 [N], below ``classes``.
        strength: λ of the L2 penalty, which leaves the bias out.

    Returns:
        float64 [D + 1, classes].
    """
    inputs = F.pad(features, (0, 1), value=1.0)
    weights = torch.zeros(inputs.shape[1], classes, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights, labels) + strength / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()


def _features(model: nn.Module, task: LMTask, split: str, limit: int | None, batch_size: int) -> tuple[Tensor, Tensor]:
    """Features, float64 [N, D], and labels [N] of a split's first examples."""
    encoded = task.dataset(split)[:limit]
    parts = []
    with torch.inference_mode(), evaluating(model):
        for first in range(0, len(encoded), batch_size):
            members = encoded[first : first + batch_size]
            prompts = [Encoded(one.context, ((0,),), 0, one.index, one.mask_at) for one in members]
            batch = on_device(task.collate(prompts), model)
            parts.append(last_hidden(model, batch).double())
    # Tensors made in inference mode cannot take part in the fit; a copy made outside can.
    features = torch.cat(parts).clone()
    return features, torch.tensor([one.label for one in encoded], device=features.device)


def _loss(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(F.pad(features, (0, 1), value=1.0) @ weights, labels))


def _figures(task: LMTask, split: str, weights: Tensor, features: Tensor, labels: Tensor) -> dict[str, Any]:
    chosen = (F.pad(features, (0, 1), value=1.0) @ weights).argmax(-1).tolist()
    examples = task.text_task.examples(split)[: len(labels)]
    texts = [example.named[at] for example, at in zip(examples, chosen, strict=True)]
    name = task.text_task.metric
    groups = [example.group for example in examples]
    value = measure(get_metric(name), texts, [example.accepted for example in examples], groups)
    return {"loss": _loss(weights, features, labels), name: value, "examples": len(labels)}
