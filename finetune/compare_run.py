"""Making the runs of a comparison: a method at one learning rate on one task with one seed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.processes import Record
from finetune.run_cache import CachedNoise, RunCache, cached_batches
from finetune.run_spec import Bench, RunSpec, record_of, with_course
from zoft.noise import get_noise
from zoft.objective import evaluating
from zoft.optimizers import ZerothOrder, ZOOptimizer, get_optimizer
from zoft.runs.steps import run_steps


def build_method(spec: RunSpec, model: nn.Module) -> ZOOptimizer:
    """The method of a run; ``model`` must be at its initial weights."""
    tuner = spec.tuner.load(model).bind(model, spec.batch_size) if spec.tuner else None
    hyper, _ = with_course(spec.hyper)
    return get_optimizer(spec.optimizer, **{"epsilon": spec.epsilon, **hyper, "lr": spec.lr, "tuner": tuner})


class Runner:
    """Makes runs one after the other on one bench: the weights are put back before each.

    Args:
        bench: the model and the tasks; encoded batches and zero-shot results are kept between runs.
        keep_bytes: see ``zoft.noise.Noise``.
        threads: torch's threads while a run is made; None leaves them as they are.
        cache_bytes: for noise and batches that runs with the same seed share; the bits are the same without.
    """

    def __init__(self, bench: Bench, keep_bytes: int = 0, threads: int | None = None, cache_bytes: int = 0) -> None:
        self.bench = bench
        self._cache = RunCache(cache_bytes) if cache_bytes else None
        self._keep_bytes = keep_bytes
        self._threads = threads
        self._initial = {name: tensor.detach().clone() for name, tensor in bench.model.state_dict().items()}
        self._zero_shot: dict[tuple[str, str, int | None], dict[str, float]] = {}
        self._batches: dict[tuple[str, int | None], list[tuple[int, Any]]] = {}

    def __call__(self, spec: RunSpec) -> Record:
        """Make a run; its record is JSON-able, with null for values that are not finite."""
        with self.own_threads():
            try:
                return self._run(spec)
            finally:
                self.reset()

    @contextmanager
    def own_threads(self) -> Iterator[None]:
        """Within it torch has as many threads as the runs are to have."""
        threads = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _run(self, spec: RunSpec) -> Record:
        started = time.perf_counter()
        self.reset()
        validation_zero = self.validation(spec)
        test_zero = self.at_zero(spec, "test", spec.test_examples) if spec.test else {}
        method = build_method(spec, self.bench.model)
        curve, steps, skipped = self._train(spec, method, validation_zero)
        test = self._evaluate(spec, "test", spec.test_examples) if spec.test else {}
        seconds, device = time.perf_counter() - started, next(self.bench.model.parameters()).device
        return record_of(spec, method, curve, steps, skipped, validation_zero, test_zero, test, seconds, str(device))

    def _train(
        self, spec: RunSpec, method: ZOOptimizer, zero: float
    ) -> tuple[list[tuple[int, float, float]], int, int]:
        """The run itself.

        Returns:
            (forwards, validation loss, mean training loss since the point before) at every point, the
            number of steps made and of steps skipped. A run that gives up ends before its last step.
        """
        task = self.bench.tasks[spec.task]
        if self._cache is None:
            noise = get_noise(spec.noise, self._keep_bytes)
            batches = task.train_batches(spec.batch_size, spec.seed)
        else:
            self._cache.use(spec.seed)
            noise = CachedNoise(spec.noise, self._keep_bytes, self._cache)
            batches = cached_batches(task, spec.batch_size, spec.seed, self._cache)
        optimizer = ZerothOrder(self.bench.model, method, seed=spec.seed, noise=noise)
        steps = method.steps_within(spec.forwards)
        _, course = with_course(spec.hyper)
        marks = {round(steps * point / spec.eval_points) for point in range(1, spec.eval_points + 1)}
        curve, losses, skipped = [(0, zero, math.nan)], [], 0
        made = run_steps(optimizer, task, batches, steps, spec.lr, course)
        for step, (result, lost) in enumerate(made, 1):
            losses.append(result.loss)
            skipped += result.skipped
            if lost:
                curve.append((method.forwards_in(step), math.nan, math.nan))
                return curve, step, skipped
            if step in marks:
                curve.append((method.forwards_in(step), self.validation(spec), _mean(losses)))
                losses = []
        return curve, steps, skipped

    def reset(self) -> None:
        """Put the initial weights back."""
        with torch.no_grad():
            for name, tensor in self.bench.model.state_dict().items():
                tensor.copy_(self._initial[name])

    def at_zero(self, spec: RunSpec, split: str, limit: int | None) -> dict[str, float]:
        """Loss and metric at the initial weights, which the model must have where they are not known yet."""
        index = (spec.task, split, limit)
        if index not in self._zero_shot:
            self._zero_shot[index] = self._evaluate(spec, split, limit)
        return self._zero_shot[index]

    def _evaluate(self, spec: RunSpec, split: str, limit: int | None) -> dict[str, float]:
        return dict(self.bench.tasks[spec.task].evaluate(self.bench.model, split, limit))

    def validation(self, spec: RunSpec) -> float:
        """Mean validation loss, without the metric where the task lets its batches be kept."""
        task, limit = self.bench.tasks[spec.task], spec.validation_examples
        if not hasattr(task, "dataset") or not hasattr(task, "collate"):
            return self._evaluate(spec, "validation", limit)["loss"]
        if (spec.task, limit) not in self._batches:
            self._batches[spec.task, limit] = _batches(task, limit)
        batches = self._batches[spec.task, limit]
        total = 0.0
        with torch.inference_mode(), evaluating(self.bench.model):
            for count, batch in batches:
                loss: Tensor = task.loss(self.bench.model, batch)
                total += float(loss) * count
        return total / sum(count for count, _ in batches)


def _batches(task: Any, limit: int | None, size: int = 64) -> list[tuple[int, Any]]:
    """Batches of the validation split with their sizes, neighbours in length together."""
    examples = sorted(task.dataset("validation")[:limit], key=lambda example: (example.length, example.index))
    parts = [examples[first : first + size] for first in range(0, len(examples), size)]
    return [(len(part), task.collate(part)) for part in parts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


#: Makes a bench from the base's name, the tasks' names, the device, the dtype, and the folder of local data
#: where one is given. Importable.
BenchFactory = Callable[..., Bench]


def language_model_bench(
    base: str, tasks: Sequence[str], device: str = "cpu", dtype: str | None = None, data_dir: str | None = None
) -> Bench:
    """A language model and registered tasks, the published ones from ``data_dir`` where it is given."""
    from zoft.models import context_length, load_model
    from zoft.tasks import TASKS, get_task
    from zoft.tasks.base import SPLITS
    from zoft.tasks.lm import LMTask

    loaded = load_model(base, device=device, dtype=dtype)
    texts = {name: get_task(name, data_dir if not TASKS[name].offline else None) for name in tasks}
    limit = context_length(loaded.model)
    chance, data = {}, {}
    for name, text in texts.items():
        examples = {split: text.examples(split) for split in SPLITS}
        data[name] = hashlib.sha256(repr([examples[split] for split in SPLITS]).encode()).hexdigest()[:32]
        if text.kind != "completion":
            counts = [len(example.candidates) for example in examples["test"]]
            chance[name] = sum(map(math.log, counts)) / len(counts)
    return Bench(
        model=loaded.model,
        tasks={name: LMTask(text, loaded.tokenizer, loaded.kind, limit) for name, text in texts.items()},
        roles={name: text.role for name, text in texts.items()},
        chance=chance,
        data=data,
        base=loaded.name,
        revision=loaded.revision,
    )


def make_runner(
    factory: BenchFactory, arguments: Sequence[Any], keep_bytes: int, threads: int, cache_bytes: int
) -> Runner:
    """What every process of a comparison prepares once."""
    return Runner(factory(*arguments), keep_bytes, threads, cache_bytes)
