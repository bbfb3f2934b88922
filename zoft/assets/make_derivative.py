"""Make a derivative of a base: the same network, further trained on a mixture of texts and tasks.

    python -m zoft.assets.make_derivative --base FOLDER_OR_NAME [--output-dir DIR] [--steps N] [--seed S]

A tuner is learned for a base and used on its derivatives, so a result has to be seen on models whose weights have
moved. The mixture is a function of the seed: documents of the offline world, each kind told more or less often than
the base heard it, and the training splits of the meta-training tasks. What belongs to a development or held-out task
is not in it: no example, and no document in one of their forms (``prose.asked``, which the base's text has).
``make_derivative.json`` says what was mixed, how far the weights moved, and from which weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from zoft.assets.make_base import (
    BASES,
    LENGTH,
    batches,
    no_report,
    one_thread,
    print_loss,
    train,
    training_record,
    write_record,
)
from zoft.blocks import Blocks, weights_hash
from zoft.errors import UsageError, ZoftError
from zoft.models import LoadedModel, load_model, save_model
from zoft.names import EMBEDDED
from zoft.tasks.offline import OFFLINE_TASKS, OfflineTask, prose

RECORD = "make_derivative.json"

STEPS = 300
RATE = 1e-3
WARM_UP = 30

#: Share of the mixture's documents that are examples of tasks.
TASK_SHARE = 0.3

#: Standard deviation of the logarithm of the factor by which a kind of document is told more often.
SHIFT = 1.0


def trained_tasks() -> list[OfflineTask]:
    """The tasks whose training splits are mixed in: those with the role meta-training."""
    return [task() for task in OFFLINE_TASKS if task.role == "meta-training"]


def proportions(seed: int) -> dict[prose.Teller, float]:
    """How often each kind of document is told: the base's weight times a log-normal factor; asked ones never."""
    rng = random.Random(f"{seed} proportions")
    kinds = {teller: weight for teller, weight in prose.DOCUMENTS.items() if teller is not prose.asked}
    return {teller: weight * math.exp(rng.gauss(0.0, SHIFT)) for teller, weight in kinds.items()}


def mixture(seed: int) -> Iterator[prose.Document]:
    """Endless documents and, of every ten about three, examples of tasks with their right answers."""
    rng = random.Random(f"{seed} mixture")
    told = prose.documents(random.Random(f"{seed} derivative"), proportions(seed))
    examples = [example for task in trained_tasks() for example in task.examples("train")]
    while True:
        if rng.random() < TASK_SHARE:
            example = rng.choice(examples)
            yield example.prompt, example.candidates[example.label]
        else:
            yield next(told)


def moved(before: dict[str, torch.Tensor], blocks: Blocks) -> dict[str, float]:
    """|θ' − θ| / |θ| in all, and the least and the greatest of the blocks that were not 0."""
    away, size, each = 0.0, 0.0, []
    for block in blocks:
        old = before[block.name].double()
        difference = float((block.parameter.detach().double() - old).square().sum())
        length = float(old.square().sum())
        away, size = away + difference, size + length
        each += [math.sqrt(difference / length)] if length else []
    return {"whole": math.sqrt(away / size), "least_block": min(each), "greatest_block": max(each)}


def make(
    base: str,
    folder: Path,
    seed: int = 0,
    steps: int = STEPS,
    rate: float = RATE,
    report: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Make a derivative in ``folder`` and return what ``make_derivative.json`` records.

    Args:
        base: a name or folder, see :mod:`zoft.names`.
        rate: the highest learning rate of AdamW.

    Raises:
        UsageError: a wrong name or setting, a model that is no causal language model, or whose tokenizer has no
            tokens that begin and end a text.
        ArtifactError: the base cannot be read.
    """
    if steps < 1 or not rate > 0:
        raise UsageError(f"{steps} steps at learning rate {rate:g} train nothing", "Give more.")
    loaded = load_model(base, dtype="float32")
    _check(loaded)
    blocks = Blocks.of(loaded.model)
    before = {block.name: block.parameter.detach().clone() for block in blocks}
    signature, fingerprint = blocks.signature, weights_hash(loaded.model)
    with one_thread():
        started = time.monotonic()
        stream = batches(loaded.tokenizer, mixture(seed))
        curve = train(loaded.model, stream, steps, rate, report or no_report, WARM_UP)
        seconds = time.monotonic() - started
    save_model(loaded, folder)
    record = {
        "command": f"python -m zoft.assets.make_derivative --base {base} --steps {steps} --seed {seed} --lr {rate:g}",
        "base": {"name": loaded.name, "revision": loaded.revision, "weights": fingerprint},
        "signature": signature,
        "seed": seed,
        "lr": rate,
        "mixture": {
            "documents": {teller.__name__: round(weight, 3) for teller, weight in proportions(seed).items()},
            "task_share": TASK_SHARE,
            "tasks": {task.name: "train" for task in trained_tasks()},
        },
        "moved": {name: round(value, 4) for name, value in moved(before, blocks).items()},
        **training_record(folder, loaded.model, steps, curve, seconds),
    }
    write_record(folder / RECORD, record)
    return record


def _check(loaded: LoadedModel) -> None:
    """Raise a UsageError if packed text means nothing to the model."""
    if loaded.kind != "causal":
        raise UsageError(f"{loaded.name} is a {loaded.kind} language model", "Give a causal one.")
    if not hasattr(loaded.model, "save_pretrained") or hasattr(loaded.model, "peft_config"):
        raise UsageError(f"{loaded.name} is an adapter, not a base", "Give the model that it belongs to.")
    if loaded.tokenizer.bos_token_id is None or loaded.tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {loaded.name} has no token that begins or ends a text", "Give another base."
        )
    longest = getattr(loaded.model.config, "max_position_embeddings", LENGTH)
    if longest < LENGTH:
        raise UsageError(f"{loaded.name} takes {longest} tokens, and rows have {LENGTH}", "Give another base.")


def base_name(text: str) -> str:
    """What ``--base`` stands for: a base in :data:`BASES` by its folder's name, or a name as everywhere."""
    return f"./{BASES / text}" if (BASES / text / "config.json").is_file() and "/" not in text else text


def main(arguments: list[str] | None = None) -> int:
    """Run the script; 0 when the derivative was made, otherwise the error's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m zoft.assets.make_derivative", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--base", default=EMBEDDED, help=f"folder or name of a model, or of a base in {BASES} (default %(default)s)"
    )
    parser.add_argument("--output-dir", type=Path, help=f"default {BASES}/BASE-derivative-SEED")
    parser.add_argument("--seed", type=int, default=0, help="of the mixture (default %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default %(default)s)")
    parser.add_argument("--lr", type=float, default=RATE, help="highest learning rate (default %(default)s)")
    options = parser.parse_args(arguments)
    folder = options.output_dir or BASES / f"{Path(options.base).name}-derivative-{options.seed}"
    try:
        record = make(base_name(options.base), folder, options.seed, options.steps, options.lr, print_loss)
    except ZoftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
