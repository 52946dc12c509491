"""Masks hold, come off, and leave no trace."""

import copy

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError, apply, bake, masked
from prunelab.masking import current_masks, restore

NAMES = ["cnn", "mlp", "residual", "tied", "attention", "attention_kdim"]


def every_third(model):
    return {n: torch.arange(p.numel()).view(p.shape) % 3 > 0 for n, p in pl.prunable(model).items()}


def weight(model, name):
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute)


def test_apply_shows_zeros_and_keeps_what_lies_under_them(build):
    model = build("mlp")
    original = model[0].weight.detach().clone()
    mask = every_third(model)["0.weight"]
    assert apply(model, {"0.weight": mask}) is model
    assert torch.equal(model[0].weight, original * mask)
    assert torch.equal(pl.prunable(model)["0.weight"], original)


def test_masks_are_copied(build):
    model, masks = build("mlp"), every_third(build("mlp"))
    apply(model, masks)
    masks["0.weight"].fill_(False)
    current_masks(model)["0.weight"].fill_(False)
    assert int(model[0].weight.count_nonzero()) == 32


def test_a_second_apply_replaces_and_leaves_the_others(build):
    model, masks = build("mlp"), every_third(build("mlp"))
    apply(model, masks)
    apply(model, {"0.weight": ~masks["0.weight"]})
    worn = current_masks(model)
    assert torch.equal(worn["0.weight"], ~masks["0.weight"])
    assert torch.equal(worn["2.weight"], masks["2.weight"])
    assert len(model[0].parametrizations["weight"]) == 1


def test_masked_entries_get_no_gradient(build, data_for):
    model, (x, y) = build("mlp"), data_for("mlp")
    masks = every_third(model)
    apply(model, masks)
    nn.functional.cross_entropy(model(x), y).backward()
    grad = pl.prunable(model)["0.weight"].grad
    assert not grad[~masks["0.weight"]].any()
    assert grad[masks["0.weight"]].any()


def test_biases_take_masks_too():
    model = apply(nn.Linear(2, 3), {"bias": torch.tensor([True, False, True])})
    assert model.bias[1] == 0
    assert list(dict(bake(model).named_parameters())) == ["weight", "bias"]


@pytest.mark.parametrize("name", NAMES)
def test_bake_restores_a_plain_model(build, data_for, snapshot, name):
    model, (x, _) = build(name).eval(), data_for(name)
    plain = snapshot(model)
    masks = every_third(model)
    apply(model, masks)
    with torch.no_grad():
        worn = model(x)
        assert bake(model) is model
        assert torch.equal(model(x), worn)
    baked = snapshot(model)
    assert baked["modules"] == plain["modules"]
    assert baked["parameters"] == plain["parameters"]  # names, order, identity
    assert list(baked["state"]) == list(plain["state"])
    for n, mask in masks.items():
        assert not weight(model, n)[~mask].any()
        assert isinstance(weight(model, n), nn.Parameter)


def test_bake_of_a_plain_model_does_nothing(build, snapshot):
    model = build("cnn")
    before = snapshot(model)
    bake(model)
    assert snapshot(model) == before


def test_bake_leaves_other_parametrizations_alone(build):
    model = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    apply(model, {"bias": torch.tensor([True, False, True])})
    bake(model)
    assert list(model.parametrizations) == ["weight"]
    assert torch.allclose(model.weight @ model.weight.T, torch.eye(3), atol=1e-5)


def test_tied_weights_share_one_mask(build, data_for):
    for name in ("first.weight", "second.weight"):
        model, (x, _) = build("tied").eval(), data_for("tied")
        mask = torch.arange(36).view(6, 6) % 2 == 0
        apply(model, {name: mask})
        assert not model.first.weight[~mask].any()
        assert torch.equal(model.first.weight, model.second.weight)
        with torch.no_grad():
            worn = model(x)
            bake(model)
            assert torch.equal(model(x), worn)
        assert model.first.weight is model.second.weight
        assert not model.first.weight[~mask].any()


def test_groups_that_call_a_tied_weight_by_both_names_mask_it_once(build):
    model = build("tied")
    groups = [
        pl.Group("rows", 6, (pl.Member("first.weight", 0),)),
        pl.Group("columns", 6, (pl.Member("second.weight", 1),)),
    ]
    keep = {"rows": torch.arange(6) != 1, "columns": torch.arange(6) != 4}
    masks = pl.expand(model, groups, keep)
    assert torch.equal(masks["first.weight"], keep["rows"][:, None] & keep["columns"])
    with masked(model, masks):
        assert torch.equal(model.second.weight != 0, masks["first.weight"])
    assert list(masks) == ["first.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_masked_is_undone_to_the_bit(build, data_for, snapshot, name):
    model, (x, y) = build(name), data_for(name)
    nn.functional.cross_entropy(model(x), y).backward()
    before = snapshot(model)
    with masked(model, every_third(model)) as inside:
        assert inside is model
        assert not weight(model, next(iter(pl.prunable(model)))).all()
    assert snapshot(model) == before


def test_masked_is_undone_when_the_block_raises(build, snapshot):
    model = build("cnn")
    before = snapshot(model)

    def fail():
        with masked(model, every_third(model)):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert snapshot(model) == before


def test_masked_gives_worn_masks_back(build, snapshot):
    model = build("mlp")
    masks = every_third(model)
    apply(model, {"0.weight": masks["0.weight"]})
    before = snapshot(model)
    with masked(model, {n: ~m for n, m in masks.items()}):
        assert len(current_masks(model)) == 2
    assert snapshot(model) == before


def test_restore_wears_exactly_these(build):
    model = build("mlp")
    masks = every_third(model)
    original = model[0].weight.detach().clone()
    apply(model, {"0.weight": masks["0.weight"]})
    restore(model, {"2.weight": masks["2.weight"]})
    assert list(current_masks(model)) == ["2.weight"]
    assert torch.equal(model[0].weight, original)


def test_a_deepcopy_and_its_original_are_independent(build, data_for):
    model, (x, _) = build("cnn").eval(), data_for("cnn")
    apply(model, every_third(model))
    with torch.no_grad():
        worn = model(x)
        twin = copy.deepcopy(model)
        bake(twin)
        assert torch.equal(twin(x), worn)
        assert torch.equal(model(x), worn)  # torch's own class surgery would have broken the original
        again = copy.deepcopy(model)
        apply(again, {"8.bias": torch.zeros(3, dtype=torch.bool)})
        assert torch.equal(model(x), worn)
        bake(model)
        assert torch.equal(model(x), worn)
        assert current_masks(again).keys() == {"0.weight", "3.weight", "8.weight", "8.bias"}
        bake(again)
    assert [type(m) for m in again.modules()] == [type(m) for m in build("cnn").modules()]


def test_a_deepcopy_of_tied_weights_stays_tied(build):
    model = build("tied")
    apply(model, every_third(model))
    twin = bake(copy.deepcopy(model))
    assert twin.first.weight is twin.second.weight
    assert twin.first.weight is not pl.prunable(model)["first.weight"]


def test_state_dict_of_a_masked_model_round_trips(build, data_for):
    model, (x, _) = build("cnn").eval(), data_for("cnn")
    apply(model, every_third(model))
    other = build("cnn").eval()
    apply(other, {n: torch.ones_like(m) for n, m in every_third(other).items()})
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


BAD = {
    "an unknown name": ({"9.weight": torch.ones(3, 6, dtype=torch.bool)}, r"no tensor named '9\.weight'; it has 0"),
    "a name from inside": (
        {"0.parametrizations.weight.original": torch.ones(4, 1, 3, 3, dtype=torch.bool)},
        "no tensor named",
    ),
    "a wrong shape": (
        {"8.weight": torch.ones(6, 3, dtype=torch.bool)},
        r"mask of 8\.weight has shape \(6, 3\), the weight \(3, 6\)",
    ),
    "one that would broadcast": ({"8.weight": torch.ones(6, dtype=torch.bool)}, r"shape \(6,\)"),
    "floats": ({"8.weight": torch.ones(3, 6)}, r"mask of 8\.weight \(3, 6\) is torch\.float32: give torch\.bool"),
    "bytes": ({"8.weight": torch.ones(3, 6, dtype=torch.uint8)}, r"torch\.uint8: give torch\.bool"),
    "a list": ({"8.weight": [[True] * 6] * 3}, "is list: give torch.bool"),
    "a buffer": ({"1.running_mean": torch.ones(4, dtype=torch.bool)}, "is a buffer"),
}


@pytest.mark.parametrize("wear", [False, True], ids=["plain", "worn"])
@pytest.mark.parametrize("use", [apply, lambda m, k: masked(m, k).__enter__()], ids=["apply", "masked"])
@pytest.mark.parametrize("case", BAD)
def test_bad_masks_change_nothing(build, snapshot, case, use, wear):
    model = build("cnn")
    good = every_third(model)
    if wear:
        apply(model, good)
    before = snapshot(model)
    bad, message = BAD[case]
    with pytest.raises(PruneError, match=message):
        use(model, {"0.weight": ~good["0.weight"], **bad})  # the good one comes first, and isn't put on either
    assert snapshot(model) == before


def test_a_weight_with_another_parametrization_is_refused(snapshot):
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)))
    before = snapshot(model)
    with pytest.raises(
        PruneError,
        match=r"0\.weight takes no mask: it is made anew .* by the parametrization Orthogonal",
    ):
        apply(model, {"0.weight": torch.ones(3, 3, dtype=torch.bool)})
    assert snapshot(model) == before


@pytest.mark.parametrize("end", ["masked", "restore", "bake"])
def test_the_weight_keeps_its_storage_and_its_memory_layout(end):
    conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    flat, whole = conv.weight.data, conv.weight.detach().clone()  # someone else's view of the same numbers
    mask = torch.arange(8 * 8 * 9).view(8, 8, 3, 3) % 2 > 0
    if end == "masked":
        with masked(conv, {"weight": mask}):
            pass
    else:
        apply(conv, {"weight": mask})
        bake(conv) if end == "bake" else restore(conv, {})
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.data_ptr() == flat.data_ptr()
    assert torch.equal(flat, whole * mask if end == "bake" else whole)
