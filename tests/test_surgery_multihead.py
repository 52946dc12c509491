"""MultiheadAttention with heads removed: torch's own layer is the oracle, option by option."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError, granularity
from prunelab.surgery.heads import multihead
from prunelab.surgery.multihead import PrunedMultiheadAttention

OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "a learned key and value": {"add_bias_kv": True},
    "a key and value of zeros": {"add_zero_attn": True},
    "keys of another width": {"kdim": 6, "vdim": 5},
    "keys of another width, no bias": {"kdim": 6, "vdim": 5, "bias": False, "add_bias_kv": True},
}


def layer(options):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = nn.MultiheadAttention(8, 4, **options).eval()
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def inputs(options, queries=5, keys=7, batch=3):
    dice = torch.Generator().manual_seed(1)
    widths = (8, options.get("kdim", 8), options.get("vdim", 8))
    found = [torch.randn(n, batch, w, generator=dice) for n, w in zip((queries, keys, keys), widths, strict=True)]
    return [x.transpose(0, 1) for x in found] if options.get("batch_first") else found


def ours(model):
    """The same layer, with nothing removed, run by our forward."""
    twin = copy.deepcopy(model)
    multihead(twin, "it")
    assert isinstance(twin, PrunedMultiheadAttention)
    return twin


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("weights", [False, True, "each head"])
def test_with_no_head_removed_it_is_torch_s_layer(options, weights):
    model = layer(options)
    how = {"need_weights": bool(weights), "average_attn_weights": weights is not False and weights != "each head"}
    dice = torch.Generator().manual_seed(2)
    bans = torch.rand(5, 7, generator=dice) < 0.3
    bans[:, 0] = False
    padding = torch.arange(7) >= torch.tensor([[7], [4], [6]])  # (batch, keys)
    every = bans.expand(12, 5, 7).clone()
    every[3] = False  # one head of one sample sees all
    masks = (None, bans, torch.randn(5, 7, generator=dice), every)
    for mask, pad in itertools.product(masks, (None, padding)):
        if mask is not None and mask.dtype != torch.bool and pad is not None:
            pad = torch.zeros(3, 7).masked_fill_(pad, -torch.inf)  # torch wants both of one kind
        given = {**how, "attn_mask": mask, "key_padding_mask": pad}
        same(ours(model)(*inputs(options), **given), model(*inputs(options), **given))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_sample_without_a_batch(options):
    model = layer(options)
    one = [x.select(0 if options.get("batch_first") else 1, 0) for x in inputs(options)]
    same(ours(model)(*one), model(*one))
    same(ours(model)(*one, need_weights=False), model(*one, need_weights=False))


def test_gradients_are_torch_s():
    model = layer({})
    for twin in (model, ours(model)):
        twin.zero_grad()
        twin(*inputs({}))[0].square().sum().backward()
    mine = ours(model)
    mine(*inputs({}))[0].square().sum().backward()
    for (_, p), (_, q) in zip(mine.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_dropout_drops_in_training_only():
    mine = ours(layer({"dropout": 0.5}))
    assert torch.equal(mine(*inputs({}))[0], mine(*inputs({}))[0])
    torch.manual_seed(0)
    mine.train()
    for weights in (True, False):
        assert not torch.equal(*(mine(*inputs({}), need_weights=weights)[0] for _ in range(2)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_masked_is_shrunk(options):
    model = layer(options)
    groups = granularity.heads(model)
    keep = {groups[0].name: torch.tensor([True, False, True, True])}
    small = pl.shrink(model, groups, keep)
    assert (small.num_heads, small.head_dim, small.embed_dim) == (3, 2, 8)
    assert small.out_proj.weight.shape == (8, 6)
    with pl.masked(model, pl.expand(model, groups, keep)), torch.no_grad():
        expected = model(*inputs(options), need_weights=False)[0]
    torch.testing.assert_close(small(*inputs(options), need_weights=False)[0], expected)
    _, every = model(*inputs(options), average_attn_weights=False)
    _, left = small(*inputs(options), average_attn_weights=False)
    torch.testing.assert_close(left, every[:, [0, 2, 3]], msg="the maps of the heads that stay")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_torch_s_fused_kernels_keep_their_hands_off(norm_first, kept):
    """In eval mode without gradients TransformerEncoder runs kernels that assume heads * head_dim = width."""
    torch.manual_seed(0)
    layers = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layers, 2, enable_nested_tensor=not norm_first).eval()
    groups = granularity.heads(model)
    keep = {g.name: torch.arange(4) < kept for g in groups}
    small = pl.shrink(model, groups, keep)
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    masked = pl.bake(pl.apply(copy.deepcopy(model), pl.expand(model, groups, keep)))
    for pad in (None, padding):
        with_gradients = small(x, src_key_padding_mask=pad).detach()
        with torch.inference_mode():
            seen = small(x, src_key_padding_mask=pad)
            theirs = masked(x, src_key_padding_mask=pad)
        real = torch.ones(3, 5, dtype=torch.bool) if pad is None else ~pad
        torch.testing.assert_close(seen[real], with_gradients[real])
        torch.testing.assert_close(seen[real], theirs[real], rtol=1e-4, atol=1e-5)


def test_it_can_be_pruned_again_copied_and_loaded():
    model = layer({})
    groups = granularity.heads(model)
    once = pl.shrink(model, groups, {groups[0].name: torch.tensor([True, True, False, True])})
    (left,) = granularity.heads(once)
    twice = pl.shrink(once, [left], {left.name: torch.tensor([True, False, True])})
    at_once = pl.shrink(model, groups, {groups[0].name: torch.tensor([True, False, False, True])})
    same(twice(*inputs({})), at_once(*inputs({})))
    same(copy.deepcopy(twice)(*inputs({})), twice(*inputs({})))
    assert list(twice.state_dict()) == list(model.state_dict()), "the same names"
    at_once.load_state_dict(twice.state_dict())


def test_what_it_refuses():
    mine = ours(layer({}))
    with pytest.raises(ValueError, match="give the causal attn_mask as well"):
        mine(*inputs({}), is_causal=True)
    with pytest.raises(RuntimeError):
        mine(*inputs({}), attn_mask=torch.zeros(3 * 3, 5, 7, dtype=torch.bool))  # of three heads, and there are four

    class Own(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x)[0]

    model = Own(8, 4)
    groups = granularity.heads(model)
    with pytest.raises(PruneError, match="of a Own: a subclass of MultiheadAttention with a forward of its own"):
        pl.shrink(model, groups, {groups[0].name: torch.arange(4) < 2})
    half = [pl.Group("x", 2, (pl.Member("out_proj.weight", 1, index=torch.tensor([[0], [1]])),))]
    rows = pl.Member("in_proj_weight", 0, index=torch.arange(8).view(8, 1))
    with pytest.raises(PruneError, match="Heads leave whole, with 2 rows of queries"):
        pl.shrink(layer({}), [*half, pl.Group("y", 8, (rows,))], {
            "x": torch.tensor([True, False]), "y": torch.arange(8) < 7})  # fmt: skip
