"""The time of scoring candidates that share their prompt's computation, beside whole rows, in one run.

    python benchmarks/scoring.py [--repeats 15] [--threads N]

On the embedded base. Both layouts of one batch are timed in turn, again and again; reported is the median
over the repeats of (time shared) / (time with a row for each candidate). Plainly, and at perturbed weights,
where a second call of the model draws every block's noise again unless it is kept. Writes
benchmarks/scoring.json. ``chosen`` says which layout ``collate`` takes by itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from zoft.blocks import Blocks
from zoft.models import load_model
from zoft.noise import Key, Span, get_noise
from zoft.perturb import Perturber
from zoft.tasks import get_task
from zoft.tasks.base import Example, TextTask
from zoft.tasks.encoding import collate
from zoft.tasks.lm import LMTask

OUTPUT = Path(__file__).with_name("scoring.json")

BATCH, EPSILON = 16, 1e-3


class Long(TextTask):
    """Choices after a prompt of several offline prompts: ``count`` candidates of a few tokens each."""

    name: ClassVar[str] = "long"
    role: ClassVar[str] = "development"
    kind: ClassVar[str] = "choice"

    def __init__(self, prompts: int, count: int) -> None:
        texts = [example.prompt for example in get_task("choice-cause").examples("train")]
        ends = sorted({text for example in get_task("choice-cause").examples("train") for text in example.candidates})
        self.made = [
            Example(". ".join(texts[at * prompts : (at + 1) * prompts]), tuple(ends[at : at + count]))
            for at in range(BATCH)
        ]

    def examples(self, split: str) -> list[Example]:
        """The same for every split."""
        return self.made


def cases() -> dict[str, TextTask]:
    """What is scored, by name."""
    return {
        "review-contrast (2 single tokens)": get_task("review-contrast"),
        "mood (4 single tokens)": get_task("mood"),
        "choice-cause (2 of 2 to 4 tokens)": get_task("choice-cause"),
        "5 prompts, 4 candidates": Long(5, 4),
        "10 prompts, 12 candidates": Long(10, 12),
    }


def measure(task: LMTask, model: Any, repeats: int) -> dict[str, Any]:
    """Ratios of one case."""
    encoded = task.dataset("train")[:BATCH]
    pad = int(task.tokenizer.pad_token_id or 0)
    batches = {share: collate(encoded, pad, share=share) for share in (True, False)}
    noise = get_noise("gaussian-table")
    perturber = Perturber(model, Blocks.of(model))

    def shift(span: Span) -> torch.Tensor:
        return noise(Key(0, 0), span) * EPSILON

    def plain(share: bool) -> float:
        with torch.inference_mode():
            return float(task.loss(model, batches[share]))

    def perturbed(share: bool) -> float:
        with torch.inference_mode(), perturber(shift):
            return float(task.loss(model, batches[share]))

    apart = abs(plain(True) - plain(False))
    result: dict[str, Any] = {
        "rows": [len(batches[share]["input_ids"]) for share in (True, False)],
        "tokens": [_tokens(batches[share]) for share in (True, False)],
        "difference": apart,
        "chosen": "shared" if _same(collate(encoded, pad), batches[True]) else "apart",
    }
    kinds: dict[str, Callable[[bool], float]] = {"plain": plain, "perturbed": perturbed}
    for name, run in kinds.items():
        ratios = []
        for _ in range(repeats):
            times = {share: _time(partial(run, share)) for share in (True, False)}
            ratios.append(times[True] / times[False])
        result[name] = round(statistics.median(ratios), 3)
        result[f"{name}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return result


def _tokens(batch: dict[str, torch.Tensor]) -> int:
    return batch["input_ids"].numel() + (batch["suffix_ids"].numel() if "suffix_ids" in batch else 0)


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _time(run: Callable[[], Any]) -> float:
    """Processor seconds of five runs."""
    started = time.process_time()
    for _ in range(5):
        run()
    return time.process_time() - started


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Time of shared-prompt scoring, as a ratio to whole rows.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_model("zoft-base")
    found = {
        name: measure(LMTask(text, loaded.tokenizer), loaded.model, given.repeats) for name, text in cases().items()
    }
    content = {
        "command": f"python benchmarks/scoring.py --repeats {given.repeats} --threads {given.threads}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": given.threads,
        "shared_over_apart": found,
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, one in found.items():
        (low, high), rows, tokens = one["plain_spread"], one["rows"], one["tokens"]
        print(
            f"{name:34} rows {rows[0]:3} of {rows[1]:3}, tokens {tokens[0]:5} of {tokens[1]:5}: "
            f"{one['plain']:.2f} of the time ({low:.2f} to {high:.2f}), perturbed {one['perturbed']:.2f}; "
            f"losses differ by {one['difference']:.1e}; collate takes {one['chosen']}"
        )


if __name__ == "__main__":
    main()
