"""Make the embedded base model: a small Llama trained on the text of the offline world.

    python -m zoft.assets.make_base --output-dir DIR [--steps N] [--seed S]
    python -m zoft.assets.make_base --verify

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zoft.tasks.offline.prose import documents

SHIPPED = Path(__file__).parent / "base"
SPECIAL = ("<pad>", "<bos>", "<eos>")

STEPS = 5000
SEED = 0
BATCH = 16
LENGTH = 64
RATE = 3e-3
WARM_UP = 200
HIDDEN = 96
SPREAD = 0.08
THETA = 200.0
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


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The untrained network; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of rows, each packed with whole documents but for its last one, and their weights.

    A document's continuation weighs 1 a token, its prompt, most of which is chance, ``PROMPT_WEIGHT``.
    """
    texts = documents(random.Random(f"{seed} text"))
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


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
    """The token ids of prompts and continuations, which meet at a space."""
    halves = tokenizer([half for text in texts for half in text], add_special_tokens=False)["input_ids"]
    return zip(halves[::2], halves[1::2], strict=True)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    report: Callable[[int, float], None],
) -> float:
    """Train ``model`` in place with AdamW under a cosine; the mean loss of the last steps."""
    decayed = [value for value in model.parameters() if value.ndim > 1]
    plain = [value for value in model.parameters() if value.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    losses: list[float] = []
    model.train()
    for step, (rows, weights) in zip(range(steps), batches(tokenizer, seed), strict=False):
        progress = min(1.0, (step + 1) / WARM_UP), 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * progress[0] * max(progress[1], 0.02)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        each = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        loss = (each * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses = [*losses[-99:], loss.item()]
        report(step + 1, sum(losses) / len(losses))
    model.eval()
    return sum(losses) / len(losses)


def sha256(file: Path) -> str:
    """The hash of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make(
    folder: Path, steps: int = STEPS, seed: int = SEED, report: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Make the base in ``folder`` and return what ``make_base.json`` records."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.monotonic()
        tokenizer = make_tokenizer(seed)
        model = make_model(tokenizer, seed)
        loss = train(model, tokenizer, steps, seed, report or _ignore)
    finally:
        torch.set_num_threads(threads)
    return save(folder, model, tokenizer, steps, seed, loss, time.monotonic() - started)


def save(
    folder: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    loss: float,
    seconds: float,
) -> dict[str, Any]:
    """Write the base and ``make_base.json``, and return what the latter holds."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "command": f"python -m zoft.assets.make_base --steps {steps} --seed {seed}",
        "seed": seed,
        "steps": steps,
        "tokens": steps * BATCH * LENGTH,
        "parameters": sum(value.numel() for value in model.parameters()),
        "final_loss": round(loss, 4),
        "seconds": round(seconds),
        "sha256": sha256(folder / "model.safetensors"),
        "platform": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (folder / "make_base.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def verify(folder: Path) -> bool:
    """Whether making the base again in ``folder`` gives the bytes that are shipped."""
    shipped = json.loads((SHIPPED / "make_base.json").read_text(encoding="utf-8"))
    made = make(folder, shipped["steps"], shipped["seed"], _print)
    if made["sha256"] == shipped["sha256"]:
        print(f"same bytes: {made['sha256']}")
        return True
    print(f"shipped {shipped['sha256']}\nmade    {made['sha256']}")
    different = [key for key, value in shipped["platform"].items() if made["platform"][key] != value]
    print(f"the platforms differ in: {', '.join(different)}" if different else "on the same platform")
    return False


def _ignore(step: int, loss: float) -> None:
    pass


def _print(step: int, loss: float) -> None:
    if step % 100 == 0:
        print(f"step {step}: loss {loss:.4f}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; 0 when the base was made, or made again with the same bytes."""
    parser = argparse.ArgumentParser(prog="python -m zoft.assets.make_base", description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, help="where to write the base")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of text, weights and order (default %(default)s)")
    parser.add_argument("--verify", action="store_true", help="make the shipped base again and compare hashes")
    options = parser.parse_args(arguments)
    if options.verify:
        with tempfile.TemporaryDirectory() as folder:
            return 0 if verify(options.output_dir or Path(folder)) else 1
    if options.output_dir is None:
        parser.error("give --output-dir DIR, or --verify")
    record = make(options.output_dir, options.steps, options.seed, _print)
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
