"""Runs of a comparison made many at once: stacked along a leading dimension, for small models on an accelerator.

Runs can share a stack if they differ in nothing but the method's tuner, the learning rate with its course, and the
seed. What a stack gives is what :class:`finetune.compare_run.Runner` gives for every run alone, but for the order in
which sums are taken. Runs that cannot be stacked are made one by one.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.compare_run import GIVE_UP, Bench, Runner, RunSpec, record_of, with_course
from finetune.methods import LEARNED
from finetune.run_cache import RunCache
from finetune.sweep import Record
from zoft.blocks import Block, Blocks
from zoft.errors import UsageError
from zoft.noise import Key, Layout, Noise, Span, get_noise
from zoft.objective import evaluating
from zoft.optimizers import ZOOptimizer, get_optimizer
from zoft.optimizers.schedule import scheduled
from zoft.stack import StackedModel, StackedNoise, StackedTuner, factors
from zoft.step import Draw, Probe, State
from zoft.tasks.lm import LMTask
from zoft.tasks.table import ExampleTable
from zoft.tuner.bound import BoundTuner
from zoft.tuner.step_rule import StepRuleConfig

#: Rows of all runs that the model is evaluated on at once.
_ROWS = 1 << 15

#: Examples of every run that are evaluated at once, at most.
_EXAMPLES = 64


def group_of(spec: RunSpec) -> str:
    """What the runs of a stack have in common, as one text."""
    hyper, _ = with_course(spec.hyper)
    own = {"optimizer": _method_name(spec), "hyper": hyper, "tuner": None, "lr": None, "seed": None}
    return json.dumps({**spec.settings, **own}, sort_keys=True)


def _method_name(spec: RunSpec) -> str:
    # The learned method differs from MeZO in its tuner alone.
    return "mezo" if spec.optimizer == LEARNED else spec.optimizer


class StackedRuns:
    """Makes up to ``count`` runs at once in this process; see :class:`finetune.sweep.Executor`.

    Args:
        bench: the model and the tasks.
        runner: makes runs that cannot be stacked.
        count: runs in a stack at most.
        cache_bytes: for noise that runs with the same seed share.
    """

    def __init__(self, bench: Bench, runner: Runner, count: int, cache_bytes: int) -> None:
        self._stacker = Stacker(bench, runner, cache_bytes)
        self._runner, self._count = runner, count
        self._waiting: list[RunSpec] = []

    def has_room(self) -> bool:
        return not self._waiting

    def submit(self, queue: deque[Any]) -> None:
        """Take the largest group of runs that can share a stack."""
        sizes: dict[str, int] = {}
        for spec in queue:
            sizes[group_of(spec)] = sizes.get(group_of(spec), 0) + 1
        largest = max(sizes, key=lambda group: sizes[group])
        self._waiting = list(islice((spec for spec in queue if group_of(spec) == largest), self._count))
        taken = {spec.key for spec in self._waiting}
        rest = [spec for spec in queue if spec.key not in taken]
        queue.clear()
        queue.extend(rest)

    def collect(self) -> list[Record]:
        waiting, self._waiting = self._waiting, []
        records = self._stacker(waiting)
        return records if records is not None else [self._runner(spec) for spec in waiting]

    def close(self) -> None:
        self._waiting.clear()


class Stacker:
    """Makes stacks of runs on a bench."""

    def __init__(self, bench: Bench, runner: Runner, cache_bytes: int) -> None:
        self.bench, self.runner = bench, runner
        self.cache = RunCache(cache_bytes)
        self.tables: dict[tuple[str, str, int | None], ExampleTable] = {}
        self._tuners: dict[str, BoundTuner] = {}

    def __call__(self, specs: Sequence[RunSpec]) -> list[Record] | None:
        """The runs' records; None where they cannot be stacked."""
        self.runner.reset()
        if not isinstance(self.bench.tasks[specs[0].task], LMTask):
            return None
        try:
            stack = Stack(self, specs)
        except CannotStack:
            return None
        try:
            return stack.records()
        finally:
            self.runner.reset()

    def tuner(self, spec: RunSpec) -> BoundTuner | None:
        """The tuner of a run, bound to the model at its initial weights."""
        if spec.tuner is None:
            return None
        if spec.tuner.digest not in self._tuners:
            self._tuners[spec.tuner.digest] = spec.tuner.load(self.bench.model).bind(self.bench.model, spec.batch_size)
        return self._tuners[spec.tuner.digest]

    def table(self, task: LMTask, kind: str, split: str, limit: int | None = None) -> ExampleTable:
        """A split's examples: ``trained`` on, ``whole``, or as ``prompts``."""
        key = (task.name, f"{kind}/{split}", limit)
        if key not in self.tables:
            members = task.dataset(split)[:limit]
            if kind == "trained":
                members = task.trained_on(members)
            elif kind == "prompts":
                members = task.prompts(members)
            device = next(self.bench.model.parameters()).device
            try:
                self.tables[key] = ExampleTable(members, task.pad_id, device)
            except UsageError as error:
                raise CannotStack from error
        return self.tables[key]


class CannotStack(Exception):
    """The runs have to be made one by one."""


class Stack:
    """Runs that are made at once.

    Args:
        stacker: what stacks on the same bench share; its model is at its initial weights.
        specs: runs of one group (:func:`group_of`).

    Raises:
        CannotStack: they have to be made one by one.
    """

    def __init__(self, stacker: Stacker, specs: Sequence[RunSpec]) -> None:
        self._stacker, self._specs, first = stacker, specs, specs[0]
        self._first = first
        model = stacker.bench.model
        self._device = next(model.parameters()).device
        task = stacker.bench.tasks[first.task]
        if not isinstance(task, LMTask):
            raise CannotStack
        self._task = task
        noise = get_noise(first.noise)
        self._layout = noise.layout(Blocks.of(model))
        tuners = [stacker.tuner(spec) for spec in specs]
        self._method = self._build(tuners)
        self._noise = self._stacked_noise(noise)
        self._model = self._stacked_model(model)
        self._rules = [tuner.step_rule if tuner is not None else None for tuner in tuners]
        self._rule_states = [rule.init() if rule is not None else {} for rule in self._rules]
        self._start = self._initial_row()
        self._theta = self._start.repeat(len(specs), 1)
        self._state = self._initial_state()
        self._steps = self._method.steps_within(first.forwards)
        # What becomes of every run.
        self._skipped, self._in_a_row = [0] * len(specs), [0] * len(specs)
        self._ended: list[int | None] = [None] * len(specs)

    def _build(self, tuners: Sequence[BoundTuner | None]) -> ZOOptimizer:
        """The method of all runs."""
        first, layout = self._first, self._layout
        hyper, _ = with_course(first.hyper)
        plain = get_optimizer(_method_name(first), **{"epsilon": first.epsilon, **hyper})
        if plain.stacks is None or plain.plan.trials or plain.plan.derivative or plain.plan.sides not in ((1, -1), (1,)):
            raise CannotStack
        self._whole = plain.stacks == "entries"
        bound = [tuner for tuner in tuners if tuner is not None]
        if any(tuner.step_rule is not None and tuner.step_rule.kind != "slopes" for tuner in bound):
            raise CannotStack
        if not bound:
            return plain
        ones = torch.ones(layout.width, device=self._device)
        made = {id(tuner): factors(tuner, layout) for tuner in bound}
        rows = [ones if tuner is None else made[id(tuner)] for tuner in tuners]
        if any(row is None for row in rows):
            raise CannotStack
        stacked = StackedTuner.of(bound[0], torch.stack([row for row in rows if row is not None]), layout, self._whole)
        return get_optimizer(_method_name(first), **{"epsilon": first.epsilon, **hyper, "tuner": stacked})

    def _stacked_noise(self, noise: Noise) -> StackedNoise:
        cache, kind = self._stacker.cache, self._first.noise

        def made(key: Key) -> Tensor:
            index = ("joined", kind, key[1:], self._layout.width)
            cache.use(key.seed)
            kept = cache.get(key.seed, index)
            if kept is None:
                kept = noise.joined(key, self._layout, self._device)
                cache.put(key.seed, index, kept, kept.numel() * kept.element_size())
            row: Tensor = kept
            return row

        return StackedNoise(made, self._layout, [spec.seed for spec in self._specs], self._whole)

    def _stacked_model(self, model: nn.Module) -> StackedModel:
        try:
            return StackedModel(model, self._layout, len(self._specs))
        except UsageError as error:
            raise CannotStack from error

    def _initial_row(self) -> Tensor:
        row = torch.zeros(self._layout.width, device=self._device)
        for block in self._layout.blocks:
            if block.parameter.dtype != torch.float32:
                raise CannotStack
            self._layout.of(row, block).copy_(block.parameter.data.view(block.shape or (1,)))
        return row

    @property
    def _spans(self) -> list[tuple[Span, Block]]:
        """The spans that the method is called for."""
        return [(Span(block, 0, block.numel), block) for block in self._blocks]

    @property
    def _blocks(self) -> Blocks:
        """The blocks as the method sees them: all as one where entries do not depend on another."""
        if not self._whole:
            return self._layout.blocks
        return Blocks([Block(0, "all", nn.Parameter(self._start, requires_grad=False))])

    def _initial_state(self) -> State:
        count = len(self._specs)
        return {
            name: tensor.to(self._device, torch.float64).expand(count, 1).clone()
            if tensor.ndim == 0
            else tensor.expand(count, *tensor.shape).clone()
            for name, tensor in self._method.init(self._blocks).items()
        }

    def records(self) -> list[Record]:
        """Make the runs."""
        started = time.perf_counter()
        runner, first = self._stacker.runner, self._first
        zero = runner.validation(first)
        test_zero = runner.at_zero(first, "test", first.test_examples) if first.test else {}
        with torch.no_grad(), evaluating(self._model.model), self._model.running():
            curves = self._train(zero)
            self._model.use(self._theta)
            tests = self._evaluated("test", first.test_examples) if first.test else [{} for _ in self._specs]
        seconds = (time.perf_counter() - started) / len(self._specs)
        records = []
        for at, spec in enumerate(self._specs):
            steps = self._ended[at] or self._steps
            records.append(
                record_of(
                    spec, self._method, curves[at], steps, self._skipped[at], zero, test_zero, tests[at], seconds,
                    str(self._device),
                )  # fmt: skip
            )
        return records

    def _train(self, zero: float) -> list[list[tuple[int, float, float]]]:
        """The runs themselves: for each the points of its curve."""
        first, count = self._first, len(self._specs)
        marks = {round(self._steps * point / first.eval_points) for point in range(1, first.eval_points + 1)}
        curves: list[list[tuple[int, float, float]]] = [[(0, zero, math.nan)] for _ in range(count)]
        losses: list[list[float]] = [[] for _ in range(count)]
        for step, places in zip(range(1, self._steps + 1), self._batches(), strict=False):
            probes = self._step(step - 1, places)
            for at, own in enumerate(probes):
                if self._ended[at] is None:
                    losses[at].append(sum(p.loss_plus + p.loss_minus for p in own) / (2 * len(own)))
                    if self._in_a_row[at] == GIVE_UP:
                        self._ended[at] = step
                        curves[at].append((self._method.forwards_in(step), math.nan, math.nan))
            if step in marks:
                self._model.use(self._theta)
                found = self._evaluated("validation", first.validation_examples, answers=False)
                for at in range(count):
                    if self._ended[at] is None:
                        mean = sum(losses[at]) / len(losses[at])
                        curves[at].append((self._method.forwards_in(step), found[at]["loss"], mean))
                        losses[at] = []
            if all(end is not None for end in self._ended):
                break
        return curves

    def _batches(self) -> Iterator[np.ndarray]:
        """The places in the training split of every step's batches, [runs, examples]."""
        seeds = sorted({spec.seed for spec in self._specs})
        of_run = [seeds.index(spec.seed) for spec in self._specs]
        orders = [self._task.train_order(self._first.batch_size, seed) for seed in seeds]
        while True:
            yield np.array([next(order) for order in orders])[of_run]

    def _step(self, step: int, places: np.ndarray) -> list[list[Probe]]:
        """One step of all runs.

        Returns:
            of every run what was measured along each direction.
        """
        method, state, epsilon = self._method, self._state, self._method.epsilon_at(step)
        keys = [Key(0, step, draw) for draw in range(method.directions)]
        batch = self._stacker.table(self._task, "trained", "train").batch(places)
        values: list[Tensor] = [self._losses(self._theta, batch)] if method.plan.zero else []
        drawn = []
        for key in keys:
            noises, shift = [], torch.zeros_like(self._theta)
            for span, block in self._spans:
                noises.append(method.draw(self._noise, key, span))
                self._part(shift, block).copy_(method.direction(state, span, noises[-1].clone()))
            shift.mul_(epsilon)
            values += [self._losses(self._theta + side * shift, batch) for side in method.plan.sides]
            drawn.append(noises)
        measured = torch.stack(values)
        probes = [self._probes(own, keys, epsilon, Probe) for own in measured.T.tolist()]
        finite = [all(probe.finite for probe in own) for own in probes]
        for at, fine in enumerate(finite):
            self._skipped[at] += not fine and self._ended[at] is None
            self._in_a_row[at] = 0 if fine else self._in_a_row[at] + 1
        rates = torch.tensor([self._rate(step, at, own) for at, own in enumerate(probes)], device=self._device)
        with self._kept(finite):
            stacked = self._probes(list(measured[:, :, None]), keys, epsilon, _StackedProbe)
            for at, (span, block) in enumerate(self._spans):
                draws: list[Draw] = [(noises[at], probe) for noises, probe in zip(drawn, stacked, strict=True)]
                theta = self._part(self._theta, block)
                theta.add_(method.update(state, span, theta, draws, rates[:, None]))  # type: ignore[arg-type]
            method.end(state, stacked)
        for at, own in enumerate(probes):
            rule = self._rules[at]
            if rule is not None and finite[at]:
                rule.end(self._rule_states[at], own)
        return probes

    def _part(self, rows: Tensor, block: Block) -> Tensor:
        """The block's part of rows [runs, width], [runs, numel]."""
        return rows if self._whole else self._layout.of(rows, block).flatten(1)

    def _losses(self, rows: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss of every run, float64 [runs]."""
        self._model.use(rows)
        losses = self._task.losses(self._model.model, batch)
        return losses.view(len(self._specs), -1).mean(1).double()

    def _probes(self, values: Sequence[Any], keys: Sequence[Key], epsilon: float, kind: type[Probe]) -> list[Probe]:
        """What was measured along each direction: of one run, or with tensors [runs, 1] of all."""
        zero, *losses = values if self._method.plan.zero else (None, *values)
        if self._method.plan.sides == (1, -1):
            pairs = [(losses[2 * at], losses[2 * at + 1], None) for at in range(len(keys))]
        else:  # the other side to first order, as in a step of one run
            pairs = [(plus, 2 * zero - plus, (plus - zero) / epsilon) for plus in losses]
        return [
            kind(key, plus, minus, epsilon, zero, slope)
            for key, (plus, minus, slope) in zip(keys, pairs, strict=True)
        ]

    def _rate(self, step: int, at: int, probes: Sequence[Probe]) -> float:
        """The learning rate of a run at a step, its tuner's step-size head included."""
        spec, rule = self._specs[at], self._rules[at]
        _, course = with_course(spec.hyper)
        rate = scheduled(course, spec.lr, 0.0, step, self._steps)
        if rule is None or not all(probe.finite for probe in probes):
            return rate
        return rate * rule.rate(self._rule_states[at], probes)

    def _kept(self, finite: Sequence[bool]) -> _Kept:
        lost = [at for at, fine in enumerate(finite) if not fine]
        return _Kept([self._theta, *self._state.values()] if lost else [], lost)

    def _evaluated(self, split: str, limit: int | None, answers: bool = True) -> list[dict[str, float]]:
        """Loss of every run on a split, and the metrics with ``answers``."""
        runs, task, model = len(self._specs), self._task, self._model.model
        table = self._stacker.table(task, "whole", split, limit)
        prompts = None
        if answers and task.text_task.kind == "completion":
            prompts = self._stacker.table(task, "prompts", split, limit)
        members = task.dataset(split)[:limit]
        order = np.argsort(table.lengths, kind="stable")
        size = max(1, min(_EXAMPLES, _ROWS // runs))
        losses = torch.zeros(runs, dtype=torch.float64, device=self._device)
        predictions: list[dict[int, str]] = [{} for _ in range(runs)]
        for begin in range(0, len(order), size):
            places = order[begin : begin + size]
            all_places = np.tile(places, runs)
            batch = table.batch(all_places)
            if not answers:
                losses += task.losses(model, batch).view(runs, -1).double().sum(1)
                continue
            shown = [members[place] for place in all_places]
            asked = prompts.batch(all_places) if prompts is not None else None
            found, texts = task.judged(model, shown, split, batch, asked)
            losses += found.view(runs, -1).double().sum(1)
            for at in range(runs):
                own = slice(at * len(places), (at + 1) * len(places))
                predictions[at].update(zip((member.index for member in shown[own]), texts[own], strict=True))
        means = (losses / len(members)).tolist()
        measured = [task.measured(own, split) if answers else {} for own in predictions]
        return [{"loss": loss, **metrics} for loss, metrics in zip(means, measured, strict=True)]


class _StackedProbe(Probe):
    """A probe whose losses are tensors [runs, 1]."""

    @property
    def projected_gradient(self) -> float:
        """c of every run: the difference in float64, then float32 as the directions are."""
        return super().projected_gradient.float()  # type: ignore[attr-defined,no-any-return]


class _Kept:
    """Within: tensors change. After: some runs' rows are as before, since a step of theirs is skipped."""

    def __init__(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> None:
        self._tensors, self._rows = tensors, list(rows)

    def __enter__(self) -> None:
        self._before = [tensor[self._rows].clone() for tensor in self._tensors]

    def __exit__(self, *_: Any) -> None:
        for tensor, rows in zip(self._tensors, self._before, strict=True):
            tensor[self._rows] = rows
