"""The Vision Transformer: shapes, attention against its formula, maps that are what the forward uses."""

import pytest
import torch
from torch.nn import functional as F

from prunelab import zoo


@pytest.fixture
def small():
    return zoo.vit(classes=3, pixels=8, patch=4, width=12, depth=2, heads=3, hidden=6).eval()


@pytest.fixture
def pictures():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_size_of_the_course_network():
    assert sum(p.numel() for p in zoo.vit().parameters()) == 78_106
    assert zoo.vit(channels=3, pixels=32, patch=4)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_attention_is_its_formula_head_by_head(small, pictures):
    attention = small.blocks[0].attention
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    outputs = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        q, k, v = (x @ p.weight[own].T + p.bias[own] for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        weights = torch.exp(q @ k.mT / 2)
        weights = weights / weights.sum(-1, keepdim=True)
        torch.testing.assert_close(attention.maps(x)[:, head], weights)
        outputs.append(weights @ v)
    expected = torch.cat(outputs, -1) @ attention.o_proj.weight.T + attention.o_proj.bias
    torch.testing.assert_close(attention(x), expected)


def test_maps_are_those_of_the_forward(small, pictures, monkeypatch):
    """Recomputed by softmax, they must reproduce what scaled_dot_product_attention mixed."""
    seen = []
    real = F.scaled_dot_product_attention

    def spy(q, k, v):
        seen.append((v, real(q, k, v)))
        return seen[-1][1]

    maps = small.attention_maps(pictures)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    small(pictures)
    assert [m.shape for m in maps] == [(5, 3, 5, 5)] * 2
    for found, (v, mixed) in zip(maps, seen, strict=True):
        torch.testing.assert_close(found.sum(-1), torch.ones(5, 3, 5))
        torch.testing.assert_close(found @ v, mixed)


def test_the_class_token_alone_is_read(small, pictures):
    """What the last block does at the patches' places changes nothing."""
    tokens = small._tokens(pictures)
    assert tokens.shape == (5, 5, 12)
    torch.testing.assert_close(tokens[:, 0], (small.class_token + small.positions[:, :1]).expand(5, 1, 12)[:, 0])
    assert small(pictures).shape == (5, 3)


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = zoo.vit(seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    second, other = zoo.vit(seed=5).state_dict(), zoo.vit(seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["positions"], other["positions"])


def test_sizes_that_do_not_fit():
    with pytest.raises(zoo.ZooError, match=r"heads=0.*at least 1"):
        zoo.vit(heads=0)
    with pytest.raises(zoo.ZooError, match="width=48 is no multiple of heads=7"):
        zoo.vit(heads=7)
    with pytest.raises(zoo.ZooError, match="pixels=16 is no multiple of patch=3"):
        zoo.vit(patch=3)


def test_its_maps_follow_when_heads_are_gone(small, pictures):
    with torch.no_grad():
        attention = small.blocks[0].attention
        for name in ("q_proj", "k_proj", "v_proj"):
            layer = getattr(attention, name)
            layer.weight, layer.bias = torch.nn.Parameter(layer.weight[:8]), torch.nn.Parameter(layer.bias[:8])
        attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, :8])
    assert [m.shape[1] for m in small.attention_maps(pictures)] == [2, 3]
    assert small(pictures).shape == (5, 3)
