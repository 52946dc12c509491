"""Exact counts, whoever is compared with whom, and sparsities that make no sense."""

import math
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError, allocate, layers
from prunelab.allocation import SCOPES, check_sparsity
from prunelab.core import Group, Member

A = torch.tensor([[4.0, 1.0, 3.0], [2.0, 8.0, 6.0]])
B = torch.tensor([[0.5, 7.0], [9.0, 5.0]])
SCORES = {"a": A, "b": B}
GROUPS = [Group("a", 6, (Member("a"),)), Group("b", 4, (Member("b"),))]


def flat(keep):
    return {name: k.int().tolist() for name, k in keep.items()}


def test_global_by_hand():
    assert flat(allocate(SCORES, GROUPS, 0.4)) == {"a": [1, 0, 0, 0, 1, 1], "b": [0, 1, 1, 1]}


def test_layer_by_hand():
    assert flat(allocate(SCORES, GROUPS, 0.5, "layer")) == {"a": [1, 0, 0, 0, 1, 1], "b": [0, 1, 1, 0]}


def test_row_by_hand():
    assert flat(allocate(SCORES, GROUPS, 0.34, "row")) == {"a": [1, 0, 1, 0, 1, 1], "b": [0, 1, 1, 0]}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_row_of_a_transposed_convolution_feeds_one_output(groups):
    """Its weight is (in, out of a group, ...): what feeds an output is a column, of each group's inputs."""
    layer = nn.ConvTranspose2d(8, 4, 1, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).view_as(layer.weight))
    keep = allocate(pl.criteria.magnitude(layer), pl.granularity.weights(layer), 0.5, "row")["weight"]
    lowest = torch.arange(8 // groups) < 4 // groups  # in every group and output alike
    expected = (~lowest).repeat(groups)[:, None].expand(8, 4 // groups)
    assert torch.equal(keep.view(8, -1), expected)
    assert pl.granularity.weights(nn.Conv2d(8, 4, 1))[0].members == (Member("weight"),)


def test_structures_by_hand():
    """Units are columns of `a` and rows of `b`: sums 6, 9, 9 and 7.5, 14; then both together for a coupled group."""
    columns, rows = Group("columns", 3, (Member("a", 1),)), Group("rows", 2, (Member("b", 0),))
    assert flat(allocate(SCORES, [columns, rows], 0.4)) == {"columns": [0, 1, 1], "rows": [0, 1]}
    coupled = Group("coupled", 2, (Member("a", 0), Member("b", 1)))  # 8 + 9.5, 16 + 12
    assert flat(allocate(SCORES, [coupled], 0.5, "layer")) == {"coupled": [0, 1]}
    block = Group("block", 1, (Member("a", 1, index=torch.tensor([[1, 2]])),))
    assert flat(allocate(SCORES, [block], 0.0)) == {"block": [1]}


def test_zero_sparsity_keeps_all_on_every_scope():
    for scope in SCOPES:
        assert all(k.all() for k in allocate(SCORES, GROUPS, 0.0, scope).values())


def test_seventy_values_of_three_kinds_lose_exactly_fourteen():
    """Of 70 values in {-2, 0, 2}, `score <= threshold` at 20 % removes all 25 that tie at the threshold."""
    weights = torch.tensor([0.0] * 25 + [2.0] * 22 + [-2.0] * 23)[torch.randperm(70)]
    scores, groups = {"w": weights.abs().view(7, 10)}, [Group("w", 70, (Member("w"),))]
    assert int((weights.abs() <= weights.abs().kthvalue(14).values).sum()) == 25
    for scope in SCOPES:
        gone = ~allocate(scores, groups, 0.2, scope)["w"]
        assert int(gone.sum()) == 14
    first = allocate(scores, groups, 0.2)["w"].logical_not().nonzero().view(-1).tolist()
    assert first == (weights == 0).nonzero().view(-1).tolist()[:14]  # ties go by index


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.01, 0.1, 0.25, 0.3333, 0.5, 0.77, 0.999])
def test_exact_counts_under_ties(scope, sparsity):
    shapes = {"a": (7, 10), "b": (5, 4, 3, 3), "c": (6, 1)}
    scores = {n: torch.ones(s) for n, s in shapes.items()}
    groups = [Group(n, s.numel(), (Member(n),)) for n, s in scores.items()]
    gone = {n: ~k.view(shapes[n][0], -1) for n, k in allocate(scores, groups, sparsity, scope).items()}
    if scope == "global":
        assert sum(int(g.sum()) for g in gone.values()) == round(sparsity * 256)
    elif scope == "layer":
        assert all(int(g.sum()) == round(sparsity * g.numel()) for g in gone.values())
    else:
        assert all((g.sum(1) == round(sparsity * g.shape[1])).all() for g in gone.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (50, "did you mean 0.5"),
        (99.5, "did you mean 0.995"),
        (100, "at least 0 and below 1"),
        (-0.1, "at least 0 and below 1"),
        (1.0, "would remove everything"),
        (1, "would remove everything"),
        (math.nan, "NaN"),
        (math.inf, "at least 0 and below 1"),
        (Fraction(50), "did you mean 0.5"),
        ("0.5", "a str"),
        (True, "a bool"),
        (0.5j, "a complex"),
        (torch.tensor(0.5), "a Tensor"),
    ],
    ids=str,
)
def test_sparsities_that_make_no_sense(wrong, message):
    for use in (check_sparsity, lambda s: allocate(SCORES, GROUPS, s), lambda s: pl.Recipe(sparsity=s)):
        with pytest.raises(PruneError, match=message):
            use(wrong)


@pytest.mark.parametrize("right", [0, 0.0, 0.5, np.float32(0.5), np.float64(0.25), Fraction(1, 4), 0.9999])
def test_sparsities_that_do(right):
    assert check_sparsity(right) == float(right)
    assert isinstance(check_sparsity(right), float)


@pytest.mark.parametrize("scope", ["local", "", None, 2, ["global"]])
def test_unknown_scope(scope):
    with pytest.raises(PruneError, match=r"no scope is called .*; there is global, layer, row"):
        allocate(SCORES, GROUPS, 0.5, scope)


def test_row_scope_of_structures():
    with pytest.raises(PruneError, match="holds structures"):
        allocate(SCORES, [Group("rows", 2, (Member("b", 0),))], 0.5, "row")


def test_missing_and_misshapen_scores():
    with pytest.raises(PruneError, match="no scores for b, which b needs; there are a"):
        allocate({"a": A}, GROUPS, 0.5)
    with pytest.raises(PruneError, match=r"b.*\(2, 3\)"):
        allocate({"a": A, "b": A}, GROUPS, 0.5)
    with pytest.raises(PruneError, match=r"b \(2, 2\)"):
        allocate(SCORES, [Group("rows", 3, (Member("b", 0),))], 0.5)


def test_scores_with_nan_and_infinities():
    holed = A.clone()
    holed[0, 1] = holed[1, 1] = torch.nan
    with pytest.raises(PruneError, match="2 of the 6 scores of a are NaN"):
        allocate({"a": holed}, GROUPS[:1], 0.5)
    ends = torch.tensor([[torch.inf, -torch.inf, 0.0], [-torch.inf, 1.0, torch.inf]])
    assert flat(allocate({"a": ends}, GROUPS[:1], 0.5)) == {"a": [1, 0, 0, 0, 1, 1]}


def test_within_is_nested_and_counts():
    scores, groups = {"w": torch.arange(10.0).view(2, 5)}, [Group("w", 10, (Member("w"),))]
    first = allocate(scores, groups, 0.3)
    opposite = {"w": 9 - scores["w"]}
    second = allocate(opposite, groups, 0.5, within=first)
    assert flat(second) == {"w": [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]}  # the old three, and the two lowest now
    assert flat(first) == {"w": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]}, "the earlier result was changed"
    assert flat(allocate(opposite, groups, 0.3, within=first)) == flat(first)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("scores", [torch.zeros(4, 10), torch.full((4, 10), -torch.inf), torch.arange(40).view(4, 10)])
def test_within_with_ties_infinities_and_whole_numbers(scope, scores):
    groups = [Group("w", 40, (Member("w"),))]
    first = allocate({"w": -torch.arange(40.0).view(4, 10)}, groups, 0.2, "row")
    second = allocate({"w": scores}, groups, 0.6, scope, within=first)
    assert int((~second["w"]).sum()) == 24
    assert not (second["w"] & ~first["w"]).any()


def test_within_and_less_sparsity():
    first = allocate(SCORES, GROUPS, 0.5)
    for scope in ("global", "layer"):
        with pytest.raises(PruneError, match=r"sparsity 0\.2 would bring \d units? of a back"):
            allocate(SCORES, GROUPS, 0.2, scope, within=first)


def test_within_of_other_groups():
    with pytest.raises(PruneError, match=r"does not fit a with 6 units"):
        allocate(SCORES, GROUPS, 0.5, within={"a": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(PruneError, match=r"does not fit b with 4 units"):
        allocate(SCORES, GROUPS, 0.5, within={"a": torch.ones(6, dtype=torch.bool)})


def test_inputs_are_not_changed():
    scores = {n: s.clone() for n, s in SCORES.items()}
    within = allocate(scores, GROUPS, 0.2)
    copies = {n: k.clone() for n, k in within.items()}
    for scope in ("global", "layer"):
        allocate(scores, GROUPS, 0.6, scope, within=within)
    assert all(torch.equal(scores[n], SCORES[n]) for n in scores)
    assert all(torch.equal(within[n], copies[n]) for n in within)


def test_scores_in_any_memory_layout():
    table = torch.tensor([[1.0, 5.0], [1.0, 1.0], [7.0, 1.0]])
    groups = [Group("w", 6, (Member("w"),))]
    for scope in SCOPES:
        expected = flat(allocate({"w": table}, groups, 0.5, scope))
        assert flat(allocate({"w": table.t().contiguous().t()}, groups, 0.5, scope)) == expected


def test_layers_of_mixed_precision_are_compared_exactly():
    exact = torch.linspace(0, 1, 20, dtype=torch.float64)
    scores = {"half": exact[::2].half(), "single": exact[1::2].float()}
    groups = [Group(n, 10, (Member(n),)) for n in scores]
    values = torch.cat([s.double() for s in scores.values()])
    for k in range(20):
        keep = allocate(scores, groups, k / 20)
        gone = ~torch.cat(list(keep.values()))
        assert sorted(gone.nonzero().view(-1).tolist()) == sorted(values.sort(stable=True).indices[:k].tolist())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_entries():
    model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2), nn.Linear(2, 2))
    groups = pl.granularity.weights(model)
    for scope in SCOPES:
        report = pl.report(groups, allocate(pl.criteria.magnitude(model), groups, 0.5, scope))
        assert [r.kept for r in report.layers] == [0, 0, 2]
        assert report.sparsity == 0.5
        assert report.emptied == ()


def test_expand_by_hand():
    model = nn.Linear(2, 3)
    kept = torch.tensor([True, False, True])
    groups = [Group("rows", 3, (Member("weight", 0), Member("bias", 0)))]
    masks = pl.expand(model, groups, {"rows": kept})
    assert masks["weight"].int().tolist() == [[1, 1], [0, 0], [1, 1]]
    assert masks["bias"].int().tolist() == [1, 0, 1]
    single = pl.expand(model, pl.granularity.weights(model), {"weight": torch.arange(6) % 2 == 0})
    assert single["weight"].int().tolist() == [[1, 0], [1, 0], [1, 0]]
    both = pl.expand(model, [*groups, Group("columns", 2, (Member("weight", 1),))], {"rows": kept, "columns": kept[:2]})
    assert both["weight"].int().tolist() == [[1, 0], [0, 0], [1, 0]]


def test_expand_and_report_of_what_does_not_fit(build):
    model = build("mlp")
    groups = pl.granularity.weights(model)
    keep = allocate(pl.criteria.magnitude(model), groups, 0.5)
    for use in (lambda k: pl.expand(model, groups, k), lambda k: pl.report(groups, k)):
        with pytest.raises(PruneError, match=r"keep has nothing for 2\.weight: expected 24 bools"):
            use({"0.weight": keep["0.weight"]})
        with pytest.raises(PruneError, match=r"of shape \(23,\) for 2\.weight: expected 24 bools"):
            use({**keep, "2.weight": keep["2.weight"][1:]})
    with pytest.raises(PruneError, match=r"0\.weight \(4, 6\)"):
        pl.expand(nn.Sequential(nn.Linear(6, 4)), groups, keep)
    with pytest.raises(PruneError, match=r"no tensor named '2\.weight'"):
        pl.expand(nn.Sequential(nn.Linear(6, 8)), groups, keep)


def test_report_by_hand():
    report = pl.report(GROUPS, allocate(SCORES, GROUPS, 0.5, "layer"))
    assert [(r.name, r.units, r.kept, r.sparsity) for r in report.layers] == [("a", 6, 3, 0.5), ("b", 4, 2, 0.5)]
    assert (report.total.units, report.total.kept, report.sparsity) == (10, 5, 0.5)
    assert str(report).splitlines()[-1].split() == ["total", "5", "of", "10", "kept", "50.00", "%", "removed"]


def test_report_names_emptied_layers():
    keep = allocate({"a": A + 100, "b": B}, GROUPS, 0.4)
    assert pl.report(GROUPS, keep).emptied == ("b",)
    assert "emptied, nothing passes through: b" in str(pl.report(GROUPS, keep))


def test_report_shows_what_rounding_achieved():
    report = pl.report(GROUPS, allocate(SCORES, GROUPS, 0.33, "layer"))
    assert report.sparsity == pytest.approx(0.3)  # 2 of 6 and 1 of 4


def test_ties_in_long_rows_go_by_index():
    scores = {"w": (torch.arange(4000) % 7 < 5).float().view(4, 1000)}
    keep = allocate(scores, [Group("w", 4000, (Member("w"),))], 0.5, "row")["w"].view(4, 1000)
    for row, kept in zip(scores["w"], keep, strict=True):
        gone = row.sort(stable=True).indices[:500]
        assert torch.equal((~kept).nonzero().view(-1), gone.sort().values)


# Where a weight does not lie as (out, in, ...)

ROWS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])  # (out, in)
KEPT = [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("scope", ["row", pl.NM(2, 4)], ids=str)
@pytest.mark.parametrize(
    ("layout", "lie"),
    [
        (0, lambda w: w),
        (1, lambda w: w.T),  # a Conv1D: (in, out)
        (layers.STACKED, lambda w: torch.stack([w, -w])),  # experts: (experts, out, in)
        (layers.STACKED_TRANSPOSED, lambda w: torch.stack([w.T, -w.T])),  # (experts, in, out)
    ],
    ids=["linear", "conv1d", "stacked", "stacked_turned"],
)
def test_rows_and_patterns_go_by_the_inputs_of_an_output(scope, layout, lie):
    scores, kept = lie(ROWS), lie(torch.tensor(KEPT))
    if scores.dim() == 3:
        kept[1] = 1 - kept[0]  # of the second expert, whose scores are the negatives, the others stay
    share = None if isinstance(scope, pl.NM) else 0.5
    keep = allocate({"w": scores}, [Group("w", scores.numel(), (Member("w", layout=layout),))], share, scope)
    assert keep["w"].view(scores.shape).int().tolist() == kept.tolist()


def test_a_pattern_in_a_transposed_convolution_goes_by_its_inputs():
    """(in, out of a group) of two groups: out 0 reads in 0 and 1, out 1 reads in 2 and 3; one of each two stays."""
    scores = {"w": torch.tensor([[1.0], [2.0], [4.0], [3.0]]).view(4, 1, 1, 1)}
    keep = allocate(scores, [Group("w", 4, (Member("w", layout=2),))], None, pl.NM(1, 2))
    assert flat(keep) == {"w": [0, 1, 1, 0]}


@pytest.mark.parametrize("scope", ["row", pl.NM(2, 4)], ids=str)
def test_experts_that_do_not_say_how_they_lie(scope):
    scores, groups = {"w": torch.rand(2, 4, 4)}, [Group("w", 32, (Member("w", layout=layers.UNKNOWN_LAYOUT),))]
    with pytest.raises(PruneError, match=r"w \(2, 4, 4\) holds experts' matrices.*set is_transposed"):
        allocate(scores, groups, None if isinstance(scope, pl.NM) else 0.5, scope)
    assert int(allocate(scores, groups, 0.5, "layer")["w"].sum()) == 16


def test_scores_that_lack_say_what_to_leave_out():
    groups = [*GROUPS, Group("c", 6, (Member("c"),)), Group("d", 6, (Member("d"),))]
    with pytest.raises(PruneError, match=r"no scores for c, .*weights\(model, exclude=\['c', 'd'\]\)"):
        allocate(SCORES, groups, 0.5)


# What the report says of the whole model


def test_the_share_of_the_whole_model_by_hand():
    """10 weights of 19 parameters: a mask worn hides 1, these 5 more, and one bias is 0 by itself."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        model[2].bias[0] = 0
    groups = pl.granularity.weights(model)
    keep = {"0.weight": torch.tensor([True, True, False, False]), "2.weight": torch.arange(6) > 2}
    pl.apply(model, {"0.weight": torch.tensor([[False, True], [True, True]])})
    report = pl.report(groups, keep, model)
    assert (report.parameters, report.zeros, report.sparsity) == (19, 7, 0.5)
    assert report.uncovered == {"biases": 7, "LayerNorm": 2}
    assert str(report).splitlines()[-2:] == [
        "7 of 19 parameters of the model are zero, 36.84 %",
        "9 parameters are in no group and stay: biases 7, LayerNorm 2",
    ]
    assert "parameters" not in str(pl.report(groups, keep))


def test_what_stays_is_named_with_its_reason():
    class Found(list):
        stays = MappingProxyType({"stem": "makes the network's output"})

    report = pl.report(Found(GROUPS), allocate(SCORES, GROUPS, 0.5))
    assert str(report).splitlines()[-1] == "stem stays: it makes the network's output"
