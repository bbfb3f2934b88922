"""A share of the fuzzer's cases; all of them: ``python -m tests.fuzz_tuners``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz_tuners import KINDS, Outcome, fuzz
from tests.models import TiedLM, build
from zoft.tuner import Tuner

#: A few of every kind, from another seed than the command's.
CASES = 20 * len(KINDS)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What became of the cases."""
    return fuzz(1, range(CASES), tmp_path_factory.mktemp("fuzz"))


def test_no_mutation_is_a_problem(outcomes: list[Outcome]) -> None:
    assert [f"case {o.number} ({o.kind}): {o.problem}" for o in outcomes if o.problem] == []
    assert len(outcomes) == CASES == 280


def test_every_kind_of_mutation_does_harm(outcomes: list[Outcome]) -> None:
    refused = {outcome.kind for outcome in outcomes if outcome.code in (3, 4)}
    assert refused == set(KINDS)
    assert all(outcome.error for outcome in outcomes if outcome.code in (3, 4))


def test_the_fuzzer_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of the blocks' names, hostile ones get through: that must be a problem."""
    first = list(KINDS).index("names of blocks")
    monkeypatch.setattr("zoft.tuner.layout._check_blocks", lambda file, blocks: None)
    problems = {outcome.problem for outcome in fuzz(0, range(first, first + 8 * len(KINDS), len(KINDS)), tmp_path)}
    assert "was accepted" in problems


def test_half_a_surrogate_pair_in_a_record_is_kept(tmp_path: Path) -> None:
    """Found by the fuzzer: such a tuner could be read, and not written again."""
    tuner = Tuner.untrained(build(TiedLM))
    tuner.provenance = {"note": "half \ud800", "name": "σ"}
    assert Tuner.from_pretrained(tuner.save_pretrained(tmp_path)).provenance == tuner.provenance
