"""Multiple choice tasks of the generated world: the candidates differ from example to example."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, choose
from zoft.tasks.offline.grammar import Words, article


class ChoiceCause(OfflineTask):
    """What did somebody do because of how they were last?

    Hard: they may have been in another state before, whose consequence is then the other candidate.
    """

    name: ClassVar[str] = "choice-cause"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        (before, others), (now, acts) = words.rng.sample(lexicon.CAUSES, 2)
        act, other = words.rng.choice(acts), words.rng.choice(others)
        who = words.names(1)[0]
        clear = words.chance(0.4)
        then = words.rng.choice(("and then", "and later", "but soon"))
        state = f"{now} at the {words.one(lexicon.PLACES)}" if clear else f"{before} {then} {now}"
        return choose(f"{who} was {state}, so {who}", words.shuffled([act, other]), act, () if clear else (other,))


class ChoiceKind(OfflineTask):
    """Which of three things is the last bird, tool, tree among them?

    Hard: two of them may be of that kind, and the base has read either one given as the first or the last.
    """

    name: ClassVar[str] = "choice-kind"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "choice"
    asks: ClassVar[str] = ". The last "

    def draw(self, words: Words) -> Draw:
        (kind, member), (_, second), (_, third) = words.members(3)
        rival = next(word for word in words.some(lexicon.KINDS[kind], 2) if word != member)
        clear = words.chance(0.45)
        drawn = words.shuffled([member, second, third if clear else rival])
        last = (not clear and drawn.index(member) > drawn.index(rival)) or (clear and words.chance(0.5))
        told = f"{article(drawn[0])}, {article(drawn[1])} and {article(drawn[2])}"
        prompt = f"{words.names(1)[0]} drew {told}. The {'last' if last else 'first'} {kind} was the"
        return choose(prompt, words.shuffled(drawn), member, () if clear else (rival,))
