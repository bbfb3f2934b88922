"""Evaluate a model at θ + shift, with θ bit for bit unchanged afterwards.

Each parameter is shifted only while the module that owns it runs: a forward pre-hook puts θ + shift in
its place, the forward hook puts the kept tensor back. So the extra memory is that of one leaf module,
and nothing has to be subtracted again. A parameter that is read while its owner does not run (a
functional call, a method other than ``forward``) would miss its shift; :meth:`Perturber.audit` finds
every such read by watching the operators, and those parameters are shifted for the whole evaluation.

An objective that is ``held`` runs the model many times for one value, as generation does. All of
θ + shift is then put in place once (:func:`displaced`), so that the noise is made once and not once a token.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from zoft.blocks import Block, Blocks
from zoft.noise import Span, spans

#: What is added to a span of a block: a float32 tensor of shape [len(span)].
Shift = Callable[[Span], Tensor]

_Result = TypeVar("_Result")


def moves(shift: Shift, block: Block) -> bool:
    """Whether a shift is of a block: one that has a ``moves`` of its own says so, any other is of all blocks."""
    its: Callable[[Block], bool] | None = getattr(shift, "moves", None)
    return its is None or its(block)


def shifted(block: Block, shift: Shift) -> Tensor:
    """θ + shift of one block: a new tensor of the block's shape and dtype.

    The sum is taken in the wider of the two dtypes, float32 at least, and rounded to nearest.
    """
    with torch.inference_mode(False), torch.no_grad():
        source = block.parameter.data.contiguous()
        result = torch.empty_like(source)
        for span in spans(block):
            change = shift(span)
            values, target = span.of(source), span.of(result)
            if values.dtype == change.dtype:
                torch.add(values, change, out=target)
            else:
                target.copy_(values.to(torch.promote_types(values.dtype, change.dtype)) + change)
    return result


class Perturber:
    """Evaluates one model under shifts of its blocks.

    Args:
        model: the model; its trainable parameters must be those of ``blocks``.
        blocks: what is shifted.
    """

    def __init__(self, model: nn.Module, blocks: Blocks) -> None:
        self._blocks = blocks
        by_id = {id(block.parameter): block for block in blocks}
        self._owned: list[tuple[nn.Module, list[Block]]] = []
        for module in model.modules():
            own = {id(p): by_id[id(p)] for p in module._parameters.values() if id(p) in by_id}
            if own:
                self._owned.append((module, list(own.values())))
        self._everywhere: set[int] = set()
        self._audited: set[frozenset[int]] = set()
        self._kept: dict[int, Tensor] = {}
        self._open: Counter[int] = Counter()
        self._ran: set[int] = set()
        self._active = False

    @property
    def numel(self) -> int:
        """How many entries an evaluation shifts."""
        return self._blocks.numel

    @property
    def read_elsewhere(self) -> list[str]:
        """Names of the blocks that are read while no owning module runs, as far as audits found."""
        return [self._blocks[index].name for index in sorted(self._everywhere)]

    @contextmanager
    def __call__(self, shift: Shift) -> Iterator[None]:
        """Within: the model computes with θ + ``shift``. After: θ as before, also on an exception.

        Raises:
            RuntimeError: evaluations may not be nested.
        """
        if self._active:
            raise RuntimeError("perturbed evaluations of one model cannot be nested")
        self._active = True
        self._ran.clear()
        handles: list[Any] = []
        try:
            for index in sorted(self._everywhere):
                self._swap_in(self._blocks[index], shift)
            for number, (module, blocks) in enumerate(self._owned):
                leaf = [block for block in blocks if block.index not in self._everywhere]
                handles.append(module.register_forward_pre_hook(self._enter(number, leaf, shift), prepend=True))
                handles.append(module.register_forward_hook(self._leave(leaf)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._open.clear()
            for index in list(self._kept):
                self._put_back(index)
            self._active = False

    def evaluate(self, shift: Shift, objective: Callable[[], _Result]) -> _Result:
        """``objective()`` at θ + ``shift``, audited: never with a parameter silently left unshifted.

        The first evaluation, and any in which another set of modules ran than in those audited so far,
        costs one more call of ``objective`` (at θ), and yet another if that found something. An objective
        that is ``held`` needs no audit: every block is shifted while it runs, whoever reads it.

        Raises:
            RuntimeError: evaluations may not be nested.
        """
        if getattr(objective, "held", False):
            with self._held(shift):
                return objective()
        with self(shift):
            result = objective()
        if self.audit_due and self.audit(objective):
            with self(shift):
                result = objective()
        return result

    @contextmanager
    def _held(self, shift: Shift) -> Iterator[None]:
        if self._active:
            raise RuntimeError("perturbed evaluations of one model cannot be nested")
        self._active = True
        try:
            with displaced(self._blocks, shift):
                yield
        finally:
            self._active = False

    @property
    def audit_due(self) -> bool:
        """Whether the latest evaluation ran modules in a combination that no audit has seen."""
        return frozenset(self._ran) not in self._audited

    def audit(self, objective: Callable[[], Any]) -> list[str]:
        """Run ``objective`` once at θ and find blocks that are read while no owning module runs.

        Returns:
            Names of the blocks found that were not known before; from now on they are shifted for the
            whole evaluation, at the cost of a copy each.
        """
        watch = _Watch(self._blocks, self._open)
        self._ran.clear()
        handles: list[Any] = []
        try:
            for number, (module, blocks) in enumerate(self._owned):
                handles.append(module.register_forward_pre_hook(self._enter(number, blocks, None), prepend=True))
                handles.append(module.register_forward_hook(self._leave(blocks)))
            with watch:
                objective()
        finally:
            for handle in handles:
                handle.remove()
            self._open.clear()
        self._audited.add(frozenset(self._ran))
        found = watch.found - self._everywhere
        self._everywhere |= found
        return [self._blocks[index].name for index in sorted(found)]

    def _enter(self, number: int, blocks: list[Block], shift: Shift | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._ran.add(number)
            for block in blocks:
                if not self._open[block.index] and shift is not None:
                    self._swap_in(block, shift)
                self._open[block.index] += 1

        return hook

    def _leave(self, blocks: list[Block]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for block in blocks:
                self._open[block.index] -= 1
                if not self._open[block.index]:
                    del self._open[block.index]
                    self._put_back(block.index)

        return hook

    def _swap_in(self, block: Block, shift: Shift) -> None:
        if not moves(shift, block):
            return
        moved = shifted(block, shift)
        self._kept[block.index] = block.parameter.data
        block.parameter.data = moved

    def _put_back(self, index: int) -> None:
        # In this order an interrupt between the two lines loses nothing: the tensor is put back twice.
        if index in self._kept:
            self._blocks[index].parameter.data = self._kept[index]
            del self._kept[index]


@contextmanager
def displaced(blocks: Blocks, shift: Shift) -> Iterator[None]:
    """Within: every block holds θ + ``shift`` at once, as backpropagation needs it. After: θ bit for bit.

    The kept values lie in the host's memory: no second copy of the model on an accelerator.
    """
    kept: dict[int, Tensor] = {}
    try:
        for block in (block for block in blocks if moves(shift, block)):
            moved = shifted(block, shift)
            kept[block.index] = block.parameter.data.to("cpu", copy=True)
            with torch.no_grad():
                block.parameter.copy_(moved)
        yield
    finally:
        with torch.no_grad():
            for index in list(kept):
                blocks[index].parameter.copy_(kept[index])


class _Watch(TorchDispatchMode):
    """Notes every block whose memory an operator reads while no module that owns it runs."""

    def __init__(self, blocks: Blocks, running: Counter[int]) -> None:
        super().__init__()
        self.found: set[int] = set()
        self._running = running
        ranges = sorted(
            (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), block.index)
            for block in blocks
            if (p := block.parameter).numel()
        )
        self._starts = [low for low, _, _ in ranges]
        self._ranges = ranges

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _only_views(func):
            for value in tree_iter((args, kwargs or {})):
                if isinstance(value, Tensor) and value.numel():
                    self._note(value)
        return func(*args, **(kwargs or {}))

    def _note(self, tensor: Tensor) -> None:
        low = tensor.data_ptr()
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        high = low + (extent + 1) * tensor.element_size()
        at = bisect.bisect_left(self._starts, high) - 1
        while at >= 0 and self._ranges[at][1] > low:
            index = self._ranges[at][2]
            if not self._running[index]:
                self.found.add(index)
            at -= 1


def _only_views(func: Any) -> bool:
    """Whether the operator gives views of its arguments and reads no values (t, view, detach)."""
    return bool(getattr(func, "is_view", False)) or func is torch.ops.aten.detach.default
