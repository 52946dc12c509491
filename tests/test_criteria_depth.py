"""Block Influence, angular distance, GLU peak to peak: each by hand, from the outputs of the blocks themselves."""

import itertools
import math

import pytest
import torch
from tiny_decoders import KINDS, decoder, token_ids
from torch.nn import functional as F

import prunelab as pl
from prunelab.allocation import unit_scores
from prunelab.criteria import AngularDistance, BlockInfluence, glu_peak_to_peak
from prunelab.language import next_token_loss, next_tokens

ROWS = token_ids(5)
CALIB = pl.Calibration((next_tokens(ROWS[:3]), next_tokens(ROWS[3:])), next_token_loss)


def streams(model):
    """What enters each block and what leaves the last, a list of (n, length, hidden)."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda m, args, out: seen.append((args[0], out))) for layer in model.model.layers
    ]
    with torch.no_grad():
        model(ROWS[:, :-1])
    for hook in hooks:
        hook.remove()
    return [a for a, _ in seen] + [seen[-1][1]]


def worth(scores, what, model):
    (group,) = getattr(pl.granularity, what)(model)
    return unit_scores(scores, [group], "sum")[what]


@pytest.mark.parametrize("kind", KINDS)
def test_block_influence(kind):
    model = decoder(kind)
    x = streams(model)
    wanted = [1 - F.cosine_similarity(a, b, dim=-1).mean() for a, b in itertools.pairwise(x)]
    found = worth(BlockInfluence()(model, CALIB), "layers", model)
    assert torch.allclose(found, torch.stack(wanted).double(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("what", "norm", "part"), [("mlps", "post_attention_layernorm", "mlp")])
def test_influence_of_an_mlp(kind, what, norm, part):
    model = decoder(kind)
    seen = {}
    for i, layer in enumerate(model.model.layers):
        getattr(layer, norm).register_forward_pre_hook(lambda m, args, i=i: seen.__setitem__((i, "in"), args[0]))
        layer.register_forward_hook(lambda m, args, out, i=i: seen.__setitem__((i, "out"), out))
    with torch.no_grad():
        model(ROWS[:, :-1])
    wanted = [1 - F.cosine_similarity(seen[i, "in"], seen[i, "out"], dim=-1).mean() for i in range(4)]
    found = worth(BlockInfluence(what)(decoder(kind), CALIB), what, model)
    assert torch.allclose(found, torch.stack(wanted).double(), atol=1e-6)


def test_influence_of_an_attention():
    model, seen = decoder(), {}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda m, args, i=i: seen.__setitem__((i, "in"), args[0]))
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda m, args, i=i: seen.__setitem__((i, "out"), args[0])
        )
    with torch.no_grad():
        model(ROWS[:, :-1])
    wanted = [1 - F.cosine_similarity(seen[i, "in"], seen[i, "out"], dim=-1).mean() for i in range(4)]
    found = worth(BlockInfluence("attentions")(decoder(), CALIB), "attentions", model)
    assert torch.allclose(found, torch.stack(wanted).double(), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("last_only", [False, True])
def test_angular_distance(n, last_only):
    model = decoder()
    x = [s[:, -1:] if last_only else s for s in streams(model)]
    angle = [(F.cosine_similarity(x[i], x[i + n], dim=-1).arccos() / math.pi).mean() for i in range(5 - n)]
    assert AngularDistance(n, last_only).angles(model, CALIB) == pytest.approx([float(a) for a in angle], abs=1e-5)
    found = worth(AngularDistance(n, last_only)(model, CALIB), "layers", model)
    best = min(range(5 - n), key=lambda i: angle[i])
    assert sorted(found.argsort(stable=True)[:n].tolist()) == list(range(best, best + n))
    keep = pl.allocate(AngularDistance(n, last_only)(model, CALIB), pl.granularity.layers(model), n / 4)
    assert (~keep["layers"]).nonzero().squeeze(1).tolist() == list(range(best, best + n))


def test_glu_peak_to_peak():
    model = decoder()
    scores = glu_peak_to_peak(model)
    assert {n.split(".")[-2] for n in scores} == {"gate_proj", "up_proj"}
    groups = pl.granularity.neurons(model)
    found = unit_scores(scores, groups, "sum")
    for i, group in enumerate(groups):
        mlp = model.model.layers[i].mlp
        rows = [w.max(1).values + w.min(1).values.abs() for w in (mlp.gate_proj.weight, mlp.up_proj.weight)]
        assert torch.allclose(found[group.name], sum(rows), rtol=1e-5)


def test_a_block_that_does_nothing_goes_first():
    model = decoder()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    for criterion in (BlockInfluence(), AngularDistance(1)):
        keep = pl.allocate(criterion(model, CALIB), pl.granularity.layers(model), 0.25)
        assert keep["layers"].tolist() == [True, True, False, True]


def test_blocks_that_give_lists():
    import transformers

    sizes = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
    model = transformers.OpenAIGPTModel(transformers.OpenAIGPTConfig(**sizes)).eval()
    given = {"input_ids": ROWS}
    groups = pl.granularity.layers(model, given)
    small = pl.shrink(model, groups, {"layers": torch.tensor([True, False, True])})
    assert len(small.h) == 2
    assert worth(BlockInfluence()(model, pl.Calibration(((given, ROWS),))), "layers", model).min() > 0


def test_after_parts_have_left():
    model = decoder()
    keep = {"mlps": torch.tensor([True, False, True, True])}
    small = pl.shrink(model, pl.granularity.mlps(model), keep)
    assert len(worth(BlockInfluence("mlps")(small, CALIB), "mlps", small)) == 3
    assert len(worth(BlockInfluence()(small, CALIB), "layers", small)) == 4


def test_norms_elsewhere():
    """A block with a norm after its MLP, too: what the MLP adds is not what it gives."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    with pytest.raises(pl.PruneError, match=r"layers\.0 has other norms"):
        BlockInfluence("mlps")(model, CALIB)
    groups, keep = pl.granularity.mlps(model), {"mlps": torch.tensor([False, True])}
    assert pl.surgery.difference(model, groups, keep, ROWS) < 1e-5


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (BlockInfluence("heads"), "give one of layers, mlps, attentions"),
        (AngularDistance(4), "the model has 4"),
        (AngularDistance(0), "give 1 to one less"),
    ],
)
def test_bad_settings(criterion, message):
    with pytest.raises(pl.PruneError, match=message):
        criterion(decoder(), CALIB)


@pytest.mark.parametrize("criterion", [BlockInfluence(), AngularDistance()])
def test_no_calibration(criterion):
    with pytest.raises(pl.PruneError, match="needs data"):
        criterion(decoder(), None)
