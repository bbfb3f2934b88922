"""Configurations: YAML, overrides, and all errors at once."""

from typing import Literal

import pytest
from pydantic import Field

from zoft import errors
from zoft.config import Config, nearest, unknown
from zoft.errors import UsageError, ZoftError


class Inner(Config):
    depth: int = Field(2, ge=1, description="Depth.")


class Outer(Config):
    steps: int = Field(10, ge=1, description="Steps.")
    kind: Literal["fast", "slow"] = Field("fast", description="Kind.")
    names: list[str] = Field([], description="Names.")
    inner: Inner = Field(Inner(), description="Inner.")
    other: Inner | None = Field(None, description="Other.")


def test_round_trip_and_precedence(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("steps: 3\ninner: {depth: 4}\n")
    config = Outer.load(file, {"kind": "slow", "steps": None}, base={"steps": 7, "names": ["a"]})
    assert config == Outer(steps=3, kind="slow", names=["a"], inner=Inner(depth=4))
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert Outer.load(again) == config


def test_all_errors_at_once_with_the_nearest_names(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("stepz: 3\nkind: medium\ninner: {dept: 1}\nother: {depth: 0}\n")
    with pytest.raises(UsageError) as error:
        Outer.load(file)
    text = str(error.value)
    assert "'stepz'; did you mean steps" in text
    assert "kind: input should be 'fast' or 'slow' (given: 'medium')" in text
    assert "'dept'; did you mean depth" in text
    assert "other.depth: input should be greater than or equal to 1" in text
    assert str(file) in text


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "not valid YAML"), ("- 1", "not a mapping"), (b"\xff\xfe\x00", "cannot read")]
)
def test_files_that_are_no_configuration(tmp_path, content, message):
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        Outer.load(file)
    with pytest.raises(UsageError, match="cannot read"):
        Outer.load(tmp_path / "missing.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert Outer.load(tmp_path / "empty.yaml") == Outer()


def test_nearest_names():
    assert nearest("smooth-scal", ["smooth_scale", "lr"]) == ["smooth_scale"]
    assert unknown("task", "xyz", ["a", "b"]) == "unknown task 'xyz'; known: a, b"


def test_exit_codes():
    codes = {cls.__name__: cls.exit_code for cls in ZoftError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "ArtifactError": 3,
        "IncompatibleError": 4,
        "DivergedError": 5,
        "DoesNotFitError": 6,
        "Interrupted": 130,
    }
    assert str(errors.UsageError("cause", "remedy")) == "cause\nremedy"
