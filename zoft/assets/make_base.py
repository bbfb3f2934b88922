"""Make a base model: a small language model trained on the text of the offline world.

    python -m zoft.assets.make_base [--kind KIND] [--output-dir DIR] [--steps N] [--seed S]
    python -m zoft.assets.make_base --verify

The kinds are those of :mod:`zoft.assets.kinds`. ``llama`` is the embedded base that comes with the package; the
others are made where they are wanted, in ``runs/bases/KIND`` by default.

Text, tokenizer, initial weights and training are functions of the seed alone, and one thread computes,
so that the same processor kind and torch build give the same bytes: ``--verify`` makes the base again
and compares its hash with the shipped one. ``make_base.json`` beside the weights says on what platform
they were made; elsewhere (another torch, another vector instruction set) sums are rounded in another
order, and the hash differs although the model is as good.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zoft.assets.kinds import KINDS, SHIPPED_KIND
from zoft.tasks.offline.prose import Document, documents

SHIPPED = Path(__file__).parent / "base"
RECORD = "make_base.json"
SPECIAL = ("<pad>", "<bos>", "<eos>")

#: Folder of the bases and derivatives that are made and not shipped.
BASES = Path("runs/bases")

SEED = 0
BATCH = 16
LENGTH = 64
WARM_UP = 200
MERGES = 96
SAMPLE = 20_000
PROMPT_WEIGHT = 0.2


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that takes any text, in which every word of the offline world is one token.

    The merges are trained on a sample of the text; the sample's whole words are then added to the
    vocabulary, and ``ignore_merges`` makes the tokenizer look for a whole word first.
    """
    drawn = itertools.islice(documents(random.Random(f"{seed} tokenizer")), SAMPLE)
    sample = [prompt + continuation for prompt, continuation in drawn]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = len(SPECIAL) + len(alphabet) + MERGES
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(sample, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    counts = Counter(word for text in sample for word, _ in splitter.pre_tokenize_str(text))
    for word in sorted(counts):
        vocabulary.setdefault(word, len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


def batches(
    tokenizer: PreTrainedTokenizerFast, texts: Iterator[Document]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of rows, each packed with whole documents but for its last one, and their weights.

    A document's continuation weighs 1 a token, its prompt, most of which is chance, ``PROMPT_WEIGHT``.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    pending: Iterator[tuple[list[int], list[int]]] = iter(())
    while True:
        rows, weights = [], []
        for _ in range(BATCH):
            row: list[int] = []
            weight: list[float] = []
            while len(row) < LENGTH + 1:
                document = next(pending, None)
                if document is None:
                    pending = _encode(tokenizer, list(itertools.islice(texts, 2048)))
                    continue
                prompt, continuation = document
                row += [bos, *prompt, *continuation, eos]
                weight += [PROMPT_WEIGHT] * (1 + len(prompt)) + [1.0] * (len(continuation) + 1)
            rows.append(row[: LENGTH + 1])
            weights.append(weight[: LENGTH + 1])
        yield torch.tensor(rows), torch.tensor(weights)


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[Document]) -> Iterator[tuple[list[int], list[int]]]:
    """The token ids of prompts and continuations, which meet at a space."""
    halves = tokenizer([half for text in texts for half in text], add_special_tokens=False)["input_ids"]
    return zip(halves[::2], halves[1::2], strict=True)


def train(
    model: PreTrainedModel,
    stream: Iterable[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    rate: float,
    report: Callable[[int, float], None],
    warm_up: int = WARM_UP,
) -> list[tuple[int, float]]:
    """Train ``model`` in place on ``stream`` with AdamW under a cosine.

    Args:
        rate: the highest learning rate, reached after ``warm_up`` steps.
        report: called after every step with its number and the mean loss of the last 100.

    Returns:
        (step, mean loss of the last 100 steps), at most 20 of them, the last at the end.
    """
    decayed = [value for value in model.parameters() if value.ndim > 1]
    plain = [value for value in model.parameters() if value.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    losses: list[float] = []
    curve: list[tuple[int, float]] = []
    marks = {round(steps * point / 20) for point in range(1, 21)}
    model.train()
    for step, (rows, weights) in zip(range(steps), stream, strict=False):
        progress = min(1.0, (step + 1) / warm_up), 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * progress[0] * max(progress[1], 0.02)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        each = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        loss = (each * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses = [*losses[-99:], loss.item()]
        report(step + 1, sum(losses) / len(losses))
        if step + 1 in marks:
            curve.append((step + 1, sum(losses) / len(losses)))
    model.eval()
    return curve


def sha256(file: Path) -> str:
    """The hash of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """What the bytes of a trained model depend on besides its inputs."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch computes with one thread, so that sums are added in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make(
    folder: Path,
    steps: int | None = None,
    seed: int = SEED,
    report: Callable[[int, float], None] | None = None,
    kind: str = SHIPPED_KIND,
) -> dict[str, Any]:
    """Make a base in ``folder`` and return what ``make_base.json`` records.

    Args:
        steps: optimizer steps; by default the kind's.
        kind: one of ``zoft.assets.kinds.KINDS``.
    """
    chosen = KINDS[kind]
    steps = chosen.steps if steps is None else steps
    with one_thread():
        started = time.monotonic()
        tokenizer = make_tokenizer(seed)
        model = chosen.build(tokenizer, seed)
        stream = batches(tokenizer, documents(random.Random(f"{seed} text")))
        curve = train(model, stream, steps, chosen.rate, report or no_report)
        seconds = time.monotonic() - started
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = "" if kind == SHIPPED_KIND else f"--kind {kind} "
    record = {
        "command": f"python -m zoft.assets.make_base {named}--steps {steps} --seed {seed}",
        "kind": kind,
        "seed": seed,
        **training_record(folder, model, steps, curve, seconds),
    }
    write_record(folder / RECORD, record)
    return record


def training_record(
    folder: Path, model: nn.Module, steps: int, curve: Sequence[tuple[int, float]], seconds: float
) -> dict[str, Any]:
    """What is recorded of training the model in ``folder``: size, cost and losses, its hash, the platform."""
    return {
        "steps": steps,
        "tokens": steps * BATCH * LENGTH,
        "parameters": sum(value.numel() for value in model.parameters()),
        "final_loss": round(curve[-1][1], 4),
        "losses": {str(step): round(loss, 4) for step, loss in curve},
        "seconds": round(seconds),
        "sha256": sha256(folder / "model.safetensors"),
        "platform": versions(),
    }


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON."""
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def verify(folder: Path) -> bool:
    """Whether making the base again in ``folder`` gives the bytes that are shipped."""
    shipped = json.loads((SHIPPED / RECORD).read_text(encoding="utf-8"))
    made = make(folder, shipped["steps"], shipped["seed"], print_loss)
    if made["sha256"] == shipped["sha256"]:
        print(f"same bytes: {made['sha256']}")
        return True
    print(f"shipped {shipped['sha256']}\nmade    {made['sha256']}")
    different = [key for key, value in shipped["platform"].items() if made["platform"][key] != value]
    print(f"the platforms differ in: {', '.join(different)}" if different else "on the same platform")
    return False


def no_report(step: int, loss: float) -> None:
    """Say nothing."""


def print_loss(step: int, loss: float) -> None:
    """Print every hundredth step's loss."""
    if step % 100 == 0:
        print(f"step {step}: loss {loss:.4f}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; 0 when the base was made, or made again with the same bytes."""
    kinds = "".join(f"\n  {name}: {kind.about}; {kind.steps} steps" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m zoft.assets.make_base",
        description=(__doc__ or "").split("\n")[0],
        epilog=f"kinds:{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", choices=KINDS, default=SHIPPED_KIND, help="see below (default %(default)s)")
    parser.add_argument("--output-dir", type=Path, help=f"where to write the base (default {BASES}/KIND)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the kind's)")
    parser.add_argument("--seed", type=int, default=SEED, help="of text, weights and order (default %(default)s)")
    parser.add_argument("--verify", action="store_true", help="make the shipped base again and compare hashes")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps {options.steps} is below 1")
    if options.verify:
        with tempfile.TemporaryDirectory() as folder:
            return 0 if verify(options.output_dir or Path(folder)) else 1
    record = make(options.output_dir or BASES / options.kind, options.steps, options.seed, print_loss, options.kind)
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
