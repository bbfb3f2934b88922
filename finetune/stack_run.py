"""One stack of runs: the same method on the same task, trained and evaluated at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.methods import LEARNED
from finetune.processes import Record
from finetune.run_spec import RunSpec, record_of, with_course
from finetune.stack_bench import CannotStack, Split, StackBench
from zoft.blocks import Block, Blocks
from zoft.curvature import PartLosses
from zoft.errors import UsageError
from zoft.noise import Key, Span, get_noise
from zoft.objective import evaluating
from zoft.optimizers import ZOOptimizer, get_optimizer
from zoft.optimizers.schedule import scheduled
from zoft.runs.steps import GIVE_UP
from zoft.stack import FACTORS, StackedModel, StackedNoise, StackedTuner, factors
from zoft.step import Draw, Probe, State, along_directions, mean_loss, probes_of, with_curvature
from zoft.tasks.lm import LMTask
from zoft.tuner.bound import BoundTuner


def method_name(spec: RunSpec) -> str:
    """The method of a run, whatever its tuner: the learned one differs from MeZO in that alone."""
    return "mezo" if spec.optimizer == LEARNED else spec.optimizer


class Stack:
    """Runs that are made at once.

    Args:
        bench: its model is at its initial weights.
        specs: runs of one group (:func:`group_of`).

    Raises:
        CannotStack: they have to be made one by one.
    """

    def __init__(self, bench: StackBench, specs: Sequence[RunSpec]) -> None:
        self._bench, self._specs, self._first = bench, specs, specs[0]
        first, model = self._first, bench.bench.model
        self._device = next(model.parameters()).device
        task = bench.bench.tasks[first.task]
        if not isinstance(task, LMTask):
            raise CannotStack
        self._examples = bench.table(task, "trained", "train")
        self._splits = {"validation": Split(bench, task, "validation", first.validation_examples)}
        if first.test:
            self._splits["test"] = Split(bench, task, "test", first.test_examples)
        self._task = task
        noise = get_noise(first.noise)
        self._layout = noise.layout(Blocks.of(model))
        tuners = [bench.tuner(spec) for spec in specs]
        self._method = self._build(tuners)
        self._noise = StackedNoise(noise, self._layout, [spec.seed for spec in specs], self._whole)
        self._model = self._stacked_model(model)
        self._rules = [tuner.step_rule if tuner is not None else None for tuner in tuners]
        self._by_example = any(rule is not None and rule.by_example for rule in self._rules)
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
        plain = get_optimizer(method_name(first), **{"epsilon": first.epsilon, **hyper})
        if plain.stacks is None or plain.plan.trials or plain.plan.derivative:
            raise CannotStack
        self._whole = plain.stacks == "entries"
        bound = [tuner for tuner in tuners if tuner is not None]
        if any(tuner.step_rule is not None and tuner.step_rule.two_sided for tuner in bound):
            raise CannotStack
        if not bound:
            return plain
        plainly = torch.zeros(FACTORS, layout.width, device=self._device)
        plainly[0] = 1.0
        made = {index: factors(tuner, layout) for index, tuner in {id(tuner): tuner for tuner in bound}.items()}
        found = [plainly if tuner is None else made[id(tuner)] for tuner in tuners]
        if any(row is None for row in found):
            raise CannotStack
        rows = torch.stack([row for row in found if row is not None])
        # What other methods make of their noise besides a direction, they make of noise alone.
        if bool(rows[:, 1:].any()) and method_name(first) != "mezo":
            raise CannotStack
        stacked = StackedTuner.of(bound[0], rows, layout, self._whole, lambda: self._theta)
        return get_optimizer(method_name(first), **{"epsilon": first.epsilon, **hyper, "tuner": stacked})

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
        runner, first = self._bench.runner, self._first
        zero = runner.validation(first)
        test_zero = runner.at_zero(first, "test", first.test_examples) if first.test else {}
        with torch.no_grad(), evaluating(self._model.model), self._model.running():
            curves = self._train(zero)
            self._model.use(self._theta)
            tests = self._splits["test"].judged(self._model) if first.test else [{} for _ in self._specs]
        seconds = (time.perf_counter() - started) / len(self._specs)
        return [
            record_of(
                spec,
                self._method,
                curves[at],
                self._ended[at] or self._steps,
                self._skipped[at],
                zero,
                test_zero,
                tests[at],
                seconds,
                str(self._device),
            )
            for at, spec in enumerate(self._specs)
        ]

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
                    losses[at].append(mean_loss(own))
                    if self._in_a_row[at] == GIVE_UP:
                        self._ended[at] = step
                        curves[at].append((self._method.forwards_in(step), math.nan, math.nan))
            if step in marks:
                self._model.use(self._theta)
                found = self._splits["validation"].losses(self._model)
                for at in range(count):
                    if self._ended[at] is None:
                        mean = sum(losses[at]) / len(losses[at])
                        curves[at].append((self._method.forwards_in(step), found[at], mean))
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
        plan = method.plan
        keys = [Key(0, step, draw) for draw in range(method.directions)]
        batch = self._examples.batch(places)
        values: list[Tensor] = [self._losses(self._theta, batch)] if plan.zero else []
        drawn = []
        for key in keys:
            noises = [method.draw(self._noise, key, span) for span, _ in self._spans]
            shift = self._direction(noises).mul_(epsilon)
            values += [self._losses(self._theta.add(shift, alpha=side), batch) for side in plan.sides]
            drawn.append(noises)
        parts: list[list[PartLosses]] = []
        if self._by_example:
            # Off the device once an evaluation, not once a run.
            parts = [[PartLosses.of(own) for own in losses.double().cpu()] for losses in values]
            measured = torch.tensor([[own.mean for own in losses] for losses in parts], dtype=torch.float64)
            measured = measured.to(self._device)
        else:
            measured = torch.stack([losses.mean(1).double() for losses in values])
        probes = [list(probes_of(plan, keys, epsilon, own)) for own in measured.T.tolist()]
        for at, rule in enumerate(self._rules):
            if rule is not None and rule.by_example:
                matrix = along_directions(plan, [[own[at]] for own in parts], epsilon, len(keys))
                probes[at] = with_curvature(probes[at], matrix.tolist())
        finite = [_finite(own) for own in probes]
        for at, fine in enumerate(finite):
            self._skipped[at] += not fine and self._ended[at] is None
            self._in_a_row[at] = 0 if fine else self._in_a_row[at] + 1
        rates = torch.tensor([self._rate(step, at, own) for at, own in enumerate(probes)], device=self._device)
        with self._kept(finite):
            of_all = probes_of(plan, keys, epsilon, list(measured[:, :, None]), _StackedProbe)
            stacked = self._weighed(of_all, probes)
            for at, (span, block) in enumerate(self._spans):
                draws: list[Draw] = [(noises[at], probe) for noises, probe in zip(drawn, stacked, strict=True)]
                theta = self._part(self._theta, block)
                theta.add_(method.update(state, span, theta, draws, rates[:, None]))  # type: ignore[arg-type]
            method.end(state, stacked)
        for at, own in enumerate(probes):
            rule = self._rules[at]
            if rule is not None and finite[at]:
                rule.end(self._rule_states[at], own, self._first.batch_size)
        return probes

    def _weighed(self, stacked: Sequence[Probe], probes: Sequence[Sequence[Probe]]) -> Sequence[Probe]:
        """The probes of all runs with the slopes that the step-size heads make of each run's own."""
        if not self._by_example:
            return stacked
        weighed = [
            rule.weigh(state, own, self._first.batch_size) if rule is not None and _finite(own) else own
            for rule, state, own in zip(self._rules, self._rule_states, probes, strict=True)
        ]
        slopes = torch.tensor([[probe.projected_gradient for probe in own] for own in weighed], dtype=torch.float64)
        columns = slopes.to(self._device).T[:, :, None]
        return [replace(probe, slope=column) for probe, column in zip(stacked, columns, strict=True)]

    def _direction(self, noises: Sequence[Tensor]) -> Tensor:
        """z of every run from the noise of every span, [runs, width]."""
        parts = [
            (block, self._method.direction(self._state, span, noise.clone()))
            for (span, block), noise in zip(self._spans, noises, strict=True)
        ]
        if self._whole:
            return parts[0][1]
        rows = torch.zeros_like(self._theta)
        for block, part in parts:
            self._part(rows, block).copy_(part)
        return rows

    def _part(self, rows: Tensor, block: Block) -> Tensor:
        """The block's part of rows [runs, width], [runs, numel]."""
        return rows if self._whole else self._layout.of(rows, block).flatten(1)

    def _losses(self, rows: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The losses of every run's examples, float32 [runs, examples]; or what they are means of (``part_losses``)."""
        self._model.use(rows)
        of = self._task.part_losses if self._by_example else self._task.losses
        losses = of(self._model.model, batch)
        return losses.view(len(self._specs), -1, *losses.shape[1:])

    def _rate(self, step: int, at: int, probes: Sequence[Probe]) -> float:
        """The learning rate of a run at a step, its tuner's step-size head included."""
        spec, rule = self._specs[at], self._rules[at]
        _, course = with_course(spec.hyper)
        rate = scheduled(course, spec.lr, 0.0, step, self._steps)
        if rule is None or not _finite(probes):
            return rate
        return rate * rule.rate(self._rule_states[at], probes)

    def _kept(self, finite: Sequence[bool]) -> _Kept:
        lost = [at for at, fine in enumerate(finite) if not fine]
        return _Kept([self._theta, *self._state.values()] if lost else [], lost)


def _finite(probes: Sequence[Probe]) -> bool:
    return all(probe.finite for probe in probes)


class _StackedProbe(Probe):
    """A probe whose losses are tensors [runs, 1]."""

    @property
    def projected_gradient(self) -> float:
        """c of every run: the difference in float64, then float32 as the directions are."""
        return super().projected_gradient.float()  # type: ignore[attr-defined]


class _Kept:
    """Within: tensors change. After: some runs' rows are as before, since a step of theirs is skipped."""

    def __init__(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> None:
        self._tensors, self._rows = tensors, list(rows)

    def __enter__(self) -> None:
        self._before = [tensor[self._rows].clone() for tensor in self._tensors]

    def __exit__(self, *_: Any) -> None:
        for tensor, rows in zip(self._tensors, self._before, strict=True):
            tensor[self._rows] = rows
