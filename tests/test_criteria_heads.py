"""Michel's head importance, against explicit gates and autograd, a sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import PruneError, criteria, granularity, zoo
from prunelab.allocation import unit_scores
from prunelab.calibration import Calibration


@pytest.fixture
def model(build):
    return build("vit").eval()


@pytest.fixture
def data(data_for):
    return data_for("vit")


def gated(model, images, labels, loss=F.cross_entropy):
    """E|dL/dxi| by the book: a gate of 1 on each head's output, one sample after another."""
    attentions = [block.attention for block in model.blocks]
    total = {g.name: torch.zeros(g.units) for g in granularity.heads(model)}
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        gates = [torch.ones(len(t), requires_grad=True) for t in total.values()]
        hooks = [
            a.o_proj.register_forward_pre_hook(
                lambda m, given, gate=gate, d=a.head_dim: given[0] * gate.repeat_interleave(d)
            )
            for a, gate in zip(attentions, gates, strict=True)
        ]
        found = torch.autograd.grad(loss(model(image), label), gates)
        for hook in hooks:
            hook.remove()
        for name, g in zip(total, found, strict=True):
            total[name] += g.abs() / len(images)
    return total


def importance(model, calib):
    return unit_scores(criteria.head_importance(model, calib), granularity.heads(model), "sum")


@pytest.mark.parametrize("batch", [24, 7, 1])
def test_it_is_the_gradient_of_explicit_gates_by_sample(model, data, batch):
    found = importance(model, Calibration.of(data, samples=24, batch_size=batch))
    for name, expected in gated(model, *data).items():
        torch.testing.assert_close(found[name], expected / expected.norm(), rtol=1e-4, atol=1e-6)


def test_the_absolute_value_comes_before_the_mean(model, data):
    """Two samples that pull a head in opposite directions: it matters to both, and the mean gradient is near zero."""
    found = importance(model, Calibration.of(data, samples=24))
    signed = criteria.taylor_sum(model, Calibration.of(data, samples=24))
    for group in granularity.heads(model):
        mean_first = signed[group.members[-1].tensor].sum(0).unflatten(0, (group.units, -1)).sum(1).abs()
        by_sample = found[group.name] * gated(model, *data)[group.name].norm()
        assert (by_sample >= mean_first - 1e-6).all()
        assert (by_sample > 1.05 * mean_first).any()


def test_layers_are_normalised_and_a_column_is_worth_its_part(model, data):
    scores = criteria.head_importance(model, Calibration.of(data))
    assert list(scores) == ["blocks.0.attention.o_proj.weight", "blocks.1.attention.o_proj.weight"]
    for values in importance(model, Calibration.of(data)).values():
        assert float(values.norm()) == pytest.approx(1, rel=1e-5)
    for score in scores.values():
        assert torch.equal(score, score[:1, :].expand_as(score))


def test_what_the_loop_finds_is_what_vmap_finds(model, data, monkeypatch):
    from prunelab.calibration import derivatives

    calib = Calibration.of(data)
    together = importance(model, calib)
    monkeypatch.setattr(derivatives, "_all_at_once", None)
    for name, alone in importance(model, calib).items():
        torch.testing.assert_close(alone, together[name])


def test_torch_s_attention_has_no_gates_to_hook_and_gets_the_same(data_for):
    """The same weights in torch's packed layer and in ours: the same importance."""
    torch.manual_seed(0)
    torch_own, ours = nn.MultiheadAttention(8, 4, batch_first=True), zoo.networks.Attention(8, 4)
    with torch.no_grad():
        torch_own.in_proj_bias.normal_()
        for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
            getattr(ours, name).weight.copy_(torch_own.in_proj_weight.chunk(3)[i])
            getattr(ours, name).bias.copy_(torch_own.in_proj_bias.chunk(3)[i])
        ours.o_proj.load_state_dict(torch_own.out_proj.state_dict())

    class Wrapped(nn.Module):
        def __init__(self, attend):
            super().__init__()
            self.attend = attend

        def forward(self, x):
            out = (
                self.attend(x, x, x, need_weights=False)[0]
                if isinstance(self.attend, nn.MultiheadAttention)
                else self.attend(x)
            )
            return out.mean(1)

    calib = Calibration.of((torch.randn(10, 5, 8), torch.arange(10) % 8))
    found = [importance(Wrapped(attend), calib)["attend"] for attend in (torch_own, ours)]
    torch.testing.assert_close(*found)


def test_grouped_queries_are_gated_together():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=1,
        intermediate_size=8,
        vocab_size=20,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 20, (6, 5))

    def loss(logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    found = importance(model, Calibration(((tokens, tokens),), loss))["model.layers.0.self_attn"]
    total = torch.zeros(2)
    for one in tokens.split(1):
        gate = torch.ones(2, requires_grad=True)
        hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda m, given, gate=gate: given[0] * gate.repeat_interleave(8)
        )
        total += torch.autograd.grad(loss(model(one).logits, one), gate)[0].abs()
        hook.remove()
    torch.testing.assert_close(found, total / total.norm(), rtol=1e-4, atol=1e-6)


def test_heads_that_only_a_run_finds_are_gated_too():
    """GPT-2's fused queries, keys and values, and a projection whose weight is (in, out)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 4}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    tokens = torch.randint(3, 20, (6, 5))

    def loss(logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    calib = Calibration(((tokens, tokens),), loss)
    found = unit_scores(criteria.head_importance(model, calib), granularity.heads(model, tokens), "sum")
    total = torch.zeros(4)
    for one in tokens.split(1):
        gate = torch.ones(4, requires_grad=True)
        hook = model.transformer.h[0].attn.c_proj.register_forward_pre_hook(
            lambda m, given, gate=gate: given[0] * gate.repeat_interleave(4)
        )
        total += torch.autograd.grad(loss(model(one).logits, one), gate)[0].abs()
        hook.remove()
    torch.testing.assert_close(found["transformer.h.0.attn"], total / total.norm(), rtol=1e-4, atol=1e-6)


def test_a_masked_head_is_worth_nothing(model, data):
    groups = granularity.heads(model)
    keep = {g.name: torch.arange(g.units) > 0 for g in groups}
    pl.apply(model, pl.expand(model, groups, keep))
    for values in importance(model, Calibration.of(data)).values():
        assert values[0] == 0
        assert (values[1:] > 0).all()


def test_what_it_says_if_something_is_missing(build, model, data, data_for, snapshot):
    with pytest.raises(PruneError, match=r"Sequential has no attention layer: no product"):
        criteria.head_importance(build("cnn"), Calibration.of(data_for("cnn")))
    with pytest.raises(PruneError, match="head_importance needs data"):
        criteria.head_importance(model)
    model.blocks[0].attention.o_proj.weight.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"frozen .*blocks\.0\.attention\.o_proj\.weight \(8, 8\)"):
        criteria.head_importance(model, Calibration.of(data))
    assert snapshot(model) == before
    model.blocks[0].attention.o_proj.weight.requires_grad_(True)
    for other in (model.blocks[0].attention.q_proj, model.fc):
        other.weight.requires_grad_(False)  # nothing is asked of these
    assert criteria.by_name("michel")(model, Calibration.of(data))
