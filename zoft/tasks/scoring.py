"""From a batch and a model to log-likelihoods: only the logits that are needed, and in float32.

Candidates of several tokens may share their context's computation (the ``suffix_*`` tensors of a batch):
the contexts run once, and the candidates' tokens go on from the keys and values of theirs. These hold for
the weights that they were computed with, so they never outlive the one evaluation that made them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from zoft.errors import UsageError
from zoft.tasks.encoding import ABSENT

#: Where wrappers (DistributedDataParallel, torch.compile) keep the model whose ``forward`` they call.
_INNER = ("module", "_orig_mod")


def summed_scores(log_likelihoods: Tensor, present: Tensor, normalized: bool = False) -> Tensor:
    """Scores of candidates from :func:`token_log_likelihoods`.

    Args:
        normalized: the mean over a candidate's tokens instead of their sum.

    Returns:
        float32 [B, C]; minus infinity where an example has fewer than C candidates.
    """
    summed = log_likelihoods.masked_fill(~present, 0.0).sum(-1)
    if normalized:
        summed = summed / present.sum(-1).clamp(min=1)
    return summed.masked_fill(~present.any(-1), float("-inf"))


def token_log_likelihoods(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every candidate token: float32 [B, C, K], and bool [B, C, K], where there is one.

    Args:
        batch: as made by ``zoft.tasks.encoding.collate``, on the model's device.
    """
    if "suffix_ids" in batch:
        return _shared_log_likelihoods(model, batch)
    targets, rows = batch["targets"], batch["rows"]
    width = targets.shape[-1]
    logits = (_masked_logits(model, batch) if "mask_at" in batch else _last_logits(model, batch, width)).float()
    present = targets != ABSENT
    positions = torch.arange(width, device=targets.device)
    chosen = logits[rows[:, :, None], positions, targets.masked_fill(~present, 0)]
    return chosen - logits.logsumexp(-1)[rows], present


def greedy(
    model: nn.Module, batch: Mapping[str, Tensor], max_new_tokens: int, stop_ids: int | Collection[int] | None
) -> list[list[int]]:
    """Continue every row of a left-padded batch by its most likely tokens.

    Keys and values of earlier tokens are reused where the model gives them.

    Args:
        stop_ids: the tokens that end a row: the end of a sequence, the end of an answer.

    Returns:
        for each row at most ``max_new_tokens`` tokens, ending before the first of ``stop_ids``.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    reusable = reuses_keys(model)
    stops = frozenset(() if stop_ids is None else (stop_ids,) if isinstance(stop_ids, int) else stop_ids)
    ending = torch.tensor(sorted(stops), dtype=torch.long, device=inputs["input_ids"].device)
    cache: Any = None
    produced: list[Tensor] = []
    ended = torch.zeros(len(inputs["input_ids"]), dtype=torch.bool, device=inputs["input_ids"].device)
    for _ in range(max_new_tokens):
        fed = inputs
        if cache is not None:
            fed = {name: value[:, -1:] for name, value in inputs.items() if name != "attention_mask"}
            fed = {**fed, "attention_mask": inputs["attention_mask"], "past_key_values": cache}
        output = _call(model, fed, use_cache=True, logits_to_keep=1)
        cache = getattr(output, "past_key_values", None) if reusable else None
        following = output.logits[:, -1].argmax(-1)
        produced.append(following)
        ended |= torch.isin(following, ending)
        if bool(ended.all()):
            break
        grown = {
            "input_ids": following[:, None],
            "attention_mask": torch.ones_like(following)[:, None],
            "position_ids": inputs["position_ids"][:, -1:] + 1,
        }
        inputs = {name: torch.cat([value, grown[name]], dim=1) for name, value in inputs.items()}
    tokens: list[list[int]] = torch.stack(produced, dim=1).tolist() if produced else [[] for _ in ended]
    return [list(takewhile(lambda token: token not in stops, row)) for row in tokens]


def last_hidden(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The last layer's hidden states [R, D] at each row's last token, or at its mask token for a masked model."""
    names = ("input_ids", "attention_mask", "position_ids")
    fed: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    fed["output_hidden_states"] = True
    hidden: Tensor = _call(model, fed, use_cache=False, logits_to_keep=1).hidden_states[-1]
    if "mask_at" not in batch:
        return hidden[:, -1]
    return hidden[torch.arange(len(hidden), device=hidden.device), batch["mask_at"]]


def on_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``batch`` on the device of the model's first parameter."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) for name, value in batch.items()}


def check_context(model: nn.Module, batch: Mapping[str, Tensor], name: str) -> None:
    """Raise a UsageError when ``batch`` has longer rows than the positions that ``model`` has."""
    length = batch["input_ids"].shape[1]
    if "suffix_ids" in batch:
        whole = batch["attention_mask"].sum(1)[batch["suffix_rows"]] + batch["suffix_mask"].sum(1)
        length = max(length, int(whole.max()))
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(limit, int) and length > limit:
        raise UsageError(
            f"task {name!r}: a batch has rows of {length} tokens, and the model takes at most {limit}",
            "Give the task the model's context length as max_length; it then names the example.",
        )


def _last_logits(model: nn.Module, batch: Mapping[str, Tensor], width: int) -> Tensor:
    """Logits [R, width, vocabulary] of the last ``width`` positions of left-padded rows."""
    fed = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    logits: Tensor = _call(model, fed, use_cache=False, logits_to_keep=width).logits
    return logits[:, -width:]


def _shared_log_likelihoods(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As :func:`token_log_likelihoods`, for a batch whose contexts are run once for all their candidates."""
    targets, columns = batch["targets"], batch["suffix_of"]
    present = targets != ABSENT
    wanted = targets.masked_fill(~present, 0)
    first, later = _cached_logits(model, batch) if reuses_keys(model) else _joined_logits(model, batch)
    first, later = first.float(), later.float()
    beginning = first.gather(1, wanted[:, :, 0]) - first.logsumexp(-1, keepdim=True)
    positions = torch.arange(later.shape[1], device=targets.device)
    chosen = later[columns[:, :, None], positions, wanted[:, :, 1:]] - later.logsumexp(-1)[columns]
    return torch.cat([beginning[:, :, None], chosen], dim=-1), present


def _cached_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [B, V] after each context, and [S, K - 1, V] at the candidates' tokens, by its keys and values."""
    contexts = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    output = _call(model, contexts, use_cache=True, logits_to_keep=1)
    cache: Any = output.past_key_values
    rows, mask = batch["suffix_rows"], batch["suffix_mask"]
    cache.batch_select_indices(rows)
    lengths = batch["attention_mask"].sum(1)[rows]
    fed = {
        "input_ids": batch["suffix_ids"],
        "attention_mask": torch.cat([batch["attention_mask"][rows], mask], dim=1),
        "position_ids": lengths[:, None] + torch.arange(mask.shape[1], device=mask.device),
        "past_key_values": cache,
    }
    fed["position_ids"] = fed["position_ids"] * mask  # a padded place may lie beyond the model's last position
    later: Tensor = _call(model, fed, use_cache=True).logits
    return output.logits[:, -1], later[:, -mask.shape[1] :]


def _joined_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As :func:`_cached_logits`, with a whole row for each candidate: for models that give no keys and values."""
    rows, width = batch["suffix_rows"], batch["suffix_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"][rows], batch["suffix_mask"]], dim=1)
    fed = {
        "input_ids": torch.cat([batch["input_ids"][rows], batch["suffix_ids"]], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }
    logits: Tensor = _call(model, fed, use_cache=False, logits_to_keep=width + 1).logits[:, -width - 1 :]
    return logits[batch["suffix_first"], 0], logits[:, 1:]


def reuses_keys(model: nn.Module) -> bool:
    """Whether ``model`` gives and takes keys and values of earlier tokens.

    Not those of a prefix or prompt adapter, which puts its own there, nor those of a model that is
    trained with gradient checkpointing, which gives none.
    """
    adapter = getattr(model, "active_peft_config", None)
    checkpointing = model.training and any(getattr(one, "gradient_checkpointing", False) for one in model.modules())
    prompted = bool(getattr(adapter, "is_prompt_learning", False))
    return {"past_key_values", "use_cache"} <= _accepted(model) and not prompted and not checkpointing


def _masked_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits [R, 1, vocabulary] at the mask tokens; the output head sees only those where it can be found."""
    fed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    at = (torch.arange(len(batch["mask_at"]), device=batch["mask_at"].device), batch["mask_at"])
    # RoBERTa calls its head lm_head, BERT cls.
    found: list[Any] = [getattr(module, name, None) for module in model.modules() for name in ("lm_head", "cls")]
    heads = [head for head in found if isinstance(head, nn.Module)]
    # Masked models take no logits_to_keep, and the head over all positions costs a RoBERTa a sixth of a forward.
    hooks = [head.register_forward_pre_hook(lambda _, hidden: (hidden[0][at][:, None],)) for head in heads[:1]]
    try:
        logits: Tensor = _call(model, fed).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits if hooks else logits[at][:, None]


def _call(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> Any:
    """Call ``model`` with ``inputs`` and those of the optional arguments that it accepts.

    Without ``logits_to_keep`` a model computes all logits, and the callers take the last ones; without
    ``position_ids`` it derives them from the attention mask.
    """
    accepted = _accepted(model)
    inputs = {name: value for name, value in inputs.items() if name != "position_ids" or name in accepted}
    return model(**inputs, **{name: value for name, value in options.items() if name in accepted})


def _accepted(model: nn.Module) -> frozenset[str]:
    """Names of the arguments of the innermost model's ``forward`` (PEFT and others pass them through)."""
    names: set[str] = set()
    seen: list[nn.Module] = []
    current: Any = model
    while isinstance(current, nn.Module) and current not in seen:
        seen.append(current)
        parameters = inspect.signature(current.forward).parameters
        names.update(parameters)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
        get_base = getattr(current, "get_base_model", None)
        wrapped = next((getattr(current, name) for name in _INNER if hasattr(current, name)), None)
        current = get_base() if callable(get_base) else wrapped
    return frozenset(names)
