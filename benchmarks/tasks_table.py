"""Describe the offline tasks on a base: what is known, what can be learned, how hard by ZO.

    python benchmarks/tasks_table.py [--tasks NAME,...] [--base DIR] [--without-first-order]

Of the embedded base it writes docs/tasks.json and docs/tasks.md; of another one, or of a derivative, the same figures
to docs/bases/NAME.json, from which benchmarks/bases_page.py makes docs/bases.md. With --tasks only the named rows are
measured anew. --without-first-order leaves out the fine-tuning, which takes most of the time.

For every task: zero-shot loss and metric on the test split; the same after first-order fine-tuning
(AdamW, learning rate chosen on the validation split); and, at the base's weights over the whole
training split, |g|^2, tr(H) (Hutchinson: one Rademacher probe for each batch, Hessian-vector products
by double backward) and g'Hg. Their quotient |g|^2 tr(H) / g'Hg is how much more one step along the true
gradient gains than one step along an isotropic direction, each at its own best step size. It says nothing
where the loss does not curve upwards along the gradient.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoft.assets import make_base, make_derivative
from zoft.models import load_model
from zoft.tasks.lm import LMTask
from zoft.tasks.offline import OFFLINE_TASKS, OfflineTask

ROOT = Path(__file__).resolve().parents[1]
BASE = make_base.SHIPPED
FOLDER = "bases"
COMMAND = "python benchmarks/tasks_table.py"

RATES = (1e-3, 3e-4, 2e-3)
STEPS = 500
CHECK = 50
BATCH = 32
ENOUGH = 0.98
PROBES = 1
PROBE_BATCH = 20


def chance(task: OfflineTask) -> float:
    """Expected metric of a blind guess: one of the candidates, or the commonest training answer."""
    test = task.examples("test")
    if task.kind != "completion":
        return sum(1 / len(example.candidates) for example in test) / len(test)
    answers = [example.candidates[0] for example in task.examples("train")]
    commonest = max(sorted(set(answers)), key=answers.count).strip()
    return sum(commonest in example.references for example in test) / len(test)


def fine_tune(model: nn.Module, task: LMTask, metric: str) -> dict[str, Any]:
    """Test loss and metric of the best of ``RATES``; later ones are tried only if none was enough."""
    best: dict[str, Any] = {"validation": -1.0}
    for rate in RATES:
        tuned = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=rate, weight_decay=0.01)
        for step, batch in zip(range(1, STEPS + 1), task.train_batches(BATCH, seed=0), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / (STEPS + 1))
            loss = task.loss(tuned, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimizer.step()
            if step % CHECK == 0:
                found = task.evaluate(tuned, "validation")[metric]
                if found > best["validation"]:
                    test = task.evaluate(tuned, "test")
                    best = {
                        "validation": found,
                        "lr": rate,
                        "steps": step,
                        "loss": test["loss"],
                        "metric": test[metric],
                    }
                if found >= ENOUGH:
                    return best
    return best


def training_batches(task: LMTask, size: int) -> Iterator[tuple[Any, float]]:
    """The training split once, in order, in batches with their share of the whole."""
    examples = task.dataset("train")
    for first in range(0, len(examples), size):
        members = examples[first : first + size]
        yield task.collate(members), len(members) / len(examples)


def hessian_product(loss: Tensor, parameters: list[nn.Parameter], vector: list[Tensor]) -> Tensor:
    """vector' H vector of one batch's loss."""
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    along = sum((one * other).sum() for one, other in zip(gradient, vector, strict=True))
    product = torch.autograd.grad(along, parameters)
    return sum((one.double() * other.double()).sum() for one, other in zip(product, vector, strict=True))


def curvature(model: nn.Module, task: LMTask) -> dict[str, float]:
    """|g|^2, tr(H) with its standard error, and g'Hg over the training split."""
    parameters = list(model.parameters())
    gradient = [torch.zeros_like(value) for value in parameters]
    for batch, share in training_batches(task, 100):
        found = torch.autograd.grad(task.loss(model, batch), parameters)
        for total, value in zip(gradient, found, strict=True):
            total.add_(value, alpha=share)
    squared = sum(float(value.double().square().sum()) for value in gradient)
    along, trace = 0.0, []
    generator = torch.Generator().manual_seed(0)
    unit = [value / math.sqrt(squared) for value in gradient]
    for batch, share in training_batches(task, 100):
        along += share * float(hessian_product(task.loss(model, batch), parameters, unit))
    for _ in range(PROBES):
        for batch, _share in training_batches(task, PROBE_BATCH):
            signs = [
                torch.randint(0, 2, value.shape, generator=generator).to(value.dtype).mul_(2).sub_(1)
                for value in parameters
            ]
            trace.append(float(hessian_product(task.loss(model, batch), parameters, signs)))
    mean = sum(trace) / len(trace)
    error = math.sqrt(sum((value - mean) ** 2 for value in trace) / (len(trace) - 1) / len(trace))
    return {
        "gradient_squared": squared,
        "trace": mean,
        "trace_standard_error": error,
        "gradient_curvature": along,
        "gain": mean / along if along > 0 else None,
        "examples": len(task.dataset("train")),
    }


def measure(base: Path, text_task: OfflineTask, first_order: bool = True) -> dict[str, Any]:
    """One row of the table; without ``first_order`` its entry is None."""
    started = time.monotonic()
    loaded = load_model(str(base.resolve()))
    model = loaded.model
    model.set_attn_implementation("eager")  # the only one that can be differentiated twice
    task = LMTask(text_task, loaded.tokenizer)
    zero_shot = task.evaluate(model, "test")
    row = {
        "task": text_task.name,
        "role": text_task.role,
        "kind": text_task.kind,
        "metric": text_task.metric,
        "chance": chance(text_task),
        "zero_shot": {"loss": zero_shot["loss"], "metric": zero_shot[text_task.metric]},
        "curvature": curvature(model, task),
        "first_order": fine_tune(model, task, text_task.metric) if first_order else None,
        "longest": max(example.length for example in task.dataset("test")),
    }
    row["seconds"] = round(time.monotonic() - started, 1)
    return row


def page(result: dict[str, Any]) -> str:
    """docs/tasks.md from docs/tasks.json."""
    record = result["base"]
    rows = [
        "| task | role | kind | chance | zero-shot | loss | first-order | loss | tr(H) | \\|g\\|² | gain |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        bent, zero, first = row["curvature"], row["zero_shot"], row["first_order"]
        rows.append(
            f"| {row['task']} | {row['role']} | {row['kind']} | {row['chance']:.1%} | {zero['metric']:.1%} "
            f"| {zero['loss']:.3f} | {first['metric']:.1%} | {first['loss']:.3f} "
            f"| {bent['trace']:.0f} ± {bent['trace_standard_error']:.0f} | {bent['gradient_squared']:.2f} "
            f"| {'–' if bent['gain'] is None else format(bent['gain'], '.1f')} |"
        )
    described = [line for task in OFFLINE_TASKS for line in _described(task)]
    gains = [row["curvature"]["gain"] for row in result["rows"]]
    high = sum(gain is not None and gain >= 20 for gain in gains)
    return "\n".join(
        [
            "# The offline tasks",
            "",
            f"Generated by `{COMMAND}`; do not edit. Base: `zoft/assets/base`, "
            f"{record['parameters']:,} parameters, {record['steps']:,} steps, "
            f"sha256 `{record['sha256'][:16]}`.",
            "",
            *rows,
            "",
            "Accuracy, or exact match for completions, on the 500 test examples. Chance: a blind guess among "
            "the candidates, or always the commonest training answer. First-order: AdamW on the 1,000 training "
            f"examples, at most {STEPS} steps of {BATCH}, the best of the learning rates "
            f"{', '.join(f'{rate:g}' for rate in RATES)} on the 300 validation examples (a later rate is "
            f"tried only if no earlier one reached {ENOUGH:.0%}).",
            "",
            "Gain: |g|² tr(H) / gᵀHg at the base's weights, how much more one step along the true gradient "
            "lowers the loss than one along an isotropic direction, each at its best step size. g and gᵀHg "
            "are of the whole training split (1,000 examples), tr(H) is a Hutchinson estimate over it with its "
            f"standard error. It is at least 20 on {high} of {len(result['rows'])} tasks; – where the loss does not "
            f"curve upwards along g, so that the quotient says nothing ({gains.count(None)}).",
            "",
            "## What each asks",
            "",
            "With the first test example: what is scored stands in `⟦ ⟧`, the other candidates after it.",
            "",
            *described,
            "",
        ]
    )


def _described(task: type[OfflineTask]) -> list[str]:
    """A paragraph about the task, and one example."""
    example = task().examples("test")[0]
    right, *others = (example.candidates[example.label], *example.candidates)
    others.remove(right)
    shown = ", ".join(f'"{other}"' for other in others)
    tail = f"   (or {shown})" if shown else ""
    about = " ".join((task.__doc__ or "").split())
    scored = right.replace("\n", "\\n")
    return [f"- **{task.name}**: {about}", "", "    ```text", f"    {example.prompt}⟦{scored}⟧{tail}", "    ```", ""]


def record_of(base: Path) -> dict[str, Any]:
    """What is recorded about a base, or about a derivative.

    Raises:
        FileNotFoundError: neither make_base nor make_derivative made it.
    """
    made = [base / name for name in (make_derivative.RECORD, make_base.RECORD) if (base / name).is_file()]
    if not made:
        raise FileNotFoundError(f"{base} holds no {make_base.RECORD} or {make_derivative.RECORD}")
    content: dict[str, Any] = json.loads(made[0].read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Measure, merge with the rows at hand, and write the JSON, and the page of the embedded base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", help="names, separated by commas (default: all)")
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base (default: the embedded base)")
    parser.add_argument("--without-first-order", action="store_true", help="no fine-tuning: much faster")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "docs", help="default %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    embedded = options.base.resolve() == BASE.resolve()
    name = options.base.resolve().name
    target = options.output_dir / "tasks.json" if embedded else options.output_dir / FOLDER / f"{name}.json"
    record = record_of(options.base)
    kept = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {"base": record, "rows": []}
    # Rows of other weights under the same name say nothing about these.
    rows = {row["task"]: row for row in kept["rows"] if kept["base"]["sha256"] == record["sha256"]}
    names = options.tasks.split(",") if options.tasks else [task.name for task in OFFLINE_TASKS]
    target.parent.mkdir(parents=True, exist_ok=True)
    for text_task in OFFLINE_TASKS:
        if text_task.name in names:
            rows[text_task.name] = measure(options.base, text_task(), not options.without_first_order)
            print(json.dumps(rows[text_task.name]), flush=True)
            result = {
                "command": COMMAND if embedded else f"{COMMAND} --base runs/{FOLDER}/{name}",
                "base": record,
                "torch": torch.__version__,
                "machine": platform.machine(),
                "rows": [rows[task.name] for task in OFFLINE_TASKS if task.name in rows],
            }
            target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if embedded:
        (options.output_dir / "tasks.md").write_text(page(json.loads(target.read_text())), encoding="utf-8")
    else:
        print(f"{target}: python benchmarks/bases_page.py writes the page")


if __name__ == "__main__":
    main()
