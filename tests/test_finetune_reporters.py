"""Where scalars go."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from finetune.run import _as_values, _placed
from zoft.runs.reporters import ConsoleReporter, JsonlReporter, TensorBoardReporter


def test_lines_of_json_go_on_where_a_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "metrics.jsonl"
    first = JsonlReporter(file)
    for step in range(1, 6):
        first.scalars(step, {"train/loss": math.nan if step == 2 else 0.5})
    first.close()
    with file.open("a") as stream:
        stream.write('{"step": 3, "tr')  # what a kill leaves
    second = JsonlReporter(file, after=3)
    second.scalars(4, {"train/loss": 0.25})
    second.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["train/loss"] for line in lines] == [0.5, None, 0.5, 0.25]
    JsonlReporter(file).close()
    assert file.read_text() == ""


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoardReporter(tmp_path)
    for step in range(1, 5):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    second = TensorBoardReporter(tmp_path, after=2)
    second.scalars(3, {"train/loss": 30.0})
    second.close()
    found = event_accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in found] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    reporter = ConsoleReporter(40, "mood", stream, lines=4)
    for step in range(1, 41):
        reporter.scalars(step, {"train/loss": 1.0, "train/lr": 1e-6})
        if step == 20:
            reporter.scalars(step, {"validation/loss": 0.5})
    reporter.note("nearly done")
    reporter.close()
    assert stream.getvalue().splitlines() == [
        "mood step 10/40  loss 1.0000",
        "mood step 20/40  loss 1.0000  validation/loss 0.5000",
        "mood step 30/40  loss 1.0000",
        "mood step 40/40  loss 1.0000",
        "nearly done",
    ]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter(4, "mood", Terminal(), start=1)
    reporter.scalars(3, {"train/loss": 2.0})
    reporter.scalars(4, {"validation/loss": 0.5})
    reporter.note("done")
    reporter.close()
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss 2.0000  val loss 0.500" in shown
    assert "done" in shown


def test_configurations_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 3\n")
    assert _as_values(None) == {}
    assert _as_values(file) == _as_values(str(file)) == _as_values({"steps": 3}) == {"steps": 3}


def test_every_process_has_its_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (_placed("cuda"), _placed("cpu")) == ("cuda:1", "cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert _placed("cuda") == "cuda"
