"""Names: what a user writes for a model or a tuner, and where that is. One set of rules for both.

* ``./folder``, ``../folder``, ``~/folder`` or an absolute path: that folder only.
* ``hf://user/repo[@revision][/folder]``: the Hub only.
* ``user/repo[@revision]``: the Hub; a local folder of that name that holds one wins, and that is said.
* a bare name: a short name (:data:`ALIASES`, or the index of tuners), ``[@revision]`` allowed; otherwise a local
  folder of that name that holds one.

Resolving a name looks no further than the local file system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoft.config import unknown
from zoft.errors import UsageError

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

#: ``user/repo`` and an optional ``@revision``.
HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[^@\s]+?))?", re.ASCII)


@dataclass(frozen=True)
class Resolved:
    """Where a model or a tuner is.

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

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.path_or_repo + revision + (f"/{self.subfolder}" if self.subfolder else "")


def resolve(name: str, what: str, markers: Sequence[str], short: Mapping[str, str]) -> Resolved:
    """Where ``name`` points; the rules are the module's.

    Args:
        what: ``model`` or ``tuner``, for messages.
        markers: the files of which any makes a folder one.
        short: for each short name, what it stands for: an absolute path, or ``user/repo[@revision]``.

    Raises:
        UsageError: a name that is none of these.
    """
    if name.startswith(("./", "../", "/", "~")) or name in (".", "..") or Path(name).is_absolute():
        return Resolved(_expanded(name), is_local=True)
    if name.startswith("hf://"):
        rest, folder = name.removeprefix("hf://"), None
        if rest.count("/") > 1:
            owner, repo, folder = rest.split("/", 2)
            rest = f"{owner}/{repo}"
        return on_hub(rest, name, what, folder)
    here = Path(name)
    present = here.is_file() or any((here / marker).is_file() for marker in markers)
    if "/" in name:
        if present:
            told = f"{name} is a local folder, and is used as such" if HUB_NAME.fullmatch(name) else ""
            return Resolved(name, is_local=True, note=told)
        found = on_hub(name, name, what, None)
        return (
            replace(found, note=f"the folder ./{name} holds no {what}: looking on the Hub") if here.is_dir() else found
        )
    bare, _, revision = name.partition("@")
    if bare in short:
        target = short[bare]
        if not Path(target).is_absolute():
            place = on_hub(target, name, what, None)
            return replace(place, revision=revision) if revision else place
        if not revision:
            return Resolved(target, is_local=True)
    if present:
        return Resolved(name, is_local=True)
    remedy = f"Write ./{name} for the folder." if here.is_dir() else "Or give user/repo or ./folder."
    raise UsageError(unknown(what, name, short), remedy)


def on_hub(text: str, name: str, what: str, folder: str | None) -> Resolved:
    """``user/repo[@revision]`` on the Hub.

    Raises:
        UsageError: ``text`` is none, or ``folder`` leads out of the repository.
    """
    match = HUB_NAME.fullmatch(text)
    if match is None or ".." in (folder or "").split("/"):
        raise UsageError(
            f"{name!r} is no name of a {what} on the Hub", "Write user/repo, user/repo@revision, or ./folder."
        )
    return Resolved(match["repo"], match["revision"], subfolder=folder or None)


def resolve_model(name: str) -> Resolved:
    """Where the model ``name`` is; see :func:`resolve`.

    Raises:
        UsageError: no such name.
    """
    return resolve(name, "model", ("config.json", "adapter_config.json"), {EMBEDDED: str(EMBEDDED_FOLDER), **ALIASES})


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise UsageError(f"{path!r} names a user that this machine does not have", "Give the whole path.") from None
