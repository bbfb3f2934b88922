"""What goes wrong with the Hub, in a user's words: each failure has its own sentence, cause and remedy.

The Hub client's errors are typed; they are told apart by the names of their classes along the chain of causes,
so that nothing is imported here, and transformers' errors around them do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator

from zoft.errors import ArtifactError
from zoft.names import Resolved

_AUTHENTICATE = "run `hf auth login` or set HF_TOKEN"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and everything that it was raised from or while handling."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def explained(error: BaseException, place: Resolved, what: str, cached: bool = True) -> ArtifactError | None:
    """The error for the user when ``error`` came from the Hub or the way to it; None otherwise.

    Args:
        place: what was asked for.
        what: ``model`` or ``tuner``.
        cached: whether the local cache would have done.
    """
    kinds = {base.__name__ for link in chain(error) for base in type(link).__mro__}
    lacking = f"{place.path_or_repo} is not in the local cache, and the Hub" if cached else "the Hub"
    return _refused(kinds, _status(error), place, what) or _unreachable(kinds, _status(error), lacking)


def is_broken_off(error: BaseException) -> bool:
    """Whether there was a connection, or part of one, and it failed without an answer."""
    return "TransportError" in {base.__name__ for link in chain(error) for base in type(link).__mro__}


def _refused(kinds: set[str], status: int | None, place: Resolved, what: str) -> ArtifactError | None:
    """The Hub answered, and the answer is no."""
    where = place.path_or_repo
    if "GatedRepoError" in kinds:
        return ArtifactError(
            f"{where} is gated, and this account has no access",
            f"Ask for access at https://huggingface.co/{where}, then {_AUTHENTICATE}.",
        )
    if "RevisionNotFoundError" in kinds:
        return ArtifactError(f"{where} has no revision {place.revision!r}", "Give a branch, tag or commit.")
    if "RepositoryNotFoundError" in kinds:
        return ArtifactError(
            f"there is no {what} {where} on the Hub, or it is private",
            f"Check the name; for a private one {_AUTHENTICATE}; write ./{where} for a folder.",
        )
    if status == 401:
        return ArtifactError(f"the Hub does not accept the token, for {where}", f"To renew it, {_AUTHENTICATE}.")
    if status == 403:
        return ArtifactError(
            f"the Hub does not let this account do that to {where}",
            f"Use a name of your own, or a token with the right to write: {_AUTHENTICATE}.",
        )
    if status == 429:
        return ArtifactError(f"the Hub has had too many requests, the last for {where}", "Try again later.")
    return None


def _unreachable(kinds: set[str], status: int | None, lacking: str) -> ArtifactError | None:
    """The Hub did not answer, or not usably, and the local cache does not help."""
    if "OfflineModeIsEnabled" in kinds:
        return ArtifactError(
            f"{lacking} cannot be reached: offline mode is on", "Unset HF_HUB_OFFLINE, or give a local ./folder."
        )
    if status is not None and status >= 500:
        return ArtifactError(f"{lacking} answers with a server error ({status})", "Try again later.")
    if kinds & {"TimeoutException", "Timeout", "TimeoutError"}:
        return ArtifactError(f"{lacking} does not answer in time", "Check the connection, or try again later.")
    if kinds & {"NetworkError", "TransportError", "ConnectError", "ConnectionError"}:
        return ArtifactError(f"{lacking} cannot be reached", "Check the connection, or give a local ./folder.")
    if "LocalEntryNotFoundError" in kinds:
        return ArtifactError(
            f"{lacking} cannot be reached or was not asked",
            "Check the connection (and that neither HF_HUB_OFFLINE nor local_files_only is set), or give a ./folder.",
        )
    return None


def _status(error: BaseException) -> int | None:
    """The status of the Hub's answer, where an error in the chain has one."""
    for link in chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None
