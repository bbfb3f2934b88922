"""Settings for every test, and the tables that ``pytest --tables`` prints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _global_generator_untouched():
    """No test, and nothing it calls in zoft, may move torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"


@pytest.fixture(autouse=True)
def _named(request: pytest.FixtureRequest, record_property) -> None:
    """Tests of a method carry its name, and with it their place in the contract's table."""
    values = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "name" in values:
        record_property("contract", (values["name"], request.node.originalname.removeprefix("test_")))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--tables``."""
    parser.addoption(
        "--tables", action="store_true", help="Print methods × behaviours, and the errors against the transcripts."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Small tensors: one thread is fastest, and leaves the other core to a parallel run."""
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The tables of this run."""
    if not config.getoption("--tables"):
        return
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    contract: dict[str, dict[str, list[bool]]] = {}
    for report in reports:
        for key, value in report.user_properties:
            if key == "contract" and "tests/contract" in report.nodeid:
                contract.setdefault(value[0], {}).setdefault(value[1], []).append(report.passed)
    golden = sorted(value for report in reports for key, value in report.user_properties if key == "golden")
    for line in _contract(contract):
        terminalreporter.write_line(line)
    for method, case, error, limit in golden:
        terminalreporter.write_line(f"{method:20} {case:44} {error:.1e}  (limit {limit:.0e})")


def _contract(results: dict[str, dict[str, list[bool]]]) -> Iterator[str]:
    behaviours = list(dict.fromkeys(behaviour for row in results.values() for behaviour in row))
    if not behaviours:
        return
    yield from (f"{number:3}  {behaviour.replace('_', ' ')}" for number, behaviour in enumerate(behaviours, 1))
    yield f"{'':22}" + "".join(f"{number:4}" for number in range(1, len(behaviours) + 1))
    for method, row in results.items():
        marks = [f"{len(row[b]):4}" if all(row[b]) else "FAIL" for b in behaviours if b in row]
        cells = iter(marks)
        yield f"{method:22}" + "".join(next(cells) if b in row else "   ·" for b in behaviours)
    count = sum(len(values) for row in results.values() for values in row.values())
    failed = sum(not value for row in results.values() for values in row.values() for value in values)
    yield f"{len(results)} methods and compositions, {count} checks, {failed} failed; a cell counts its checks"
