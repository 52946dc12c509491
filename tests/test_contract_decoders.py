"""The contract of tests/test_contract.py, on a tiny Llama: criteria and granularities for language models."""

import itertools

import plain_methods
import pytest
import torch
from tiny_decoders import decoder, token_ids

import prunelab as pl
from prunelab.core import lookup
from prunelab.criteria import CRITERIA
from prunelab.granularity import GRANULARITIES
from prunelab.language import next_token_loss, next_tokens
from prunelab.measurement import perplexity
from prunelab.units import tensors_of

DECODERS_ONLY = ("block_influence", "angular_distance", "glu_peak_to_peak")
USUAL = ("magnitude", "magnitude_l2", "random", "gradient", "taylor", "fisher", "wanda", "fpgm")
WHATS = ("weights", "neurons", "mlps", "attentions", "layers")


def fits(criterion, granularity, scope):
    """Depth criteria judge modules, peak to peak judges gated neurons; a row compares single weights."""
    if criterion == "glu_peak_to_peak" and granularity not in ("neurons", "mlps", "layers"):
        return False
    if criterion in DECODERS_ONLY[:2] and granularity == "weights":
        return False
    return granularity == "weights" or scope != "row"


CASES = [c for c in itertools.product((*USUAL, *DECODERS_ONLY), WHATS, ("global", "layer", "row")) if fits(*c)]


@pytest.fixture
def calib():
    return pl.Calibration((next_tokens(token_ids(4)), next_tokens(token_ids(3, seed=2))), next_token_loss)


@pytest.mark.parametrize("criterion", [*USUAL, *DECODERS_ONLY])
@pytest.mark.parametrize("worn", [False, True], ids=["plain", "worn"])
def test_scores(calib, snapshot, criterion, worn):
    model = decoder()
    model.train()
    if worn:
        pl.prune(model, pl.Recipe(sparsity=0.3))
    before = snapshot(model)
    scores, again = (CRITERIA[criterion](model, calib) for _ in range(2))
    assert snapshot(model) == before
    for name, score in scores.items():
        assert score.shape == lookup(model, name)[0].tensor.shape
        assert torch.isfinite(score).all()
        assert not score.requires_grad
        assert torch.equal(score, again[name])


@pytest.mark.parametrize(("criterion", "granularity", "scope"), CASES)
def test_prune_shrink_bake(calib, criterion, granularity, scope):
    model = decoder()
    ids = token_ids()
    pruned = pl.prune(model, pl.Recipe(criterion, granularity, 0.5, scope), calib)
    assert pl.report(pruned.groups, pruned.keep).sparsity == pytest.approx(0.5, abs=0.01)
    with torch.no_grad():
        masked = model(ids).logits
        if granularity != "weights":
            small = pl.shrink(decoder(), pruned.groups, pruned.keep)
            gap = (small(ids).logits - masked).abs().max() / masked.abs().max()
            assert float(gap) < 1e-5
        pl.bake(model)
        assert torch.equal(model(ids).logits, masked)


@pytest.mark.parametrize("criterion", DECODERS_ONLY)
def test_other_networks_are_refused(build, criterion):
    with pytest.raises(pl.PruneError, match="has no blocks"):
        CRITERIA[criterion](build("mlp"), None)


def test_every_one_is_here_or_there():
    """A new criterion or granularity must be tried on a decoder, or be listed as not made for one."""
    elsewhere = {"grasp", "synflow", "bn_slimming", "taylor_sum", "head_importance", "movement", "lamp", "mama"}
    elsewhere |= {"expert_frequency", "expert_norm", "reap"}
    assert set(CRITERIA) - elsewhere <= {*USUAL, *DECODERS_ONLY}
    assert set(GRANULARITIES) - {"filters", "coupled", "heads", "experts", "width"} == set(WHATS)


def test_the_width_of_a_decoder():
    """It is never exact, so that it stands apart: what is left runs, at the width that the config declares."""
    model = decoder()
    (group,) = GRANULARITIES["width"](model, token_ids())
    assert (group.name, group.units, group.exact) == ("model.embed_tokens", model.config.hidden_size, False)
    small = pl.shrink(model, [group], {group.name: torch.arange(group.units) % 4 > 0})
    assert small.model.embed_tokens.weight.shape[1] == 3 * group.units // 4
    assert small(token_ids()).logits.shape == model(token_ids()).logits.shape


def test_units_of_a_group_share_no_tensor():
    model = decoder()
    for what in ("mlps", "attentions", "layers"):
        (group,) = GRANULARITIES[what](model)
        alone = [pl.Group("", 4, (), parts=tuple(p for p in group.parts if p.unit == u)) for u in range(4)]
        each = [tensors_of(one, dict(model.named_parameters())) for one in alone]
        assert all(each)
        assert not any(a & b for a, b in itertools.combinations(each, 2))


@pytest.mark.parametrize("criterion", plain_methods.NEURONS)
def test_neurons_are_those_of_a_plain_llama(criterion):
    """Two blocks out by influence, then a quarter of the neurons: as by the formulas, in plain torch."""
    model, rows = decoder().double(), token_ids(6)
    calib = pl.Calibration((next_tokens(rows[:4]), next_tokens(rows[4:])), next_token_loss)
    blocks = pl.granularity.layers(model)
    keep = pl.allocate(pl.criteria.block_influence(model, calib), blocks, 0.5)
    gone = plain_methods.block_influence(model, rows[:, :-1]).argsort()[:2].sort().values
    assert keep["layers"].logical_not().nonzero()[:, 0].tolist() == gone.tolist()
    short, plain = pl.shrink(model, blocks, keep), plain_methods.without_blocks(model, gone.tolist()).double()

    groups = pl.granularity.neurons(short)
    scores, wanted = CRITERIA[criterion](short, calib), plain_methods.neuron_scores(criterion, plain, rows)
    for scope in ("layer", "global"):
        keep = pl.allocate(scores, groups, 0.25, scope)
        kept = plain_methods.neurons_kept(wanted, 0.25, scope)
        assert [keep[g.name].nonzero()[:, 0].tolist() for g in groups] == [k.tolist() for k in kept]
    small, plain = pl.shrink(short, groups, keep), plain_methods.without_neurons(plain, kept)
    assert perplexity(small, rows).value == pytest.approx(plain_methods.perplexity(plain, rows), rel=1e-6)
