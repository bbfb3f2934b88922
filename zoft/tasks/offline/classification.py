"""Classification tasks of the generated world: sentiment, topic, entailment."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.base import Example
from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import OfflineTask, choose
from zoft.tasks.offline.grammar import Words, article

VERDICTS = ("good", "bad")
TRUTH = ("yes", "no")
TOPICS = tuple(lexicon.TOPICS)
MOODS = tuple(lexicon.MOODS)
ASKED = tuple(lexicon.ASKED)


class ReviewContrast(OfflineTask):
    """Is the review good or bad? Its clauses may disagree, and then the main, last-stressed one decides.

    Hard: after "but" and "yet" the second clause decides, after "although" and "though" the clause
    without the conjunction; the base has read mixed reviews that went either way.
    """

    name: ClassVar[str] = "review-contrast"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        good = words.rng.random() < 0.5
        one, two = words.some(lexicon.ASPECTS, 2)
        main = f"the {one} was {words.quality(good)}"
        agree = words.rng.random() < 0.45
        side = f"the {two} was {words.quality(good if agree else not good)}"
        if agree:
            text = f"{side} and {main}"
        elif words.rng.random() < 0.6:
            text = f"{side} {words.rng.choice(('but', 'yet'))} {main}"
        elif words.rng.random() < 0.5:
            text = f"although {side}, {main}"
        else:
            text = f"{main} though {side}"
        return choose(f"Review: {text}. Verdict:", VERDICTS, VERDICTS[not good])


class ReviewNegation(OfflineTask):
    """Would the guest come back? Praise and blame may be turned round by a negation.

    Hard: "hardly", "never" and "far from" are rare in the text of the base, and both clauses may carry one.
    """

    name: ClassVar[str] = "review-negation"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        good = words.rng.random() < 0.5
        clauses = []
        for aspect in words.some(lexicon.ASPECTS, 2):
            if words.rng.random() < 0.5:
                clauses.append(f"the {aspect} was {words.quality(good)}")
            else:
                negation = words.rng.choice(("not", "hardly", "never", "far from"))
                clauses.append(f"the {aspect} was {negation} {words.quality(not good)}")
        guest = words.names(1)[0]
        prompt = f"{guest} said that {' and '.join(clauses)}. Did {guest} like it?"
        return choose(prompt, TRUTH, TRUTH[not good])


class Mood(OfflineTask):
    """How does one of three people feel, told by what each did?

    Hard: two other people did other things, and the rarer verbs of feeling are seldom in the base's text.
    """

    name: ClassVar[str] = "mood"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        feelings = words.rng.sample(MOODS, 3)
        names = words.names(3)
        told = [f"{who} {words.one(lexicon.MOODS[mood])}." for who, mood in zip(names, feelings, strict=True)]
        asked = words.rng.randrange(3)
        return choose(f"{' '.join(told)} {names[asked]} felt", MOODS, feelings[asked])


class TopicMixed(OfflineTask):
    """Which topic do two of three news sentences share?

    Hard: the third sentence is of another topic and stands anywhere; the base has read mixed news under
    either topic.
    """

    name: ClassVar[str] = "topic-mixed"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        topic, other = words.rng.sample(TOPICS, 2)
        told = words.shuffled([words.news(topic), words.news(topic), words.news(other)])
        return choose(f"News: {'. '.join(told)}. Topic:", TOPICS, topic)


class Headline(OfflineTask):
    """What is the first, or the second, of two headlines about?

    Hard: both topics are there, and the text of the base has single headlines only.
    """

    name: ClassVar[str] = "headline"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        topics = words.rng.sample(TOPICS, 2)
        asked = words.rng.randrange(2)
        told = ". ".join(words.news(topic) for topic in topics)
        return choose(f"{told}. The {('first', 'second')[asked]} is about", TOPICS, topics[asked])


class QuestionType(OfflineTask):
    """What does a question ask for: a person, a place, a time, a number, a reason?

    Hard: a second question that is set aside stands before or after it, and the openings may be rare ones.
    """

    name: ClassVar[str] = "question-type"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        kind, other = words.rng.sample(ASKED, 2)
        asked, aside = words.asked(kind), words.asked(other)
        form = words.rng.randrange(3)
        if form == 0:
            text = f"never mind {aside}, {asked}?"
        elif form == 1:
            text = f"{asked}, never mind {aside}?"
        else:
            text = f"{asked}?"
        return choose(f"Question: {text} It asks for a", ASKED, kind)


class EntailKind(OfflineTask):
    """Did a person see a member of a kind (a bird, a tool)? Two people saw different things.

    Hard: the wrong kind asked for is often what the other person saw.
    """

    name: ClassVar[str] = "entail-kind"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        true = words.rng.random() < 0.5
        names = words.names(2)
        seen = words.members(3)
        asked = words.rng.randrange(2)
        wrong = seen[1 - asked] if words.rng.random() < 0.6 else seen[2]
        kind = (seen[asked] if true else wrong)[0]
        told = " and ".join(f"{who} saw {article(what)}" for who, (_, what) in zip(names, seen, strict=False))
        return choose(f"{told}. Did {names[asked]} see {article(kind)}?", TRUTH, TRUTH[not true])


class EntailOpposite(OfflineTask):
    """Does a claim about one of two things follow, where it is said in a synonym or its opposite?

    Hard: the claim uses another word than the text, and the second thing is there to confuse.
    """

    name: ClassVar[str] = "entail-opposite"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        true = words.rng.random() < 0.5
        things = words.some(lexicon.THINGS, 2)
        sides = words.sides(2)
        told = [words.rng.choice(side) for side, _ in sides]
        asked = words.rng.randrange(2)
        same, opposite = sides[asked]
        claim = words.rng.choice([word for word in same if word != told[asked]] if true else opposite)
        text = " and ".join(f"the {thing} was {word}" for thing, word in zip(things, told, strict=True))
        return choose(f"Suppose {text}. Was the {things[asked]} {claim}?", TRUTH, TRUTH[not true])


class EntailPlace(OfflineTask):
    """Is a claim about where somebody is true, among three people?

    Hard: false claims name the place of somebody else; one person has just left for another place.
    """

    name: ClassVar[str] = "entail-place"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Example:
        true = words.rng.random() < 0.5
        names = words.names(3)
        places = words.some(lexicon.PLACES, 3)
        told = [f"{who} is at the {place}." for who, place in zip(names, places, strict=True)]
        asked, other = words.rng.sample(range(3), 2)
        place = places[asked if true else other]
        prompt = f"{' '.join(told)} {names[asked]} is at the {place}. True or false? This is"
        return choose(prompt, ("true", "false"), "true" if true else "false")
