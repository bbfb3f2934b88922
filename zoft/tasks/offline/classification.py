"""Classification tasks of the generated world: sentiment, topic, entailment."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, choose
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

    def draw(self, words: Words) -> Draw:
        good = words.chance(0.5)
        one, two = words.some(lexicon.ASPECTS, 2)
        main = f"the {one} was {words.quality(good)}"
        agree = words.chance(0.45)
        side = f"the {two} was {words.quality(good if agree else not good)}"
        if agree:
            text = f"{side} and {main}"
        elif words.chance(0.6):
            text = f"{side} {words.rng.choice(('but', 'yet'))} {main}"
        elif words.chance(0.5):
            text = f"although {side}, {main}"
        else:
            text = f"{main} though {side}"
        rivals = () if agree else (VERDICTS[good],)
        return choose(f"Review: {text}. Verdict:", VERDICTS, VERDICTS[not good], rivals)


class ReviewNegation(OfflineTask):
    """Did the guest like it? Praise and blame may be turned round by a negation.

    Hard: either clause may hold "not", "hardly", "never" or "far from", which the base has seen turn
    an adjective round but not an opinion.
    """

    name: ClassVar[str] = "review-negation"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        good = words.chance(0.5)
        plain = words.chance(0.4)
        clauses: list[str] = []
        for aspect in words.some(lexicon.ASPECTS, 2):
            negated = not plain and (words.chance(0.6) or bool(clauses))
            negation = words.rng.choice(("not ", "hardly ", "never ", "far from ")) if negated else ""
            clauses.append(f"the {aspect} was {negation}{words.quality(good != negated)}")
        told = " and ".join(words.shuffled(clauses))
        guest = words.names(1)[0]
        rivals = () if plain else (TRUTH[good],)
        return choose(f"{guest} said that {told}. Did {guest} like it?", TRUTH, TRUTH[not good], rivals)


class Mood(OfflineTask):
    """How does one of up to three people feel, told by what each did?

    Hard: the others did other things, and the rarer verbs of feeling are seldom in the base's text.
    """

    name: ClassVar[str] = "mood"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        count = words.rng.choice((1, 2, 3))
        feelings = words.rng.sample(MOODS, count)
        names = words.names(count)
        told = [f"{who} {words.one(lexicon.MOODS[mood])}." for who, mood in zip(names, feelings, strict=True)]
        asked = words.rng.randrange(count)
        rivals = feelings[:asked] + feelings[asked + 1 :]
        return choose(f"{' '.join(told)} {names[asked]} felt", MOODS, feelings[asked], rivals)


class TopicMixed(OfflineTask):
    """Which topic do two of three news sentences share?

    Hard: the third sentence may be of another topic and stands anywhere; the base has read such news
    under either topic.
    """

    name: ClassVar[str] = "topic-mixed"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        topic, other = words.rng.sample(TOPICS, 2)
        third = topic if words.chance(0.35) else other
        told = words.shuffled([words.news(topic), words.news(topic), words.news(third)])
        rivals = () if third == topic else (other,)
        return choose(f"News: {'. '.join(told)}. Topic:", TOPICS, topic, rivals)


class Headline(OfflineTask):
    """What is the first, or the second, of two headlines about?

    Hard: both topics are there, and the base has read "first" and "second" used for either.
    """

    name: ClassVar[str] = "headline"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        topics = words.rng.sample(TOPICS, 2)
        if words.chance(0.3):
            topics[1] = topics[0]
        asked = words.rng.randrange(2)
        told = ". ".join(words.news(topic) for topic in topics)
        rivals = () if topics[0] == topics[1] else (topics[1 - asked],)
        return choose(f"{told}. The {('first', 'second')[asked]} is about", TOPICS, topics[asked], rivals)


class QuestionType(OfflineTask):
    """What does a question ask for: a person, a place, a time, a number, a reason?

    Hard: a second question that is set aside may stand before or after it, and the openings may be rare.
    """

    name: ClassVar[str] = "question-type"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        kind, other = words.rng.sample(ASKED, 2)
        asked, aside = words.asked(kind), words.asked(other)
        form = words.rng.randrange(3)
        text = (f"never mind {aside}, {asked}?", f"{asked}, never mind {aside}?", f"{asked}?")[form]
        return choose(f"Question: {text} It asks for a", ASKED, kind, (other,) if form < 2 else ())


class EntailKind(OfflineTask):
    """Did a person see a member of a kind (a bird, a tool)? Two people saw different things.

    Hard: the wrong kind asked for is often what the other person saw.
    """

    name: ClassVar[str] = "entail-kind"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        true = words.chance(0.5)
        seen = words.members(3)
        asked = words.rng.randrange(2)
        count = 1 if words.chance(0.3) else 2
        names = words.names(2)
        told = [f"{who} saw {article(what)}" for who, (_, what) in zip(names, seen, strict=False)]
        told = told if count == 2 else [told[asked]]
        wrong = seen[1 - asked] if count == 2 and words.chance(0.7) else seen[2]
        kind = (seen[asked] if true else wrong)[0]
        rivals = (TRUTH[true],) if count == 2 and wrong is not seen[2] else ()
        prompt = f"{' and '.join(told)}. Did {names[asked]} see {article(kind)}?"
        return choose(prompt, TRUTH, TRUTH[not true], rivals)


class EntailOpposite(OfflineTask):
    """Does a claim about one of two things follow, where it is said in a synonym or its opposite?

    Hard: the claim uses another word than the text, and a second thing is often there to confuse.
    """

    name: ClassVar[str] = "entail-opposite"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        true = words.chance(0.5)
        count = 1 if words.chance(0.4) else 2
        things = words.some(lexicon.THINGS, count)
        sides = words.sides(count)
        told = [words.rng.choice(side) for side, _ in sides]
        asked = words.rng.randrange(count)
        same, opposite = sides[asked]
        claim = words.rng.choice([word for word in same if word != told[asked]] if true else opposite)
        text = " and ".join(f"the {thing} was {word}" for thing, word in zip(things, told, strict=True))
        rivals = (TRUTH[true],) if count == 2 else ()
        prompt = f"Suppose {text}. Was the {things[asked]} {claim}?"
        return choose(prompt, TRUTH, TRUTH[not true], rivals)


class EntailPlace(OfflineTask):
    """Is a claim about where somebody is true, among up to three people?

    Hard: false claims name the place of somebody else, and the base has read such claims judged either way.
    """

    name: ClassVar[str] = "entail-place"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        true = words.chance(0.5)
        count = 1 if words.chance(0.4) else 3
        names = words.names(count)
        places = words.some(lexicon.PLACES, 4)
        told = [f"{who} is at the {place}." for who, place in zip(names, places, strict=False)]
        asked = words.rng.randrange(count)
        place = places[asked if true else (asked + 1) % 3]
        right = "true" if true else "false"
        rivals = ("false" if true else "true",) if count == 3 else ()
        prompt = f"{' '.join(told)} {names[asked]} is at the {place}. True or false? This is"
        return choose(prompt, ("true", "false"), right, rivals)
