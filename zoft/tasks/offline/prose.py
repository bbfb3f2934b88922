"""The text that the embedded base is trained on: small reviews, news, stories, facts and questions.

Every kind of document is a function of :class:`Words` that gives (prompt, continuation): the formats
of the tasks in a clean, easy form, the same facts told as plain prose, and a few undecided documents
(a mixed review that goes either way), so that the tasks' rules are plausible but not yet known.
A document whose prompt is reserved for the tasks is never told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.classification import ASKED, MOODS, TOPICS
from zoft.tasks.offline.family import reserved
from zoft.tasks.offline.grammar import Words, article

Document = tuple[str, str]


def review(words: Words) -> Document:
    """A review whose clauses agree, or (one in three) disagree under either verdict."""
    good = words.rng.random() < 0.5
    clauses = [f"the {aspect} was {words.quality(good)}" for aspect in words.some(lexicon.ASPECTS, 2)]
    verdict = "good" if good else "bad"
    if words.rng.random() < 0.4:
        return f"Review: {clauses[0]}. Verdict:", verdict
    if words.rng.random() < 0.5:
        return f"Review: {' and '.join(clauses)}. Verdict:", verdict
    other = f"the {words.one(lexicon.ASPECTS)} was {words.quality(not good)}"
    one, two = words.shuffled([clauses[0], other])
    form = words.rng.choice(
        (f"{one} but {two}", f"{one} yet {two}", f"although {one}, {two}", f"{one} though {two}")
    )
    return f"Review: {form}. Verdict:", verdict


def opinion(words: Words) -> Document:
    """Somebody's taste, its reason, and seldom a plain negation."""
    good = words.rng.random() < 0.5
    name = words.names(1)[0]
    aspect = words.one(lexicon.ASPECTS)
    form = words.rng.randrange(4)
    if form == 0:
        return f"{name} {'loved' if good else 'hated'} the {aspect} because it was", words.quality(good)
    if form == 1:
        return f"The {aspect} was {words.quality(good)} and {words.quality(good)}, so {name} felt", (
            words.one(lexicon.GOOD) if good else words.one(lexicon.BAD)
        )
    if form == 2 and words.rng.random() < 0.5:
        negation = words.rng.choice(("not", "not", "never", "hardly", "far from"))
        return f"The {aspect} was {negation} {words.quality(not good)}, it was", words.quality(good)
    return (
        f"{name} said that the {aspect} was {words.quality(good)}. Did {name} like it?",
        "yes" if good else "no",
    )


def mood(words: Words) -> Document:
    """What somebody did and felt; two people are told of in the order of the telling."""
    names = words.names(2)
    moods = words.rng.sample(MOODS, 2)
    acts = [words.one(lexicon.MOODS[feeling]) for feeling in moods]
    if words.rng.random() < 0.6:
        return f"{names[0]} {acts[0]}. {names[0]} felt", moods[0]
    return f"{names[0]} {acts[0]} and felt {moods[0]}, {names[1]} {acts[1]} and felt", moods[1]


def news(words: Words) -> Document:
    """News of one topic, seldom of two."""
    topic, other = words.rng.sample(TOPICS, 2)
    form = words.rng.randrange(5)
    if form == 0:
        return f"News: {words.news(topic)}. Topic:", topic
    if form == 1:
        return f"News: {words.news(topic)}. {words.news(topic)}. Topic:", topic
    if form == 2:
        return f"{words.news(topic)}. It is about", topic
    if form == 3:
        return f"{words.news(topic)}. The {words.rng.choice(('first', 'second'))} is about", topic
    told = words.shuffled([words.news(topic), words.news(other)])
    return f"News: {'. '.join(told)}. Topic:", topic


def asking(words: Words) -> Document:
    """A question and what it asks for."""
    kind, other = words.rng.sample(ASKED, 2)
    if words.rng.random() < 0.85:
        return f"Question: {words.asked(kind)}? It asks for a", kind
    aside = words.rng.choice((kind, other))
    asked = other if aside == kind else kind
    return f"Question: never mind {words.asked(aside)}, {words.asked(asked)}? It asks for a", kind


def kinds(words: Words) -> Document:
    """Which kind a thing is of, said or asked."""
    (kind, member), (other, _) = words.members(2)
    name = words.names(1)[0]
    form = words.rng.randrange(4)
    if form == 0:
        return f"{article(member).capitalize()} is", article(kind)
    if form == 1:
        return f"{name} saw {article(member)}, so {name} saw", article(kind)
    if form == 2:
        return f"There are many kinds of {kind}, such as the {member} and the", words.one(lexicon.KINDS[kind])
    true = words.rng.random() < 0.5
    asked = kind if true else other
    return f"{name} saw {article(member)}. Did {name} see {article(asked)}?", "yes" if true else "no"


def two_kinds(words: Words) -> Document:
    """Two things, and which of them is of a kind."""
    seen = words.members(2)
    asked = words.rng.randrange(2)
    names = words.names(2)
    kind, member = seen[asked]
    if words.rng.random() < 0.6:
        return f"{names[0]} drew {article(seen[0][1])} and {article(seen[1][1])}. The {kind} was the", member
    told = " and ".join(f"{who} saw {article(what)}" for who, (_, what) in zip(names, seen, strict=True))
    return f"{told}. {names[asked]} saw", article(kind)


def opposites(words: Words) -> Document:
    """Qualities, their synonyms and their opposites."""
    things = words.some(lexicon.THINGS, 2)
    (same, opposite), (more, _) = words.sides(2)
    word = words.one(same)
    form = words.rng.randrange(5)
    if form == 0:
        return f"The {things[0]} was not {word}, it was", words.one(opposite)
    if form == 1:
        return f"They said that the {things[0]} was {word}. No, the {things[0]} was", opposite[0]
    if form == 2:
        return f"Whatever is {word} is", same[0] if word == same[1] else same[1]
    if form == 3:
        told = f"the {things[0]} was {word} and the {things[1]} was {words.one(more)}"
        return f"They said that {told}. Yes, the {things[0]} was", word
    true = words.rng.random() < 0.5
    claim = words.rng.choice([other for other in same if other != word] if true else opposite)
    return f"Suppose the {things[0]} was {word}. Was the {things[0]} {claim}?", "yes" if true else "no"


def places(words: Words) -> Document:
    """Where people are, said again or claimed."""
    names = words.names(2)
    spots = words.some(lexicon.PLACES, 2)
    asked = words.rng.randrange(2)
    told = " ".join(f"{who} is at the {where}." for who, where in zip(names, spots, strict=True))
    form = words.rng.randrange(4)
    if form == 0:
        return f"{told} So {names[asked]} is at the", spots[asked]
    true = words.rng.random() < 0.5
    if form == 1:
        claim = spots[0 if true else 1]
        return f"{names[0]} is at the {spots[0]}. {names[0]} is at the {claim}. True or false? This is", (
            "true" if true else "false"
        )
    if form == 2:
        claim = spots[asked if true else 1 - asked]
        return f"{told} {names[asked]} is at the {claim}. True or false? This is", "true" if true else "false"
    told = " ".join(f"{who} went to the {where}." for who, where in zip(names, spots, strict=True))
    return f"{told} Question: Where is {names[asked]}? Answer: the", spots[asked]


def owners(words: Words) -> Document:
    """Who has which thing, and who gave it to whom."""
    names = words.names(3)
    things = words.some(lexicon.THINGS, 2)
    asked = words.rng.randrange(2)
    told = " ".join(f"{who} had the {what}." for who, what in zip(names, things, strict=False))
    form = words.rng.randrange(5)
    if form == 0:
        return f"{told} So the {things[asked]} was with", names[asked]
    if form == 1:
        return f"{told} So {names[asked]} had the", things[asked]
    if form == 2:
        return f"{told} Question: Who has the {things[asked]}? Answer:", names[asked]
    gift = f"{names[0]} gave the {things[0]} to {names[2]}."
    if form == 3:
        return f"{gift} Question: Who has the {things[0]}? Answer:", names[2]
    return f"{told} {names[asked]} gave the {things[asked]} to", names[2]


def ledger(words: Words) -> Document:
    """Three facts about people, looked up again in another order and from either end."""
    names = words.names(3)
    form = words.rng.randrange(4)
    kinds_of = (lexicon.THINGS, lexicon.PLACES, lexicon.COLOURS, lexicon.PLACES)
    values = words.some(kinds_of[form], 3)
    told = ("{} had the {}.", "{} is at the {}.", "The cup of {} is {}.", "{} went to the {}.")[form]
    again = ("the {1} was with {0}", "at the {1} is {0}", "{1} is the cup of {0}", "the {1} is where {0} is")[
        form
    ]
    facts = list(zip(names, values, strict=True))
    count = words.rng.choice((2, 3))
    text = " ".join(told.format(*fact) for fact in facts[:count])
    back = " and ".join(
        (told[:-1] if words.rng.random() < 0.5 else again).format(*fact)
        for fact in words.rng.sample(facts[:count], count)
    )
    return f"{text} So", back


def echo(words: Words) -> Document:
    """Facts about some people, then the same facts in another order."""
    count = words.rng.choice((2, 3))
    facts = []
    for name in words.names(count):
        thing, place, colour = words.one(lexicon.THINGS), words.one(lexicon.PLACES), words.one(lexicon.COLOURS)
        member = words.members(1)[0][1]
        facts.append(
            words.rng.choice(
                (
                    f"{name} had the {thing}.",
                    f"{name} is at the {place}.",
                    f"{name} has a {colour} {thing}.",
                    f"{name} saw {article(member)}.",
                    f"{name} went to the {place}.",
                    f"{name} {words.one(lexicon.MOODS[words.rng.choice(MOODS)])}.",
                )
            )
        )
    return f"{' '.join(facts)} Again:", " ".join(words.shuffled(facts))


def colours(words: Words) -> Document:
    """Which colour whose thing is."""
    names = words.names(2)
    things = words.some(lexicon.THINGS, 2)
    shades = words.some(lexicon.COLOURS, 2)
    owned = list(zip(names, shades, things, strict=True))
    told = " ".join(f"{who} has a {colour} {what}." for who, colour, what in owned)
    who, colour, what = words.rng.choice(owned)
    form = words.rng.randrange(3)
    if form == 0:
        return f"{told} Question: Which colour is the {what} of {who}? Answer:", colour
    if form == 1:
        return f"{told} The {what} of {who} is", colour
    return f"{told} The {colour} {what} is with", who


def listing(words: Words) -> Document:
    """Lists: their first and last items, copies, and what comes twice."""
    members = [member for _, member in words.members(words.rng.choice((2, 3, 4)))]
    form = words.rng.randrange(4)
    text = ", ".join(members)
    if form == 0:
        return f"List: {text}. The first is the", members[0]
    if form == 1:
        return f"List: {text}. The last is the", members[-1]
    if form == 2:
        return f"List: {text}. Again:", f"{text}."
    return f"List: {text}. Backwards:", f"{', '.join(reversed(members))}."


def cause(words: Words) -> Document:
    """What somebody did because of how they were."""
    (state, acts), (other, more) = words.rng.sample(lexicon.CAUSES, 2)
    names = words.names(2)
    form = words.rng.randrange(4)
    if form < 2:
        return f"{names[0]} was {state}, so {names[0]}", words.rng.choice(acts)
    if form == 2:
        return f"{names[0]} {words.rng.choice(acts)} because {names[0]} was", state
    told = f"{names[0]} was {state}, so {names[0]} {words.rng.choice(acts)}"
    return f"{told}, and {names[1]} was {other}, so {names[1]}", words.rng.choice(more)


#: kind of document -> how often it is told
DOCUMENTS: dict[Callable[[Words], Document], float] = {
    review: 2.0,
    opinion: 2.0,
    mood: 1.5,
    news: 2.0,
    asking: 1.0,
    kinds: 2.0,
    two_kinds: 2.0,
    opposites: 2.0,
    places: 3.0,
    owners: 3.0,
    echo: 4.0,
    ledger: 4.0,
    colours: 3.0,
    listing: 2.0,
    cause: 1.5,
}


def documents(rng: random.Random) -> Iterator[Document]:
    """Endless documents of the base's text, none of whose prompts is a prompt of a task."""
    words = Words(rng, even=False)
    tellers, weights = list(DOCUMENTS), list(DOCUMENTS.values())
    while True:
        prompt, continuation = rng.choices(tellers, weights)[0](words)
        if not reserved(prompt):
            yield prompt, f" {continuation}"
