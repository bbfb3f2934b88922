"""Multiple choice tasks of the generated world: the candidates differ from example to example."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, choose
from zoft.tasks.offline.grammar import Words, article


class ChoiceCause(OfflineTask):
    """What did somebody do because of how they were?

    Hard: somebody else may be in another state, whose consequence is then the other candidate.
    """

    name: ClassVar[str] = "choice-cause"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        causes = words.rng.sample(lexicon.CAUSES, 2)
        names = words.names(2)
        asked = words.rng.randrange(2)
        acts = [words.rng.choice(wordings) for _, wordings in causes]
        told = [f"{who} was {state}" for who, (state, _) in zip(names, causes, strict=True)]
        clear = words.chance(0.4)
        told = [told[asked]] if clear else told
        prompt = f"{' and '.join(told)}, so {names[asked]}"
        return choose(prompt, words.shuffled(acts), acts[asked], () if clear else (acts[1 - asked],))


class ChoiceKind(OfflineTask):
    """Which of four things that two people drew is somebody's bird, tool, tree?

    Hard: the other person may have drawn one of the same kind.
    """

    name: ClassVar[str] = "choice-kind"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Draw:
        names = words.names(2)
        (kind, member), (_, second), (_, third), (_, fourth) = words.members(4)
        rival = next(word for word in words.some(lexicon.KINDS[kind], 2) if word != member)
        clear = words.chance(0.45)
        pairs = [words.shuffled([member, second]), words.shuffled([third, fourth if clear else rival])]
        asked = words.rng.randrange(2)
        one, two = pairs if asked == 0 else pairs[::-1]
        told = ". ".join(
            f"{who} drew {article(first)} and {article(last)}"
            for who, (first, last) in zip(names, (one, two), strict=True)
        )
        prompt = f"{told}. The {kind} of {names[asked]} was the"
        return choose(prompt, words.shuffled([*one, *two]), member, () if clear else (rival,))
