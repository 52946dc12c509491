"""Layer shares: they meet the budget to the unit, and agree with plain loops and brute force."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import shares
from prunelab.measurement import Evaluation
from prunelab.sensitivity import Curve, Scan


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 10))


def scan_of(groups, levels, rises, dense=1.0):
    """A scan that measured these rises of the loss, a row a group."""
    n = 1000
    curves = tuple(
        Curve(
            g.name,
            g.units,
            tuple(round(s * g.units) for s in levels),
            (500,) * len(levels),
            tuple(dense + r for r in row),
        )
        for g, row in zip(groups, rises, strict=True)
    )
    return Scan(tuple(levels), curves, Evaluation(loss=dense, accuracy=0.9, n=n, correct=900))


def gone(groups, found):
    return {g.name: round(found[g.name] * g.units) for g in groups}


class TestBudget:
    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.333, 0.5, 0.8, 0.97])
    @pytest.mark.parametrize("rule", ["uniform", "erk"])
    def test_is_met_to_the_unit_and_by_allocate_too(self, rule, sparsity):
        model = net()
        groups = pl.granularity.weights(model)
        found = shares.uniform(groups, sparsity) if rule == "uniform" else shares.erk(model, groups, sparsity)
        total = sum(g.units for g in groups)
        assert sum(gone(groups, found).values()) == round(sparsity * total)
        keep = pl.allocate(pl.criteria.magnitude(model), groups, found, "layer")
        assert {n: int((~k).sum()) for n, k in keep.items()} == gone(groups, found)

    def test_floors_that_make_it_impossible_name_the_nearest(self):
        groups = pl.granularity.weights(net())
        with pytest.raises(pl.PruneError, match=r"nearest reachable sparsity is 0\.5"):
            shares.uniform(groups, 0.9, floor=0.5)

    @pytest.mark.parametrize("bad", [50, -0.1, float("nan"), "half"])
    def test_bad_sparsities(self, bad):
        with pytest.raises(pl.PruneError):
            shares.uniform(pl.granularity.weights(net()), bad)


class TestErk:
    def test_by_hand(self):
        model = nn.Sequential(nn.Linear(100, 200, bias=False), nn.Linear(200, 20, bias=False))
        groups = pl.granularity.weights(model)
        # raw densities 300/20000 and 220/4000, so kept in proportion 300 : 220; 0.9 leaves 2,400 of 24,000
        found = shares.erk(model, groups, 0.9)
        assert gone(groups, found) == {"0.weight": 20000 - 1385, "1.weight": 4000 - 1015}

    def test_what_would_be_overfull_stays_dense_and_the_others_pay(self):
        model = net()
        found = shares.erk(model, pl.granularity.weights(model), 0.3)
        assert found["0.weight"] == 0.0  # 36 weights, a sum of 11: it would be given more than it has


class TestLamp:
    def test_is_the_plain_loop(self):
        model = net()
        for name, scores in shares.lamp(model).items():
            flat = pl.prunable(model)[name].detach().double().flatten()
            want = [w**2 / sum(v**2 for v in flat if abs(v) >= abs(w)) for w in flat]
            torch.testing.assert_close(scores.double().flatten(), torch.stack(want), rtol=1e-5, atol=0)

    def test_does_not_see_a_layers_scale(self):
        model = net()
        before = shares.lamp(model)
        with torch.no_grad():
            model[2].weight.mul_(0.125)
        for name, scores in shares.lamp(model).items():
            torch.testing.assert_close(scores, before[name], rtol=1e-5, atol=0)


class TestBySensitivity:
    def test_beats_every_choice_of_scanned_levels(self):
        groups = pl.granularity.weights(net())
        levels = (0.25, 0.5, 0.75, 0.95)
        dice = np.random.default_rng(0)
        for _ in range(20):
            rises = np.sort(dice.random((len(groups), len(levels))) ** 3, axis=1)
            found = shares.by_sensitivity(scan_of(groups, levels, rises), groups, 0.6)
            counts = gone(groups, found)
            assert sum(counts.values()) == round(0.6 * sum(g.units for g in groups))
            points = [[0, *(round(s * g.units) for s in levels)] for g in groups]
            curves = [[0.0, *row] for row in rises]
            cost = sum(np.interp(counts[g.name], p, c) for g, p, c in zip(groups, points, curves, strict=True))
            budget = sum(counts.values())
            options = (list(zip(p, c, strict=True)) for p, c in zip(points, curves, strict=True))
            choices = [
                sum(c for _, c in picks) for picks in itertools.product(*options) if sum(k for k, _ in picks) >= budget
            ]
            assert cost <= min(choices) + 1e-9

    def test_spares_the_layer_that_minds(self):
        groups = pl.granularity.weights(net())
        scan = scan_of(groups, (0.5, 0.9), [(5.0, 9.0), (0.1, 0.2), (0.01, 0.02)])
        found = shares.by_sensitivity(scan, groups, 0.5)
        assert found["0.weight"] == 0.0
        assert found["4.weight"] == pytest.approx(0.9, abs=0.01)

    def test_a_budget_beyond_the_scan_and_groups_it_does_not_know(self):
        groups = pl.granularity.weights(net())
        scan = scan_of(groups, (0.5,), [(1.0,)] * 3)
        with pytest.raises(pl.PruneError, match="scan"):
            shares.by_sensitivity(scan, groups, 0.9)
        with pytest.raises(pl.PruneError, match=r"4\.weight"):
            shares.by_sensitivity(scan_of(groups[:2], (0.5,), [(1.0,)] * 2), groups, 0.1)


class TestAllocateByShares:
    def test_unknown_and_missing_groups(self):
        model = net()
        groups, scores = pl.granularity.weights(model), pl.criteria.magnitude(model)
        with pytest.raises(pl.PruneError, match="nothing"):
            pl.allocate(scores, groups, {"nothing": 0.5, **{g.name: 0.5 for g in groups}}, "layer")
        with pytest.raises(pl.PruneError, match=r"4\.weight"):
            pl.allocate(scores, groups, {"0.weight": 0.5, "2.weight": 0.5}, "layer")
        with pytest.raises(pl.PruneError, match="layer"):
            pl.allocate(scores, groups, {g.name: 0.5 for g in groups}, pl.NM(2, 4))
