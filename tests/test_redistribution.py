"""What MAMA means to move is moved and its sum conserved; what its code moves is nothing, shown to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunelab as pl
from prunelab import PruneError
from prunelab.criteria import Mama, magnitude
from prunelab.reconstruction import as_published, redistribute, redistributed

WEIGHT = torch.tensor([[4.0, 1.0, -2.0], [8.0, 0.5, 0.5]])
MASK = torch.tensor([[True, False, True], [True, False, False]])


def test_rows_by_hand():
    assert redistributed(WEIGHT, MASK).tolist() == [[4.5, 0, -1.5], [9, 0, 0]]


def test_a_layer_by_hand():  # 1 + 0.5 + 0.5 shared by three
    expected = torch.tensor([[4 + 2 / 3, 0, -2 + 2 / 3], [8 + 2 / 3, 0, 0]])
    assert torch.allclose(redistributed(WEIGHT, MASK, "layer"), expected)


def test_a_row_that_keeps_nothing_has_no_heir():
    mask = torch.tensor([[False, False, False], [True, True, True]])
    assert redistributed(WEIGHT, mask).tolist() == [[0, 0, 0], [8, 0.5, 0.5]]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 600), st.floats(0.02, 0.98), st.sampled_from([(), (3, 3)])
)
def test_sums_are_conserved(seed, rows, columns, share, kernel):
    dice = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, *kernel, generator=dice) / (columns**0.5)
    mask = torch.rand(weight.shape, generator=dice) > share
    by_row = redistributed(weight, mask).double().flatten(1).sum(1)
    heirs = mask.flatten(1).any(1)
    assert ((by_row - weight.double().flatten(1).sum(1))[heirs].abs() < 1e-6).all()
    if mask.any():
        layer = redistributed(weight, mask, "layer").double().sum()
        assert abs(layer - weight.double().sum()) < 1e-6 * max(1, weight.abs().sum())
    for scope in ("row", "layer"):
        assert not redistributed(weight, mask, scope)[~mask].any()


@pytest.mark.parametrize("name", ["cnn", "mlp", "attention"])
@pytest.mark.parametrize("scope", ["layer", pl.NM(2, 4)], ids=str)
def test_the_published_order_is_magnitude_to_the_bit(build, name, scope):
    model = build(name)
    groups = [
        g for g in pl.granularity.weights(model) if scope == "layer" or pl.prunable(model)[g.name].shape[1] % 4 == 0
    ]
    if not groups:
        pytest.skip("no layer of four inputs")
    keep = pl.allocate(magnitude(model), groups, 0.5 if scope == "layer" else None, scope)
    masks = pl.expand(model, groups, keep)
    plain = {n: pl.prunable(model)[n].detach() * m for n, m in masks.items()}
    for n, m in masks.items():
        published = as_published(pl.prunable(model)[n], m)
        assert torch.equal(published.view(torch.int32)[m], plain[n].view(torch.int32)[m])
        assert torch.equal(published, plain[n])
        assert not torch.equal(redistributed(pl.prunable(model)[n], m), plain[n])


def test_three_lines_as_published():
    """The order of operations itself, without our function."""
    weight = WEIGHT.clone()
    weight[~MASK] = 0
    moved = weight[~MASK].sum()
    weight[MASK] += moved / MASK.sum()
    assert moved == 0
    assert torch.equal(weight, as_published(WEIGHT, MASK))


def test_a_model_wears_the_masks_and_keeps_its_sums(build, data_for):
    model, (x, _) = build("cnn").eval(), data_for("cnn")
    before = {n: w.detach().clone() for n, w in pl.prunable(model).items()}
    groups = pl.granularity.weights(model)
    masks = pl.expand(model, groups, pl.allocate(magnitude(model), groups, 0.5, "row"))
    assert redistribute(model, masks) is model
    worn = pl.masking.current_masks(model)
    assert all(torch.equal(worn[n], m) for n, m in masks.items())
    for n, m in masks.items():
        under = pl.prunable(model)[n].detach()
        assert torch.equal(under[~m], before[n][~m])
        assert torch.allclose((under * m).flatten(1).sum(1), before[n].flatten(1).sum(1), atol=1e-6)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(pl.bake(model)(x), y)


BAD = {
    "scope": ({"0.weight": torch.ones(8, 6, dtype=torch.bool)}, "column", "scope 'column'"),
    "floats": ({"0.weight": torch.ones(8, 6)}, "row", r"mask is torch\.float32 \(8, 6\)"),
    "shape": ({"0.weight": torch.ones(6, dtype=torch.bool)}, "row", r"mask is torch\.bool \(6,\), the weight \(8, 6\)"),
    "list": ({"0.weight": [True]}, "row", "mask is list"),
    "unknown": ({"9.weight": torch.ones(8, 6, dtype=torch.bool)}, "row", "no tensor named"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_changes_nothing(build, snapshot, case):
    model = build("mlp")
    before = snapshot(model)
    masks, scope, message = BAD[case]
    with pytest.raises(PruneError, match=message):
        redistribute(model, {"2.weight": torch.ones(3, 8, dtype=torch.bool), **masks}, scope)
    assert snapshot(model) == before


def test_a_weight_that_is_not_finite():
    with pytest.raises(PruneError, match="NaN or infinities"):
        redistributed(WEIGHT / 0, MASK)


# The score


def test_mama_by_hand():
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, -1.0, 2.0]]))
    w0 = {"weight": torch.tensor([[4.0, 1.0, 1.5]])}
    assert Mama(w0)(layer)["weight"].tolist() == [[0, 2, 1]]
    assert repr(Mama(w0)) == "Mama(w0 of 3 weights in 1 tensors)"


def test_mama_copies_the_weights_it_measures_from(build):
    model = build("mlp")
    mama = Mama.of(model)
    assert not any(s.any() for s in mama(model).values())
    with torch.no_grad():
        model[0].weight.add_(1)
    assert mama(model)["0.weight"].any()


def test_mama_ranks_unlike_both_its_parents(build, data_for):
    """Large that stood still, small that grew, and the product: three rankings."""
    model, (x, y) = build("cnn"), data_for("cnn")
    mama = Mama.of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    groups = pl.granularity.weights(model)
    parents = {
        "magnitude": magnitude(model),
        "movement": {n: (w.detach() - mama.w0[n]).abs() for n, w in pl.prunable(model).items()},
    }
    kept = pl.allocate(mama(model), groups, 0.5)
    for scores in parents.values():
        other = pl.allocate(scores, groups, 0.5)
        assert sum(int((kept[n] != other[n]).sum()) for n in kept) > 10


@pytest.mark.parametrize(
    ("w0", "message"),
    [
        ({}, r"w0 is of another model: for 0\.weight \(8, 6\) of this Sequential it has nothing"),
        ({"0.weight": torch.ones(8, 5)}, r"it has \(8, 5\)"),
    ],
)
def test_w0_of_another_model(build, snapshot, w0, message):
    model = build("mlp")
    before = snapshot(model)
    with pytest.raises(PruneError, match=message):
        Mama(w0)(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(("name", "advice"), [("movement", r"movement\.finetune"), ("mama", r"criteria\.Mama\.of")])
def test_names_that_need_more_than_a_model(name, advice):
    with pytest.raises(PruneError, match=f"'{name}' cannot be computed from a model alone.*{advice}"):
        pl.Recipe(name)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_keep_the_sum_of_each_output(groups):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    before = by_output(layer)
    name = next(iter(pl.prunable(layer)))
    weight = pl.prunable(layer)[name]
    redistribute(layer, {name: weight.abs() > weight.abs().median()})
    assert not torch.allclose(weight, layer.weight)
    assert torch.allclose(by_output(layer), before, atol=1e-5)
    bias = torch.tensor([True] * 5 + [False])
    assert redistribute(layer, {"bias": bias}).bias[5] == 0


def by_output(layer):
    """What each output is of an input of ones, in the middle of it: the sum of the weights that feed it."""
    ones = torch.ones(1, layer.in_channels, 7, 7)
    with torch.no_grad():
        return layer(ones)[0, :, 4, 4] - layer.bias
