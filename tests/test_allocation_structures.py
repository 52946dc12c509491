"""Structures, N:M, floors and rounding: exact counts, and what is said where they can't be had."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import Group, Member, PruneError, granularity
from prunelab.allocation import NM
from prunelab.core import Part


def group(name, units, block=1):
    return Group(name, units, (Member(f"{name}.weight", 0, block),))


def scored(**values):
    """Scores of one weight a unit, by group."""
    return {f"{name}.weight": torch.tensor(v, dtype=torch.float32).view(-1, 1) for name, v in values.items()}


def kept(keep):
    return {name: k.nonzero().flatten().tolist() for name, k in keep.items()}


def test_exact_counts_of_structures():
    dice = torch.Generator().manual_seed(0)
    groups = [group("a", 7), group("b", 12), group("c", 5)]
    scores = {f"{g.name}.weight": torch.rand(g.units, 3, generator=dice) for g in groups}
    for share in (0, 0.1, 0.25, 0.5, 0.8):
        gone = {n: int((~k).sum()) for n, k in pl.allocate(scores, groups, share, "layer").items()}
        assert gone == {g.name: round(share * g.units) for g in groups}
        assert sum(int((~k).sum()) for k in pl.allocate(scores, groups, share).values()) == round(share * 24)


def test_the_floor_keeps_the_best_unit_and_others_go_instead():
    groups = [group("a", 3), group("b", 4)]
    scores = scored(a=[1, 3, 2], b=[10, 11, 12, 13])
    keep = pl.allocate(scores, groups, 4 / 7, reduce="sum")
    assert kept(keep) == {"a": [1], "b": [2, 3]}
    report = pl.report(groups, keep)
    assert report.floored == ("a",)
    assert "at the floor, one unit left: a" in str(report)
    assert kept(pl.allocate(scores, groups, 4 / 7, reduce="sum", floor=0)) == {"a": [], "b": [1, 2, 3]}
    assert kept(pl.allocate(scores, groups, 3 / 7, reduce="sum", floor=2)) == {"a": [1, 2], "b": [2, 3]}


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_sparsity_beyond_the_floor_gives_the_nearest_and_says_so(scope):
    groups = [group("a", 3), group("b", 4)]
    scores = scored(a=[1, 3, 2], b=[10, 11, 12, 13])
    with pytest.warns(UserWarning, match="7 units were to go, but only 5 can: every group keeps at least 1"):
        keep = pl.allocate(scores, groups, 0.99, scope)
    assert kept(keep) == {"a": [1], "b": [3]}
    assert pl.report(groups, keep).floored == ("a", "b")


def test_single_weights_have_no_floor():
    model = nn.Sequential(nn.Linear(4, 4))
    keep = pl.allocate({"0.weight": torch.rand(4, 4)}, granularity.weights(model), 0.99)
    report = pl.report(granularity.weights(model), keep)
    assert (report.total.kept, report.floored) == (0, ())


def test_ties_go_by_index_and_infinities_stay():
    groups = [group("a", 4), group("b", 3)]
    assert kept(pl.allocate(scored(a=[1, 1, 1, 1], b=[1, 1, 1]), groups, 5 / 7)) == {"a": [3], "b": [2]}
    pinned = scored(a=[torch.inf, 1, torch.inf, 0], b=[5, 6, 7])
    assert kept(pl.allocate(pinned, groups, 3 / 7, reduce="sum")) == {"a": [0, 2], "b": [1, 2]}
    assert kept(pl.allocate(pinned, groups, 4 / 7))["a"] == [0, 2]


def test_what_a_unit_scores():
    """By hand: unit u of a 2-unit group owns row u of one tensor and columns 2u, 2u + 1 of another."""
    both = Group("g", 2, (Member("w", 0), Member("v", 1, block=2), Member("bias", 0)))
    other = group("h", 2)
    scores = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "v": torch.tensor([[1.0, 1, 2, 2]]), **scored(h=[1.3, 2.0])}
    # sums: 5 and 11 of 4 entries; means 1.25 and 2.75; relative to their average 2: 0.625 and 1.375
    assert kept(pl.allocate(scores, [both, other], 0.25, reduce="sum")) == {"g": [0, 1], "h": [1]}
    assert kept(pl.allocate(scores, [both, other], 0.25, reduce="mean")) == {"g": [1], "h": [0, 1]}
    scores["h.weight"] = torch.tensor([[100.0], [300.0]])  # relative: 0.5 and 1.5
    assert kept(pl.allocate(scores, [both, other], 0.25)) == {"g": [0, 1], "h": [1]}
    negative = {name: -s for name, s in scores.items()}
    assert kept(pl.allocate(negative, [both, other], 0.25)) == {"g": [0, 1], "h": [0]}
    with pytest.raises(PruneError, match="reduce is 'max': give one of relative, mean, sum"):
        pl.allocate(scores, [both], 0.5, reduce="max")


def test_scores_of_zero_can_be_compared():
    assert kept(pl.allocate(scored(a=[0, 0, 0, 0], b=[1, 2]), [group("a", 4), group("b", 2)], 0.5)) == {
        "a": [3],
        "b": [0, 1],
    }


@pytest.mark.parametrize(
    ("units", "block", "sparsity", "stay"),
    [
        *((48, 1, 0.5, 24), (48, 1, 0.45, 32), (48, 1, 0.9, 8)),
        *((12, 1, 0.1, 12), (12, 1, 0.5, 8), (16, 4, 0.5, 8), (16, 4, 0.65, 6)),
    ],
)
def test_round_to_keeps_a_multiple_of_channels(units, block, sparsity, stay):
    dice = torch.Generator().manual_seed(0)
    g = group("a", units, block)
    scores = {"a.weight": torch.rand(units * block, 2, generator=dice)}
    keep = pl.allocate(scores, [g], sparsity, "layer", round_to=8)["a"]
    assert int(keep.sum()) == stay
    best = scores["a.weight"].view(units, -1).sum(1).sort(stable=True).indices[units - stay :]
    assert keep[best].all()


def test_round_to_is_of_structures_and_nests():
    scores = {"a.weight": torch.rand(64, 2, generator=torch.Generator().manual_seed(0))}
    keep = None
    for share in (0.2, 0.5, 0.7):
        before, keep = keep, pl.allocate(scores, [group("a", 64)], share, within=keep, round_to=8)
        assert int(keep["a"].sum()) % 8 == 0
        assert before is None or not (keep["a"] & ~before["a"]).any()
    with pytest.raises(PruneError, match="round_to=8 rounds counts of channels, but w holds single weights"):
        pl.allocate({"w": torch.rand(4, 4)}, [Group("w", 16, (Member("w"),))], 0.5, round_to=8)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_neither_a_floor_nor_a_multiple_brings_back_what_is_gone(scope):
    """Two of eight are left by an earlier cut: a floor of four and multiples of eight find these two, and no more."""
    scores = {"a.weight": torch.arange(8.0).view(8, 1), "b.weight": torch.arange(8.0).view(8, 1)}
    groups, before = [group("a", 8), group("b", 8)], {"a": torch.arange(8) < 2, "b": torch.ones(8, dtype=torch.bool)}
    for more in ({"floor": 4}, {"round_to": 8}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that less can go than was asked
            found = kept(pl.allocate(scores, groups, 0.75, scope, within=before, reduce="sum", **more))
        assert found["a"] == [0, 1]
        assert found["b"] == ([4, 5, 6, 7] if "floor" in more else list(range(8)))


@pytest.mark.parametrize("more", [{"floor": -1}, {"floor": 0.5}, {"round_to": 0}, {"round_to": True}])
def test_bad_counts(more):
    with pytest.raises(PruneError, match=f"{next(iter(more))}=.*: give a whole number"):
        pl.allocate(scored(a=[1, 2]), [group("a", 2)], 0.5, **more)


def test_rows_take_neither_floor_nor_rounding():
    groups = [Group("w", 16, (Member("w"),))]
    for scope in ("row", NM(2, 4)):
        with pytest.raises(PruneError, match="takes the same from every row"):
            pl.allocate({"w": torch.rand(4, 4)}, groups, 0.5, scope, floor=1)


def test_groups_of_one_name():
    with pytest.raises(PruneError, match="two groups have the same name"):
        pl.allocate(scored(a=[1, 2]), [group("a", 2), group("a", 2)], 0.5)


def by_hand(scores, n, m):
    """The definition in loops: of every m consecutive along dimension 1, the m - n lowest go, ties by index."""
    table = scores.movedim(1, -1).reshape(-1, m)
    keep = torch.ones_like(table, dtype=torch.bool)
    for line, stays in zip(table.tolist(), keep, strict=True):
        for i in sorted(range(m), key=lambda i: (line[i], i))[: m - n]:
            stays[i] = False
    return keep.view(scores.movedim(1, -1).shape).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(5, 8), (3, 16, 3, 3), (2, 8, 5)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (4, 4)])
def test_n_of_m_against_the_definition(shape, n, m):
    scores = {"w": torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).float()}
    groups = [Group("w", scores["w"].numel(), (Member("w"),))]
    keep = pl.allocate(scores, groups, None, NM(n, m))["w"].view(shape)
    assert torch.equal(keep, by_hand(scores["w"], n, m))


def test_the_sparsity_of_n_of_m_is_implied():
    scores = {"w": torch.rand(4, 8)}
    groups = [Group("w", 32, (Member("w"),))]
    assert NM(2, 4).sparsity == 0.5
    assert torch.equal(
        pl.allocate(scores, groups, 0.5, NM(2, 4))["w"], pl.allocate(scores, groups, None, NM(2, 4))["w"]
    )
    with pytest.raises(PruneError, match=r"sparsity is 0\.6, but 2:4 removes exactly 0\.5: leave the sparsity out"):
        pl.allocate(scores, groups, 0.6, NM(2, 4))
    with pytest.raises(PruneError, match="did you mean"):
        pl.allocate(scores, groups, 50, NM(2, 4))
    with pytest.raises(PruneError, match="sparsity is None"):
        pl.allocate(scores, groups, None)


@pytest.mark.parametrize("pattern", [(0, 4), (5, 4), (2.0, 4), (True, 4), (-1, 4), ("2", 4)])
def test_bad_patterns(pattern):
    with pytest.raises(PruneError, match="keep n of each m, whole numbers with 1 <= n <= m"):
        NM(*pattern)


def test_n_of_m_that_does_not_divide_the_row():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6, 4))
    scores = pl.criteria.magnitude(model)
    with pytest.raises(
        PruneError, match=r"2:4 needs inputs.*0\.weight \(8, 1, 3, 3\), 3\.weight \(4, 6\)\. .*exclude="
    ):
        pl.allocate(scores, granularity.weights(model), None, NM(2, 4))
    fewer = partial(granularity.weights, exclude=["0.weight", "3.weight"])
    pruned = pl.prune(model, pl.Recipe(granularity=fewer, scope=NM(2, 4)))
    assert pruned.report.sparsity == 0.5
    with pytest.raises(PruneError, match='2:4 compares single weights, but a holds structures: use "layer"'):
        pl.allocate(scored(a=[1, 2]), [group("a", 2)], None, NM(2, 4))
    with pytest.raises(PruneError, match=r"compares single weights"):
        pl.allocate(scores, granularity.blocks(2, 2, exclude=["0.weight"])(model), None, NM(2, 4))


def test_recipes_with_n_of_m():
    assert pl.Recipe().sparsity == 0.5
    assert pl.Recipe(scope=NM(1, 4)).sparsity == 0.75
    assert pl.Recipe(scope=NM(2, 4), sparsity=0.5) == pl.Recipe(scope=NM(2, 4))
    with pytest.raises(PruneError, match=r"1:4 removes exactly 0\.75"):
        pl.Recipe(scope=NM(1, 4), sparsity=0.5)
    with pytest.raises(PruneError, match=r"no scope is called 'x'; there is global, layer, row, and NM"):
        pl.Recipe(scope="x")


def test_n_of_m_in_rounds_goes_by_way_of_more():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    seen = []
    pl.prune(
        model,
        pl.Recipe(scope=NM(1, 4), schedule="linear", rounds=3),
        recover=lambda m: seen.append((m[0].weight.view(-1, 4) != 0).sum(1).unique().tolist()),
    )
    assert seen == [[3], [2], [1]]


def test_a_report_without_trouble_is_as_short_as_before():
    groups = [group("a", 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = str(pl.report(groups, pl.allocate(scored(a=[1, 2, 3, 4]), groups, 0.5)))
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_neither_overflow_nor_tie(kind):
    """70,000 ones are more than float16 can say, and a unit's last digits are less than bfloat16 can."""
    scores = {"w": torch.ones(3, 70_000, dtype=kind)}
    scores["w"][0, :100], scores["w"][2, :200] = 0.5, 0.5
    group = Group("w", 3, (Member("w", 0),))
    assert pl.allocate(scores, [group], 1 / 3)["w"].tolist() == [True, True, False]
    whole = Group("parts", 2, (), parts=(Part("a", 0), Part("b", 1)))
    halves = {"a.w": torch.full((70_000,), 2.0, dtype=kind), "b.w": torch.ones(70_000, dtype=kind)}
    assert pl.allocate(halves, [whole], 0.5)["parts"].tolist() == [True, False]
