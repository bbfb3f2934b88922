"""Completion tasks of the generated world: a short answer from a context, or a short continuation."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.offline import lexicon
from zoft.tasks.offline.family import Draw, OfflineTask, answer
from zoft.tasks.offline.grammar import Words


class QuestionOwner(OfflineTask):
    """Who has a thing, among three people, after one of the things was given away?

    Hard: the thing asked for may be the one that changed hands, and its first owner is still in the text.
    """

    name: ClassVar[str] = "question-owner"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        names = words.names(3)
        things = words.some(lexicon.THINGS, 2)
        told = [f"The {thing} is with {who}." for who, thing in zip(names, things, strict=False)]
        given = words.rng.randrange(2)
        to = names[2] if words.rng.random() < 0.5 else names[1 - given]
        told.append(f"{names[given]} gave the {things[given]} to {to}.")
        asked = words.rng.randrange(2)
        owner = to if asked == given else names[asked]
        rivals = (names[given],) if asked == given else ()
        return answer(f"{' '.join(told)} Question: Who has the {things[asked]}? Answer:", (owner,), rivals)


class QuestionPlace(OfflineTask):
    """Where is somebody now, after one of two people went on to another place?

    Hard: the earlier place and the other person's place are in the text too.
    """

    name: ClassVar[str] = "question-place"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        names = words.names(2)
        places = words.some(lexicon.PLACES, 3)
        moved = words.rng.randrange(2)
        told = [f"{who} went to the {place}." for who, place in zip(names, places, strict=False)]
        told.append(f"Then {names[moved]} went to the {places[2]}.")
        asked = words.rng.randrange(2)
        place = places[2] if asked == moved else places[asked]
        rivals = (places[asked],) if asked == moved else ()
        return answer(f"{' '.join(told)} Question: Where is {names[asked]}? Answer: the", (place,), rivals)


class QuestionColour(OfflineTask):
    """Which colour is a thing, among three things of which two are the same person's?

    Hard: two owners may have the same kind of thing, so that owner and thing both count.
    """

    name: ClassVar[str] = "question-colour"
    role: ClassVar[str] = "held-out"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        names = words.names(2)
        things = words.some(lexicon.THINGS, 2)
        if words.rng.random() < 0.5:
            owned = [(names[0], things[0]), (names[1], things[0]), (names[1], things[1])]
        else:
            owned = [(names[0], things[0]), (names[0], things[1]), (names[1], things[1])]
        colours = words.some(lexicon.COLOURS, 3)
        told = [f"The {what} of {who} is {colour}." for (who, what), colour in zip(owned, colours, strict=True)]
        asked = words.rng.randrange(3)
        who, what = owned[asked]
        rivals = [colours[other] for other in range(3) if other != asked and owned[other][1] == what]
        prompt = f"{' '.join(told)} Question: Which colour is the {what} of {who}? Answer:"
        return answer(prompt, (colours[asked],), rivals)


class RewriteOpposite(OfflineTask):
    """Say what a thing was instead: find what was said of it, and give the opposite.

    Hard: a second thing is often described too, and the base has seen either turned round.
    """

    name: ClassVar[str] = "rewrite-opposite"
    role: ClassVar[str] = "meta-training"
    kind: ClassVar[str] = "completion"
    metric: ClassVar[str] = "exact_match"

    def draw(self, words: Words) -> Draw:
        count = 1 if words.chance(0.4) else 2
        things = words.some(lexicon.THINGS, count)
        sides = words.sides(count)
        asked = words.rng.randrange(count)
        said = [words.rng.choice(side) for side, _ in sides]
        told = " and ".join(f"the {thing} was {word}" for thing, word in zip(things, said, strict=True))
        rivals = [other[0] for index, (_, other) in enumerate(sides) if index != asked]
        return answer(f"They said that {told}. No, the {things[asked]} was", sides[asked][1], rivals)


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
