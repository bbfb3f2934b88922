"""The text that the embedded base is trained on: small reviews, news, stories, facts and questions.

Every kind of document is a function of :class:`Words` that gives (prompt, continuation): the formats
of the tasks in a clean, easy form, the same facts told as plain prose, and a few undecided documents
(a mixed review that goes either way), so that the tasks' rules are plausible but not yet known.
A document whose prompt is reserved for the tasks is never told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from zoft.tasks.offline import choice, classification, completion, lexicon
from zoft.tasks.offline.classification import MOODS, TOPICS
from zoft.tasks.offline.family import OfflineTask, reserved
from zoft.tasks.offline.grammar import Words, article, capital

#: The tasks whose forms of text occur, clear or undecided, in the text of the base.
_TASKS: tuple[OfflineTask, ...] = (
    classification.ReviewContrast(),
    classification.ReviewNegation(),
    classification.Mood(),
    classification.TopicMixed(),
    classification.Headline(),
    classification.QuestionType(),
    classification.EntailKind(),
    classification.EntailOpposite(),
    classification.EntailPlace(),
    choice.ChoiceCause(),
    choice.ChoiceKind(),
    completion.QuestionOwner(),
    completion.QuestionPlace(),
    completion.QuestionColour(),
    completion.RewriteOpposite(),
    completion.ListItem(),
)

Document = tuple[str, str]


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
    if form == 2:
        negation = words.rng.choice(("not", "never", "hardly", "far from"))
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
    """News of one topic."""
    topic = words.rng.choice(TOPICS)
    form = words.rng.randrange(3)
    if form == 0:
        return f"News: {words.news(topic)}. Topic:", topic
    if form == 1:
        return f"{words.news(topic)}. It is about", topic
    return f"Now some {topic}: {words.news(topic)}.", f"{words.news(topic)}."


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
    """Two things, and which of them is of a kind or whose."""
    seen = words.members(2)
    asked = words.rng.randrange(2)
    names = words.names(2)
    kind, member = seen[asked]
    if words.chance(0.6):
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
    """Where people and things are, said again or asked."""
    names = words.names(3)
    spots = words.some(lexicon.PLACES, 2)
    things = words.some(lexicon.THINGS, 2)
    asked = words.rng.randrange(2)
    form = words.rng.randrange(5)
    if form == 0:
        told = " ".join(f"{who} is at the {where}." for who, where in zip(names, spots, strict=False))
        return f"{told} So {names[asked]} is at the", spots[asked]
    if form == 1:
        told = " ".join(f"{who} went to the {where}." for who, where in zip(names, spots, strict=False))
        return f"{told} Question: Where is {names[asked]}? Answer: the", spots[asked]
    told = " ".join(f"The {what} is with {who}." for who, what in zip(names, things, strict=False))
    if form == 2:
        return f"{told} So the {things[asked]} is with", names[asked]
    if form == 3:
        return f"{told} Question: Who has the {things[asked]}? Answer:", names[asked]
    gift = f"{names[0]} gave the {things[0]} to {names[2]}."
    return f"{gift} Question: Who has the {things[0]}? Answer:", names[2]


def claims(words: Words) -> Document:
    """A claim that says again what was said, or something else."""
    name = words.names(1)[0]
    true = words.chance(0.5)
    form = words.rng.randrange(3)
    kinds_of = (lexicon.THINGS, lexicon.PLACES, lexicon.COLOURS)
    said, other = words.some(kinds_of[form], 2)
    told = ("The {1} is with {0}.", "{0} is at the {1}.", "The cup of {0} is {1}.")[form]
    text = f"{told.format(name, said)} {told.format(name, said if true else other)}"
    return f"{text} True or false? This is", "true" if true else "false"


def ledger(words: Words) -> Document:
    """Facts about people or things, looked up again in another order."""
    names = words.names(3)
    form = words.rng.randrange(4)
    told, kinds_of = (
        ("the {1} is with {0}", lexicon.THINGS),
        ("{0} is at the {1}", lexicon.PLACES),
        ("the cup of {0} is {1}", lexicon.COLOURS),
        ("{0} went to the {1}", lexicon.PLACES),
    )[form]
    count = words.rng.choice((2, 3))
    facts = list(zip(names, words.some(kinds_of, count), strict=False))
    text = ". ".join(capital(told.format(*fact)) for fact in facts)
    return f"{text}. So", " and ".join(told.format(*fact) for fact in words.rng.sample(facts, count))


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
    asked = words.rng.randrange(2)
    facts = zip(things, names, shades, strict=True)
    told = " ".join(f"The {what} of {who} is {colour}." for what, who, colour in facts)
    if words.chance(0.5):
        return f"{told} So the {things[asked]} of {names[asked]} is", shades[asked]
    return f"{told} Question: Which colour is the {things[asked]} of {names[asked]}? Answer:", shades[asked]


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
    state, acts = words.rng.choice(lexicon.CAUSES)
    name = words.names(1)[0]
    if words.chance(0.6):
        return f"{name} was {state}, so {name}", words.rng.choice(acts)
    return f"{name} {words.rng.choice(acts)} because {name} was", state


def asked(words: Words) -> Document:
    """A text as the tasks have it: a clear one, or one that goes any of several ways."""
    drawn = words.rng.choice(_TASKS).draw(words)
    example = drawn.example
    return example.prompt, words.rng.choice((example.candidates[example.label], *drawn.rivals)).strip()


#: kind of document -> how often it is told
DOCUMENTS: dict[Callable[[Words], Document], float] = {
    asked: 12.0,
    opinion: 1.5,
    mood: 0.5,
    news: 1.0,
    kinds: 1.5,
    two_kinds: 1.5,
    opposites: 1.5,
    places: 2.0,
    claims: 2.0,
    ledger: 3.0,
    echo: 2.0,
    colours: 1.5,
    listing: 1.5,
    cause: 0.5,
}


def documents(rng: random.Random) -> Iterator[Document]:
    """Endless documents of the base's text, none of whose prompts is a prompt of a task."""
    words = Words(rng, even=False)
    tellers, weights = list(DOCUMENTS), list(DOCUMENTS.values())
    while True:
        prompt, continuation = rng.choices(tellers, weights)[0](words)
        if not reserved(prompt):
            yield prompt, f" {continuation}"
