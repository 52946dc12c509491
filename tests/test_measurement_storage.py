"""Stored sizes against real encoders: to_sparse_csr, np.packbits, gzip, safetensors."""

import gzip

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from prunelab.core import PruneError
from prunelab.masking import apply, bake
from prunelab.measurement import count, stored_bytes
from prunelab.measurement.costs import FORMATS


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 7))
    with torch.no_grad():
        for weight in (model[0].weight, model[3].weight):
            weight[torch.rand_like(weight) < 0.7] = 0
    return model


def prunable_and_rest(model):
    weights = [model[0].weight.detach(), model[3].weight.detach()]
    rest = sum(t.nbytes for t in model.state_dict().values()) - sum(w.nbytes for w in weights)
    return weights, rest


def test_dense_is_what_a_checkpoint_holds(model):
    tensors = model.state_dict()
    assert stored_bytes(model)["dense"] == sum(t.nbytes for t in tensors.values())
    header = int.from_bytes(save(tensors)[:8], "little")
    assert stored_bytes(model)["dense"] == len(save(tensors)) - 8 - header


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_csr_is_the_size_of_the_real_components(model):
    weights, rest = prunable_and_rest(model)
    real = rest
    for weight in weights:
        csr = weight.flatten(1).to_sparse_csr()
        parts = csr.values(), csr.col_indices().to(torch.int32), csr.crow_indices().to(torch.int32)
        real += sum(part.nbytes for part in parts)
    assert stored_bytes(model)["csr"] == real


def test_bitmask_is_the_size_of_a_real_encoding_that_decodes(model):
    weights, rest = prunable_and_rest(model)
    real = rest
    for weight in weights:
        flat = weight.numpy().ravel()
        bits, values = np.packbits(flat != 0), flat[flat != 0]
        decoded = np.zeros_like(flat)
        decoded[np.unpackbits(bits, count=flat.size).astype(bool)] = values
        assert np.array_equal(decoded, flat)
        real += bits.nbytes + values.nbytes
    assert stored_bytes(model)["bitmask"] == real


def test_gzip_is_the_size_of_a_real_file(model):
    raw = b"".join(t.numpy().tobytes() for t in model.state_dict().values())
    assert stored_bytes(model, ["gzip"]) == {"gzip": len(gzip.compress(raw, 6))}


def test_gzip_takes_any_dtype_and_layout():
    model = nn.Linear(6, 4, dtype=torch.bfloat16)
    model.weight = nn.Parameter(model.weight.detach().t())  # not contiguous
    model.register_buffer("flag", torch.tensor(True))
    assert stored_bytes(model)["gzip"] > 20
    assert stored_bytes(model)["dense"] == 2 * 28 + 1


def test_by_hand():
    model = nn.Linear(9, 2)  # 18 weights, whose bits take 3 bytes, and 2 biases
    with torch.no_grad():
        model.weight.fill_(0)
        model.weight[0, :3] = 1
    sizes = stored_bytes(model, ("dense", "csr", "bitmask"))
    assert sizes == {"dense": 80, "csr": 3 * (4 + 4) + 3 * 4 + 8, "bitmask": 3 * 4 + 3 + 8}
    assert count(model) == (20, 3 + int(torch.count_nonzero(model.bias)))


def test_below_half_density_csr_pays():
    model = nn.Linear(1000, 1000, bias=False)
    for zeros, pays in ((490, False), (510, True)):
        with torch.no_grad():
            model.weight.fill_(1)[:, :zeros] = 0
        sizes = stored_bytes(model, ("dense", "csr"))
        assert (sizes["csr"] < sizes["dense"]) is pays


def test_a_masked_model_counts_as_it_will_when_baked(model):
    apply(model, {"0.weight": torch.rand(8, 3, 3, 3) > 0.5, "3.weight": torch.rand(7, 32) > 0.5})
    masked = stored_bytes(model), count(model)
    assert masked == (stored_bytes(bake(model)), count(model))


def test_tied_weights_are_stored_once():
    alone, tied = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight, tied[1].bias = tied[0].weight, tied[0].bias
    assert stored_bytes(tied, ["dense"]) == stored_bytes(alone, ["dense"]) == {"dense": 80}
    assert count(tied)[0] == 20


def test_what_no_checkpoint_holds_is_not_counted():
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("cache", torch.zeros(1000), persistent=False)
    assert stored_bytes(model, ["dense", "csr"]) == {"dense": 16, "csr": 4 * 8 + 3 * 4}


def test_other_parametrizations_are_stored_as_they_are():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert stored_bytes(model, ["dense"])["dense"] == 4 * (2 + 2 + 6)
    assert count(model)[0] == 10


def test_a_model_with_nothing_to_prune_is_dense_in_every_format():
    sizes = stored_bytes(nn.LayerNorm(5), ("dense", "csr", "bitmask"))
    assert set(sizes.values()) == {40}
    assert stored_bytes(nn.ReLU())["dense"] == 0
    assert count(nn.ReLU()) == (0, 0)


def test_the_model_is_untouched(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stored_bytes(model)
    count(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("formats", [["zip"], ["dense", "coo"], "dense"])
def test_unknown_formats_are_refused(model, formats):
    with pytest.raises(PruneError, match=r"formats=.*'dense', 'csr', 'bitmask', 'gzip'"):
        stored_bytes(model, formats)


def test_all_formats_come_in_their_order(model):
    assert tuple(stored_bytes(model)) == tuple(FORMATS) == ("dense", "csr", "bitmask", "gzip")
