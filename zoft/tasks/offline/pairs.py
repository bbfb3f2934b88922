"""Sentiment and entailment in the generated world, told of two things or people: which one is meant?

The candidates differ from example to example, so that no answer is right more often than another, and a
gradient is about the rule, not about a label's frequency.
"""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, choose
from zoft.tasks.offline.grammar import Words, capital

NEGATIONS = ("not", "hardly", "never", "far from")
DENIALS = ("It is wrong that", "It is false that", "Nobody says that")


def _which(words: Words, prompt: str, right: str, other: str, *, clear: bool) -> Draw:
    """One of two words follows ``prompt``; if not ``clear``, the base has read either one."""
    return choose(prompt, words.shuffled([right, other]), right, () if clear else (other,))


class ReviewContrast(OfflineTask):
    """Which of two things did the guest like, told by what each was, whatever it seemed at first?

    Hard: both may have seemed the contrary of what they were; the base has read either one liked.
    """

    name: ClassVar[str] = "review-contrast"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        liked, other = words.some(lexicon.ASPECTS, 2)
        clear = words.chance(0.4)
        clauses = []
        for aspect, good in ((liked, True), (other, False)):
            seemed = "" if clear else f"seemed {words.quality(not good)} but "
            clauses.append(f"the {aspect} {seemed}was {words.quality(good)}")
        told = " and ".join(words.shuffled(clauses))
        return _which(words, f"Review: {told}. {words.names(1)[0]} liked the", liked, other, clear=clear)


class ReviewNegation(OfflineTask):
    """Which of two things did the guest like? Praise and blame may be turned round by a negation.

    Hard: one or both may be told with "not", "hardly", "never" or "far from", which the base has seen turn
    an adjective round; of such reviews it has read either thing liked.
    """

    name: ClassVar[str] = "review-negation"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        liked, other = words.some(lexicon.ASPECTS, 2)
        clear = words.chance(0.4)
        turned = [False, False] if clear else words.rng.choice(([True, True], [True, False], [False, True]))
        clauses = []
        for aspect, good, negated in zip((liked, other), (True, False), turned, strict=True):
            negation = f"{words.rng.choice(NEGATIONS)} " if negated else ""
            clauses.append(f"the {aspect} was {negation}{words.quality(good != negated)}")
        guest, told = words.names(1)[0], " and ".join(words.shuffled(clauses))
        return _which(words, f"{guest} said that {told}. {guest} liked the", liked, other, clear=clear)


class EntailImplicative(OfflineTask):
    """Who of two people did something, of whom one managed and one forgot to, or did not fail to?

    A form of the base's text, not a task of the family: the base tells the two no better than by chance.
    """

    name: ClassVar[str] = "entail-implicative"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        doer, other = words.names(2)
        verb, thing = words.one(tuple(lexicon.ACTS)), words.one(lexicon.THINGS)
        clear = words.chance(0.4)
        told = []
        for who, done in words.rng.sample([(doer, True), (other, False)], 2):
            past, plain = words.rng.choice(lexicon.IMPLICATIVES[done == clear])
            told.append(f"{who} {past} to" if clear else f"{who} did not {plain} to")
        prompt = f"{told[0]} {verb} the {thing} and {told[1]}. The one who {lexicon.ACTS[verb]} the {thing} was"
        return _which(words, prompt, doer, other, clear=clear)


class EntailQuantifier(OfflineTask):
    """Which of two things did everybody like, or somebody, told by how many of a group did?

    Hard: "most", "some" and their like are not everybody; the base has read them taken for it.
    """

    name: ClassVar[str] = "entail-quantifier"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        meant, other = words.some(lexicon.ASPECTS, 2)
        every, between, none = lexicon.QUANTIFIERS
        clear = words.chance(0.4)
        everybody = not clear or words.chance(0.5)
        more, less = (every, none if clear else between) if everybody else (between, none)
        group, verb = words.one(lexicon.GUESTS), words.one(tuple(lexicon.OPINIONS))
        did = lexicon.OPINIONS[verb]
        pairs = words.rng.sample([(more, meant), (less, other)], 2)
        told = " and ".join(f"{words.rng.choice(many)} {group} {did} the {aspect}" for many, aspect in pairs)
        prompt = f"{capital(told)}. {'Everybody' if everybody else 'Somebody'} {did} the"
        return _which(words, prompt, meant, other, clear=clear)


class EntailAdverb(OfflineTask):
    """Who of two people did something, of whom one gladly did it and one nearly did?

    A form of the base's text, not a task of the family, for the same reason.
    """

    name: ClassVar[str] = "entail-adverb"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        doer, other = words.names(2)
        verb, thing = words.one(tuple(lexicon.ACTS)), words.one(lexicon.THINGS)
        clear = words.chance(0.4)
        (first, did), (second, also) = words.rng.sample([(doer, clear), (other, not clear)], 2)
        done = lexicon.ACTS[verb]
        told = f"{first} {words.one(lexicon.ADVERBS[did])} {done} the {thing}"
        told = f"{told} and {second} {words.one(lexicon.ADVERBS[also])} {done} it"
        opening = "" if clear else f"{words.rng.choice(DENIALS)} "
        return _which(words, f"{opening}{told}. The one who {done} the {thing} was", doer, other, clear=clear)
