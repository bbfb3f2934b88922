"""Linear probing: logistic regression on a frozen model's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class _Split:
    """Features of a split.

    Attributes:
        features: float64 [N, D], or [N, C, D] for candidates.
        labels: int64 [N].
        present: bool [N, C], where an example has a candidate; None without candidates of its own.
    """

    features: Tensor
    labels: Tensor
    present: Tensor | None

    def scaled(self, mean: Tensor, spread: Tensor) -> _Split:
        """Standardised features."""
        return replace(self, features=(self.features - mean) / spread)

    def logits(self, weights: Tensor) -> Tensor:
        """[N, classes], or [N, C], minus infinity where there is no candidate."""
        values = F.pad(self.features, (0, 1), value=1.0) @ weights
        return values if self.present is None else values[..., 0].masked_fill(~self.present, float("-inf"))

    def loss(self, weights: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.logits(weights), self.labels)


def probe(
    model: nn.Module, task: LMTask, splits: Sequence[str], limit: int | None = None, batch_size: int = 64
) -> dict[str, dict[str, Any]]:
    """Fit a linear classifier on the train split's features and evaluate it.

    Of a classification the features are the last layer's hidden state at the prompt's last token, or at the
    mask token of a masked model, and the classifier is multinomial logistic regression. Of a choice they are
    the hidden state at each candidate's last token, and one linear function of them scores the candidates
    (conditional logistic regression). Features are in float64, standardised by the train split; the fit is by
    L-BFGS, its L2 strength the one of :data:`STRENGTHS` with the least loss on the validation split. Nothing
    is drawn.

    Args:
        splits: what to evaluate on.
        limit: examples of a split that is evaluated, the first ones; the train split is used whole.

    Returns:
        for each split ``loss`` (cross-entropy), the task's metric, ``strength`` and ``examples``.

    Raises:
        UsageError: the task is a completion, or a choice for a masked model, which sees no candidate.
    """
    if task.text_task.kind == "completion" or (task.text_task.kind == "choice" and task.model_kind == "masked"):
        whom = " for a masked model" if task.model_kind == "masked" else ""
        raise UsageError(
            f"task {task.name!r} is a {task.text_task.kind}{whom}, and a linear probe needs classes or candidates",
            "Use another task, or evaluate without --linear-probe.",
        )
    wanted = dict.fromkeys(["train", "validation", *splits])
    data = {split: _features(model, task, split, None if split == "train" else limit, batch_size) for split in wanted}
    train = data["train"]
    rows = train.features if train.present is None else train.features[train.present]
    mean, spread = rows.mean(0), rows.std(0, correction=0).clamp(min=1e-8)
    scaled = {split: values.scaled(mean, spread) for split, values in data.items()}
    outputs = max(len(one.candidates) for one in task.dataset("train")) if train.present is None else 1
    fits = {strength: _fit(scaled["train"], outputs, strength) for strength in STRENGTHS}
    losses = {strength: float(scaled["validation"].loss(fits[strength])) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: losses[strength])
    return {split: {**_figures(task, split, fits[best], scaled[split]), "strength": best} for split in splits}


def fit(features: Tensor, labels: Tensor, classes: int, strength: float) -> Tensor:
    """Weights of a multinomial logistic regression, the bias last.

    Args:
        features: float64 [N, D].
        labels: int64 [N], below ``classes``.
        strength: λ of the L2 penalty, which leaves the bias out.

    Returns:
        float64 [D + 1, classes].
    """
    return _fit(_Split(features, labels, None), classes, strength)


def _fit(data: _Split, outputs: int, strength: float) -> Tensor:
    """The minimum of the penalised loss, [D + 1, outputs]; scores of candidates leave the bias at 0."""
    shape = data.features.shape[-1] + 1, outputs
    weights = torch.zeros(shape, dtype=data.features.dtype, device=data.features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = data.loss(weights) + strength / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()


def _features(model: nn.Module, task: LMTask, split: str, limit: int | None, batch_size: int) -> _Split:
    """Features and labels of a split's first examples."""
    encoded = task.dataset(split)[:limit]
    whole = task.text_task.kind == "choice"
    ends = [
        (one, candidate if whole else ()) for one in encoded for candidate in one.candidates[: None if whole else 1]
    ]
    rows = [Encoded((*one.context, *end), ((0,),), 0, one.index, one.mask_at) for one, end in ends]
    parts = []
    with torch.inference_mode(), evaluating(model):
        for first in range(0, len(rows), batch_size):
            batch = on_device(task.collate(rows[first : first + batch_size]), model)
            parts.append(last_hidden(model, batch).double())
    # Tensors made in inference mode cannot take part in the fit; a copy made outside can.
    features = torch.cat(parts).clone()
    labels = torch.tensor([one.label for one in encoded], device=features.device)
    if not whole:
        return _Split(features, labels, None)
    counts = torch.tensor([len(one.candidates) for one in encoded], device=features.device)
    present = torch.arange(int(counts.max()), device=features.device) < counts[:, None]
    padded = features.new_zeros(*present.shape, features.shape[-1])
    padded[present] = features
    return _Split(padded, labels, present)


def _figures(task: LMTask, split: str, weights: Tensor, data: _Split) -> dict[str, Any]:
    chosen = data.logits(weights).argmax(-1).tolist()
    examples = task.text_task.examples(split)[: len(data.labels)]
    texts = [example.named[at] for example, at in zip(examples, chosen, strict=True)]
    name = task.text_task.metric
    groups = [example.group for example in examples]
    value = measure(get_metric(name), texts, [example.accepted for example in examples], groups)
    return {"loss": float(data.loss(weights)), name: value, "examples": len(data.labels)}
