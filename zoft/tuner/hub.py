"""Tuners on the Hugging Face Hub: the only module that imports huggingface_hub.

Uploads of large files may go through the client's xet protocol, where the Hub offers it; the tests exercise the
plain HTTP path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoft.errors import ArtifactError, UsageError, ZoftError
from zoft.hub_errors import explained, is_broken_off
from zoft.names import Resolved
from zoft.tuner.card import TAGS
from zoft.tuner.config import CARD_FILE, CONFIG_FILE, FILES, PROVENANCE_FILE, WEIGHTS_FILE
from zoft.tuner.layout import LARGEST, is_pickle, pickled

#: The tag by which tuners are found.
TAG = TAGS[1]


_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")


@dataclass(frozen=True)
class Found:
    """A tuner on the Hub, as a search shows it.

    Attributes:
        repo: ``user/repo``.
        base: the base model that its card names, or empty.
        downloads: in the last month, as the Hub counts.
        private: whether only its owner sees it.
    """

    repo: str
    base: str
    downloads: int
    private: bool


def fetch(
    place: Resolved,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    with_card: bool = False,
) -> tuple[Path, str]:
    """Download a tuner, or find it in the cache: its four files at one commit, and nothing else.

    Args:
        place: the repository; for the rest see :meth:`zoft.tuner.Tuner.from_pretrained`.
        with_card: README.md too, which nothing reads.

    Returns:
        The folder in the cache, and the commit.

    Raises:
        ArtifactError: each failure of the Hub has its own cause and remedy; or a file is larger than any
            tuner's.
    """
    options: dict[str, Any] = {
        "subfolder": place.subfolder,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    if force_download and local_files_only:
        raise UsageError("force_download needs the Hub, and local_files_only forbids it", "Give one of the two.")
    names = [WEIGHTS_FILE, PROVENANCE_FILE, *([CARD_FILE] if with_card else [])]
    with _explaining(place, token=token):
        try:
            return _fetch(place, names, options)
        except Exception as error:
            # The client looks into the cache itself when there is no connection, but not when one breaks off.
            if local_files_only or force_download or not is_broken_off(error):
                raise
            with suppress(Exception):
                return _fetch(place, names, {**options, "local_files_only": True})
            raise


def _fetch(place: Resolved, names: Sequence[str], options: dict[str, Any]) -> tuple[Path, str]:
    """The configuration, and at its commit the files ``names``; see :func:`fetch`."""
    first, commit = _download(place, CONFIG_FILE, place.revision or "main", options)
    for name in names:
        try:
            _download(place, name, commit, options)
        except Exception as error:
            if name == WEIGHTS_FILE or not _is_optional(error, options["local_files_only"]):
                raise
    return first.parent, commit


def _download(place: Resolved, name: str, revision: str, options: dict[str, Any]) -> tuple[Path, str]:
    """One file, after a look at its size."""
    from huggingface_hub import hf_hub_download

    looked = {**options, "force_download": False}
    about: Any = hf_hub_download(place.path_or_repo, name, revision=revision, dry_run=True, **looked)
    if (about.file_size or 0) > LARGEST[name]:
        raise ArtifactError(
            f"{name} of {place} has {about.file_size:,} bytes, more than any tuner's", "Give a tuner that zoft wrote."
        )
    # By the name that was asked for, so that the cache knows it when the Hub cannot be asked.
    file = hf_hub_download(place.path_or_repo, name, revision=revision, **options)
    return Path(file), commit_in(file) or str(about.commit_hash)


def cached_commit(place: Resolved, file: str) -> str | None:
    """The commit at which ``file`` of a repository was last had from the Hub; None where it is not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    path = "/".join(filter(None, (place.subfolder, file)))
    found = try_to_load_from_cache(place.path_or_repo, path, revision=place.revision or "main")
    return commit_in(found) if isinstance(found, str) else None


def commit_in(path: str) -> str | None:
    """The commit in the path of a file in the Hub's cache."""
    match = _SNAPSHOT.search(path.replace("\\", "/"))
    return match[1] if match else None


def _is_optional(error: Exception, local_files_only: bool) -> bool:
    """Whether a file is left out because it is not there: not on the Hub, or, without the Hub, not in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    if isinstance(error, RemoteEntryNotFoundError):
        return True
    return isinstance(error, LocalEntryNotFoundError) and (local_files_only or constants.HF_HUB_OFFLINE)


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str,
    token: str | bool | None,
) -> str:
    """Upload the four files of a tuner's folder; see :meth:`zoft.tuner.Tuner.push_to_hub`.

    Returns:
        Address of the commit or pull request.
    """
    from huggingface_hub import HfApi, get_token

    if token in (None, True) and get_token() is None:
        raise _no_token()
    api = HfApi(token=token)
    with _explaining(Resolved(repo_id, revision), cached=False):
        if not create_pr:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr or None,
        )
    return str(done.pr_url or done.commit_url)


def search(base: str | None = None, author: str | None = None, limit: int = 50) -> list[Found]:
    """Tuners on the Hub, the most downloaded first.

    Args:
        base: only for this base, ``user/repo``.
        author: only of this user or organisation.

    Raises:
        ArtifactError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    tags = [TAG, *([f"base_model:{base}"] if base else [])]
    with _explaining(Resolved("the list of tuners"), cached=False):
        models = list(HfApi().list_models(filter=tags, author=author, limit=limit, sort="downloads"))
    return [Found(m.id, _base(m.tags or []), m.downloads or 0, bool(m.private)) for m in models]


def _base(tags: list[str]) -> str:
    named = [tag.removeprefix("base_model:") for tag in tags if tag.startswith("base_model:")]
    return next((name for name in named if ":" not in name), "")


@contextmanager
def _explaining(place: Resolved, cached: bool = True, token: str | bool | None = None) -> Iterator[None]:
    """Within: whatever the client raises becomes an error with a cause and a remedy."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RemoteEntryNotFoundError

    try:
        yield
    except ZoftError:
        raise
    except RemoteEntryNotFoundError as error:
        raise _no_tuner(place, token) from error
    except LocalTokenNotFoundError as error:
        raise _no_token() from error
    except HFValidationError as error:
        raise UsageError(f"{str(place)!r} is no repository on the Hub", "Write user/repo.") from error
    except Exception as error:
        told = explained(error, place, "tuner", cached)
        if told is None and isinstance(error, OSError):
            text = " ".join(str(error).split())[:200]
            told = ArtifactError(f"{place} cannot be had: {text}", "Try again, or look at the repository on the Hub.")
        if told is None:
            raise
        raise told from error


def _no_token() -> ArtifactError:
    return ArtifactError("no token for the Hub is set", "Run `hf auth login` or set HF_TOKEN.")


def _no_tuner(place: Resolved, token: str | bool | None) -> ArtifactError:
    """The repository is there, but a file of a tuner is not: say what it holds instead."""
    from huggingface_hub import HfApi

    try:
        names = HfApi(token=token).list_repo_files(place.path_or_repo, revision=place.revision)
    except Exception:
        names = []
    inside = f"{place.subfolder}/" if place.subfolder else ""
    here = [name.removeprefix(inside) for name in names if name.startswith(inside)]
    pickles = [name for name in here if is_pickle(name)]
    if CONFIG_FILE not in here and pickles:
        return pickled(f"{place} holds a pickle ({pickles[0]}) and no tuner")
    lacking = WEIGHTS_FILE if CONFIG_FILE in here else CONFIG_FILE
    others = [name for name in names if name.endswith(f"/{CONFIG_FILE}")]
    remedy = f"Perhaps hf://{place}/{others[0].rpartition('/')[0]}?" if others else "Give the repository of a tuner."
    return ArtifactError(f"{place} has no {lacking}: it holds no complete tuner", remedy)
