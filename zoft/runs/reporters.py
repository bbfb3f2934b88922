"""Where a run's scalars go: a JSON lines file, TensorBoard, the terminal.

The only module that imports tensorboard, and only when a :class:`TensorBoardReporter` is made.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO


class Reporter(Protocol):
    """Takes scalars by step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note ``values`` as of ``step`` (the number of finished steps)."""

    def close(self) -> None:
        """Write what is not yet written."""


class JsonlReporter:
    """One JSON object a line: ``{"step": 3, "train/loss": 0.69, ...}``; not finite values become null.

    Args:
        file: the file; its folder is made.
        after: when a run goes on, the step that it goes on from: later lines of the file are dropped.
            None begins the file anew.
    """

    def __init__(self, file: str | Path, after: int | None = None) -> None:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = "" if after is None or not path.is_file() else _lines_until(path, after)
        path.write_text(kept, encoding="utf-8")
        self._stream = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._stream.write(json.dumps({"step": step, **clean}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoardReporter:
    """TensorBoard's event files.

    Args:
        folder: the log folder.
        after: when a run goes on, the step that it goes on from: TensorBoard hides what came later.
    """

    def __init__(self, folder: str | Path, after: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if after is None else after + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write every value under its name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write and close the event file."""
        self._writer.close()


class ConsoleReporter:
    """A progress bar on a terminal; elsewhere plain lines, about ``lines`` of them.

    Shown are the loss as a moving average, and every value whose name begins with ``validation/``.

    Args:
        total: steps of the run.
        label: what runs, one or two words.
        stream: where to; standard error by default.
        start: steps that are already done.
        loss: the name of the value that is shown as the loss.
    """

    def __init__(
        self,
        total: int,
        label: str = "",
        stream: TextIO | None = None,
        *,
        start: int = 0,
        lines: int = 20,
        loss: str = "train/loss",
    ) -> None:
        self._total, self._label, self._loss_name = total, label, loss
        self._stream = stream if stream is not None else sys.stderr
        self._every = max(1, total // lines)
        self._loss: float | None = None
        self._shown: dict[str, float] = {}
        self._line: tuple[int, str] | None = None  # one line a step: it waits for the step's evaluation
        self._bar: Any = None
        if self._stream.isatty():
            self._bar, self._task = _progress_bar(total, label, start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Move on to ``step`` and show the values."""
        if self._loss_name in values and math.isfinite(values[self._loss_name]):
            value = values[self._loss_name]
            self._loss = value if self._loss is None else 0.9 * self._loss + 0.1 * value
        fresh = {name: value for name, value in values.items() if name.startswith("validation/")}
        self._shown |= fresh
        if self._bar is not None:
            short = {name.removeprefix("validation/"): value for name, value in self._shown.items()}
            text = "  ".join(f"{name} {value:.3f}" for name, value in short.items())
            self._bar.update(self._task, completed=step, text=self._text({}) + (f"  val {text}" if text else ""))
            return
        if self._line is not None and self._line[0] != step:
            self._print()
        if fresh or (self._loss_name in values and (step % self._every == 0 or step == self._total)):
            self._line = (step, self._text(fresh))

    def note(self, text: str) -> None:
        """Show a sentence."""
        if self._line is not None:
            self._print()
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Write the last line; leave the bar as it is."""
        if self._line is not None:
            self._print()
        if self._bar is not None:
            self._bar.stop()

    def _print(self) -> None:
        if self._line is not None:
            step, text = self._line
            print(f"{self._label} step {step}/{self._total}  {text}".strip(), file=self._stream, flush=True)
            self._line = None

    def _text(self, shown: Mapping[str, float]) -> str:
        parts = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        return "  ".join(parts + [f"{name} {value:.4f}" for name, value in shown.items()])


def _progress_bar(total: int, label: str, start: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        *([TextColumn(label)] if console.width >= 100 else []),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )
    task = bar.add_task("", total=total, completed=start, text="")
    bar.start()
    return bar, task


def _lines_until(path: Path, step: int) -> str:
    """The lines of a JSON lines file up to ``step``; an unfinished last line is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("step", 0) <= step:
            kept.append(line + "\n")
    return "".join(kept)
