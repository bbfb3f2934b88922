"""Examples that are too long for a model: the passage is cut at its end, never the question or the answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from zoft.tasks.base import Example

#: A cut within a word goes back to the word's beginning where that is not further than this.
_WORD = re.compile(r"\s\S{0,40}$")


def fitted(example: Example, fits: Callable[[Example], bool]) -> Example:
    """``example`` with the longest beginning of its passage that ``fits``.

    Returned with its passage removed where even that does not fit, so that the caller can say how long it is.
    """
    if fits(example) or not example.passage:
        return example
    low, high = 0, len(example.passage)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(with_passage(example, example.passage[:middle])) else (low, middle)
    # Tokens grow with characters but for a merge at the cut, so a few steps back are enough.
    while low and not fits(with_passage(example, _at_a_word(example.passage, low))):
        low -= 1
    return with_passage(example, _at_a_word(example.passage, low))


def with_passage(example: Example, passage: str) -> Example:
    """``example`` with another text in its passage's place in the prompt, and in its cloze."""
    end = len(example.prompt) - example.follows
    prompt = example.prompt[: end - len(example.passage)] + passage + example.prompt[end:]
    cloze = example.cloze
    if cloze is not None and example.passage in cloze.before:
        before, _, after = cloze.before.rpartition(example.passage)  # demonstrations may hold the same passage
        cloze = replace(cloze, before=before + passage + after)
    elif cloze is not None:
        cloze = replace(cloze, after=cloze.after.replace(example.passage, passage, 1))
    return replace(example, prompt=prompt, passage=passage, cloze=cloze)


def _at_a_word(passage: str, length: int) -> str:
    """The first ``length`` characters, without a word that they would cut."""
    cut = passage[:length]
    if length < len(passage) and not passage[length].isspace():
        found = _WORD.search(cut)
        cut = cut[: found.start()] if found else cut
    return cut.rstrip()
