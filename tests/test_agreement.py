"""Overlap, rank correlation, and the truth: leaving units out, against the naive loop and really shrunk models."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import Group, Member, PruneError, agreement, criteria, granularity, surgery
from prunelab.agreement import leave_one_out, overlap, rank_correlation
from prunelab.allocation import unit_scores


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


# Overlap


def test_overlap_by_hand():
    a = {"one": bools(1, 1, 0, 0), "two": bools(1, 1, 1, 0, 0, 0)}
    b = {"one": bools(1, 0, 1, 0), "two": bools(1, 1, 1, 0, 0, 0)}
    found = overlap(a, b)
    one, two = found.layers
    assert (one.units, one.a, one.b, one.both) == (4, 2, 2, 1)
    assert one.jaccard == pytest.approx(1 / 3)  # one in common, three kept by either
    assert one.chance == pytest.approx(1 / 3)  # 2 * 2 / 4 = 1 in common is what chance gives
    assert one.beyond_chance == 0
    assert two.jaccard == 1
    assert two.chance == pytest.approx(1.5 / 4.5)
    assert two.beyond_chance == 1
    assert (found.total.units, found.total.a, found.total.b, found.total.both) == (10, 5, 5, 4)
    assert "one" in str(found)
    assert str(found).splitlines()[-1].split() == ["total", "4", "5,", "5", "0.67", "0.33"]


def test_overlap_at_the_edges():
    def of(a, b):
        return overlap({"x": a}, {"x": b}).total

    nothing, all_of_it = bools(0, 0, 0, 0), bools(1, 1, 1, 1)
    assert of(nothing, nothing).jaccard == of(all_of_it, all_of_it).jaccard == 1
    assert of(all_of_it, all_of_it).beyond_chance == 1  # all there can be
    assert of(nothing, all_of_it).jaccard == 0
    assert of(bools(1, 1, 0, 0), bools(0, 0, 1, 1)).beyond_chance == -1
    assert of(bools(), bools()).jaccard == of(bools(), bools()).chance == 1


def test_chance_is_what_random_choices_give():
    dice = torch.Generator().manual_seed(0)
    picks = [{"x": torch.rand(4000, generator=dice) < 0.3} for _ in range(20)]
    found = [overlap(a, b).total for a, b in zip(picks[::2], picks[1::2], strict=True)]
    mean = sum(o.jaccard for o in found) / len(found)
    assert mean == pytest.approx(sum(o.chance for o in found) / len(found), abs=0.01)
    assert sum(o.beyond_chance for o in found) / len(found) == pytest.approx(0, abs=0.02)


def test_criteria_of_one_model(build, data_for):
    model, (x, y) = build("cnn"), data_for("cnn")
    groups, calib = granularity.weights(model), pl.Calibration.of((x, y))
    keeps = {n: pl.allocate(criteria.by_name(n)(model, calib), groups, 0.5) for n in ("magnitude", "taylor", "random")}
    assert overlap(keeps["magnitude"], keeps["magnitude"]).total.beyond_chance == 1
    assert overlap(keeps["magnitude"], keeps["taylor"]).total.beyond_chance > 0.2
    assert abs(overlap(keeps["magnitude"], keeps["random"]).total.beyond_chance) < 0.2


def test_choices_that_cannot_be_compared():
    for function in (overlap, rank_correlation):
        with pytest.raises(PruneError, match="only one of the two has 'y'"):
            function({"x": bools(1, 0)}, {"x": bools(1, 0), "y": bools(1)})
        with pytest.raises(PruneError, match=r"x has shapes \(2,\) and \(3,\).*same model"):
            function({"x": bools(1, 0)}, {"x": bools(1, 0, 1)})
    with pytest.raises(PruneError, match=r"x is torch\.float32 and torch\.float32: .* results of `allocate`"):
        overlap({"x": torch.rand(3)}, {"x": torch.rand(3)})
    with pytest.raises(PruneError, match="no scores"):
        rank_correlation({}, {})


# Rank correlation


def test_rank_correlation_by_hand():
    a = {"one": torch.tensor([1.0, 2.0, 3.0, 4.0]), "two": torch.tensor([[5.0, 6.0], [7.0, 8.0]])}
    b = {"one": torch.tensor([10.0, 20.0, 40.0, 30.0]), "two": torch.tensor([[8.0, 7.0], [6.0, 5.0]])}
    found = rank_correlation(a, b)
    assert found.layers["one"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert found.layers["two"] == pytest.approx(-1)
    # ranks of all: a 1..8; b 5 6 8 7 4 3 2 1
    assert found.overall == pytest.approx(1 - 6 * (16 + 16 + 25 + 9 + 1 + 9 + 25 + 49) / (8 * 63))
    assert str(found).splitlines()[1] == "one      +0.80"


def test_only_the_order_counts_and_ties_share_a_rank():
    a = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    assert rank_correlation({"x": a}, {"x": a.log() * 100}).overall == pytest.approx(1)
    assert rank_correlation({"x": a}, {"x": -(a**3)}).overall == pytest.approx(-1)
    tied = rank_correlation({"x": torch.tensor([1.0, 1, 2])}, {"x": torch.tensor([1.0, 2, 3])}).overall
    assert tied == pytest.approx(math.sqrt(3) / 2)  # ranks 1.5 1.5 3 against 1 2 3


def test_what_has_no_order_is_nan_without_a_warning():
    for x in (torch.ones(4), torch.ones(1), torch.ones(0), torch.full((4,), torch.nan)):
        assert math.isnan(rank_correlation({"x": x}, {"x": torch.arange(len(x)).float()}).overall)


# Leaving units out


class Wrapped(nn.Module):
    """The same network, but no nn.Sequential: the naive way."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def stirred(model):
    """With BatchNorm statistics, scales and biases that are not those of a fresh network."""
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.add_(torch.rand(tensor.shape, generator=dice))
    return model


@pytest.fixture(params=["cnn", "mlp", "residual"])
def case(request, build, data_for):
    """A model, its data, and its groups of structures."""
    model, (x, y) = stirred(build(request.param)), data_for(request.param)
    return model, (x, y), granularity.coupled(model, x)


def naive(model, x, y, groups):
    """Mask one unit, take the loss of all samples at once, subtract that of the whole model."""
    model = copy.deepcopy(model).eval()
    found = {}
    with torch.no_grad():
        dense = F.cross_entropy(model(x), y)
        for g in groups:
            losses = []
            for unit in range(g.units):
                keep = {other.name: torch.ones(other.units, dtype=torch.bool) for other in groups}
                keep[g.name][unit] = False
                with pl.masked(model, pl.expand(model, groups, keep)):
                    losses.append(F.cross_entropy(model(x), y) - dense)
            found[g.name] = torch.stack(losses).double()
    return found


def test_leave_one_out_against_the_naive_loop(case, snapshot):
    model, (x, y), groups = case
    before = snapshot(model)
    found = leave_one_out(model, [(x[:10], y[:10]), (x[10:], y[10:])], groups, progress=False)
    assert snapshot(model) == before
    expected = naive(model, x, y, groups)
    assert list(found) == list(expected)
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6)
        assert found[name].abs().max() > 1e-4


def test_leave_one_out_is_what_shrinking_does(case):
    model, (x, y), groups = case
    model.eval()
    found = leave_one_out(model, [(x, y)], groups, progress=False)
    with torch.no_grad():
        dense = float(F.cross_entropy(model(x), y))
        for g in groups:
            for unit in range(g.units):
                keep = {o.name: torch.ones(o.units, dtype=torch.bool) for o in groups}
                keep[g.name][unit] = False
                small = surgery.shrink(model, groups, keep)
                assert float(found[g.name][unit]) == pytest.approx(
                    float(F.cross_entropy(small(x), y)) - dense, abs=1e-5
                )


def test_what_lies_below_is_computed_once(build, data_for):
    """And gives the same as running all of it every time; in a network of any form."""
    model, (x, y) = stirred(build("cnn")), data_for("cnn")
    groups, calls = granularity.filters(model, x), []
    convolve = model[0]._conv_forward
    model[0]._conv_forward = lambda x, *own: calls.append(len(x)) or convolve(x, *own)
    found = leave_one_out(model, [(x, y)], list(reversed(groups)), progress=False)
    assert calls.count(len(x)) == 1 + groups[0].units + 1  # whole, without each filter of its own, for the next layer
    wrapped = Wrapped(model)
    inner = [
        Group(
            g.name,
            g.units,
            tuple(Member(f"inner.{m.tensor}", m.dim, m.block, m.index, m.tile, m.learned) for m in g.members),
        )
        for g in groups
    ]
    slow = leave_one_out(wrapped, [(x, y)], inner, progress=False)
    assert all(torch.allclose(found[n], slow[n], atol=1e-9) for n in slow)
    assert list(found) == [g.name for g in reversed(groups)]


def test_tied_layers_are_left_out_in_both_places(build, data_for):
    model, (x, y) = build("tied"), data_for("tied")
    for owned in ((Member("first.weight"),), (Member("first.weight", 0), Member("second.weight", 1))):
        groups = [Group("first", 36 if owned[0].dim is None else 6, owned)]
        found = leave_one_out(model, [(x, y)], groups, progress=False)["first"]
        assert torch.allclose(found, naive(model, x, y, groups)["first"], atol=1e-6)
    row = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    row[2].weight = row[0].weight
    groups = [Group("0", 36, (Member("0.weight"),)), Group("4", 18, (Member("4.weight"),))]
    found = leave_one_out(row, [(x, y)], groups, progress=False)
    assert all(torch.allclose(found[n], e, atol=1e-6) for n, e in naive(row, x, y, groups).items())


def test_a_masked_model_keeps_its_masks(build, data_for, snapshot):
    model, (x, y) = stirred(build("cnn")), data_for("cnn")
    masks = pl.prune(model, pl.Recipe(sparsity=0.5)).masks
    groups, before = granularity.weights(model), snapshot(model)
    found = leave_one_out(model, [(x, y)], groups, progress=False)
    assert snapshot(model) == before
    for name, mask in masks.items():
        assert found[name].abs()[~mask.flatten()].max() < 1e-7  # what is gone cannot leave again
        assert found[name].abs()[mask.flatten()].max() > 1e-4
    baked = leave_one_out(pl.bake(model), [(x, y)], groups, progress=False)
    assert all(torch.allclose(found[n], baked[n], atol=1e-7) for n in found)


def test_shared_layers_of_a_sequential(data_for):
    """One ReLU used three times, as people write it."""
    x, y = data_for("mlp")
    relu = nn.ReLU()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), relu, nn.Linear(5, 4), relu, nn.Linear(4, 3), relu)
    groups = granularity.neurons(model, x)
    found = leave_one_out(model, [(x, y)], groups, progress=False)
    assert all(torch.allclose(found[n], e, atol=1e-6) for n, e in naive(model, x, y, groups).items())


def test_criteria_can_be_compared_with_the_truth(build, data_for):
    """To first order: with weights all but gone, what Taylor's sum says *is* what leaving a neuron out does."""
    model, (x, y) = build("mlp").double(), data_for("mlp")
    x = x.double()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.zero_()
    own = [Group("0", 8, (Member("0.weight", 0),))]
    truth = leave_one_out(model, [(x, y)], own, progress=False)
    scores = criteria.taylor_sum(model, pl.Calibration.of((x, y)))
    by_sum = unit_scores(scores, own, "sum")
    assert torch.allclose(by_sum["0"], truth["0"].abs(), rtol=1e-2)
    assert rank_correlation(by_sum, {"0": truth["0"].abs()}).overall == pytest.approx(1)


def test_a_split_and_a_loss_of_ones_own(build, data_for):
    x, y = data_for("mlp")

    class Data:
        train, valid = (x[:3], y[:3]), (x[3:], y[3:])

    model = build("mlp")
    groups = granularity.neurons(model, x)
    whole = leave_one_out(model, [(x[3:], y[3:])], groups, progress=False)
    assert all(torch.equal(t, whole[n]) for n, t in leave_one_out(model, Data, groups, progress=False).items())
    on_train = leave_one_out(model, Data, groups, split="train", progress=False)
    assert not any(torch.equal(t, whole[n]) for n, t in on_train.items())
    squared = leave_one_out(model, Data, groups, loss=lambda o, t: o.square().mean(), progress=False)
    assert not any(torch.equal(t, whole[n]) for n, t in squared.items())


def test_bad_data(build, data_for, snapshot):
    model, (x, y) = build("mlp"), data_for("mlp")
    groups, before = granularity.neurons(model, x), snapshot(model)
    for data, options, said in (
        ((x[:0], y[:0]), {}, "data is empty"),
        ((x[:, :4], y), {}, r"cannot run on inputs of \(24, 4\)"),
        ((x * torch.nan, y), {}, "the loss of the whole model is nan"),
        ((x, y), {"loss": nn.CrossEntropyLoss(reduction="none")}, "must be a scalar tensor"),
        ((x, y), {"split": None, "batch_size": 0}, "batch size of 0"),
    ):
        with pytest.raises(PruneError, match=said):
            leave_one_out(model, data, groups, progress=False, **options)
    other = [Group("9", 8, (Member("9.weight", 0),))]
    with pytest.raises(PruneError, match=r"no tensor named '9\.weight'"):
        leave_one_out(model, (x, y), other, progress=False)
    assert snapshot(model) == before


def test_the_bar_counts_units(build, data_for, capsys):
    model, (x, y) = build("mlp"), data_for("mlp")
    leave_one_out(model, (x, y), granularity.neurons(model, x))
    assert "8/8" in capsys.readouterr().err
    assert agreement.tqdm is not None
