"""Completion tasks of the generated world: a short answer from a context, or a short continuation."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, answer
from zoft.tasks.offline.grammar import Words


class QuestionPlace(OfflineTask):
    """Where are two people now, who went from place to place?

    Hard: the earlier places are in the text too, and the base has read any of them given.
    """

    name: ClassVar[str] = "question-place"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        places = words.some(lexicon.PLACES, words.rng.choice((1, 2, 3)))
        who = " and ".join(words.names(2))
        told = " and then to ".join(f"the {place}" for place in places)
        prompt = f"{who} went to {told}. Question: Where are they? Answer: the"
        return answer(prompt, (places[-1],), places[:-1])


class QuestionColour(OfflineTask):
    """Which colour is a thing now, or was it before, after it was painted?

    Hard: both colours are in the text, and the base has rather read the other one given.
    """

    name: ClassVar[str] = "question-colour"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        colours = words.some(lexicon.COLOURS, 2)
        thing = words.one(lexicon.THINGS)
        asked = words.rng.randrange(2)
        rivals: tuple[str, ...] = ()
        right = colours[0]
        told = f"The {thing} of {words.names(1)[0]} was {colours[0]}"
        if words.chance(0.5):
            told = f"{told} and was painted {colours[1]}"
            rivals, right = (colours[1 - asked],), colours[asked]
        question = (f"was the {thing} before", f"is the {thing} now")[asked]
        return answer(f"{told}. Question: Which colour {question}? Answer:", (right,), rivals, lean=2.0)


class RewriteOpposite(OfflineTask):
    """Say what a thing was instead: give the opposite of what was said of it first.

    Hard: a second quality is often named too, and the base has seen either turned round.
    """

    name: ClassVar[str] = "rewrite-opposite"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        sides = words.sides(1 if words.chance(0.4) else 2)
        thing = words.one(lexicon.THINGS)
        told = " and ".join(words.rng.choice(side) for side, _ in sides)
        rivals = [other[0] for _, other in sides[1:]]
        return answer(f"{words.names(1)[0]} said that the {thing} was {told}. No, it was", sides[0][1], rivals)


class ListItem(OfflineTask):
    """Give the first, second or last of four things in a list.

    Hard: the base has read "second" used for any of them.
    """

    name: ClassVar[str] = "list-item"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        members = [member for _, member in words.members(4)]
        which = words.rng.choice(("first", "second", "last"))
        right = members[{"first": 0, "second": 1, "last": 3}[which]]
        rivals = [members[0], *members[2:]] if which == "second" else ()
        return answer(f"List: {', '.join(members)}. The {which} is the", (right,), rivals)
