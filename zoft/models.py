"""Language models: loading and saving. Their names are in :mod:`zoft.names`.

transformers is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoft.blocks import canonical_name
from zoft.config import unknown
from zoft.errors import ArtifactError, DoesNotFitError, UsageError, ZoftError
from zoft.hub_errors import chain, explained
from zoft.names import ALIASES as ALIASES
from zoft.names import EMBEDDED, EMBEDDED_FOLDER, Resolved, resolve_model
from zoft.tuner.config import BlockTable
from zoft.tuner.hub import cached_commit

_log = logging.getLogger(__name__)

KINDS = ("auto", "causal", "masked")

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode and its tokenizer.

    Attributes:
        model: a transformers model.
        tokenizer: its tokenizer.
        kind: ``causal`` or ``masked``.
        name: ``zoft-base``, the ``user/repo`` on the Hub, or the local folder.
        revision: the commit that was loaded from the Hub; None for a local folder.
    """

    model: Any
    tokenizer: Any
    kind: str
    name: str
    revision: str | None = None


def load_model(
    name: str,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    kind: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer, in evaluation mode; safetensors only, so nothing is unpickled.

    Args:
        name: see :func:`zoft.names.resolve_model`; a local folder with an adapter of PEFT's gives the adapter on its
            base.
        dtype: of the weights; None is the checkpoint's own.
        kind: ``causal``, ``masked``, or ``auto``: what the checkpoint's architecture says.
        trust_remote_code: allow the repository's own Python code to run.

    Raises:
        UsageError: a wrong name, kind, dtype or device.
        ArtifactError: the model or its tokenizer is not there, or not readable; says which and why.
        DoesNotFitError: the device has too little memory.
    """
    resolved = resolve_model(name)
    _say(resolved)
    wanted, target = _dtype(dtype), _device(device)
    if kind not in KINDS:
        raise UsageError(unknown("kind of model", kind, KINDS))
    if resolved.is_local:
        from zoft import adapters

        adapter = adapters.adapter_in(Path(resolved.path_or_repo))
        if adapter is not None:
            return adapters.with_adapter(load_model(adapter.base, dtype, device, kind, trust_remote_code), adapter.path)
        _check_folder(Path(resolved.path_or_repo), name)
    import transformers

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "subfolder": resolved.subfolder or ""}
    if not resolved.is_local:
        options["revision"] = resolved.revision or "main"
    source = resolved.path_or_repo
    auto: Any
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        found = _kind(config, kind, name)
        auto = transformers.AutoModelForMaskedLM if found == "masked" else transformers.AutoModelForCausalLM
        commit = None if resolved.is_local else cached_commit(resolved, "config.json")
        if commit:
            _log.info("model %s at commit %s", source, commit)
            options["revision"] = commit  # so that weights and tokenizer are of the same commit
        tokenizer = tokenizer_class(resolved).from_pretrained(source, **options)
        with without_bars() if resolved.is_local else nullcontext():
            model, report = auto.from_pretrained(
                source, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True, **options
            )
        model = (model if getattr(model, "is_quantized", False) else model.to(target)).eval()
    except ZoftError:
        raise
    except Exception as error:
        raise _explained(error, name, resolved) from error
    _check_complete(sorted(report["missing_keys"]), name, found)
    return LoadedModel(model, tokenizer, found, EMBEDDED if source == str(EMBEDDED_FOLDER) else source, commit)


def tokenizer_class(resolved: Resolved) -> Any:
    """What loads a model's tokenizer: transformers' choice, but where a local folder says that all is in its file.

    For some families (Qwen2) transformers takes the family's class whatever the folder says, and a tokenizer of
    one's own would come back with other merges and tokens.
    """
    import transformers

    if resolved.is_local:
        file = Path(resolved.path_or_repo, resolved.subfolder or "", "tokenizer_config.json")
        try:
            declared = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class")
        except (OSError, ValueError, AttributeError):
            declared = None
        if declared == transformers.TokenizersBackend.__name__:
            return transformers.TokenizersBackend
    return transformers.AutoTokenizer


def base_blocks(name: str) -> tuple[BlockTable, str | None]:
    """The blocks of a model by its configuration alone: nothing but config.json is downloaded.

    Args:
        name: see :func:`zoft.names.resolve_model`.

    Returns:
        The table of blocks, and the commit on the Hub; None for a local folder.

    Raises:
        UsageError: a wrong name.
        ArtifactError: the configuration cannot be had.
    """
    resolved = resolve_model(name)
    import transformers

    options: dict[str, Any] = {"subfolder": resolved.subfolder or ""}
    if not resolved.is_local:
        options["revision"] = resolved.revision or "main"
    try:
        config = transformers.AutoConfig.from_pretrained(resolved.path_or_repo, **options)
        masked = _kind(config, "auto", name) == "masked"
        auto: Any = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config)
    except ZoftError:
        raise
    except Exception as error:
        raise _explained(error, name, resolved) from error
    named = {canonical_name(full): tuple(parameter.shape) for full, parameter in model.named_parameters()}
    commit = None if resolved.is_local else cached_commit(resolved, "config.json")
    return BlockTable.of(list(named), list(named.values())), commit


def save_model(loaded: LoadedModel, folder: str | Path) -> Path:
    """Write model (safetensors) and tokenizer to ``folder``, for ``from_pretrained`` and :func:`load_model`.

    Of a model with an adapter only the adapter is written, in PEFT's layout.

    Raises:
        UsageError: ``folder`` is a file or cannot be written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if hasattr(loaded.model, "peft_config"):
            from zoft import adapters

            adapters.save_adapter(loaded, path)
        else:
            with without_bars():
                loaded.model.save_pretrained(path)
        loaded.tokenizer.save_pretrained(path)
    except OSError as error:
        raise UsageError(f"cannot write the model to {path}: {error}", "Give another folder.") from error
    return path


@contextmanager
def without_bars() -> Iterator[None]:
    """Within: transformers shows no progress bars; for what only reads or writes this machine's disk."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def new_causal_lm(config: Mapping[str, Any], seed: int) -> nn.Module:
    """A Llama model with random weights, float32, in evaluation mode.

    Args:
        config: fields of transformers' ``LlamaConfig`` (``vocab_size``, ``hidden_size``, ...).
        seed: the weights are a pure function of ``config`` and ``seed``; no global generator is touched.

    Raises:
        UsageError: a name that is no field of ``LlamaConfig``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    known = set(LlamaConfig().to_dict())
    for key in config:
        if key not in known:
            raise UsageError(unknown("field of LlamaConfig", key, sorted(known)))
    with initialised(seed):
        return LlamaForCausalLM(LlamaConfig(**config)).eval()


@contextmanager
def initialised(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Within: the generators that libraries draw initial weights from begin at ``seed``. After: as before.

    transformers and PEFT know the global generators only. Those of the CPU and of ``devices`` are set, no others.
    """
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def context_length(model: nn.Module) -> int | None:
    """The longest sequence in tokens that ``model`` has positions for; None where it states none."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    for module in model.modules():
        # RoBERTa and its kin number positions from padding_idx + 1, and so lose the first ones.
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return limit - table.padding_idx - 1
    return limit


def _say(resolved: Resolved) -> None:
    if resolved.note:
        warnings.warn(resolved.note, stacklevel=3)


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(unknown("dtype", dtype, DTYPES))
    return DTYPES[dtype]


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}", "Use cpu, cuda, cuda:1 or mps.") from None
    present: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if target.type in present and not present[target.type]():
        raise UsageError(f"this machine has no {target.type} device", "Use --device cpu.")
    return target


def _check_folder(folder: Path, name: str) -> None:
    """Raise an ArtifactError when ``folder`` is no model that can be loaded from safetensors."""
    if not folder.is_dir():
        raise ArtifactError(
            f"{name}: there is no folder {folder.absolute()}", "Give a folder that holds a saved model."
        )
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder} has no config.json", "Give a folder written by save_pretrained.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise ArtifactError(
            f"{folder} has no weights in safetensors format" + (" (pickles are never read)" * pickled),
            "Save the model again with a current version of transformers.",
        )
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ArtifactError(f"{folder} has no tokenizer", "Save the tokenizer to the same folder.")


def _check_complete(missing: list[str], name: str, kind: str) -> None:
    if missing:
        raise ArtifactError(
            f"{name}: the checkpoint lacks {len(missing)} of the model's weights, the first is {missing[0]}",
            f"Use a checkpoint of a {kind} language model.",
        )


def _kind(config: Any, kind: str, name: str) -> str:
    """``causal`` or ``masked``, from what was asked for and what the checkpoint's architecture says."""
    architectures = getattr(config, "architectures", None) or []
    masked = any(item.endswith("ForMaskedLM") for item in architectures)
    causal = any(item.endswith(("ForCausalLM", "LMHeadModel")) for item in architectures)
    if kind == "auto" and masked == causal:
        said = ", ".join(architectures) or "none"
        raise UsageError(
            f"{name}: cannot tell a causal from a masked language model by its architecture ({said})",
            "Say which it is: kind 'causal' or 'masked'.",
        )
    found = kind if kind != "auto" else ("masked" if masked else "causal")
    if masked != causal and (found == "masked") != masked:
        raise UsageError(f"{name} is a {architectures[0]}, not a {found} language model", "Use kind 'auto'.")
    return found


def _explained(error: Exception, name: str, resolved: Resolved) -> ZoftError:
    """The error for the user, from the classes of ``error`` and its causes (the Hub client's are typed)."""
    kinds = {base.__name__ for link in chain(error) for base in type(link).__mro__}
    text = " ".join(str(error).split()).split(". ")[0][:300].rstrip(".")
    where = resolved.path_or_repo
    if "OutOfMemoryError" in kinds or "MemoryError" in kinds:
        return DoesNotFitError(f"{name} does not fit into memory", "Use a smaller dtype, model or device.")
    if "trust_remote_code" in text:
        return UsageError(f"{name} needs Python code of its own repository", "Set trust_remote_code if you trust it.")
    if resolved.is_local:
        return ArtifactError(f"{where} cannot be loaded: {text}", "Save the model again, or give another.")
    told = explained(error, resolved, "model")
    if told is not None:
        return told
    if text.startswith("Unrecognized model"):
        text = "it has no config.json that names a known type of model"
    return ArtifactError(f"{where} cannot be loaded: {text}", "Give a repository with safetensors weights.")
