"""Settings for every test, and the tables that ``pytest --tables`` prints.

The Hub that the tests meet is an emulator on the loopback interface; the client reads its settings when it is
imported, so they are made here, before any test module is. Nothing leaves the machine, of child processes neither.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub_emulator import Hub

GUARD = Path(__file__).parent / "guard"

_HUB = pytest.StashKey[Hub]()
_HOME = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Settings of torch, the Hub and its client, the guard."""
    # Small tensors: one thread is fastest, and leaves the other core to a parallel run.
    torch.set_num_threads(1)
    assert "huggingface_hub" not in sys.modules, "imported before its settings were made"
    config.stash[_HUB] = hub = Hub()
    config.stash[_HOME] = home = tempfile.mkdtemp(prefix="zoft-tests-")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
    os.environ |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": f"{home}/hub",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "ZOFT_TESTS_NETWORK_LOG": f"{home}/network.log",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(GUARD), os.environ.get("PYTHONPATH")))),
    }
    Path(home, "network.log").touch()
    spec = importlib.util.spec_from_file_location("no_network", GUARD / "no_network.py")
    assert spec is not None
    assert spec.loader is not None
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    guard.install()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the Hub, and remove its client's cache."""
    config.stash[_HUB].close()
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@pytest.fixture
def network_log() -> Path:
    """What would have left the machine; a test that means to try empties it."""
    return Path(os.environ["ZOFT_TESTS_NETWORK_LOG"])


@pytest.fixture
def hub(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The Hub, empty, and a cache of the test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    server = pytestconfig.stash[_HUB]
    server.reset()
    yield server
    server.reset()


@pytest.fixture(autouse=True)
def _nothing_left_the_machine(network_log: Path):
    """No test, and nothing it starts, may try to reach beyond this machine, even if it copes with not reaching it."""
    yield
    tried = network_log.read_text(encoding="utf-8")
    if tried:
        network_log.write_text("", encoding="utf-8")
        pytest.fail(f"reached beyond this machine:\n{tried}")


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
