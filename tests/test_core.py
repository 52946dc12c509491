"""What can be pruned, and how tensors are named, whatever the model looks like."""

import pytest
import torch
from torch import nn

from prunelab.core import Mask, PruneError, device_of, lookup, mode, places, prunable, shape
from prunelab.masking import apply


def masks_of(model):
    return {n: torch.arange(p.numel()).view(p.shape) % 2 == 0 for n, p in prunable(model).items()}


def test_prunable_yields_weights_only(build):
    assert list(prunable(build("cnn"))) == ["0.weight", "3.weight", "8.weight"]
    assert list(prunable(build("residual"))) == ["stem.weight", "blocks.0.0.weight", "blocks.1.0.weight", "head.weight"]


def test_prunable_of_attention_includes_the_projections(build):
    assert list(prunable(build("attention"))) == ["attend.in_proj_weight", "attend.out_proj.weight", "head.weight"]
    assert list(prunable(build("attention_kdim")))[:3] == [f"attend.{n}_proj_weight" for n in "qkv"]


def test_a_lone_layer_has_no_path():
    assert list(prunable(nn.Linear(2, 3))) == ["weight"]
    assert [p.name for p in places(nn.Linear(2, 3))] == ["weight", "bias"]


@pytest.mark.parametrize("name", ["cnn", "residual", "tied", "attention", "attention_kdim"])
def test_masks_change_neither_names_nor_order_nor_identity(build, name):
    model = build(name)
    before = [(n, id(p)) for n, p in prunable(model).items()]
    named = [p.name for p in places(model)]
    apply(model, masks_of(model))
    assert [(n, id(p)) for n, p in prunable(model).items()] == before
    assert [p.name for p in places(model)] == named


def test_masking_one_projection_alone_keeps_the_order(build):
    model = build("attention_kdim")
    before = list(prunable(model))
    apply(model, {"attend.k_proj_weight": torch.ones(4, 6, dtype=torch.bool)})
    assert list(prunable(model)) == before


def test_a_tied_weight_appears_once_under_its_first_name(build):
    model = build("tied")
    assert list(prunable(model)) == ["first.weight", "head.weight"]
    assert [p.name for p in lookup(model, "second.weight")] == ["first.weight", "second.weight"]


def test_a_weight_tied_to_an_embedding_is_left_out(build):
    assert list(prunable(build("tied_embedding"))) == ["inner.weight"]


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(), nn.BatchNorm1d(3), nn.Embedding(3, 2)])
def test_nothing_prunable(model, snapshot):
    before = snapshot(model)
    with pytest.raises(PruneError, match="nothing to prune"):
        prunable(model)
    assert snapshot(model) == before


def test_only_a_tied_embedding_is_nothing_prunable():
    model = nn.ModuleDict({"e": nn.Embedding(5, 2), "o": nn.Linear(2, 5, bias=False)})
    model["o"].weight = model["e"].weight
    with pytest.raises(PruneError, match="tied to an embedding"):
        prunable(model)


def test_a_lazy_layer_says_what_to_do():
    with pytest.raises(PruneError, match=r"weight has no shape yet.*run one batch"):
        prunable(nn.LazyLinear(3))


def test_frozen_weights_count():
    assert list(prunable(nn.Linear(2, 2).requires_grad_(False))) == ["weight"]


def test_lookup_of_an_unknown_name_lists_known_ones(build):
    with pytest.raises(PruneError, match=r"no tensor named 'fc.weight'; it has 0.weight, 0.bias"):
        lookup(build("cnn"), "fc.weight")


def test_lookup_finds_buffers(build):
    (place,) = lookup(build("cnn"), "1.running_mean")
    assert place.tensor.shape == (4,)


def test_mode_is_restored_module_by_module_even_on_error(build, snapshot):
    model = build("cnn")
    model[1].eval()
    before = snapshot(model)

    def fail():
        with mode(model, training=False):
            assert not any(m.training for m in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert snapshot(model) == before


def test_a_mask_makes_plain_zeros_even_of_infinities_and_negatives():
    masked = Mask(torch.tensor([True, False, False, False]))(torch.tensor([1.0, -2.0, torch.inf, torch.nan]))
    assert masked.tolist() == [1, 0, 0, 0]
    assert not torch.signbit(masked).any()


def test_small_helpers():
    assert shape(torch.zeros(2, 3)) == "(2, 3)"
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
