"""What a model will see of a task: examples in words, with the scored tokens marked. No weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoft.adapters import adapter_in
from zoft.errors import ArtifactError
from zoft.models import LoadedModel, resolve_model, tokenizer_class
from zoft.tasks.encoding import Encoded
from zoft.tasks.lm import LMTask

#: What is scored stands between these, its tokens parted by the third.
MARKS = ("⟦", "⟧", "|")


def outline(name: str, trust_remote_code: bool = False) -> LoadedModel:
    """The tokenizer of a model, and the model without its weights (on the meta device), for its shape.

    An adapter's folder gives the outline of its base.

    Raises:
        UsageError: a wrong name.
        ArtifactError: configuration or tokenizer cannot be had.
    """
    import transformers

    resolved = resolve_model(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "subfolder": resolved.subfolder or ""}
    if not resolved.is_local:
        options["revision"] = resolved.revision or "main"
    elif not Path(resolved.path_or_repo).is_dir():
        raise ArtifactError(f"there is no folder {resolved.path_or_repo}", "Give the folder of a model.")
    elif (adapter := adapter_in(Path(resolved.path_or_repo))) is not None:
        return outline(adapter.base, trust_remote_code)
    try:
        config = transformers.AutoConfig.from_pretrained(resolved.path_or_repo, **options)
        tokenizer = tokenizer_class(resolved).from_pretrained(resolved.path_or_repo, **options)
        masked = any("ForMaskedLM" in one for one in config.architectures or ())
        auto: Any = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{name}: configuration or tokenizer cannot be had: {reason}", "Check the name.") from error
    return LoadedModel(model, tokenizer, "masked" if masked else "causal", name)


def rendered(task: LMTask, split: str = "train", count: int = 3) -> list[str]:
    """Lines that show the first ``count`` examples of ``split`` as the model sees them.

    What is scored stands in ``⟦ ⟧``, its tokens parted by ``|``: of a choice the right candidate, and then
    the others; for a masked model in the mask's place.
    """
    encoded = task.dataset(split)
    examples = task.text_task.examples(split)
    lines: list[str] = []
    for one in encoded[:count]:
        example = examples[one.index]
        scored = sum(map(len, one.candidates))
        source = f", {example.where}" if example.where else ""
        lines.append(
            f"# example {one.index + 1} of {len(encoded)} ({split}{source}): {one.length} tokens, {scored} scored"
        )
        lines.extend(f"    {line}" for line in _text(task, one).split("\n"))
        others = [_marked(task, candidate) for at, candidate in enumerate(one.candidates) if at != one.label]
        if others:
            lines.append(f"    or {' '.join(others)}")
    return [*lines, ""] if lines else []


def _text(task: LMTask, one: Encoded) -> str:
    """The whole sequence, with the right candidate marked where it stands."""
    answer = _marked(task, one.candidates[one.label])
    if one.mask_at is None:
        return str(task.tokenizer.decode(list(one.context))) + answer
    before, after = one.context[: one.mask_at], one.context[one.mask_at + 1 :]
    return f"{task.tokenizer.decode(list(before))}{answer}{task.tokenizer.decode(list(after))}"


def _marked(task: LMTask, candidate: tuple[int, ...]) -> str:
    opening, closing, between = MARKS
    tokens = (str(task.tokenizer.decode([token])).replace("\n", "\\n") for token in candidate)
    return opening + between.join(tokens) + closing
