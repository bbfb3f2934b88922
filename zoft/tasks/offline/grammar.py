"""Small sentences from the lexicon, shared by the prose of the base and by the tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from zoft.tasks.offline import lexicon


@lru_cache
def _weights(count: int) -> tuple[float, ...]:
    """Cumulative weights of ``count`` words ordered from common to rare."""
    return tuple(accumulate((rank + 2.0) ** -1.3 for rank in range(count)))


class Words:
    """Draws words and small sentences.

    Args:
        rng: where every choice comes from.
        even: draw all words alike; False prefers the common ones.
    """

    def __init__(self, rng: random.Random, even: bool) -> None:
        self.rng = rng
        self.even = even

    def one(self, words: Sequence[str]) -> str:
        """One word of a list that is ordered from common to rare."""
        if self.even:
            return self.rng.choice(words)
        return self.rng.choices(words, cum_weights=_weights(len(words)))[0]

    def some(self, words: Sequence[str], count: int) -> list[str]:
        """``count`` different words."""
        found: list[str] = []
        while len(found) < count:
            word = self.one(words)
            if word not in found:
                found.append(word)
        return found

    def chance(self, share: float) -> bool:
        """True in ``share`` of all cases."""
        return self.rng.random() < share

    def names(self, count: int) -> list[str]:
        """Different people."""
        return self.rng.sample(lexicon.NAMES, count)

    def quality(self, good: bool) -> str:
        """An adjective of praise or of blame."""
        return self.one(lexicon.GOOD if good else lexicon.BAD)

    def news(self, topic: str) -> str:
        """A sentence of one topic, without its full stop."""
        who, did, what = lexicon.TOPICS[topic]
        agent, verb, thing = self.one(who), self.one(did), self.one(what)
        form = self.rng.randrange(3)
        if form == 0:
            return f"The {agent} {verb} the {thing}"
        if form == 1:
            return f"The {agent} and the {self.one(who)} {verb} {article(thing)}"
        return f"{capital(article(agent))} {verb} the {thing} and the {self.one(what)}"

    def asked(self, kind: str) -> str:
        """A question that asks for ``kind``, without its question mark."""
        topic = self.rng.choice(tuple(lexicon.TOPICS))
        _, did, what = lexicon.TOPICS[topic]
        return f"{self.one(lexicon.ASKED[kind])} {self.one(did)} the {self.one(what)}"

    def members(self, count: int) -> list[tuple[str, str]]:
        """(kind, member) of ``count`` different kinds."""
        kinds = self.rng.sample(tuple(lexicon.KINDS), count)
        return [(kind, self.one(lexicon.KINDS[kind])) for kind in kinds]

    def sides(self, count: int) -> list[tuple[tuple[str, str], tuple[str, str]]]:
        """(side, other side) of ``count`` different qualities."""
        drawn = []
        for pair in self.rng.sample(lexicon.OPPOSITES, count):
            first = self.rng.randrange(2)
            drawn.append((pair[first], pair[1 - first]))
        return drawn

    def shuffled(self, items: Sequence[str]) -> list[str]:
        """``items`` in random order."""
        return self.rng.sample(list(items), len(items))


def article(word: str) -> str:
    """``word`` with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def capital(text: str) -> str:
    """``text`` with a capital letter first."""
    return text[:1].upper() + text[1:]
