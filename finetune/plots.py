"""The plots of a comparison, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.processes import Record
from finetune.report import number

#: Colours that stay apart for colour-blind readers (Okabe and Ito), with line styles for the second round.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
STYLES = ("-", "--", ":", "-.")

#: Forward passes, mean loss and its standard deviation over seeds, point by point.
Curve = Sequence[Sequence[float]]


def plot_curves(file: Path, task: str, runs: Mapping[str, Sequence[Record]], undecided: bool = False) -> None:
    """Mean validation loss by forward passes, ± one standard deviation over seeds shaded.

    Args:
        runs: the reported runs by method. Points at which a run's loss is not finite are left out.
    """
    figure, axes = _figure()
    _draw_curves(axes, {label: curve(records) for label, records in runs.items()})
    seeds = len(next(iter(runs.values())))
    axes.set_title(f"{task}: mean of {seeds} seeds, ± 1 sd" + (" (undecided)" if undecided else ""), fontsize=11)
    _save(figure, axes, file)


def plot_search(file: Path, task: str, values: Mapping[str, Mapping[float, float]], zero: float) -> None:
    """Final validation loss by learning rate, the mean over the selection seeds, with each method's best.

    Args:
        values: by method, the loss by learning rate.
        zero: the zero-shot loss.
    """
    figure, axes = _figure()
    _draw_search(axes, values)
    axes.axhline(zero, color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label="zero-shot")
    axes.set_title(f"{task}: search on the selection seeds, best circled", fontsize=11)
    _cap(axes, zero, [loss for losses in values.values() for loss in losses.values() if math.isfinite(loss)])
    _save(figure, axes, file)


def panels_of_curves(file: Path, title: str, curves: Mapping[str, Mapping[str, Curve]]) -> Path:
    """The losses by forward passes of several tasks, a panel each, with one legend.

    Args:
        curves: by task and method, what :func:`curve` gives.
    """
    figure, panels = _panels(len(curves), title)
    for axes, (task, by_label) in zip(panels, curves.items(), strict=False):
        _draw_curves(axes, by_label)
        axes.set_title(task, fontsize=9)
    return _save_panels(figure, panels, file)


def panels_of_searches(file: Path, title: str, searches: Mapping[str, Mapping[str, Mapping[float, float]]]) -> Path:
    """The final losses by learning rate of several tasks, a panel each, with one legend.

    Args:
        searches: by task and method, the loss by learning rate.
    """
    figure, panels = _panels(len(searches), f"{title}: search on the selection seeds, best circled")
    for axes, (task, values) in zip(panels, searches.items(), strict=False):
        _draw_search(axes, values)
        axes.set_title(task, fontsize=9)
        finite = sorted(loss for losses in values.values() for loss in losses.values() if math.isfinite(loss))
        if finite:
            # Rates at which everything is lost must not squeeze the rest.
            top = 1.5 * finite[len(finite) // 2]
            axes.set_ylim(finite[0] - 0.05 * top, max(top, finite[0] + 0.05 * top))
    return _save_panels(figure, panels, file)


def _draw_curves(axes: Any, curves: Mapping[str, Curve]) -> None:
    shown: list[float] = []
    for index, (label, points) in enumerate(curves.items()):
        if not points:
            continue
        forwards, means, sds = (list(values) for values in zip(*points, strict=True))
        shown += means
        style = _style(index, label)
        axes.plot(forwards, means, label=label, linewidth=1.8, **style)
        low = [mean - sd for mean, sd in zip(means, sds, strict=True)]
        high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
        axes.fill_between(forwards, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="forward passes", ylabel="validation loss")
    start = [points[0][1] for points in curves.values() if points]  # every run begins at the zero-shot loss
    if start:
        axes.axhline(start[0], color="#888888", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label="zero-shot")
        _cap(axes, start[0], shown)


def _draw_search(axes: Any, values: Mapping[str, Mapping[float, float]]) -> None:
    for index, (label, losses) in enumerate(values.items()):
        points = sorted((lr, loss) for lr, loss in losses.items() if math.isfinite(loss))
        if not points:
            continue
        style = _style(index, label)
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.4, marker="o", markersize=3.5, **style)
        best = min(points, key=lambda point: point[1])
        axes.plot(*best, marker="o", markersize=9, markerfacecolor="none", color=style["color"])
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="final validation loss")


def _figure() -> tuple[Any, Any]:
    # Not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _panels(count: int, title: str) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.8), dpi=110, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[:count]:
        _plain(axes)
    for axes in panels[count:]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure, panels[:count]


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _save_panels(figure: Any, panels: Sequence[Any], file: Path) -> Path:
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


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


def curve(records: Sequence[Record]) -> Curve:
    """Forward passes, mean and standard deviation of the validation loss where every run's loss is finite."""
    found = []
    for points in zip(*(record["curve"] for record in records), strict=False):
        losses = [number(loss) for _, loss, _ in points]
        if not all(map(math.isfinite, losses)):
            continue
        mean = sum(losses) / len(losses)
        variance = sum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1)
        found.append((points[0][0], mean, math.sqrt(variance)))
    return found
