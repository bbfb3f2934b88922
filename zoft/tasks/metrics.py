"""Metrics of an evaluation: functions ``metric(predictions, references)`` of texts, in one registry.

A prediction is the text that a model gave: the candidate that it scores highest, or what it generated.
A reference is the text that is accepted, or a sequence of all texts that are accepted; where there are
several, the best one counts. Every metric is the mean over the examples, between 0 and 1.

Tasks whose unit is not the example (MultiRC's questions) have a ``group`` for each prediction; such a
metric takes it as a third argument and is marked by :func:`by_group`.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from zoft.config import unknown
from zoft.errors import UsageError

Reference = str | Sequence[str]
Metric = Callable[..., float]

#: What SQuAD's evaluation leaves out before it compares.
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """How often the prediction is, white space at its ends aside, one of its references."""
    return _mean(predictions, references, lambda prediction, reference: float(prediction == reference))


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """How often the generated text is exactly one of its references, white space at its ends aside.

    A prediction with more line breaks than a reference is compared up to the reference's last line.

    Note: unlike SQuAD's script, letter case, articles and punctuation count; ``squad_em`` ignores them.
    """

    def same(prediction: str, reference: str) -> float:
        lines = prediction.split("\n")[: reference.count("\n") + 1]
        return float("\n".join(lines).strip() == reference)

    return _mean(predictions, references, same)


def squad_em(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """Exact match after SQuAD's normalisation: lower case, no punctuation, articles or extra white space.

    Reference: Rajpurkar et al., arXiv 1606.05250, and its evaluation script.
    """
    return _mean(predictions, references, lambda one, other: float(normalized(one) == normalized(other)))


def f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """Mean over examples of the token F1 with the best of the references, after SQuAD's normalisation.

    Two texts that are both empty after it are equal, F1 1; if only one is, F1 is 0.

    Reference: Rajpurkar et al., arXiv 1606.05250, and its evaluation script.
    """
    return _mean(predictions, references, _token_f1)


def normalized(text: str) -> str:
    """``text`` as SQuAD's evaluation compares it: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def by_group(metric: Metric) -> Metric:
    """Mark ``metric`` as one that takes the examples' groups as a third argument."""
    metric.by_group = True  # type: ignore[attr-defined]
    return metric


@by_group
def f1a(predictions: Sequence[str], references: Sequence[Reference], groups: Sequence[str]) -> float:
    """MultiRC's F1a: the F1 of ``Yes`` over the answers of all questions together; ``groups`` plays no part.

    Reference: Khashabi et al., NAACL 2018, section 5.
    """
    pairs = list(zip(predictions, _accepted(predictions, references), strict=True))
    hits = sum(_yes(one) and _yes(other[0]) for one, other in pairs)
    said = sum(_yes(one) for one, _ in pairs) + sum(_yes(other[0]) for _, other in pairs)
    return 2 * hits / said if said else 1.0


@by_group
def question_em(predictions: Sequence[str], references: Sequence[Reference], groups: Sequence[str]) -> float:
    """MultiRC's EM: the share of questions (``groups``) all of whose answers are judged rightly.

    Reference: Wang et al., arXiv 1905.00537 (SuperGLUE).
    """
    right: dict[str, bool] = defaultdict(lambda: True)
    for prediction, accepted, group in zip(predictions, _accepted(predictions, references), groups, strict=True):
        right[group] &= prediction.strip() in accepted
    return sum(right.values()) / len(right)


#: Every metric by its name.
METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "squad_em": squad_em,
    "f1": f1,
    "f1a": f1a,
    "question_em": question_em,
}


def get_metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UsageError: there is none; names the nearest ones.
    """
    if name not in METRICS:
        raise UsageError(unknown("metric", name, METRICS))
    return METRICS[name]


def measure(
    metric: Metric, predictions: Sequence[str], references: Sequence[Reference], groups: Sequence[str] | None = None
) -> float:
    """``metric`` of the predictions, with their groups where it takes them.

    Raises:
        UsageError: a metric by group for examples that have none.
    """
    arguments: tuple[Any, ...] = ()
    if getattr(metric, "by_group", False):
        if groups is None or not all(groups):
            raise UsageError(
                f"the metric {getattr(metric, '__name__', 'given')} is over groups of examples, and these have none",
                "Choose another metric.",
            )
        arguments = (groups,)
    return float(metric(predictions, references, *arguments))


def _accepted(predictions: Sequence[str], references: Sequence[Reference]) -> list[list[str]]:
    """The accepted texts of every prediction, stripped.

    Raises:
        UsageError: not as many references as predictions, no predictions, or one without references.
    """
    accepted = [[other.strip() for other in ([ref] if isinstance(ref, str) else ref)] for ref in references]
    if len(predictions) != len(accepted) or not predictions:
        raise UsageError(f"{len(predictions)} predictions for {len(accepted)} references", "Give one for each.")
    if not all(accepted):
        raise UsageError("an example has no reference", "Give every example at least one accepted answer.")
    return accepted


def _mean(predictions: Sequence[str], references: Sequence[Reference], score: Callable[[str, str], float]) -> float:
    """Mean over the predictions of the best ``score`` with one of the references."""
    pairs = zip(predictions, _accepted(predictions, references), strict=True)
    return sum(max(score(prediction.strip(), one) for one in accepted) for prediction, accepted in pairs) / len(
        predictions
    )


def _token_f1(prediction: str, reference: str) -> float:
    given, wanted = normalized(prediction).split(), normalized(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def _yes(text: str) -> bool:
    return normalized(text) == "yes"
