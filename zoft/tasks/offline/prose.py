"""The text that the embedded base is trained on: small reviews, news, stories, facts and questions.

Every kind of document is a function of :class:`Words` that gives (prompt, continuation): the formats
of the tasks in a clean, easy form, the same facts told as plain prose, and a few undecided documents
(a mixed review that goes either way), so that the tasks' rules are plausible but not yet known.
A document whose prompt is reserved for the tasks is never told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from zoft.tasks.offline import choice, classification, completion, lexicon, pairs
from zoft.tasks.offline.classification import MOODS, TOPICS
from zoft.tasks.offline.family import OfflineTask, reserved
from zoft.tasks.offline.grammar import Words, article, capital

#: The tasks whose forms of text occur, clear or undecided, in the text of the base.
_TASKS: tuple[OfflineTask, ...] = (
    pairs.ReviewContrast(),
    pairs.ReviewNegation(),
    classification.Mood(),
    classification.TopicMixed(),
    classification.Headline(),
    classification.QuestionType(),
    pairs.EntailImplicative(),
    pairs.EntailQuantifier(),
    pairs.EntailAdverb(),
    choice.ChoiceCause(),
    choice.ChoiceKind(),
    completion.QuestionPlace(),
    completion.QuestionColour(),
    completion.RewriteOpposite(),
    completion.ListItem(),
)

Document = tuple[str, str]

#: Tells one document.
Teller = Callable[[Words], Document]


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
    """Two things, and which of them is of a kind."""
    seen = words.members(2)
    kind, member = words.rng.choice(seen)
    told = f"{words.names(1)[0]} drew {article(seen[0][1])} and {article(seen[1][1])}"
    return f"{told}. The {kind} was the", member


def opposites(words: Words) -> Document:
    """Qualities, their synonyms and their opposites."""
    thing = words.one(lexicon.THINGS)
    same, opposite = words.sides(1)[0]
    word = words.one(same)
    form = words.rng.randrange(3)
    if form == 0:
        return f"The {thing} was not {word}, it was", words.one(opposite)
    if form == 1:
        return f"{words.names(1)[0]} said that the {thing} was {word}. No, it was", opposite[0]
    return f"Whatever is {word} is", same[0] if word == same[1] else same[1]


def deed(words: Words) -> Document:
    """What somebody did, and that they did."""
    verb, thing = words.one(tuple(lexicon.ACTS)), words.one(lexicon.THINGS)
    who = words.names(1)[0]
    done = words.chance(0.5)
    if words.chance(0.5):
        told = f"{who} {words.one(lexicon.ADVERBS[done])} {lexicon.ACTS[verb]} the {thing}"
    else:
        told = f"{who} {words.rng.choice(lexicon.IMPLICATIVES[done])[0]} to {verb} the {thing}"
    return f"{told}, so the {thing} was", lexicon.ACTS[verb] if done else f"not {lexicon.ACTS[verb]}"


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
    drawn = words.rng.choice(_TASKS).draw(Words(words.rng, even=True))
    return drawn.example.prompt, drawn.told(words.rng).strip()


#: kind of document -> how often it is told
DOCUMENTS: dict[Teller, float] = {
    asked: 15.0,
    opinion: 2.0,
    mood: 0.5,
    news: 1.0,
    kinds: 1.0,
    two_kinds: 1.5,
    opposites: 2.0,
    deed: 1.5,
    ledger: 1.0,
    echo: 1.0,
    listing: 1.5,
    cause: 1.0,
}


def documents(rng: random.Random, kinds: Mapping[Teller, float] = DOCUMENTS) -> Iterator[Document]:
    """Endless documents of the base's text, none of whose prompts is a prompt of a task.

    Args:
        kinds: how often each kind of document is told.
    """
    words = Words(rng, even=False)
    tellers, weights = list(kinds), list(kinds.values())
    while True:
        prompt, continuation = rng.choices(tellers, weights)[0](words)
        if not reserved(prompt):
            yield prompt, f" {continuation}"
