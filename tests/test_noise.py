"""Noise: a pure function of its key, with the moments it promises."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from zoft import philox
from zoft.assets.make_table import quantile_table
from zoft.blocks import Block
from zoft.errors import UsageError
from zoft.noise import CHUNK, CHUNK_ON_DEVICE, NOISES, Key, Span, get_noise, rounding_bits, spans

KINDS = sorted(NOISES)


def block(name: str = "a", *shape: int) -> Block:
    return Block(0, name, nn.Parameter(torch.zeros(shape or (300, 70))))


def test_philox_known_answer():
    """The reference vectors of the Random123 distribution for philox4x64-10."""
    zeros = philox.words((0, 0), (0, 0, 0, 0), 1)
    assert [hex(w) for w in zeros] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]
    ones = (1 << 64) - 1
    full = philox.words((ones, ones), (ones, ones, ones, ones), 1)
    assert [hex(w) for w in full] == [
        "0x87b092c3013fe90b",
        "0x438c3c67be8d0224",
        "0x9cc7d7c69cd777b6",
        "0xa09caebf594f0ba0",
    ]


@pytest.mark.parametrize("counter", [(0, 0, 0, 0), (5, 6, 2**63 + 3, 1), (2**40, 1, 0, 0)])
def test_device_words_equal_cpu_words(counter):
    key = (2**64 - 5, 12345678901234567)
    host = philox.words(key, counter, 257).view(np.int64).reshape(-1, 4)
    assert np.array_equal(host, philox.words_on_device(key, counter, 257, torch.device("cpu")).numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [True, False])
def test_the_kernel_and_the_tensor_operations_give_the_same_words(fused, monkeypatch):
    cuda = torch.device("cuda", torch.cuda.current_device())
    assert philox._fused(cuda) is not None
    if not fused:
        monkeypatch.setattr(philox, "_fused", lambda device: None)
    for counter in [(0, 0, 0, 0), (2**40, 6, 2**63 + 3, 1)]:
        host = philox.words((2**64 - 5, 123), counter, 257).view(np.int64).reshape(-1, 4)
        assert np.array_equal(host, philox.words_on_device((2**64 - 5, 123), counter, 257, cuda).cpu().numpy())


def test_spans_are_larger_where_every_call_costs_the_same():
    def sizes(device):
        parameter = torch.nn.Parameter(torch.empty(5 << 20, device=device), requires_grad=False)
        return [len(span) for span in spans(Block(0, "weight", parameter))]

    assert sizes("cpu") == [CHUNK] * 20
    assert sizes("meta") == [CHUNK_ON_DEVICE, 1 << 20]


@pytest.mark.parametrize(("off", "kept"), [(0, True), (1, False)])
def test_a_kernel_that_gives_other_words_than_numpy_is_not_used(off, kept, monkeypatch):
    def kernel(*parts):
        return tuple(word + off for word in philox._words(*parts))

    monkeypatch.setattr(torch.cuda.jiterator, "_create_multi_output_jit_fn", lambda source, num_outputs: kernel)
    assert (philox._fused.__wrapped__(torch.device("cpu")) is kernel) == kept


def test_a_kernel_that_cannot_be_built_is_done_without():
    assert philox._fused.__wrapped__(torch.device("cpu")) is None  # it is for CUDA alone


@pytest.mark.parametrize("kind", KINDS)
def test_device_path_equals_cpu_path(kind):
    noise = get_noise(kind)
    b = block()
    words = philox.words_on_device((7, b.key), (0, 3, 0, 0), 100, torch.device("cpu"))
    values = noise._from_tensor(words)[: b.numel]
    assert torch.equal(values, noise.block(Key(7, 3), b).view(-1)[: len(values)])


@pytest.mark.parametrize("kind", KINDS)
def test_depends_on_nothing_but_its_key(kind):
    noise = get_noise(kind)
    b = block()
    whole = noise.block(Key(1, 2), b).view(-1)
    for chunk in (1, 7, 16, 255, 4096):
        some = list(spans(b, chunk))[:50]
        assert all(torch.equal(noise(Key(1, 2), s), whole[s.start : s.stop]) for s in some)
    jobs = [Span(b, start, start + 777) for start in range(0, 20000, 777)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda s: noise(Key(1, 2), s), reversed(jobs)))
    assert torch.equal(torch.cat(list(reversed(parts))), whole[: 777 * len(jobs)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(noise.block(Key(1, 2), b).view(-1), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_key_matters(kind):
    noise = get_noise(kind)
    keys = [Key(1, 2, 0), Key(2, 2, 0), Key(1, 3, 0), Key(1, 2, 1), Key(1, 2, 0, 1), Key(2, 1, 0), Key(-1, 2, 0)]
    directions = [noise.block(key, block()) for key in keys] + [noise.block(keys[0], block("b"))]
    for i, one in enumerate(directions):
        for two in directions[i + 1 :]:
            assert not torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_noise_has_the_same_bits_and_may_be_overwritten(kind):
    plain, kept = get_noise(kind), get_noise(kind, keep_bytes=1 << 20)
    for step in (0, 0, 1, 0):
        u = kept(Key(5, step), Span(block(), 3, 900))
        assert torch.equal(u, plain(Key(5, step), Span(block(), 3, 900)))
        assert torch.equal(u, kept.fresh(Key(5, step), Span(block(), 3, 900)))
        u.zero_()


MOMENTS = {  # kind: kurtosis
    "gaussian-table": 2.999,
    "rademacher": 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_moments(kind):
    """4e6 draws; each interval is five standard errors of the sample moment."""
    noise = get_noise(kind)
    b = block("moments", 1000, 1000)
    u = torch.cat([noise.block(Key(11, step), b).view(-1).double() for step in range(4)])
    n, kurtosis = len(u), MOMENTS[kind]
    assert abs(float(u.mean())) < 5 / math.sqrt(n)
    assert abs(float(u.square().mean()) - 1) < 5 * math.sqrt(max(kurtosis - 1, 1e-12) / n)
    assert abs(float(u.pow(3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float(u.pow(4).mean()) - kurtosis) <= 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_steps_and_neighbours_are_uncorrelated(kind):
    noise = get_noise(kind)
    shape = (1000, 1000)
    one, two = noise.block(Key(3, 0), block("one", *shape)), noise.block(Key(3, 0), block("two", *shape))
    later = noise.block(Key(3, 1), block("one", *shape))
    other_draw = noise.block(Key(3, 0, 1), block("one", *shape))
    limit = 5 / math.sqrt(one.numel())
    for pair in ((one, two), (one, later), (one, other_draw), (one[:, 1:], one[:, :-1]), (one[1:], one[:-1])):
        assert abs(float((pair[0].double() * pair[1].double()).mean())) < limit


def test_the_shipped_table_is_the_quantile_table():
    table = np.load("zoft/assets/gaussian-table-1.npy", allow_pickle=False)
    assert np.abs(table - quantile_table()).max() < 1e-6
    assert abs(float(table.astype(np.float64).std()) - 1) < 1e-7
    assert float(table.max()) == pytest.approx(4.3250, abs=1e-3)


def test_rounding_bits_are_uniform_and_apart_from_the_directions():
    b = block("bits", 1000, 1000)
    values = rounding_bits(Key(1, 0), Span(b, 0, b.numel)).double()
    assert values.min() >= 0
    assert values.max() <= 65535
    assert abs(float(values.mean()) - 32767.5) < 5 * 65536 / math.sqrt(12 * b.numel)
    u = get_noise("gaussian-table").block(Key(1, 0), b).view(-1).double()
    assert abs(float(((values - values.mean()) / values.std() * u).mean())) < 5 / math.sqrt(b.numel)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean rademacher"):
        get_noise("rademaker")
