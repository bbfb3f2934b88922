"""MeZO, HiZOO and Adam on the two-dimensional test functions of the HiZOO paper: where they get, and how.

    python benchmarks/test_functions.py [--output-dir docs]

Writes test-functions.png, test-functions.json and test-functions.md. Everything is in float64, from one start a
function, with the same number of forward passes for all; a step of Adam counts as three, because a backward pass
costs about two forwards. Every method's learning rate (and HiZOO's smooth scale, of three) is the one whose worst
selection seed ends lowest, from the √2 grid and bracketing search of ``zoft compare``. What is reported are other
seeds.

The functions are (a) that of Sophia (arXiv 2305.14342), |x| + 10·|y|, which has kinks, and 10000·x² + y², whose
curvature differs by 10⁴ between the axes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from finetune.compare_config import SELECTION_OFFSET
from finetune.plots import COLOURS
from finetune.sweep import grid_lr, search_grid
from zoft.optimizers import ZerothOrder

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python benchmarks/test_functions.py"

FORWARDS = 900
EPSILON = 1e-2
SMOOTH_SCALES = (0.01, 0.1, 0.3)
METHODS = ("mezo", "hizoo", "adam")
NAMES = {"mezo": "MeZO", "hizoo": "HiZOO", "adam": "Adam (first-order)"}
SELECTION, REPORTED = range(SELECTION_OFFSET, SELECTION_OFFSET + 5), range(5)
REACH = 30


@dataclass(frozen=True)
class Function:
    """A function of two variables.

    Attributes:
        label: as in the figure.
        value: of x and y, tensors of any equal shape.
        start: where every trajectory begins. ``minimum``: where the function is 0.
        lr_start: where the search for each method's learning rate begins.
        window: (x, x, y, y) that the figure shows.
    """

    label: str
    value: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    minimum: tuple[float, float]
    lr_start: dict[str, float]
    window: tuple[float, float, float, float]


FUNCTIONS = {
    "sophia": Function(
        "8(x−1)²(1.3x²+2x+1) + ½(y−4)²",
        lambda x, y: 8 * (x - 1) ** 2 * (1.3 * x**2 + 2 * x + 1) + 0.5 * (y - 4) ** 2,
        (0.3, 0.0),
        (1.0, 4.0),
        {"mezo": 1e-2, "hizoo": 5e-2, "adam": 0.1},
        (-0.2, 1.7, -1.0, 5.0),
    ),
    "kinks": Function(
        "|x| + 10|y|",
        lambda x, y: x.abs() + 10 * y.abs(),
        (2.0, 2.0),
        (0.0, 0.0),
        {"mezo": 1e-2, "hizoo": 1e-2, "adam": 0.1},
        (-2.5, 3.0, -1.5, 2.5),
    ),
    "quadratic": Function(
        "10000x² + y²",
        lambda x, y: 10000 * x**2 + y**2,
        (0.1, 1.0),
        (0.0, 0.0),
        {"mezo": 4e-5, "hizoo": 0.1, "adam": 0.1},
        (-0.25, 0.25, -1.0, 1.6),
    ),
}


class Point(nn.Module):
    """Two numbers, and the function's value at them."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(function.start, dtype=torch.float64))
        self._value = function.value

    def forward(self) -> Tensor:
        """A scalar."""
        return self._value(self.at[0], self.at[1])


def trajectory(
    function: Function, method: str, lr: float, seed: int, forwards: int = FORWARDS, **hyper: float
) -> list[tuple[int, float, float, float]]:
    """Forward passes so far, x, y and the value at them: at the start and after every step."""
    point = Point(function)
    steps: Callable[[], Any]
    if method == "adam":
        adam, cost = torch.optim.Adam(point.parameters(), lr=lr), 3

        def steps() -> None:
            adam.zero_grad()
            point().backward()
            adam.step()
    else:
        optimizer = ZerothOrder(
            point,
            method,
            lr=lr,
            epsilon=EPSILON,
            seed=seed,
            keep_bytes=1 << 16,
            **hyper,  # type: ignore[arg-type]
        )
        cost = optimizer.method.forwards

        def steps() -> None:
            optimizer.step(point)

    points = []
    for made in range(0, forwards // cost + 1):
        if made:
            steps()
        with torch.no_grad():
            points.append((made * cost, *point.at.tolist(), float(point())))
    return points


def final(function: Function, method: str, lr: float, seed: int, forwards: int = FORWARDS, **hyper: float) -> float:
    """The value that a trajectory ends at; infinite where it is not finite."""
    value = trajectory(function, method, lr, seed, forwards, **hyper)[-1][-1]
    return value if math.isfinite(value) else math.inf


def worst(function: Function, method: str, lr: float, seeds: Sequence[int], **hyper: float) -> float:
    """The largest final value over seeds; Adam has none to choose from."""
    return max(final(function, method, lr, seed, **hyper) for seed in (seeds if method != "adam" else seeds[:1]))


def tuned(function: Function, method: str) -> dict[str, Any]:
    """The learning rate, and smooth scale, with the least :func:`worst` over the selection seeds."""
    found = []
    for hyper in [{"smooth_scale": scale} for scale in SMOOTH_SCALES] if method == "hizoo" else [{}]:
        start = function.lr_start[method]
        search = search_grid(REACH)
        wanted = next(search)
        while True:
            try:
                wanted = search.send(
                    {index: worst(function, method, grid_lr(start, index), SELECTION, **hyper) for index in wanted}
                )
            except StopIteration as end:
                result = end.value
                break
        found.append(
            {
                "lr": grid_lr(start, result.best),
                "hyper": hyper,
                "interior": result.interior,
                "score": result.values[result.best],
                "searched": {f"{grid_lr(start, index):.4g}": value for index, value in sorted(result.values.items())},
            }
        )
    best = min(found, key=lambda item: item["score"])
    best["other_smooth_scales"] = {item["hyper"]["smooth_scale"]: item["score"] for item in found if item["hyper"]}
    return best


def measure(name: str) -> tuple[dict[str, Any], dict[str, list[list[tuple[int, float, float, float]]]]]:
    """The record of a function, and every method's reported trajectories."""
    function, record, paths = FUNCTIONS[name], {}, {}
    for method in METHODS:
        chosen = tuned(function, method)
        seeds = REPORTED if method != "adam" else REPORTED[:1]
        paths[method] = [trajectory(function, method, chosen["lr"], seed, **chosen["hyper"]) for seed in seeds]
        chosen["final"] = [path[-1][-1] for path in paths[method]]
        record[method] = chosen
        print(name, method, f"lr {chosen['lr']:.3g}", chosen["hyper"], [f"{value:.3g}" for value in chosen["final"]])
    return record, paths


def draw(file: Path, paths: dict[str, dict[str, list[list[tuple[int, float, float, float]]]]]) -> None:
    """Above: the first reported seed's trajectories. Below: the value by forward passes, median and range of seeds."""
    figure = Figure(figsize=(12, 7), dpi=80, layout="constrained")
    axes = figure.subplots(2, len(paths))
    for column, (name, by_method) in enumerate(paths.items()):
        function, (above, below) = FUNCTIONS[name], axes[:, column]
        left, right, low, high = function.window
        x, y = torch.meshgrid(torch.linspace(left, right, 200), torch.linspace(low, high, 200), indexing="xy")
        above.contour(x, y, (function.value(x, y) + 1e-3).log10(), levels=14, colors="#bbbbbb", linewidths=0.6)
        above.plot(*function.minimum, marker="*", markersize=12, color="#888888", zorder=1)
        for (method, runs), colour in zip(by_method.items(), (COLOURS[1], COLOURS[2], COLOURS[0]), strict=True):
            xs, ys = [point[1] for point in runs[0]], [point[2] for point in runs[0]]
            above.plot(xs, ys, color=colour, linewidth=1, marker=".", markersize=3, label=NAMES[method])
            counts = [point[0] for point in runs[0]]
            values = [[max(run[index][3], 1e-16) for run in runs] for index in range(len(counts))]
            below.plot(counts, [statistics.median(value) for value in values], color=colour, label=NAMES[method])
            below.fill_between(counts, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15)
        above.set(xlim=(left, right), ylim=(low, high), title=function.label, xlabel="x", ylabel="y")
        below.set(yscale="log", xlabel="forward passes", ylabel="value")
        below.spines[["top", "right"]].set_visible(False)
    axes[1, 0].legend(frameon=False)
    figure.savefig(file)


def page(result: dict[str, Any]) -> str:
    """test-functions.md from test-functions.json."""
    rows = [
        "| function | method | lr | smooth scale | final value, median | of seeds, least to greatest |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in result["functions"].items():
        for method, chosen in record.items():
            values = sorted(chosen["final"])
            spread = f"{values[0]:.2g} to {values[-1]:.2g}" if len(values) > 1 else ""
            label = FUNCTIONS[name].label.replace("|", "\\|")
            rows.append(
                f"| {label} | {NAMES[method]} | {chosen['lr']:.3g}{'' if chosen['interior'] else '*'} "
                f"| {chosen['hyper'].get('smooth_scale', '')} | {statistics.median(values):.2g} | {spread} |"
            )
    return "\n".join(
        [
            "# Test functions",
            "",
            f"*Generated by `{COMMAND}`; do not edit.*",
            "",
            "MeZO, HiZOO and, for orientation, first-order Adam on functions of two variables, as in the appendix of "
            "the HiZOO paper ([arXiv 2402.15173](https://arxiv.org/abs/2402.15173)). The first is the paper's; its "
            "formulas for the other two are not at hand, these are of their kind.",
            "",
            "![Trajectories, and value by forward passes](test-functions.png)",
            "",
            *rows,
            "",
            f"{result['forwards']} forward passes each (a step of Adam counts as three), ε = {result['epsilon']:g}, "
            f"float64, {len(REPORTED)} seeds. Learning rates, and HiZOO's smooth scale of "
            f"{', '.join(map(str, SMOOTH_SCALES))}, are those whose worst of {len(SELECTION)} *other* seeds ended "
            "lowest, from the √2 grid of `zoft compare`, bracketed on both sides unless marked with *. Above: one "
            "seed; below: median and range.",
            "",
            "On the quadratic MeZO's learning rate is bound by the steep axis, and along the flat one it hardly moves. "
            "HiZOO's H takes the difference out, after it has overshot while H was still near 1. The smooth scales are "
            "far above the 1e-8 to 1e-5 of language models, because H has to be learned within a few hundred steps. "
            "Between kinks the second difference says nothing, and HiZOO has no advantage. On the first function, "
            "which has another minimum at about 5.4, a step that is too long may end there.",
            "",
        ]
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="MeZO, HiZOO and Adam on test functions.")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "docs", help="default %(default)s")
    folder = parser.parse_args().output_dir
    torch.set_num_threads(1)
    records, paths = {}, {}
    for name in FUNCTIONS:
        records[name], paths[name] = measure(name)
    result = {
        "command": COMMAND,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "forwards": FORWARDS,
        "epsilon": EPSILON,
        "selection_seeds": list(SELECTION),
        "functions": records,
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False).replace("Infinity", "null")
    (folder / "test-functions.json").write_text(text + "\n", encoding="utf-8")
    (folder / "test-functions.md").write_text(page(result), encoding="utf-8")
    draw(folder / "test-functions.png", paths)


if __name__ == "__main__":
    main()
