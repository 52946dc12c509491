"""Layer-wise sparsities: they meet the budget to the unit, and agree with plain loops and brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from plain_methods import owl
from tiny_decoders import decoder, token_ids
from torch import nn

import prunelab as pl
from prunelab import layerwise
from prunelab.criteria import lamp
from prunelab.language import next_token_loss, next_tokens
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
    @pytest.mark.parametrize("rule", layerwise.LAYER_RULES)
    def test_is_met_to_the_unit_and_by_allocate_too(self, rule, sparsity):
        model = net()
        groups = pl.granularity.weights(model)
        found = layerwise.by_name(rule)(model, groups, sparsity)
        total = sum(g.units for g in groups)
        assert sum(gone(groups, found).values()) == round(sparsity * total)
        keep = pl.allocate(pl.criteria.magnitude(model), groups, found, "layer")
        assert {n: int((~k).sum()) for n, k in keep.items()} == gone(groups, found)

    def test_floors_that_make_it_impossible_name_the_nearest(self):
        groups = pl.granularity.weights(net())
        with pytest.raises(pl.PruneError, match=r"nearest reachable sparsity is 0\.5"):
            layerwise.uniform(net(), groups, 0.9, floor=0.5)

    @pytest.mark.parametrize("bad", [50, -0.1, float("nan"), "half", 1.0])
    @pytest.mark.parametrize("rule", ["uniform", "erk"])
    def test_bad_sparsities(self, rule, bad):
        model = net()
        groups = pl.granularity.weights(model)
        with pytest.raises(pl.PruneError, match="sparsity is"):
            layerwise.by_name(rule)(model, groups, bad)

    @pytest.mark.parametrize("bad", [-0.1, 1.1, "much", True])
    def test_bad_floors(self, bad):
        with pytest.raises(pl.PruneError, match="floor="):
            layerwise.uniform(net(), pl.granularity.weights(net()), 0.5, floor=bad)

    def test_no_groups_and_two_of_one_name(self):
        with pytest.raises(pl.PruneError, match="no groups"):
            layerwise.uniform(net(), [], 0.5)
        with pytest.raises(pl.PruneError, match="same name"):
            layerwise.uniform(net(), pl.granularity.weights(net())[:1] * 2, 0.5)

    @pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.8])
    def test_uniform_is_within_a_unit_of_the_same_share(self, sparsity):
        groups = pl.granularity.weights(net())
        assert all(abs(n - sparsity * g.units) < 1 for g, n in zip(groups, self.counts(groups, sparsity), strict=True))

    def counts(self, groups, sparsity):
        return gone(groups, layerwise.uniform(net(), groups, sparsity)).values()

    @pytest.mark.parametrize("rule", ["uniform", "erk", "sensitivity"])
    @pytest.mark.parametrize("floor", [0.1, 0.15])
    def test_floors_hold_and_the_others_make_up_for_it(self, rule, floor):
        model = net()
        groups = pl.granularity.weights(model)
        if rule == "sensitivity":
            scan = scan_of(groups, (0.5, 0.99), [(5.0, 9.0), (0.1, 0.2), (0.01, 0.02)])
            found = layerwise.BySensitivity(scan, floor=floor)(net(), groups, 0.84)
        else:
            found = layerwise.by_name(rule)(model, groups, 0.84, floor=floor)
        counts = gone(groups, found)
        assert all(g.units - counts[g.name] >= floor * g.units for g in groups)
        assert sum(counts.values()) == round(0.84 * sum(g.units for g in groups))

    def test_a_structure_keeps_its_last_unit(self):
        model = net()
        groups = pl.granularity.filters(model, torch.randn(1, 1, 6, 6))  # 4 and 8
        assert sorted(gone(groups, layerwise.erk(model, groups, 0.8)).values()) == [3, 7]
        with pytest.raises(pl.PruneError, match="only 10 can go because of the floor"):
            layerwise.uniform(net(), groups, 0.95)


class TestErk:
    def test_by_hand(self):
        model = nn.Sequential(nn.Linear(100, 200, bias=False), nn.Linear(200, 20, bias=False))
        groups = pl.granularity.weights(model)
        # raw densities 300/20000 and 220/4000, so kept in proportion 300 : 220; 0.9 leaves 2,400 of 24,000
        found = layerwise.erk(model, groups, 0.9)
        assert gone(groups, found) == {"0.weight": 20000 - 1385, "1.weight": 4000 - 1015}

    @pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.6, 0.9, 0.98])
    @pytest.mark.parametrize("floor", [0.0, 0.01])
    def test_is_the_scale_that_bisection_finds(self, sparsity, floor):
        model = net()
        groups = pl.granularity.weights(model)
        weights = pl.prunable(model)
        raw = np.array([sum(w.shape) / w.numel() for w in weights.values()])
        sizes = np.array([w.numel() for w in weights.values()])
        least = np.ceil(floor * sizes)
        low, high = 0.0, 1e6
        for _ in range(200):
            scale = (low + high) / 2
            kept = np.clip(scale * raw * sizes, least, sizes)
            low, high = (scale, high) if kept.sum() < sizes.sum() - round(sparsity * sizes.sum()) else (low, scale)
        found = gone(groups, layerwise.erk(model, groups, sparsity, floor=floor))
        assert np.abs(sizes - kept - list(found.values())).max() < 1

    def test_a_group_without_a_matrix(self):
        model = net()
        bias = [pl.Group("bias", 4, (pl.Member("0.bias"),))]
        with pytest.raises(pl.PruneError, match="no weight with two dimensions"):
            layerwise.erk(model, bias, 0.5)

    def test_what_would_be_overfull_stays_dense_and_the_others_pay(self):
        model = net()
        found = layerwise.erk(model, pl.granularity.weights(model), 0.3)
        assert found["0.weight"] == 0.0  # 36 weights, a sum of 11: it would be given more than it has


class TestLamp:
    def test_is_the_plain_loop(self):
        model = net()
        for name, scores in lamp(model).items():
            flat = pl.prunable(model)[name].detach().flatten().tolist()
            want = [w**2 / sum(v**2 for v in flat if abs(v) >= abs(w)) for w in flat]
            np.testing.assert_allclose(scores.flatten().tolist(), want, rtol=1e-5)

    def test_ranks_within_a_layer_as_magnitude_does(self):
        model = net()
        groups = pl.granularity.weights(model)
        ours = pl.allocate(lamp(model), groups, 0.5, "layer")
        theirs = pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)

    def test_the_last_weight_of_a_layer_scores_one_and_a_layer_of_zeros_nothing(self):
        model = net()
        with torch.no_grad():
            model[4].weight.zero_()
        scores = lamp(model)
        assert float(scores["0.weight"].max()) == float(scores["2.weight"].max()) == 1.0
        assert not scores["4.weight"].any()

    def test_empties_no_layer_before_all_are_down_to_one(self):
        model = net()
        groups = pl.granularity.weights(model)
        total = sum(g.units for g in groups)
        assert not pl.report(groups, pl.allocate(lamp(model), groups, 1 - 3 / total)).emptied

    def test_half_precision_and_nan(self):
        scores = lamp(net().half())
        assert all(s.dtype == torch.float32 and torch.isfinite(s).all() for s in scores.values())
        model = net()
        with torch.no_grad():
            model[2].weight[0, 0, 0, 0] = float("nan")
        with pytest.raises(pl.PruneError, match=r"2\.weight .* NaN"):
            lamp(model)

    def test_does_not_see_a_layers_scale(self):
        model = net()
        before = lamp(model)
        with torch.no_grad():
            model[2].weight.mul_(0.125)
        for name, scores in lamp(model).items():
            torch.testing.assert_close(scores, before[name], rtol=1e-5, atol=0)


class TestBySensitivity:
    def test_beats_every_choice_of_scanned_levels(self):
        groups = pl.granularity.weights(net())
        levels = (0.25, 0.5, 0.75, 0.95)
        dice = np.random.default_rng(0)
        for _ in range(20):
            rises = np.sort(dice.random((len(groups), len(levels))) ** 3, axis=1)
            found = layerwise.BySensitivity(scan_of(groups, levels, rises))(net(), groups, 0.6)
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

    def test_is_the_best_of_all_whole_numbers(self):
        """Against every way to take T units of three short curves, up and down, convex or not."""
        dice = np.random.default_rng(0)
        for _ in range(100):
            curves = []
            for _ in range(3):
                k = int(dice.integers(2, 5))
                counts = sorted(int(c) for c in dice.choice(np.arange(1, 11), k, replace=False))
                curves.append(layerwise.Pieces((0, *counts), (0.0, *dice.normal(size=k))))
            total = int(dice.integers(0, sum(c.counts[-1] for c in curves) + 1))
            found = layerwise.cheapest(curves, total)
            assert sum(found) == total
            ways = itertools.product(*(range(c.counts[-1] + 1) for c in curves))
            best = min(sum(c.at(n) for c, n in zip(curves, way, strict=True)) for way in ways if sum(way) == total)
            assert sum(c.at(n) for c, n in zip(curves, found, strict=True)) == pytest.approx(best, abs=1e-9)

    def test_a_total_out_of_reach(self):
        with pytest.raises(pl.PruneError, match="all curves end at 5"):
            layerwise.cheapest([layerwise.Pieces((0, 5), (0.0, 1.0))], 6)

    def test_by_accuracy(self):
        groups = pl.granularity.weights(net())
        right = {"0.weight": (900, 900), "2.weight": (900, 600), "4.weight": (800, 300)}
        curves = tuple(
            Curve(g.name, g.units, (g.units // 2, round(0.9 * g.units)), right[g.name], (1.0, 1.0)) for g in groups
        )
        scan = Scan((0.5, 0.9), curves, Evaluation(loss=1.0, accuracy=0.9, n=1000, correct=900))
        found = gone(groups, layerwise.BySensitivity(scan, by="accuracy")(net(), groups, 176 / 644))
        assert found == {"0.weight": 32, "2.weight": 144, "4.weight": 0}
        with pytest.raises(pl.PruneError, match='give "loss" or "accuracy"'):
            layerwise.BySensitivity(scan, by="hope")(net(), groups, 0.5)

    def test_a_scan_of_other_groups_an_unfinished_one_and_one_with_nan(self):
        groups = pl.granularity.weights(net())
        scan = scan_of(groups, (0.5, 0.9), [(0.1, 0.2)] * 3)
        other = [pl.Group(g.name, g.units + 1, g.members) for g in groups]
        with pytest.raises(pl.PruneError, match=r"0\.weight has 37 units, in the scan 36"):
            layerwise.BySensitivity(scan)(net(), other, 0.5)
        unfinished = dataclasses.replace(scan, curves=scan.curves[:2], missing=("4.weight",))
        with pytest.raises(pl.PruneError, match=r"'4\.weight' was not reached before the scan was interrupted"):
            layerwise.BySensitivity(unfinished)(net(), groups, 0.5)
        with pytest.raises(pl.PruneError, match=r"scan of 2\.weight holds a loss that is no number"):
            layerwise.BySensitivity(scan_of(groups, (0.5,), [(0.1,), (float("nan"),), (0.1,)]))(net(), groups, 0.4)

    def test_from_a_real_scan(self):
        model, x = net().eval(), torch.randn(40, 1, 6, 6)
        with torch.no_grad():
            data = (x, model(x).argmax(1))
        groups = pl.granularity.weights(model)
        found = layerwise.BySensitivity(pl.sensitivity.scan(model, data, progress=False))(net(), groups, 0.7)
        assert sum(gone(groups, found).values()) == round(0.7 * sum(g.units for g in groups))
        assert pl.allocate(pl.criteria.magnitude(model), groups, found)

    def test_spares_the_layer_that_minds(self):
        groups = pl.granularity.weights(net())
        scan = scan_of(groups, (0.5, 0.9), [(5.0, 9.0), (0.1, 0.2), (0.01, 0.02)])
        found = layerwise.BySensitivity(scan)(net(), groups, 0.5)
        assert found["0.weight"] == 0.0
        assert found["4.weight"] == pytest.approx(0.9, abs=0.01)

    def test_a_budget_beyond_the_scan_and_groups_it_does_not_know(self):
        groups = pl.granularity.weights(net())
        scan = scan_of(groups, (0.5,), [(1.0,)] * 3)
        with pytest.raises(pl.PruneError, match="scan"):
            layerwise.BySensitivity(scan)(net(), groups, 0.9)
        with pytest.raises(pl.PruneError, match=r"4\.weight"):
            layerwise.BySensitivity(scan_of(groups[:2], (0.5,), [(1.0,)] * 2))(net(), groups, 0.1)


class TestOwl:
    rows = token_ids(6, 13)
    calib = pl.Calibration((next_tokens(rows),), next_token_loss)

    def test_by_hand(self):
        """Blocks of 4, 8 and 8 weights, of which 0, 1 and 2 are above three times the mean."""
        entries = [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0]] + [[0.0, 0.0]] * 3, [[1.0] * 4] * 2]
        sizes = [nn.Linear(2, 2, bias=False), nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False)]
        model = nn.Sequential(nn.Identity(), nn.Sequential(*map(nn.Sequential, sizes)))
        for layer, values in zip(sizes, entries, strict=True):
            layer.weight.data = torch.tensor(values)
        groups = pl.granularity.weights(model)
        calib = pl.Calibration.of((torch.ones(1, 2), torch.zeros(1)))
        # D = 0, 1/8, 1/4, so d = 0, 0.2, 0.4, its mean by weights 0.24: of each 2.96, 4.32, 2.72 go
        found = layerwise.Owl(calib, m=3, spread=0.2)(model, groups, 0.5)
        assert list(gone(groups, found).values()) == [3, 4, 3]

    @pytest.mark.parametrize(("m", "spread"), [(2.0, 0.05), (3.0, 0.2)])
    def test_is_the_plain_implementation_and_the_budget_is_met(self, m, spread):
        model = decoder()
        groups = pl.granularity.weights(model)
        wanted = owl(model, self.rows, 0.6, m, spread)
        assert len({round(w, 3) for w in wanted}) > 2
        found = layerwise.Owl(self.calib, m, spread)(model, groups, 0.6)
        assert sum(gone(groups, found).values()) == round(0.6 * sum(g.units for g in groups))
        for g in groups:
            assert found[g.name] * g.units == pytest.approx(wanted[int(g.name.split(".")[2])] * g.units, abs=1), g.name

    def test_prunes_in_one_call_and_block_by_block(self):
        model = decoder()
        groups, rule = pl.granularity.weights(model), layerwise.Owl(self.calib, m=2)
        shares = rule(model, groups, 0.5)
        masks = pl.reconstruction.blockwise(decoder(), self.calib, pl.reconstruction.Wanda(), shares)
        for name, mask in masks.items():
            assert float((~mask).float().mean()) == pytest.approx(shares[name], abs=0.5 / mask.shape[1])
        pruned = pl.prune(model, pl.Recipe("wanda", sparsity=0.5, scope="layer", layerwise=rule), self.calib)
        assert {r.name: r.units - r.kept for r in pruned.report.layers} == gone(groups, shares)

    def test_blocks_without_a_difference_lose_the_same(self):
        groups = pl.granularity.weights(decoder())
        every = layerwise.uniform(decoder(), groups, 0.3)
        assert layerwise.Owl(self.calib, spread=0)(decoder(), groups, 0.3) == every
        assert layerwise.Owl(self.calib, m=1e9)(decoder(), groups, 0.3) == every

    def test_what_it_can_not_do(self):
        model = decoder(tie_word_embeddings=False)
        groups = pl.granularity.weights(model)
        with pytest.raises(pl.PruneError, match=r"lm_head\.weight lie in no block"):
            layerwise.Owl(self.calib)(model, groups, 0.5)
        for sparsity in (0.01, 0.99):
            with pytest.raises(pl.PruneError, match=r"spread=0\.08 around sparsity 0\.\d+ leaves \[0, 1\)"):
                layerwise.Owl(self.calib, m=2)(model, groups[:-1], sparsity)
        with pytest.raises(pl.PruneError, match="has no blocks"):
            layerwise.Owl(self.calib)(net(), pl.granularity.weights(net()), 0.5)
        with pytest.raises(pl.PruneError, match="m=0"):
            layerwise.Owl(self.calib, m=0)
        with pytest.raises(pl.PruneError, match="spread=-1"):
            layerwise.Owl(self.calib, spread=-1)


class TestAllocateByShares:
    def test_every_group_loses_its_own_share_on_either_scope(self):
        model = net()
        groups, scores = pl.granularity.weights(model), pl.criteria.magnitude(model)
        wanted = {"4.weight": 0.9, "0.weight": 0, "2.weight": 1}  # in any order; a whole layer if it must be
        keep = pl.allocate(scores, groups, wanted)
        assert pl.report(groups, keep).emptied == ("2.weight",)
        assert int((~keep["4.weight"]).sum()) == round(0.9 * 320)
        assert keep["0.weight"].all()
        layer = pl.allocate(scores, groups, wanted, "layer")
        assert all(torch.equal(keep[n], layer[n]) for n in keep)
        alone = pl.allocate(scores, groups[2:], 0.9, "layer")
        assert torch.equal(keep["4.weight"], alone["4.weight"])

    def test_nested_shares_and_such_that_are_not(self):
        model = net()
        groups, scores = pl.granularity.weights(model), pl.criteria.by_name("random")(model)
        first = pl.allocate(scores, groups, {g.name: 0.4 for g in groups})
        more = {"0.weight": 0.4, "2.weight": 0.5, "4.weight": 0.9}
        second = pl.allocate(pl.criteria.magnitude(model), groups, more, within=first)
        assert all(not (second[n] & ~first[n]).any() for n in first)
        with pytest.raises(pl.PruneError, match=r"sparsity 0\.1 would bring .* units of 2\.weight back"):
            pl.allocate(scores, groups, {**more, "2.weight": 0.1}, within=first)

    @pytest.mark.parametrize("bad", [50, -0.1, float("nan"), "half", True])
    def test_bad_shares(self, bad):
        model = net()
        groups = pl.granularity.weights(model)
        with pytest.raises(pl.PruneError, match="sparsity is"):
            pl.allocate(pl.criteria.magnitude(model), groups, {**{g.name: 0.5 for g in groups}, "2.weight": bad})

    def test_unknown_and_missing_groups(self):
        model = net()
        groups, scores = pl.granularity.weights(model), pl.criteria.magnitude(model)
        with pytest.raises(pl.PruneError, match="nothing"):
            pl.allocate(scores, groups, {"nothing": 0.5, **{g.name: 0.5 for g in groups}}, "layer")
        with pytest.raises(pl.PruneError, match=r"4\.weight"):
            pl.allocate(scores, groups, {"0.weight": 0.5, "2.weight": 0.5}, "layer")
        with pytest.raises(pl.PruneError, match="layer"):
            pl.allocate(scores, groups, {g.name: 0.5 for g in groups}, pl.NM(2, 4))
