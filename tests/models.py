"""Small modules and data for the tests, made without the global generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values from a generator of their own."""
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def filled(model: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """``model`` with seeded normal parameters; build it under ``torch.device('meta')`` or here."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=source) * scale
            parameter.copy_(values.to(parameter.dtype))
    return model


def build(maker, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.3) -> nn.Module:
    """A module whose constructor runs under a forked generator, filled with seeded values."""
    with torch.random.fork_rng(devices=[]):
        model = maker()
    return filled(model.to(dtype), seed, scale)


class TiedLM(nn.Module):
    """Embedding, a hidden layer and a head module that shares the embedding's table."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.hidden(self.embed(tokens)))))


class FunctionalHead(nn.Module):
    """Reads the embedding's table again through a functional call, outside any hook."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.hidden(self.embed(tokens))), self.embed.weight)


class Attention(nn.Module):
    """nn.MultiheadAttention reads its output projection without calling it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x)[0])


class OtherMethod(nn.Module):
    """Uses a child through a method other than ``forward``."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def apply_to(self, x: Tensor) -> Tensor:
            return x * self.weight

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = self.Scale()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.apply_to(self.linear(x))


class Switching(nn.Module):
    """Reads ``second`` through a functional call only when ``rare`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.rare = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return nn.functional.linear(self.third(x), self.second.weight) if self.rare else self.second(x)


def mlp(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Linear(5, 7), tanh, Linear(7, 2)."""
    return build(lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), seed, dtype)


def bits(model: nn.Module) -> list[Tensor]:
    """Every parameter's bytes, copied."""
    return [p.detach().clone().view(torch.uint8) if p.ndim else p.detach().clone() for p in model.parameters()]


def same_bits(model: nn.Module, before: list[Tensor]) -> bool:
    """Whether every parameter has the bytes of ``before``."""
    return all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))


def interrupted(loss: Callable[[nn.Module, Any], Tensor], after: int | None) -> Callable[[nn.Module, Any], Tensor]:
    """``loss``, but Ctrl-C at its call number ``after``; never where that is None."""
    calls = 0

    def counted(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return loss(model, batch)

    return counted
