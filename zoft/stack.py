"""Several runs of one model at once: every trained tensor gets a leading dimension of runs.

A small model leaves an accelerator idle, since a step is many small operations one after the other. Stacked, the
runs share them: the model is run once on the rows of all runs, and every module that has trained tensors treats the
rows of each run with that run's tensors. Everything else (attention, activations, the task's loss) sees only more
rows. The arithmetic of each run is that of a run alone, in another order of summation at most.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from zoft.blocks import Block, Blocks
from zoft.errors import UsageError
from zoft.noise import Key, Layout, Noise, Span
from zoft.step import Probe, State
from zoft.tuner.bound import BoundTuner
from zoft.tuner.bound_structure import BoundStructure
from zoft.tuner.parts import NOISE_PART

#: Rows of :func:`factors`, the last of which has the axes of offsets.
FACTORS = 5
_AXIS = FACTORS - 1

_REMEDY = "Leave runs_at_once at 1."


class StackedModel:
    """Runs a model with the trained tensors of several runs at once.

    Args:
        model: the model, in evaluation mode.
        layout: where its blocks lie in a row.
        runs: how many runs.

    Raises:
        UsageError: a trained tensor belongs to a module that has others within it.
    """

    def __init__(self, model: nn.Module, layout: Layout, runs: int) -> None:
        self.model, self.layout, self.runs = model, layout, runs
        self._views: list[Tensor] = []
        by_id = {id(block.parameter): block for block in layout.blocks}
        self._owners: list[tuple[nn.Module, dict[str, Block]]] = []
        for module in model.modules():
            own = {name: by_id[id(p)] for name, p in module._parameters.items() if id(p) in by_id}
            if own and any(True for _ in module.children()):
                raise UsageError(
                    f"{type(module).__name__} has trained tensors and modules within it, so its runs cannot be stacked",
                    _REMEDY,
                )
            if own:
                self._owners.append((module, own))

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Within: the model treats its input as rows of all runs, the first run's first. After: as before."""
        try:
            for module, own in self._owners:
                module.forward = self._forward(module, own)
            yield self
        finally:
            for module, _ in self._owners:
                module.__dict__.pop("forward", None)

    def use(self, rows: Tensor) -> None:
        """From now on compute with these trained tensors, [runs, width]."""
        self._views = [self.layout.of(rows, block) for block in self.layout.blocks]

    def _forward(self, module: nn.Module, own: dict[str, Block]) -> Callable[..., Tensor]:
        kind = type(module)
        original = kind.forward
        plain = kind is nn.Linear and len(own) == sum(p is not None for p in module._parameters.values())

        def forward(*inputs: Any, **named: Any) -> Tensor:
            leaves, structure = tree_flatten((inputs, named))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if not tensors or any(not leaf.ndim or len(leaf) % self.runs for leaf in tensors):
                raise UsageError(f"the runs of a model with {kind.__name__} cannot be stacked", _REMEDY)
            values = {name: self._views[block.index] for name, block in own.items()}
            if plain and len(leaves) == 1:
                return _linear(tensors[0], values["weight"], values.get("bias"))

            def alone(values: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
                rest = iter(tensors)
                args, kwargs = tree_unflatten(
                    [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
                )
                return cast(Tensor, original(_with(module, values), *args, **kwargs))

            several = [leaf.view(self.runs, -1, *leaf.shape[1:]) for leaf in tensors]
            return cast(Tensor, torch.func.vmap(alone)(values, several)).flatten(0, 1)

        return forward


def _with(module: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """The module with other values of its parameters and its own forward; what it has besides is shared."""
    other = copy.copy(module)
    other.__dict__.pop("forward", None)
    other.__dict__["_parameters"] = {name: p for name, p in module._parameters.items() if name not in values}
    other.__dict__.update(values)
    return other


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b with the weights [runs, out, in] of each run."""
    runs, wide, narrow = weight.shape
    rows = inputs.reshape(runs, -1, narrow)
    out = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
    return out.view(*inputs.shape[:-1], wide)


class StackedNoise(Noise):
    """The noise of several runs: of a span the directions of all, [runs, len(span)].

    Args:
        noise: the kind.
        layout: of the rows.
        seeds: of the runs, from the first.
        whole: whether a span is of the row as a whole, and not of one block.
    """

    def __init__(self, noise: Noise, layout: Layout, seeds: Sequence[int], whole: bool) -> None:
        super().__init__()
        self._source, self._layout, self._whole = noise, layout, whole
        self._seeds = sorted(set(seeds))
        self._of_run = [self._seeds.index(seed) for seed in seeds]
        self._rows: dict[Key, Tensor] = {}

    def __call__(self, key: Key, span: Span, device: torch.device | str = "cpu") -> Tensor:
        """As of every run's own seed; ``key.seed`` is of no meaning."""
        if self._whole:  # once a step for every key, so that there is nothing to keep
            return self._of_runs(self._source.joined(key, self._seeds, self._layout, device))
        if key not in self._rows:
            self._rows = {kept: rows for kept, rows in self._rows.items() if kept.step == key.step}
            self._rows[key] = self._source.joined(key, self._seeds, self._layout, device)
        return self._of_runs(self._layout.of(self._rows[key], span.block).flatten(1).clone())

    def first(self, key: Key, lengths: Sequence[int], device: torch.device) -> Tensor:
        """The first entries of every block, as many as ``lengths`` says, of all runs: see :meth:`Noise.joined`."""
        return self._of_runs(self._source.joined(key, self._seeds, self._layout, device, lengths))

    def _of_runs(self, rows: Tensor) -> Tensor:
        """The rows of the seeds as those of the runs."""
        return rows if self._of_run == list(range(len(rows))) else rows[self._of_run]

    def _from_words(self, words: Any) -> Any:
        raise NotImplementedError

    def _from_tensor(self, words: Tensor) -> Tensor:
        raise NotImplementedError


class StackedTuner(BoundTuner):
    """The tuners of several runs, as what makes their noise into directions; see :func:`factors`."""

    def check(self, blocks: Blocks) -> None:
        """Nothing to check."""

    def init(self, blocks: Blocks) -> State:
        """No state: the factors are the same at every step."""
        return {}

    def begin(self, state: State, blocks: Blocks) -> None:
        """Nothing changes from step to step."""

    def scale(self, state: State, block: Block) -> float:
        """1: the factors are in :attr:`structure`."""
        return 1.0

    def end(self, state: State, probes: Sequence[Probe]) -> None:
        """Nothing is kept."""

    @classmethod
    def of(cls, bound: BoundTuner, rows: Tensor, layout: Layout, whole: bool, theta: Callable[[], Tensor]) -> Self:
        """For runs whose factors are ``rows`` [runs, 5, width].

        Args:
            bound: the tuner of any of them.
            whole: whether a span is of a row as a whole, which gains need.
            theta: the rows of the runs' weights as they are, [runs, width].
        """
        values = {part.name: getattr(bound, part.name) for part in fields(BoundTuner)}
        gained = bool(rows[:, 1:].any())
        structure = _Gains(rows, layout, whole, theta) if gained else _Factors(rows, layout, whole)
        return cls(**{**values, "structure": structure, "step_rule": None})


class _Factors(BoundStructure):
    """Factors by entry, of several runs."""

    def __init__(self, rows: Tensor, layout: Layout, whole: bool) -> None:
        super().__init__(())
        self._factors, self._layout, self._whole_rows = rows[:, 0], layout, whole

    def uses_noise(self, block: Block) -> bool:
        return True

    def mixed(self, noise: Noise, key: Key, span: Span, values: Tensor, variance: float = 1.0) -> Tensor:
        return values

    def variance(self, span: Span) -> None:
        return None

    def deviation(self, span: Span) -> Tensor | float:
        return self._factors if self._whole_rows else self._layout.of(self._factors, span.block).flatten(1)


class _Side:
    """What makes the noise of one side's gains into the gains, of several runs.

    Args:
        part: of the noise's keys.
        rows: the standard deviations, [runs, width], those of every block from its beginning.
        layout: of the rows.
        lengths: how many a block has.
    """

    def __init__(self, part: int, rows: Tensor, layout: Layout, lengths: Sequence[int]) -> None:
        self._part, self._lengths = part, lengths
        starts = layout.on(rows.device, lengths).starts
        self._spans = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        end = starts[-1] + lengths[-1]
        self._deviations = torch.zeros(len(rows), end, device=rows.device)
        for block, span in zip(layout.blocks, self._spans, strict=True):
            self._deviations[:, span] = layout.of(rows, block).flatten(1)[:, : span.stop - span.start]

    def drawn(self, noise: StackedNoise, key: Key) -> list[Tensor]:
        """The gains of every block, [runs, length]."""
        made = noise.first(key._replace(part=key.part + self._part), self._lengths, self._deviations.device)
        gains = made[:, : self._deviations.shape[1]] * self._deviations
        return [gains[:, span] for span in self._spans]


class _Gains(_Factors):
    """Factors by entry, and gains of rows and columns and offsets, of several runs: all blocks of a row at once."""

    def __init__(self, rows: Tensor, layout: Layout, whole: bool, theta: Callable[[], Tensor]) -> None:
        super().__init__(rows, layout, whole)
        self._isotropic = bool(rows[:, 0].any())
        self._axis, self._theta = rows[:, _AXIS], theta
        self._gained = [block for block in layout.blocks if bool(layout.of(rows[:, 1:], block).any())]
        self._sides = [
            _Side(number * NOISE_PART, rows[:, number], layout, self._lengths(number))
            for number in ((1, 2, 3) if bool(rows[:, 3].any()) else (1, 2))
        ]

    def _lengths(self, number: int) -> list[int]:
        """How many gains of rows (1), of columns (2), or offsets (3) every block has."""
        found = [0] * len(self._layout.blocks)
        for block in self._gained:
            sides = (block.shape[0], block.columns, block.shape[0]) if block.is_matrix else (block.numel, 0, 0)
            found[block.index] = sides[number - 1]
        return found

    def uses_noise(self, block: Block) -> bool:
        return self._isotropic

    def mixed(self, noise: Noise, key: Key, span: Span, values: Tensor, variance: float = 1.0) -> Tensor:
        """Factors and gains are in it, so that :meth:`deviation` is 1."""
        theta = self._theta()
        values = values.mul_(self._factors) if self._isotropic else torch.zeros_like(theta)
        own = [side.drawn(cast(StackedNoise, noise), key) for side in self._sides]
        for block in self._gained:
            left, right, *offsets = (side[block.index] for side in own)
            target, weights = (self._layout.of(rows, block) for rows in (values, theta))
            if block.is_matrix:
                target.flatten(2).addcmul_(left[:, :, None] + right[:, None, :], weights.flatten(2))
                if offsets:
                    axis = self._layout.of(self._axis, block).flatten(1)[:, None, : block.columns]
                    target.flatten(2).addcmul_(offsets[0][:, :, None], axis)
            else:
                target.add_(left)
        return values

    def deviation(self, span: Span) -> float:
        return 1.0


def factors(bound: BoundTuner, layout: Layout) -> Tensor | None:
    """What makes a tuner's directions of noise, rows [5, width], where it is the same at every step.

    Returns:
        what multiplies the noise by entry, and at the beginning of every block that has gains the standard deviations
        of those of its rows, of its columns, and of its offsets, and their axis; None where the networks see what
        changes during a run, a low rank is mixed in, or blocks take turns.
    """
    structure = bound.structure
    if bound.turns or (structure is not None and structure.low_rank) or bool(bound.network.out.weight.any()):
        return None
    state = bound.init(layout.blocks)
    bound.begin(state, layout.blocks)
    made = torch.zeros(FACTORS, layout.width, device=layout.blocks[0].parameter.device)
    made[0] = 1.0
    for block in layout.blocks:
        scale, rows = bound.scale(state, block), layout.of(made, block).flatten(1)
        part = rows[0].fill_(scale)
        if structure is None:
            continue
        isotropic, gains = structure.gains(block)
        if not gains:
            part.mul_(structure.deviation(Span(block, 0, block.numel)))
            continue
        part.mul_(isotropic)
        for number, values in enumerate(gains, 1):
            rows[number, : len(values)] = values if number == _AXIS else values * scale
    return made
