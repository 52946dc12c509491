"""Hand-computed scores, and what has none."""

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError, criteria, masking, zoo
from prunelab.criteria.weights import SEED_OFFSET


@pytest.fixture
def layer():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-3.0, 0.5, 0.0], [2.0, -1.0, 4.0]]))
    return layer


def test_magnitude_by_hand(layer):
    assert criteria.magnitude(layer)["weight"].tolist() == [[3, 0.5, 0], [2, 1, 4]]


def test_magnitude_l2_by_hand(layer):
    assert criteria.magnitude_l2(layer)["weight"].tolist() == [[9, 0.25, 0], [4, 1, 16]]


def test_random_by_hand(layer):
    expected = torch.rand(2, 3, generator=torch.Generator().manual_seed(7 + SEED_OFFSET))
    assert torch.equal(criteria.Random(7)(layer)["weight"], expected)
    assert not torch.equal(criteria.random(layer)["weight"], expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_scores_know_nothing_of_weights_drawn_with_the_same_seed(seed):
    model = zoo.cnn(seed=seed)
    scores = criteria.Random(seed)(model)
    for name, w in pl.prunable(model).items():
        sizes = torch.stack([w.detach().abs().flatten(), w.detach().flatten(), scores[name].flatten()])
        correlation = torch.corrcoef(sizes)[2, :2].abs().max()
        assert correlation < 4 / w.numel() ** 0.5, f"{name}: {correlation:.3f}"


def test_a_masked_weight_is_scored_by_what_lies_under_the_mask(layer):
    plain = criteria.magnitude(layer)["weight"]
    masking.apply(layer, {"weight": torch.zeros(2, 3, dtype=torch.bool)})
    assert torch.equal(criteria.magnitude(layer)["weight"], plain)


def test_scores_are_no_view_of_the_weights(layer):
    criteria.magnitude(layer)["weight"].zero_()
    assert layer.weight.abs().sum() > 0
    assert not criteria.magnitude(layer)["weight"].requires_grad


def test_squares_of_halves_dont_vanish():
    layer = nn.Linear(2, 1).half()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-4, 2e-4]]))  # squared in float16 both would be 0
    low, high = criteria.magnitude_l2(layer)["weight"][0]
    assert 0 < low < high


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("criterion", ["magnitude", "magnitude_l2", "random"])
def test_weights_that_are_not_finite(build, snapshot, bad, criterion):
    model = build("cnn")
    with torch.no_grad():
        model[3].weight[1, 2, 0, :2] = bad
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"3\.weight \(6, 4, 3, 3\) holds 2 NaN or infinite of 216"):
        criteria.by_name(criterion)(model)
    assert snapshot(model) == before


def test_opposite_infinities_dont_hide_each_other(layer):
    with torch.no_grad():
        layer.weight[0, 0], layer.weight[0, 1] = torch.inf, -torch.inf
    with pytest.raises(PruneError, match="holds 2 NaN"):
        criteria.magnitude(layer)


def test_huge_but_finite_weights_are_fine():
    for dtype in (torch.float16, torch.float32, torch.float64):
        layer = nn.Linear(4, 4, dtype=dtype)
        with torch.no_grad():
            layer.weight.fill_(torch.finfo(dtype).max)
        assert torch.isfinite(criteria.magnitude(layer)["weight"]).all()


@pytest.mark.parametrize("unknown", ["magnitudes", "", None, 5])
def test_unknown_names(unknown):
    with pytest.raises(PruneError, match=r"no criterion is called .*; there is .*magnitude, .*random"):
        criteria.by_name(unknown)


def test_fpgm_compares_the_neurons_of_an_expert_with_its_own():
    """Two experts of two neurons each, 3 and 5 apart: the distance between experts counts nowhere."""
    experts = nn.Module()
    experts.num_experts, experts.is_transposed = 2, False
    experts.up = nn.Parameter(torch.tensor([[[0.0, 0.0], [3.0, 0.0]], [[100.0, 0.0], [100.0, 5.0]]]))
    assert criteria.fpgm(experts)["up"].sum(2).tolist() == [[3, 3], [5, 5]]
    experts.is_transposed = True  # the columns are the neurons: (0, 3) and (0, 0); (100, 100) and (0, 5)
    assert criteria.fpgm(experts)["up"].sum(1)[0].tolist() == [3, 3]
    del experts.is_transposed
    with pytest.raises(PruneError, match=r"fpgm goes by the inputs of an output, and up \(2, 2, 2\)"):
        criteria.fpgm(experts)


def test_half_precision_makes_no_ties_of_small_movements():
    dice = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 64).half()
    layer.weight.data = (0.02 * torch.randn(64, 64, generator=dice)).half()
    before = pl.criteria.Mama.of(layer)
    layer.weight.data += (2e-5 * torch.randn(64, 64, generator=dice)).half()
    score = before(layer)["weight"]
    moved = layer.weight != before.w0["weight"]
    assert bool((score[moved & (layer.weight != 0)] > 0).all())
    assert score.dtype == torch.float32
