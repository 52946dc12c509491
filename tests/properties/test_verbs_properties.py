"""The verbs on any small model: types, ties, shared and frozen weights, whatever the sparsity and the scope."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunelab as pl
from prunelab.masking import current_masks, restore

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


class Net(nn.Module):
    """Linear layers of any widths; two may share a weight, some are frozen."""

    def __init__(self, widths: list[int], dtype: torch.dtype, *, shared: bool, frozen: bool, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.twin = nn.Linear(widths[0], widths[1])
        with torch.no_grad():
            for p in self.parameters():
                p.copy_((p * levels).round() if levels else p)  # few levels: many ties
        if shared:
            self.twin.weight = self.layers[0].weight
        if frozen:
            self.layers[-1].requires_grad_(False)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers[0](x) + self.twin(x)
        for layer in list(self.layers)[1:]:
            y = layer(y.relu())
        return y


@st.composite
def nets(draw, *, may_share=True):
    """A network and an input for it."""
    widths = draw(st.lists(st.integers(1 if may_share else 2, 6), min_size=3, max_size=4))
    with torch.random.fork_rng([]):
        torch.manual_seed(draw(st.integers(0, 99)))
        dtype = draw(DTYPES)
        net = Net(
            widths, dtype, shared=draw(st.booleans()), frozen=draw(st.booleans()), levels=draw(st.sampled_from([0, 3]))
        )
        return net.eval(), torch.randn(3, widths[0]).to(dtype)


def state(model):
    """What must not change, to the bit."""
    return {n: (t.dtype, t.clone()) for n, t in model.state_dict().items()}, [
        p.requires_grad for p in model.parameters()
    ]


def same(a, b):
    """Whether two states are equal to the bit."""
    return (
        a[1] == b[1]
        and a[0].keys() == b[0].keys()
        and all(a[0][n][0] == b[0][n][0] and torch.equal(a[0][n][1], b[0][n][1]) for n in a[0])
    )


@settings(max_examples=60)
@given(made=nets(), share=st.floats(0, 0.99), scope=st.sampled_from(["global", "layer", "row"]))
def test_score_allocate_apply_bake(made, share, scope):
    model, x = made
    before = state(model)
    groups = pl.granularity.weights(model)
    keep = pl.allocate(pl.criteria.magnitude(model), groups, share, scope)
    masks = pl.expand(model, groups, keep)
    assert same(state(model), before), "nothing has changed the model yet"
    with pl.masked(model, masks):
        inside = model(x)
    assert same(state(model), before), "masked() puts it all back"
    pl.apply(model, masks)
    assert current_masks(model).keys() >= masks.keys(), "a shared weight has its mask under every name"
    outside = model(x)
    assert torch.equal(inside, outside)
    bare = restore(copy.deepcopy(model), {})
    assert same(state(bare), before)
    pl.bake(model)
    assert torch.equal(model(x), outside), "baking changes no output"
    for name, weight in pl.prunable(model).items():
        assert not weight.detach()[~masks[name]].any()
        assert torch.equal(weight.detach()[masks[name]], before[0][name][1][masks[name]])


@pytest.mark.filterwarnings("ignore:frozen")
@settings(max_examples=30)
@given(made=nets(), shares=st.lists(st.floats(0, 0.99), min_size=2, max_size=3).map(sorted))
def test_pruning_again_and_again_is_nested(made, shares):
    model, _ = made
    seen = [pl.prune(model, pl.Recipe(sparsity=s)).keep for s in shares]
    for earlier, later in itertools.pairwise(seen):
        assert not any((later[n] & ~earlier[n]).any() for n in later)


@pytest.mark.filterwarnings("ignore:.*units were to go")
@settings(max_examples=20)
@given(made=nets(may_share=False), share=st.floats(0, 0.9))
def test_shrunk_computes_what_masked_does(made, share):
    model, x = made
    model = model.float()
    before = state(model)
    groups = pl.granularity.coupled(model, x.float())
    keep = pl.allocate(pl.criteria.magnitude(model), groups, share, "layer")
    small = pl.shrink(model, groups, keep)
    assert same(state(model), before)
    with pl.masked(model, pl.expand(model, groups, keep)):
        expected = model(x.float())
    assert torch.allclose(small(x.float()), expected, atol=1e-5)
    for group in groups:
        assert int(keep[group.name].sum()) >= 1, "no structure loses its last unit"
