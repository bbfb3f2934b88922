"""Every task with zero-shot, in-context, mezo and zo-finetuner, on a tiny random model: does each pair run?

    python benchmarks/tasks_by_method.py [--tasks NAME,...] [--steps 2] [--shots 2] [--limit 4]

Prints a table of test losses and main metrics. The published tasks read rows that the project made in the data
sets' schemas (tests/published_rows.py), the others their own. The model has random weights and two layers, and a
few steps teach it nothing: the figures show that a pair runs from the data to the metric, and nothing about how
good a method is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune.task import in_context  # noqa: E402
from tests.models import filled  # noqa: E402
from tests.published_rows import write_all  # noqa: E402
from tests.tiny import tiny_config, tiny_tokenizer  # noqa: E402
from zoft.models import LoadedModel, new_causal_lm  # noqa: E402
from zoft.optimizers import ZerothOrder  # noqa: E402
from zoft.tasks import TASKS, get_task  # noqa: E402
from zoft.tasks.lm import LMTask  # noqa: E402
from zoft.tasks.published import PublishedTask  # noqa: E402
from zoft.tuner import Tuner  # noqa: E402

#: Tokens that the model takes: most of the demonstrations fit.
CONTEXT = 2048

METHODS = ("zero-shot", "in context", "mezo", "zo-finetuner")


def fresh() -> LoadedModel:
    """A tiny random model with room for demonstrations, the same at every call."""
    config = {**tiny_config("llama").to_dict(), "max_position_embeddings": CONTEXT}
    return LoadedModel(new_causal_lm(config, 0), tiny_tokenizer(), "causal", "tiny-llama")


def tuner(loaded: LoadedModel) -> Tuner:
    """A tuner with random values: an untrained one has σ = 1 everywhere, which is mezo."""
    made = Tuner.untrained(loaded.model, base_model_name_or_path=loaded.name)
    filled(made.network, 0)
    return made


def measure(name: str, data_dir: str, steps: int, shots: int, limit: int) -> dict[str, dict[str, float]]:
    """For each of :data:`METHODS` the test figures of one task."""
    loaded = fresh()
    source = get_task(name, data_dir if issubclass(TASKS[name], PublishedTask) else None)
    task = LMTask(source, loaded.tokenizer, max_length=CONTEXT)
    figures = {
        "zero-shot": task.evaluate(loaded.model, "test", limit),
        "in context": in_context(task, shots, seed=0).evaluate(loaded.model, "test", limit),
    }
    for method in ("mezo", "zo-finetuner"):
        trained = replace(loaded, model=fresh().model)
        options = {"tuner": tuner(trained).bind(trained.model, 4)} if method == "zo-finetuner" else {}
        optimizer = ZerothOrder(trained.model, method, lr=1e-3, **options)
        batches = task.train_batches(4, seed=0)
        for _ in range(steps):
            batch = next(batches)
            optimizer.step(lambda model=trained.model, batch=batch: task.loss(model, batch))
        figures[method] = task.evaluate(trained.model, "test", limit)
    return figures


def table(names: list[str], data_dir: str, steps: int, shots: int, limit: int) -> list[str]:
    """Lines of a Markdown table, a row a task: test loss / main metric under each method."""
    lines = [f"| task | metric | {' | '.join(METHODS)} |", f"|{'---|' * (len(METHODS) + 2)}"]
    for name in names:
        figures, metric = measure(name, data_dir, steps, shots, limit), TASKS[name].metric
        cells = [f"{figures[method]['loss']:.3f} / {figures[method][metric]:.2f}" for method in METHODS]
        lines.append(f"| {name} | {metric} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Every task with every way to use it, on a tiny random model.")
    parser.add_argument("--tasks", default=",".join(TASKS))
    for flag, value in (("--steps", 2), ("--shots", 2), ("--limit", 4)):
        parser.add_argument(flag, type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder))
        for line in table(given.tasks.split(","), folder, given.steps, given.shots, given.limit):
            print(line, flush=True)


if __name__ == "__main__":
    main()
