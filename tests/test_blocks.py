"""Blocks: order, ties, names, signature."""

import pytest
import torch
from torch import nn

from tests.models import TiedLM, build, mlp
from zoft.blocks import Blocks, canonical_name
from zoft.errors import UsageError


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("module.model.layers.0.weight", "model.layers.0.weight"),
        ("_orig_mod.module.model.weight", "model.weight"),
        ("module._orig_mod.base_model.model.lm_head.weight", "lm_head.weight"),
        ("model.layers._orig_mod.0._fsdp_wrapped_module.weight", "model.layers.0.weight"),
        ("base_model.model.base_model.model.x", "x"),
        ("module", "module"),
    ],
)
def test_canonical_names(name, bare):
    assert canonical_name(name) == bare


def test_ties_are_one_block_and_frozen_parameters_none():
    model = build(TiedLM)
    blocks = Blocks.of(model)
    assert blocks.names == ["embed.weight", "hidden.weight", "hidden.bias", "norm.weight", "norm.bias"]
    assert blocks.numel == 66 + 36 + 6 + 6 + 6
    assert [b.is_embedding for b in blocks] == [True, False, False, False, False]
    model.hidden.requires_grad_(False)
    assert Blocks.of(model).names == ["embed.weight", "norm.weight", "norm.bias"]
    # The noise of a block does not depend on which others are trained.
    assert [b.key for b in Blocks.of(model)] == [blocks[0].key, blocks[3].key, blocks[4].key]


def test_wrappers_do_not_change_names_or_signature():
    bare = Blocks.of(mlp())

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    wrapped = Blocks.of(Wrapper(mlp()))
    compiled = Blocks.of(torch.compile(mlp()))
    assert wrapped.names == compiled.names == bare.names
    assert wrapped.signature == compiled.signature == bare.signature


def test_signature_tells_names_and_shapes_apart():
    base = Blocks.of(build(TiedLM)).signature
    assert Blocks.of(build(TiedLM, seed=9)).signature == base
    assert Blocks.of(build(lambda: TiedLM(vocabulary=12))).signature != base
    other = build(TiedLM)
    other.extra = nn.Parameter(torch.zeros(1))
    assert Blocks.of(other).signature != base


def test_nothing_trainable_and_meta_are_refused():
    with pytest.raises(UsageError, match="no trainable parameter"):
        Blocks.of(mlp().requires_grad_(False))
    with pytest.raises(UsageError, match=r"0\.weight is on the meta device"):
        Blocks.of(nn.Sequential(nn.Linear(2, 2, device="meta")))
