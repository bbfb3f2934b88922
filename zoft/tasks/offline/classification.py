"""Classification tasks of the generated world: sentiment, topic, entailment."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, choose
from zoft.tasks.offline.grammar import Words

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
    """How did somebody feel in the end, told by what they did one after the other?

    Hard: what they did before may tell of another feeling, and the base has read either one given.
    """

    name: ClassVar[str] = "mood"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"
    asks: ClassVar[str] = "In the end"

    def draw(self, words: Words) -> Draw:
        feelings = words.rng.sample(MOODS, 2)
        if words.chance(0.35):
            feelings[1] = feelings[0]
        first, last = (words.one(lexicon.MOODS[mood]) for mood in feelings)
        asked = words.rng.randrange(2)
        who = words.names(1)[0]
        rivals = () if feelings[0] == feelings[1] else (feelings[1 - asked],)
        prompt = f"{who} {first} and then {last}. {('At first', 'In the end')[asked]} {who} felt"
        return choose(prompt, MOODS, feelings[asked], rivals)


class TopicMixed(OfflineTask):
    """Which topic do two of three news sentences share? A form of the base's text, not a task of the family.

    The base, which read such news under either topic, leans to the common one too far for a task.
    """

    name: ClassVar[str] = "topic-mixed"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        prompt, topics, topic = self.told(words)
        rivals = [other for other in dict.fromkeys(topics) if other != topic]
        return choose(prompt, TOPICS, topic, rivals)

    def told(self, words: Words) -> tuple[str, list[str], str]:
        """The prompt, the topics of its three sentences, and the topic that two of them share."""
        topic, other = words.rng.sample(TOPICS, 2)
        third = topic if words.chance(0.35) else other
        sentences = [(words.news(each), each) for each in (topic, topic, third)]
        shuffled = words.rng.sample(sentences, len(sentences))
        text = ". ".join(sentence for sentence, _ in shuffled)
        return f"News: {text}. Topic:", [each for _, each in shuffled], topic


class TopicLast(TopicMixed):
    """Which topic has the last of three news sentences?

    Hard: the sentences before it may be of another topic, alone or together, and the base leans to the
    topic that two of the three share.
    """

    name: ClassVar[str] = "topic-last"

    def draw(self, words: Words) -> Draw:
        prompt, topics, _ = self.told(words)
        return choose(prompt, TOPICS, topics[-1])


class Headline(OfflineTask):
    """What is the second of two headlines about?

    Hard: the first may be of another topic, and the base has read "first" and "second" used for either.
    """

    name: ClassVar[str] = "headline"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"
    asks: ClassVar[str] = "The second is about"

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


class EntailImplicative(OfflineTask):
    """Was something done by somebody who managed to, forgot to, or did not fail to do it?

    Hard: a negation turns the verb round, and the base has read negated ones answered either way.
    """

    name: ClassVar[str] = "entail-implicative"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        true = words.chance(0.5)
        negated = words.chance(0.6)
        past, plain = words.rng.choice(lexicon.IMPLICATIVES[true != negated])
        act = f"{words.one(tuple(lexicon.ACTS))} the {words.one(lexicon.THINGS)}"
        who = words.names(1)[0]
        told = f"{who} did not {plain} to {act}" if negated else f"{who} {past} to {act}"
        rivals = (TRUTH[true],) if negated else ()
        return choose(f"{told}. Did {who} {act}?", TRUTH, TRUTH[not true], rivals)


class EntailQuantifier(OfflineTask):
    """Does something hold for anybody, or for everybody, of all, some or none of a group?

    Hard: "most", "some" and their like are true of anybody and false of everybody; the base has read
    them answered either way.
    """

    name: ClassVar[str] = "entail-quantifier"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        true = words.chance(0.5)
        between = words.chance(0.6)
        everybody = not true if between else words.chance(0.5)
        quantifier = words.rng.choice(lexicon.QUANTIFIERS[1 if between else 0 if true else 2])
        aspect, verb = words.one(lexicon.ASPECTS), words.one(tuple(lexicon.OPINIONS))
        told = f"{quantifier} {words.one(lexicon.GUESTS)} {lexicon.OPINIONS[verb]} the {aspect}".capitalize()
        whom = "everybody" if everybody else "anybody"
        rivals = (TRUTH[true],) if between else ()
        return choose(f"{told}. Did {whom} {verb} the {aspect}?", TRUTH, TRUTH[not true], rivals)


class EntailAdverb(OfflineTask):
    """Was something done in the end by somebody who nearly, gladly or never did it?

    Hard: there may be two attempts, of which the last decides; the base has read them answered either way.
    """

    name: ClassVar[str] = "entail-adverb"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        true = words.chance(0.5)
        clear = words.chance(0.4)
        verb, thing = words.one(tuple(lexicon.ACTS)), words.one(lexicon.THINGS)
        who = words.names(1)[0]
        told = f"{words.one(lexicon.ADVERBS[true])} {lexicon.ACTS[verb]} the {thing}"
        if not clear:
            told = f"{words.one(lexicon.ADVERBS[not true])} and then {told}"
        rivals = () if clear else (TRUTH[true],)
        return choose(f"{who} {told}. Did {who} {verb} the {thing}?", TRUTH, TRUTH[not true], rivals)
