"""Selection on any tensors at all: what a stable sort of everything would choose, ties, infinities and empty ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunelab as pl
from prunelab import selection
from prunelab.selection import lowest, lowest_by_bits

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
SHAPES = st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple)


@st.composite
def tensors(draw, dtype=None):
    """A few tensors of one type: of a handful of values that tie, of any values, or with infinities."""
    chosen = draw(DTYPES) if dtype is None else dtype
    few = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0])
    any_value = st.floats(-1e4, 1e4, width=16)
    with_infinities = st.sampled_from([-math.inf, math.inf, 0.0, 1.5])
    kind = draw(st.sampled_from([few, any_value, with_infinities]))
    found = []
    for shape in draw(st.lists(SHAPES, min_size=1, max_size=4)):
        size = math.prod(shape)
        values = draw(st.lists(kind, min_size=size, max_size=size))
        found.append(torch.tensor(values, dtype=torch.float64).reshape(shape).to(chosen))
    return found


def by_sorting(values, k):
    """The definition."""
    flat = torch.cat([v.double().reshape(-1) for v in values])
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[flat.sort(stable=True).indices[:k]] = True
    return [g.view(v.shape) for g, v in zip(gone.split([v.numel() for v in values]), values, strict=True)]


@pytest.fixture(params=[None, (16, 8, 5), (0, 1, 1)], ids=str)
def sizes(request):
    """The real thresholds, or tiny ones that send small tensors down every path."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("SORT_AT_MOST", "SAMPLE", "CHUNK"), request.param or (), strict=False):
            patch.setattr(selection, name, size)
        yield


@settings(max_examples=60)
@given(values=tensors(), share=st.floats(0, 1))
def test_as_a_stable_sort(sizes, values, share):
    k = round(share * sum(v.numel() for v in values))
    expected = by_sorting(values, k)
    assert all(map(torch.equal, lowest(values, k), expected))
    if 0 < k < sum(v.numel() for v in values):
        assert all(map(torch.equal, lowest_by_bits(values, k), expected))


@settings(max_examples=40)
@given(values=tensors(), first=st.floats(0, 1), second=st.floats(0, 1))
def test_more_takes_what_less_took(sizes, values, first, second):
    total = sum(v.numel() for v in values)
    less, more = sorted((round(first * total), round(second * total)))
    small, large = lowest(values, less), lowest(values, more)
    assert all((~s | g).all() for s, g in zip(small, large, strict=True))
    kept = [~s for s in small]
    assert all(map(torch.equal, lowest(values, more, kept), lowest(values, more))), "and so with what is gone first"


@settings(max_examples=40)
@given(values=tensors(torch.float32), share=st.floats(0, 0.99), scope=st.sampled_from(["global", "layer", "row"]))
def test_allocate_keeps_the_exact_count(values, share, scope):
    scores = {f"t{i}": v for i, v in enumerate(values)}
    groups = [pl.Group(n, v.numel(), (pl.Member(n),)) for n, v in scores.items()]
    keep = pl.allocate(scores, groups, share, scope)
    gone = {n: int((~k).sum()) for n, k in keep.items()}
    if scope == "global":
        assert sum(gone.values()) == round(share * sum(v.numel() for v in values))
    elif scope == "layer":
        assert gone == {n: round(share * v.numel()) for n, v in scores.items()}
    else:
        rows = {n: v.shape[0] if v.numel() else 0 for n, v in scores.items()}
        assert gone == {n: r * round(share * (scores[n].numel() // max(r, 1))) for n, r in rows.items()}


@pytest.mark.slow
def test_a_huge_one():
    """40 million values, millions of them tied at the threshold."""
    value = torch.arange(40_000_000, dtype=torch.int32).remainder_(7).float()
    (gone,) = lowest([value], 10_000_000)
    assert int(gone.sum()) == 10_000_000
    assert int(value[gone].max()) == 1
    ones = (value == 1).nonzero().squeeze(1)
    assert gone[ones[: 10_000_000 - int((value == 0).sum())]].all(), "the first of the tied go"
