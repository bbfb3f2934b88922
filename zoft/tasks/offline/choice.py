"""Multiple choice tasks of the generated world: the candidates differ from example to example."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.base import Example
from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import OfflineTask, choose
from zoft.tasks.offline.grammar import Words, article


class ChoiceCause(OfflineTask):
    """What did somebody do because of how they were?

    Hard: somebody else was in another state, and that state's consequence is the other candidate.
    """

    name: ClassVar[str] = "choice-cause"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Example:
        causes = words.rng.sample(lexicon.CAUSES, 2)
        names = words.names(2)
        asked = words.rng.randrange(2)
        acts = [words.rng.choice(wordings) for _, wordings in causes]
        told = " and ".join(f"{who} was {state}" for who, (state, _) in zip(names, causes, strict=True))
        return choose(f"{told}, so {names[asked]}", tuple(words.shuffled(acts)), acts[asked])


class ChoiceKind(OfflineTask):
    """Which of four things is of a kind?

    Hard: all four were named, some of them rare, and the base has only read about pairs.
    """

    name: ClassVar[str] = "choice-kind"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "choice"

    def draw(self, words: Words) -> Example:
        seen = words.members(4)
        asked = words.rng.randrange(4)
        members = [member for _, member in seen]
        told = ", ".join(article(member) for member in members[:3]) + f" and {article(members[3])}"
        prompt = f"{words.names(1)[0]} drew {told}. The {seen[asked][0]} was the"
        return choose(prompt, tuple(words.shuffled(members)), members[asked])
