"""From a batch and a model to log-likelihoods: only the logits that are needed, and in float32."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoft.errors import UsageError
from zoft.tasks.encoding import ABSENT

#: Where wrappers (DistributedDataParallel, torch.compile) keep the model whose ``forward`` they call.
_INNER = ("module", "_orig_mod")


def candidate_scores(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Summed log-likelihood of every candidate given its context.

    Args:
        batch: as made by ``zoft.tasks.encoding.collate``, on the model's device.

    Returns:
        float32 [B, C]; minus infinity where an example has fewer than C candidates.
    """
    log_likelihoods, present = token_log_likelihoods(model, batch)
    summed = log_likelihoods.masked_fill(~present, 0.0).sum(-1)
    return summed.masked_fill(~present.any(-1), float("-inf"))


def token_log_likelihoods(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every candidate token: float32 [B, C, K], and bool [B, C, K], where there is one."""
    targets, rows = batch["targets"], batch["rows"]
    width = targets.shape[-1]
    logits = (_masked_logits(model, batch) if "mask_at" in batch else _last_logits(model, batch, width)).float()
    present = targets != ABSENT
    positions = torch.arange(width, device=targets.device)
    chosen = logits[rows[:, :, None], positions, targets.masked_fill(~present, 0)]
    return chosen - logits.logsumexp(-1)[rows], present


def greedy(model: nn.Module, batch: Mapping[str, Tensor], max_new_tokens: int, eos_id: int | None) -> list[list[int]]:
    """Continue every row of a left-padded batch by its most likely tokens.

    Keys and values of earlier tokens are reused where the model gives them.

    Returns:
        for each row at most ``max_new_tokens`` tokens, ending before the end-of-sequence token.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    reusable = {"past_key_values", "use_cache"} <= _accepted(model)
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
        ended |= following == (ABSENT if eos_id is None else eos_id)
        if bool(ended.all()):
            break
        grown = {
            "input_ids": following[:, None],
            "attention_mask": torch.ones_like(following)[:, None],
            "position_ids": inputs["position_ids"][:, -1:] + 1,
        }
        inputs = {name: torch.cat([value, grown[name]], dim=1) for name, value in inputs.items()}
    tokens: list[list[int]] = torch.stack(produced, dim=1).tolist() if produced else [[] for _ in ended]
    return [row[: row.index(eos_id)] if eos_id in row else row for row in tokens]


def on_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``batch`` on the device of the model's first parameter."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) for name, value in batch.items()}


def check_context(model: nn.Module, length: int, name: str) -> None:
    """Raise a UsageError when ``length`` tokens are more than the positions that ``model`` has."""
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


def _masked_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits [R, 1, vocabulary] at the mask tokens; the output head sees only those where it can be found."""
    fed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    at = (torch.arange(len(batch["mask_at"]), device=batch["mask_at"].device), batch["mask_at"])
    found: list[Any] = [getattr(module, "lm_head", None) for module in model.modules()]
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
