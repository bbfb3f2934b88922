"""The registry of methods, and what comes of putting the parts of two together."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, cast, get_args

from pydantic import create_model

from zoft.config import unknown
from zoft.optimizers.base import Estimator, ZOOptimizer

#: Between the names of a composition: the direction's first.
JOIN = "+"


class Methods(dict[str, type[ZOOptimizer]]):
    """The methods by name, in the order given. ``a+b`` is found too where a and b can be composed."""

    def __init__(self, methods: Iterable[type[ZOOptimizer]]) -> None:
        super().__init__({method.name: method for method in methods})

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._composed(name) is not None)

    def __missing__(self, name: str) -> type[ZOOptimizer]:
        composed = self._composed(name)
        if composed is None:
            raise KeyError(name)
        return composed

    def problem(self, name: str) -> str:
        """Why there is no method of that name: one sentence, with the nearest names where it is unknown."""
        parts = self._parts(name)
        reason = refusal(*parts) if parts is not None else None
        return f"{name} cannot be composed: {reason}" if reason else unknown("optimizer", name, self)

    def compositions(self) -> dict[str, str | None]:
        """Every pair of two methods that both bring a part, in registry order, with why it is refused or None."""
        bringing = [method for method in self.values() if method.parts]
        pairs = [(a, b) for i, a in enumerate(bringing) for b in bringing[i + 1 :]]
        ordered = [(b, a) if "direction" in b.parts and "direction" not in a.parts else (a, b) for a, b in pairs]
        return {f"{a.name}{JOIN}{b.name}": refusal(a, b) for a, b in ordered}

    def _parts(self, name: str) -> tuple[type[ZOOptimizer], type[ZOOptimizer]] | None:
        first, join, second = name.partition(JOIN)
        if not join or not (super().__contains__(first) and super().__contains__(second)):
            return None
        return self[first], self[second]

    def _composed(self, name: str) -> type[ZOOptimizer] | None:
        parts = self._parts(name)
        return compose(*parts) if parts is not None and refusal(*parts) is None else None


def refusal(direction: type[ZOOptimizer], update: type[ZOOptimizer]) -> str | None:
    """Why the direction of one method cannot be had with the update rule of the other, or None."""
    for method in (direction, update):
        if not method.parts:
            return f"{method.name} has neither a direction nor an update rule of its own; use its options"
        if len(method.parts) > 1:
            return f"{method.name}'s direction and update rule need each other"
    if direction.parts == update.parts:
        kind = "shape the direction" if direction.parts == ("direction",) else "are update rules"
        return f"{direction.name} and {update.name} both {kind}"
    if direction.parts != ("direction",):
        return f"write {update.name}{JOIN}{direction.name}: the direction comes first"
    refuses = {**direction.refuses, **update.refuses}
    if all(estimator in refuses for estimator in get_args(Estimator)):
        reasons = [f"{m.name}: {reason}" for m in (direction, update) for reason in dict.fromkeys(m.refuses.values())]
        return "no estimator serves both (" + "; ".join(reasons) + ")"
    return None


@cache
def compose(direction: type[ZOOptimizer], update: type[ZOOptimizer]) -> type[ZOOptimizer]:
    """The class that inherits the direction of one and the update rule of the other."""
    cost = " ".join(f"That of {method.name}: {_cost(method)}" for method in (direction, update))
    # Pydantic takes a field that both have from the first; a default that only the second sets must win.
    changed = [key for key in ZOOptimizer.model_fields if _sets(update, key) and not _sets(direction, key)]
    fields: dict[str, Any] = {key: (update.model_fields[key].annotation, update.model_fields[key]) for key in changed}
    composed = create_model(
        f"{direction.__name__}{update.__name__}",
        __base__=(direction, update),
        __doc__=f"The direction of ``{direction.name}`` with the update rule of ``{update.name}``.\n\n"
        f"Cost: {cost}\n\nReference: {direction.paper}; {update.paper}.",
        **fields,
    )
    content = {
        "name": f"{direction.name}{JOIN}{update.name}",
        "paper": f"{direction.paper}, {update.paper}",
        "published": f"{direction.name}: {direction.published} {update.name}: {update.published}",
        "parts": ("direction", "update"),
        "refuses": {**direction.refuses, **update.refuses},
    }
    for name, value in content.items():
        setattr(composed, name, value)
    return cast("type[ZOOptimizer]", composed)


def _sets(method: type[ZOOptimizer], key: str) -> bool:
    """Whether a method has a field of its own in place of the base's."""
    return repr(method.model_fields[key]) != repr(ZOOptimizer.model_fields[key])


def _cost(method: type[ZOOptimizer]) -> str:
    """The sentence after ``Cost:`` in a method's docstring."""
    text = (method.__doc__ or "").partition("Cost:")[2].partition("\n\n")[0]
    return " ".join(text.split())
