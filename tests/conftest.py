"""Settings for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _global_generator_untouched():
    """No test, and nothing it calls in zoft, may move torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"


def pytest_configure(config: pytest.Config) -> None:
    """Small tensors: one thread is fastest, and leaves the other core to a parallel run."""
    torch.set_num_threads(1)
