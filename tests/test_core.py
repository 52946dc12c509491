"""What can be pruned, and how tensors are named, whatever the model looks like."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import prunelab as pl
from prunelab import layers
from prunelab.core import Group, Mask, Member, PruneError, device_of, lookup, mode, places, shape
from prunelab.layers import prunable
from prunelab.masking import apply, bake, masked
from prunelab.running import duplicate, undisturbed


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


@pytest.mark.parametrize("block", [lambda model: mode(model, training=False), undisturbed], ids=["mode", "undisturbed"])
def test_a_block_that_an_interrupt_kept_from_beginning_changes_nothing_later(build, snapshot, block):
    """It is collected with the traceback: then nothing may come back that others have put right long ago."""
    model = build("cnn")
    begun = block(model)
    model.train()
    torch.manual_seed(1)
    before = snapshot(model)
    del begun
    gc.collect()
    assert snapshot(model) == before


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


# What pruning reaches: recurrent layers, Conv1D, experts, Bilinear


class Conv1D(nn.Module):
    """As transformers' GPT-2 has it: a Linear whose weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class Experts(nn.Module):
    def __init__(self, **says) -> None:
        super().__init__()
        self.num_experts = 2
        self.up, self.up_bias = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.zeros(2, 3))
        self.scale = nn.Parameter(torch.randn(5, 3, 4))  # three dimensions, but of no experts
        for name, value in says.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("layer", "names", "layout"),
    [
        (nn.LSTM(3, 2, bidirectional=True), "weight_ih_l0 weight_hh_l0 weight_ih_l0_reverse weight_hh_l0_reverse", 0),
        (nn.LSTM(3, 4, proj_size=2), "weight_ih_l0 weight_hh_l0 weight_hr_l0", 0),
        (nn.GRU(3, 2, 2), "weight_ih_l0 weight_hh_l0 weight_ih_l1 weight_hh_l1", 0),
        (nn.RNN(3, 2), "weight_ih_l0 weight_hh_l0", 0),
        (nn.LSTMCell(3, 2), "weight_ih weight_hh", 0),
        (nn.Bilinear(3, 2, 4), "weight", 0),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "weight", 2),
        (Conv1D(3, 2), "weight", 1),
        (Experts(is_transposed=False), "up", layers.STACKED),
        (Experts(is_transposed=True), "up", layers.STACKED_TRANSPOSED),
        (Experts(input_size=4, output_size=3), "up", layers.STACKED),
        (Experts(input_size=3, output_size=4), "up", layers.STACKED_TRANSPOSED),
        (Experts(), "up", layers.UNKNOWN_LAYOUT),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else None,
)
def test_what_is_a_weight_and_how_it_lies(layer, names, layout):
    found = prunable(layer)
    assert list(found) == names.split()
    for name, weight in found.items():
        assert layers.layout_of(lookup(layer, name)[0]) == layout
        table = layers.to_out_in(weight.detach(), layout)
        assert torch.equal(layers.from_out_in(table, layout, weight.shape), weight)
    before = [p.name for p in places(layer)]
    apply(layer, masks_of(layer))  # under a mask a layer's type has another name
    assert list(prunable(layer)) == names.split()
    assert [p.name for p in places(layer)] == before


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_layer_alone_is_refused_with_the_reason(wrap, snapshot):
    model = nn.Sequential(wrap(nn.Conv2d(2, 3, 3)))
    before = snapshot(model)
    reason = r"0\.weight is made anew in every forward by the parametrization \w+Norm: call .*remove_parametrizations"
    with pytest.raises(PruneError, match=reason):
        prunable(model)
    assert snapshot(model) == before


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (lambda m: torch.nn.utils.weight_norm(m), r"remove_weight_norm\(module, 'weight'\)"),
        (lambda m: torch.nn.utils.spectral_norm(m), r"remove_spectral_norm\(module, 'weight'\)"),
        (lambda m: torch_prune.random_unstructured(m, "weight", 0.5), r"prune\.remove\(module, 'weight'\)"),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_a_layer_with_a_hook_is_refused_with_the_reason(wrap, remedy):
    with pytest.raises(PruneError, match=f"weight is made anew .*{remedy}"):
        prunable(wrap(nn.Linear(3, 2)))


def test_a_parametrized_layer_among_others_is_left_out_and_named():
    """Never by making its value: in training mode a spectral norm changes its buffers as it is made."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    before = {n: b.clone() for n, b in model.named_buffers()}
    assert list(prunable(model)) == ["1.weight"]
    with pytest.warns(UserWarning, match=r"not among what can go: 0\.weight is made anew"):
        pruned = pl.prune(model, pl.Recipe())
    assert "0.weight stays: it is made anew in every forward by the parametrization SpectralNorm" in str(pruned)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers() if n in before)


def test_weights_that_are_no_floats():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(PruneError, match=r"weight holds torch\.uint8: load the model in floating point"):
        prunable(layer)


def quantized():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear}, torch.qint8)


def prepared():
    model = nn.Sequential(nn.Linear(3, 2)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)


@pytest.mark.filterwarnings("ignore")  # torch deprecates all of these
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (quantized, r"0, a Linear, is quantized.*prune the model in floating point"),
        (prepared, r"quantization-aware training adds.*before torch\.ao\.quantization\.prepare_qat"),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 2))), r"it is TorchScript.*prune the nn\.Module"),
        (lambda: nn.Linear(3, 2, device="meta"), r"weight \(2, 3\) of this Linear is on the meta device.*load"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), r"1\.weight has no shape yet.*run one batch"),
    ],
    ids=["quantized", "prepared", "script", "meta", "lazy"],
)
def test_models_of_another_kind_are_refused_with_the_reason(make, message):
    with pytest.raises(PruneError, match=message):
        prunable(make())


def test_a_cut_sets_the_declared_sizes():
    """Channel 1 of 4 leaves a Linear and all that read it; a masked and a shrunk model then compute the same."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rnn, self.gru = nn.Linear(3, 4), nn.LSTM(4, 2, batch_first=True), nn.GRUCell(4, 2)
            self.conv1d, self.two = Conv1D(2, 4), nn.Bilinear(4, 3, 2)

        def forward(self, x):
            y = self.first(x)
            return self.rnn(y[:, None])[0][:, 0] + self.gru(y) + self.conv1d(y) + self.two(y, x)

    model, x = Reads(), torch.randn(5, 3)
    readers = (("rnn.weight_ih_l0", 1), ("gru.weight_ih", 1), ("conv1d.weight", 0), ("two.weight", 1))
    members = (Member("first.weight", 0), Member("first.bias", 0), *(Member(n, dim) for n, dim in readers))
    groups, keep = [Group("y", 4, members)], {"y": torch.tensor([True, False, True, True])}
    small = pl.shrink(model, groups, keep)
    assert (small.rnn.input_size, small.rnn.hidden_size, small.gru.input_size) == (3, 2, 3)
    assert (small.conv1d.nx, small.conv1d.nf, small.two.in1_features, small.two.in2_features) == (3, 2, 3, 3)
    pl.apply(model, pl.expand(model, groups, keep))
    torch.testing.assert_close(small(x), model(x))


def test_masks_hold_in_a_recurrent_layer(snapshot):
    """Torch's own list of an LSTM's weights follows the masks: through training, copies and baking."""
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)
    whole, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.1)
    masks = masks_of(model)
    apply(model, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            whole.get_parameter(name).mul_(mask)
    torch.testing.assert_close(model(x)[0], whole(x)[0])
    for lstm in (model, whole):
        lstm(x)[0].square().sum().backward()
    optimizer.step()
    assert torch.equal(copy.deepcopy(model)(x)[0], model(x)[0])
    worn = model(x)[0]
    before = snapshot(model)
    with masked(model, {"weight_ih_l1": torch.zeros(16, 4, dtype=torch.bool)}):
        assert not torch.equal(model(x)[0], worn)
    assert snapshot(model) == before
    bake(model)
    assert type(model) is nn.LSTM
    assert torch.equal(model(x)[0], worn)
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())
    assert all(mine is listed for mine, listed in zip(model.parameters(), model._flat_weights, strict=True))


def test_a_copy_on_another_device_keeps_what_is_tied_and_the_model_where_it_is():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    net[1].weight.requires_grad_(False)
    twin = duplicate(net, "meta")
    assert {t.device.type for t in twin.state_dict().values()} == {"meta"}
    assert twin[2].weight is twin[0].weight
    assert isinstance(twin[0].weight, nn.Parameter)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in net.parameters()]
    assert {t.device.type for t in net.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_copy_where_the_model_is_shares_nothing_with_it(device):
    net = nn.Linear(2, 1)
    twin = duplicate(net, device)
    assert torch.equal(twin.weight, net.weight)
    assert twin.weight.data_ptr() != net.weight.data_ptr()
