"""The promise of the format: what was written once can be read for good, and computes the same."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import TiedLM, build
from zoft.blocks import Blocks
from zoft.errors import ArtifactError
from zoft.tuner import Tuner
from zoft.tuner.config import FORMAT
from zoft.tuner.features import features
from zoft.tuner.normalization import effective_sizes, normalization

FROZEN = Path(__file__).parent / "frozen"

TUNERS = sorted(path.name for path in FROZEN.iterdir() if path.is_dir())


def test_every_format_is_kept() -> None:
    assert TUNERS == ["format-1-published", "format-1-standardised"]
    assert FORMAT == 1


@pytest.mark.parametrize("name", TUNERS)
def test_a_frozen_tuner_gives_the_numbers_that_were_recorded(name: str) -> None:
    recorded = json.loads((FROZEN / f"{name}.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuner = Tuner.from_pretrained(FROZEN / name)
        bound = tuner.bind(build(lambda: TiedLM(vocabulary=recorded["vocabulary"])))
    statistics, losses, previous = (torch.tensor(recorded[key]) for key in ("statistics", "losses", "previous"))
    sigma = bound.sigma(statistics, losses, previous)
    np.testing.assert_allclose(sigma.numpy(), recorded["sigma"], rtol=0, atol=1e-6)
    again = tuner.network(features(tuner.network.config.features, tuner.config.constants, statistics, losses, previous))
    assert torch.equal(sigma, again)
    blocks = Blocks.of(build(lambda: TiedLM(vocabulary=recorded["vocabulary"])))
    sizes = effective_sizes(blocks, recorded["batch_size"], tuner.config.normalization)
    np.testing.assert_allclose(
        float(normalization(sigma, sizes, tuner.config.normalization)), recorded["nu"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", TUNERS)
def test_a_frozen_tuner_is_written_again_as_it_was(name: str, tmp_path: Path) -> None:
    Tuner.from_pretrained(FROZEN / name).save_pretrained(tmp_path)
    kept = json.loads((FROZEN / name / "tuner_config.json").read_text())
    written = json.loads((tmp_path / "tuner_config.json").read_text())
    assert {key: written[key] for key in kept} == kept
    assert (tmp_path / "tuner.safetensors").read_bytes() == (FROZEN / name / "tuner.safetensors").read_bytes()


def _changed(tmp_path: Path, **changes: object) -> Path:
    folder = shutil.copytree(FROZEN / TUNERS[0], tmp_path / "tuner")
    content = json.loads((folder / "tuner_config.json").read_text())
    (folder / "tuner_config.json").write_text(json.dumps({**content, **changes}))
    return folder


def test_the_next_format_is_refused_with_the_version_it_needs(tmp_path: Path) -> None:
    folder = _changed(tmp_path, format=2, zoft_version="0.7.2")
    with pytest.raises(ArtifactError) as caught:
        Tuner.from_pretrained(folder)
    assert caught.value.cause == "the tuner has format 2, and this zoft reads formats up to 1"
    assert caught.value.remedy == "Install zoft 0.7.2 or newer."


def test_a_key_of_a_later_version_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="unknown key 'step_size' is ignored"):
        Tuner.from_pretrained(_changed(tmp_path, step_size={"kind": "learned"}))
