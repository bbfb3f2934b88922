"""Metrics against values worked out by hand from their definitions."""

from __future__ import annotations

import pytest

from zoft.errors import UsageError
from zoft.tasks.metrics import METRICS, accuracy, exact_match, f1, f1a, get_metric, measure, question_em, squad_em


def test_accuracy_and_exact_match_are_of_the_texts_as_they_are() -> None:
    assert accuracy(["Yes", " No "], ["Yes", "Yes"]) == 0.5
    assert accuracy(["Ann", "Bob"], [["Bob", "Ann"], ["Cleo"]]) == 0.5
    assert exact_match(["red", "Red", "the red"], ["red", "red", "red"]) == pytest.approx(1 / 3)
    assert exact_match(["one\ntwo\nthree"], [["one\ntwo", "four"]]) == 1.0
    assert exact_match(["one\ntwo"], [["one two"]]) == 0.0


def test_squads_normalisation() -> None:
    assert squad_em(["The  Red, house!"], ["red house"]) == 1.0
    assert squad_em(["another"], ["other"]) == 0.0  # an article only as a whole word
    assert f1(["the a an"], ["."]) == 1.0  # nothing is left of either
    assert f1(["the"], ["red"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("red", ["red"], 1.0),
        ("a red house", ["red"], 2 * (1 / 2) * 1 / (1 / 2 + 1)),  # precision 1/2, recall 1
        ("red red house", ["red car"], 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # a word counts as often as in both
        ("blue", ["red", "dark blue"], 2 * 1 * (1 / 2) / (1 + 1 / 2)),  # the best reference
        ("blue", ["red", "green"], 0.0),
        ("", ["red"], 0.0),
    ],
)
def test_token_f1(prediction: str, references: list[str], expected: float) -> None:
    assert f1([prediction], [references]) == pytest.approx(expected)
    assert f1([prediction, "x"], [references, ["x"]]) == pytest.approx((expected + 1) / 2)


def test_multircs_metrics() -> None:
    predictions = ["Yes", "No", "Yes", "No"]
    references = ["Yes", "No", "No", "No"]
    groups = ["q1", "q1", "q2", "q2"]
    assert f1a(predictions, references, groups) == pytest.approx(2 * (1 / 2) * 1 / (1 / 2 + 1))
    assert question_em(predictions, references, groups) == 0.5
    assert f1a(["No"], ["No"], ["q"]) == 1.0
    assert measure(question_em, predictions, references, groups) == 0.5
    assert measure(f1, predictions, references, groups) == 0.75
    with pytest.raises(UsageError, match="over groups of examples"):
        measure(question_em, predictions, references, [""] * 4)


def test_what_metrics_refuse() -> None:
    assert len(METRICS) == 6
    assert get_metric("f1") is f1
    with pytest.raises(UsageError, match="did you mean accuracy"):
        get_metric("acuracy")
    with pytest.raises(UsageError, match="2 predictions for 1 references"):
        f1(["a", "b"], ["a"])
    with pytest.raises(UsageError, match="0 predictions"):
        accuracy([], [])
    with pytest.raises(UsageError, match="no reference"):
        accuracy(["a"], [[]])
