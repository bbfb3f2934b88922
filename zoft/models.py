"""Language models: names, loading, saving. The only file that knows the names of models.

transformers is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoft.config import unknown
from zoft.errors import ArtifactError, DoesNotFitError, UsageError, ZoftError

#: The small base model that comes with the package, so that everything can be tried offline.
EMBEDDED = "zoft-base"

EMBEDDED_FOLDER = Path(__file__).parent / "assets" / "base"

#: Short names of base models on the Hub.
ALIASES: dict[str, str] = {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama-3.2-1b-instruct": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
    "llama-3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "opt-125m": "facebook/opt-125m",
    "opt-350m": "facebook/opt-350m",
    "opt-1.3b": "facebook/opt-1.3b",
    "opt-2.7b": "facebook/opt-2.7b",
    "opt-6.7b": "facebook/opt-6.7b",
    "opt-13b": "facebook/opt-13b",
    "opt-30b": "facebook/opt-30b",
    "opt-66b": "facebook/opt-66b",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "phi-2": "microsoft/phi-2",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
}

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

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+?))?")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model is.

    Attributes:
        path_or_repo: a local folder, or ``user/repo`` on the Hub.
        revision: branch, tag or commit that was asked for on the Hub; None is the default branch.
        is_local: whether ``path_or_repo`` is a folder of this machine.
        subfolder: the folder within the repository; None is its root.
        note: one sentence that the user should see, or empty.
    """

    path_or_repo: str
    revision: str | None = None
    is_local: bool = False
    subfolder: str | None = None
    note: str = ""


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


def resolve_model(name: str) -> ResolvedModel:
    """Where ``name`` points, without looking beyond the local file system.

    * ``./folder``, ``../folder``, ``~/folder`` or an absolute path: that folder only.
    * ``hf://user/repo[@revision][/folder]``: the Hub only.
    * ``user/repo[@revision]``: the Hub; a local folder of that name that holds a model wins.
    * a bare name: the embedded model (``zoft-base``) or one of :data:`ALIASES`, ``[@revision]`` allowed.

    Raises:
        UsageError: none of these.
    """
    if name.startswith(("./", "../", "/", "~")) or name in (".", "..") or Path(name).is_absolute():
        return ResolvedModel(str(Path(name).expanduser()), is_local=True)
    if name.startswith("hf://"):
        rest, folder = name.removeprefix("hf://"), None
        if rest.count("/") > 1:
            owner, repo, folder = rest.split("/", 2)
            rest = f"{owner}/{repo}"
        return _on_hub(rest, name, folder)
    if "/" in name:
        if any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json")):
            return ResolvedModel(name, is_local=True, note=f"{name} is a local folder, and is used as such")
        return _on_hub(name, name, None)
    short, _, revision = name.partition("@")
    if short == EMBEDDED and not revision:
        return ResolvedModel(str(EMBEDDED_FOLDER), is_local=True)
    if short in ALIASES:
        return ResolvedModel(ALIASES[short], revision or None)
    remedy = f"Write ./{name} for the folder." if Path(name).is_dir() else "Or give user/repo or ./folder."
    raise UsageError(unknown("model", name, [EMBEDDED, *ALIASES]), remedy)


def load_model(
    name: str,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    kind: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer, in evaluation mode; safetensors only, so nothing is unpickled.

    Args:
        name: see :func:`resolve_model`; a local folder with an adapter of PEFT's gives the adapter on its base.
        dtype: of the weights; None is the checkpoint's own.
        kind: ``causal``, ``masked``, or ``auto``: what the checkpoint's architecture says.
        trust_remote_code: allow the repository's own Python code to run.

    Raises:
        UsageError: a wrong name, kind, dtype or device.
        ArtifactError: the model or its tokenizer is not there, or not readable; says which and why.
        DoesNotFitError: the device has too little memory.
    """
    resolved = resolve_model(name)
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
        commit = getattr(config, "_commit_hash", None)
        if commit and not resolved.is_local:
            options["revision"] = commit  # so that weights and tokenizer are of the same commit
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
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
    label = EMBEDDED if source == str(EMBEDDED_FOLDER) else source
    return LoadedModel(model, tokenizer, found, label, None if resolved.is_local else commit)


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
    # transformers initialises with the default CPU generator, so that one is set and put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**config)).eval()


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


def _on_hub(text: str, name: str, folder: str | None) -> ResolvedModel:
    """``user/repo[@revision]`` on the Hub."""
    match = _HUB_NAME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{name!r} is no name of a model on the Hub", "Write user/repo, user/repo@revision, or ./folder."
        )
    return ResolvedModel(match["repo"], match["revision"], subfolder=folder or None)


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


def _explained(error: Exception, name: str, resolved: ResolvedModel) -> ZoftError:
    """The error for the user, from the classes of ``error`` and its causes (the Hub client's are typed)."""
    kinds = {base.__name__ for link in _chain(error) for base in type(link).__mro__}
    text = " ".join(str(error).split()).split(". ")[0][:300].rstrip(".")
    where = resolved.path_or_repo
    if "OutOfMemoryError" in kinds or "MemoryError" in kinds:
        return DoesNotFitError(f"{name} does not fit into memory", "Use a smaller dtype, model or device.")
    if "trust_remote_code" in text:
        return UsageError(f"{name} needs Python code of its own repository", "Set trust_remote_code if you trust it.")
    if resolved.is_local:
        return ArtifactError(f"{where} cannot be loaded: {text}", "Save the model again, or give another.")
    if "GatedRepoError" in kinds:
        return ArtifactError(
            f"{where} is gated, and this account has no access",
            f"Ask for access at https://huggingface.co/{where}, then run `hf auth login` or set HF_TOKEN.",
        )
    if "RevisionNotFoundError" in kinds:
        return ArtifactError(f"{where} has no revision {resolved.revision!r}", "Give a branch, tag or commit.")
    if "RepositoryNotFoundError" in kinds:
        return ArtifactError(
            f"there is no model {where} on the Hub, or it is private",
            "Check the name; for a private one run `hf auth login` or set HF_TOKEN.",
        )
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError"}:
        return ArtifactError(
            f"{where} is not in the local cache, and the Hub cannot be reached",
            "Check the connection (and that HF_HUB_OFFLINE is not set), or give a local ./folder.",
        )
    if text.startswith("Unrecognized model"):
        text = "it has no config.json that names a known type of model"
    return ArtifactError(f"{where} cannot be loaded: {text}", "Give a repository with safetensors weights.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and everything that it was raised from or while handling."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
