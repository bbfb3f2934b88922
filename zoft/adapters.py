"""What of a model is trained: adapters through PEFT, subsets of the parameters, and what a quantised base allows.

The only file that imports peft, and only when an adapter is asked for.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoft.blocks import canonical_name
from zoft.config import Config, nearest
from zoft.errors import ArtifactError, IncompatibleError, UsageError
from zoft.models import LoadedModel, initialised, without_bars

#: The files of an adapter in PEFT's layout.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class TrainableConfig(Config):
    """What is trained: all parameters by default."""

    peft: Literal["lora", "prefix", "prompt", "ia3"] | None = Field(
        None, description="Train an adapter of this kind in place of the model's own parameters."
    )
    peft_rank: int = Field(8, ge=1, description="Rank r of a LoRA adapter.")
    peft_alpha: float = Field(16.0, gt=0, description="Scale of a LoRA adapter: its output counts alpha / r.")
    peft_tokens: int = Field(5, ge=1, description="Virtual tokens of a prefix or prompt.")
    peft_init: Literal["activations", "random"] = Field(
        "activations", description="A prefix or prompt begins as what real tokens give, or random."
    )
    peft_targets: list[str] | None = Field(
        None, description="Names of the modules that get a LoRA or IA3 adapter; PEFT's own choice by default."
    )
    train_only: list[str] | None = Field(
        None, description="Train only parameters whose names match one of these, such as layers.*.mlp."
    )


def prepare(loaded: LoadedModel, config: TrainableConfig, seed: int = 0) -> LoadedModel:
    """The model with what ``config`` trains, and nothing else, set to ``requires_grad``.

    Adapters keep the base's weights frozen, so that a step perturbs and updates the adapter's tensors
    alone. LoRA begins as the base itself (B = 0); a prefix begins as keys and values of random real
    tokens, which [MeZO, appendix E.5] found to matter, a prompt as their embeddings, IA3 as ones.

    Note: PEFT keeps adapters of a float16 or bfloat16 base in float32, and so do we: small updates survive.

    Args:
        loaded: a model, changed in place; one that has an adapter already goes on with that.
        seed: of the adapter's initial values; no global generator is changed.

    Raises:
        UsageError: peft is not installed, the kind does not fit the model, nothing matches ``train_only``,
            or all parameters of a quantised base were to be trained.

    Reference: [MeZO] Malladi et al., arXiv 2305.17333 (LoRA r = 8, α = 16; prefixes of 5 tokens).
    """
    if config.peft is not None and not is_adapted(loaded.model):
        loaded = _adapted(loaded, config, seed)
    if config.train_only:
        select(loaded.model, config.train_only)
    reason = quantised(loaded.model)
    if reason is not None and not is_adapted(loaded.model):
        raise UsageError(
            f"{loaded.name} is quantised ({reason}), and a step of its parameters would be rounded away",
            "Train an adapter on it, for instance with --peft lora, or load the model unquantised.",
        )
    return loaded


def is_adapted(model: nn.Module) -> bool:
    """Whether ``model`` is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def virtual_tokens(model: nn.Module) -> int:
    """Positions that a learned prefix or prompt takes of the model's context."""
    config: Any = getattr(model, "active_peft_config", None)
    return int(config.num_virtual_tokens) if getattr(config, "is_prompt_learning", False) else 0


def select(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let only the trainable parameters that match a pattern be trained.

    A pattern is a run of name segments, anywhere in a parameter's canonical name: ``layers.*.mlp`` matches
    ``model.layers.0.mlp.up_proj.weight``. ``*`` and ``?`` stand for characters of a segment, ``**`` for any
    number of segments.

    Returns:
        Canonical names of what is trained.

    Raises:
        UsageError: a pattern matches no trainable parameter; names the nearest that do.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(canonical_name(name))
    every = [name for group in names.values() for name in group]
    matchers = [_matcher(pattern) for pattern in patterns]
    for pattern, matches in zip(patterns, matchers, strict=True):
        if not any(map(matches, every)):
            close = nearest(pattern, _generalised(every))
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(
                f"no trainable parameter matches {pattern!r}{hint}",
                f"Names are such as {every[len(every) // 2]}; * stands for a part of a segment.",
            )
    kept = []
    for parameter in model.parameters():
        own = names.get(id(parameter), [])
        if any(matches(name) for matches in matchers for name in own):
            kept.append(own[0])
        elif own:
            parameter.requires_grad_(False)
    return kept


def quantised(model: nn.Module) -> str | None:
    """Why ``model`` counts as quantised, in a few words; None where it does not."""
    settings: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
        return str(getattr(method, "value", method) or "its configuration says so")
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] in ("bitsandbytes", "torchao"):
            return f"{name} is a {type(module).__name__} of {type(module).__module__.partition('.')[0]}"
    for name, parameter in model.named_parameters():
        kind = type(parameter.data)
        if kind.__module__.partition(".")[0] == "torchao":
            return f"{name} is a {kind.__name__} of torchao"
        if not parameter.is_floating_point() and not parameter.is_complex():
            return f"{name} holds {str(parameter.dtype).removeprefix('torch.')}"
    return None


def save_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Write the adapter in PEFT's layout, as safetensors."""
    with without_bars():
        loaded.model.save_pretrained(folder, safe_serialization=True)


@dataclass(frozen=True)
class AdapterFolder:
    """A folder with an adapter.

    Attributes:
        path: the folder.
        base: name of its base model, ``[@revision]`` included.
    """

    path: Path
    base: str


def adapter_in(folder: Path) -> AdapterFolder | None:
    """The adapter in ``folder``, or None where there is none.

    Raises:
        ArtifactError: its weights are no safetensors (pickles are never read), or it names no base.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    config = _peft().PeftConfig.from_pretrained(str(folder))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ArtifactError(
            f"{folder} has an adapter without {ADAPTER_WEIGHTS} (pickles are never read)",
            "Save the adapter again with a current version of peft.",
        )
    base = config.base_model_name_or_path
    if not base:
        raise ArtifactError(f"{folder / ADAPTER_CONFIG} names no base model", "Write base_model_name_or_path into it.")
    return AdapterFolder(folder, f"{base}@{config.revision}" if config.revision else str(base))


def with_adapter(base: LoadedModel, folder: Path) -> LoadedModel:
    """``base`` with the adapter in ``folder``, ready for evaluation or further training.

    Raises:
        IncompatibleError: the adapter does not fit the model.
    """
    peft = _peft()
    remedy = "Use the base that it was trained on."
    try:
        learned = peft.PeftConfig.from_pretrained(str(folder)).is_prompt_learning
        with _initialised(base.model, 0), warnings.catch_warnings(action="ignore"):
            # PEFT refuses to load a prefix for training; it is the same tensor either way.
            model = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=not learned)
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as content:
            absent = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False)) - set(content.keys())
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        raise IncompatibleError(f"the adapter in {folder} does not fit {base.name}: {text}", remedy) from error
    if absent:
        raise IncompatibleError(
            f"the adapter in {folder} does not fit {base.name}: it lacks {len(absent)} of the tensors that it would"
            f" have there, such as {min(absent)}",
            remedy,
        )
    if learned:
        model.prompt_encoder.requires_grad_(True)
        model.active_peft_config.inference_mode = False
    return replace(base, model=_ready(model, base))


def _adapted(loaded: LoadedModel, config: TrainableConfig, seed: int) -> LoadedModel:
    """``loaded`` with a new adapter."""
    peft = _peft()
    kind = str(config.peft)
    if loaded.kind == "masked" and kind in ("prefix", "prompt"):
        raise UsageError(
            f"a {kind} adapter on the masked model {loaded.name}: PEFT has none for masked language models",
            "Use --peft lora or --peft ia3.",
        )
    common = {"task_type": "CAUSAL_LM" if loaded.kind == "causal" else None}
    # GPT-2 keeps its matrices transposed, in modules of a class of its own.
    transposed = any(type(module).__name__ == "Conv1D" for module in loaded.model.modules())
    targets = {"target_modules": config.peft_targets, "fan_in_fan_out": transposed}
    settings: dict[str, Callable[[], Any]] = {
        "lora": lambda: peft.LoraConfig(
            r=config.peft_rank, lora_alpha=config.peft_alpha, lora_dropout=0.0, **targets, **common
        ),
        "ia3": lambda: peft.IA3Config(**targets, **common),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=config.peft_tokens, **common),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=config.peft_tokens, **common),
    }
    try:
        with _initialised(loaded.model, seed):
            model = peft.get_peft_model(loaded.model, settings[kind]())
            if kind in ("prefix", "prompt") and config.peft_init == "activations":
                _start_from_tokens(model, kind, config.peft_tokens, loaded.tokenizer)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{loaded.name} cannot have a {kind} adapter: {text}",
            "Name modules of the model with --peft-targets, or use another kind.",
        ) from error
    return replace(loaded, model=_ready(model, loaded))


def _ready(model: Any, base: LoadedModel) -> Any:
    """The PEFT model in evaluation mode, its base under the name that it was loaded by."""
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = base.name, base.revision
    # By default PEFT asks the Hub, at every save, whether the vocabulary was resized. It never is here.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    _keep_positions(model)
    return model.eval()


def _start_from_tokens(model: Any, kind: str, count: int, tokenizer: Any) -> None:
    """Begin a prefix as the keys and values, or a prompt as the embeddings, of ``count`` random real tokens."""
    base = model.get_base_model()
    special = set(tokenizer.all_special_ids)
    usable = torch.tensor([index for index in range(len(tokenizer)) if index not in special])
    chosen = usable[torch.randint(len(usable), (count,))].to(base.get_input_embeddings().weight.device)
    encoder = model.prompt_encoder[model.active_adapter]
    with torch.no_grad():
        if kind == "prompt":
            encoder.embedding.weight.copy_(base.get_input_embeddings()(chosen))
            return
        cache = base(input_ids=chosen[None], use_cache=True).past_key_values
        # [tokens, layers · (key, value) · heads · head size], the layout that PEFT reads them in.
        parts: list[Tensor] = [part[0].transpose(0, 1) for layer in cache.layers for part in (layer.keys, layer.values)]
        encoder.embedding.weight.copy_(torch.stack(parts, dim=1).reshape(count, -1))


def _keep_positions(model: Any) -> None:
    """Number the positions by the attention mask where PEFT passes none on.

    PEFT drops the position ids of a prompt's model (with a warning), and without them the padding in front
    of a shorter row would count as positions.
    """
    base = model.get_base_model()
    if not virtual_tokens(model) or "position_ids" not in inspect.signature(base.forward).parameters:
        return

    def drop(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {key: value for key, value in options.items() if key != "position_ids"}

    def number(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = options.get("attention_mask")
        given = options.get("inputs_embeds") if options.get("inputs_embeds") is not None else options.get("input_ids")
        if mask is not None and given is not None and mask.ndim == 2 and options.get("position_ids") is None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]
            options = {**options, "position_ids": positions}
        return args, options

    model.register_forward_pre_hook(drop, with_kwargs=True)
    base.register_forward_pre_hook(number, with_kwargs=True)


def _initialised(model: nn.Module, seed: int) -> AbstractContextManager[None]:
    return initialised(seed, (parameter.device for parameter in model.parameters()))


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a canonical name holds the segments of ``pattern``."""
    parts = []
    for segment in pattern.strip(".").split("."):
        if segment == "**":
            parts.append(r"[^.]+(?:\.[^.]+)*")
        else:
            parts.append(re.escape(segment).replace(r"\*", "[^.]*").replace(r"\?", "[^.]"))
    found = re.compile(r"(?:^|\.)" + r"\.".join(parts) + r"(?:\.|$)")
    return lambda name: found.search(name) is not None


def _generalised(names: Sequence[str]) -> list[str]:
    """Every run of segments that ends within a name, numbers replaced by ``*``: what a pattern may look like."""
    patterns: dict[str, None] = {}
    for name in names:
        segments = ["*" if segment.isdigit() else segment for segment in name.split(".")]
        for first in range(len(segments)):
            for last in range(first + 1, len(segments) + 1):
                patterns[".".join(segments[first:last])] = None
    return [pattern for pattern in patterns if pattern.strip("*.")]


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UsageError("adapters need the package peft, which is not installed", "pip install 'zoft[peft]'") from None
    return peft
