"""Classification tasks of the generated world: feelings, topics, kinds of question."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, choose
from zoft.tasks.offline.grammar import Words

TOPICS = tuple(lexicon.TOPICS)
MOODS = tuple(lexicon.MOODS)
ASKED = tuple(lexicon.ASKED)


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

    Hard: a second question that is set aside may stand before or after it, which the base has rather taken
    for the one that is asked.
    """

    name: ClassVar[str] = "question-type"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "classification"

    def draw(self, words: Words) -> Draw:
        kind, other = words.rng.sample(ASKED, 2)
        asked, aside = words.asked(kind), words.asked(other)
        form = words.rng.randrange(3)
        text = (f"never mind {aside}, {asked}?", f"{asked}, never mind {aside}?", f"{asked}?")[form]
        rivals = (other,) if form < 2 else ()
        return choose(f"Question: {text} It asks for a", ASKED, kind, rivals, lean=2.0)
