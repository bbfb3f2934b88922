"""The plots of a comparison, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.report import number
from finetune.sweep import Record

#: Colours that stay apart for colour-blind readers (Okabe and Ito), with line styles for the second round.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
STYLES = ("-", "--", ":", "-.")


def plot_curves(file: Path, task: str, runs: Mapping[str, Sequence[Record]], undecided: bool = False) -> None:
    """Mean validation loss by forward passes, ± one standard deviation over seeds shaded.

    Args:
        runs: the reported runs by method. Points at which a run's loss is not finite are left out.
    """
    figure, axes = _figure()
    zero = number(next(iter(runs.values()))[0]["zero_shot"]["validation_loss"])
    shown: list[float] = []
    for index, (label, records) in enumerate(runs.items()):
        forwards, means, sds = _curve(records)
        shown += means
        style = _style(index, label)
        axes.plot(forwards, means, label=label, linewidth=1.8, **style)
        low = [mean - sd for mean, sd in zip(means, sds, strict=True)]
        high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
        axes.fill_between(forwards, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.axhline(zero, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label="zero-shot")
    seeds = len(next(iter(runs.values())))
    axes.set(xlabel="forward passes", ylabel="validation loss")
    axes.set_title(f"{task}: mean of {seeds} seeds, ± 1 sd" + (" (undecided)" if undecided else ""), fontsize=11)
    _cap(axes, zero, shown)
    _save(figure, axes, file)


def plot_search(file: Path, task: str, values: Mapping[str, Mapping[float, float]], zero: float) -> None:
    """Final validation loss by learning rate, the mean over the selection seeds, with each method's best.

    Args:
        values: by method, the loss by learning rate.
        zero: the zero-shot loss.
    """
    figure, axes = _figure()
    for index, (label, losses) in enumerate(values.items()):
        points = sorted((lr, loss) for lr, loss in losses.items() if math.isfinite(loss))
        if not points:
            continue
        style = _style(index, label)
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.4, marker="o", markersize=3.5, **style)
        best = min(points, key=lambda point: point[1])
        axes.plot(*best, marker="o", markersize=9, markerfacecolor="none", color=style["color"])
    axes.axhline(zero, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label="zero-shot")
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="final validation loss")
    axes.set_title(f"{task}: search on the selection seeds, best circled", fontsize=11)
    _cap(axes, zero, [loss for losses in values.values() for loss in losses.values() if math.isfinite(loss)])
    _save(figure, axes, file)


def _figure() -> tuple[Any, Any]:
    # Not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, axes: Any, file: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _style(index: int, label: str) -> dict[str, str]:
    if label.startswith("untrained"):  # may coincide with MeZO: both lines are seen
        return {"color": COLOURS[index % len(COLOURS)], "linestyle": "--"}
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}


def _cap(axes: Any, zero: float, values: Sequence[float]) -> None:
    """Keep diverged runs from squeezing everything else: nothing above one and a half times zero-shot is shown.

    Args:
        values: the plotted losses, which set the lower end; the shaded spread of a diverged run must not.
    """
    top = 1.5 * zero
    shown = [value for value in (*values, zero) if value <= top]
    if len(shown) <= len(values):
        axes.set_ylim(min(shown) - 0.1 * zero, top)
        axes.set_ylabel(f"{axes.get_ylabel()} (cut off at 1.5 × zero-shot)")


def _curve(records: Sequence[Record]) -> tuple[list[int], list[float], list[float]]:
    """Forward passes, mean and standard deviation at the points where every run's loss is finite."""
    forwards, means, sds = [], [], []
    for points in zip(*(record["curve"] for record in records), strict=False):
        losses = [number(loss) for _, loss, _ in points]
        if not all(map(math.isfinite, losses)):
            continue
        mean = sum(losses) / len(losses)
        variance = sum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1)
        forwards.append(points[0][0])
        means.append(mean)
        sds.append(math.sqrt(variance))
    return forwards, means, sds
