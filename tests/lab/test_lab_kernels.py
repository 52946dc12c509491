"""Sparse products: what is computed, not how fast."""

import math
import warnings

import pytest
import torch

from prunelab.core import PruneError
from prunelab.lab.lessons import physics as kernels
from prunelab.lab.lessons.physics import _beta_silenced, products, two_of_four, weights_of
from prunelab.measurement.timing import Conditions

CPU = ("dense", "csr", "bsr")
QUICK = Conditions(rounds=7)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_each_format_holds_exactly_the_zeros_it_was_asked_for(sparsity):
    weights = weights_of(64, sparsity, CPU, block=(8, 4))
    zeros = {name: int((w.to_dense() == 0).sum()) for name, w in weights.items()}
    assert zeros["dense"] == zeros["csr"] == round(sparsity * 64 * 64)
    assert zeros["bsr"] == round(sparsity * 128) * 32
    assert weights["csr"].layout is torch.sparse_csr
    assert weights["bsr"].layout is torch.sparse_bsr


def test_the_zeros_of_bsr_are_whole_blocks():
    tiles = weights_of(64, 0.7, ["bsr"], block=(8, 4))["bsr"].to_dense().view(8, 8, 16, 4).transpose(1, 2)
    nonzero = (tiles != 0).flatten(2).sum(2)
    assert set(nonzero.flatten().tolist()) == {0, 32}


def test_every_kernel_multiplies_right():
    x = torch.randn(64, 3)
    for w in weights_of(64, 0.8, CPU).values():
        assert torch.allclose(w @ x, w.to_dense() @ x, atol=1e-5)


def test_weights_depend_on_the_seed_alone_and_leave_the_random_state():
    before = torch.get_rng_state()
    first, again, other = (weights_of(32, 0.5, ["dense"], seed=s)["dense"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_notice_about_young_formats_is_silenced():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _beta_silenced():
            warnings.warn("Sparse CSR tensor support is in beta state. If you miss ...", stacklevel=1)
            warnings.warn("Sparse BSR tensor support is in beta state. If you miss ...", stacklevel=1)
            warnings.warn("Sparse CSR tensor support is in flames", stacklevel=1)
    assert [str(w.message) for w in caught] == ["Sparse CSR tensor support is in flames"]


def test_there_is_a_row_for_every_combination_and_each_is_compared_with_dense():
    found = products(16, (1, 4), (0.5, 0.9), on=QUICK)
    assert [(r.batch, r.sparsity, r.kernel) for r in found.rows] == [
        (b, s, k) for b in (1, 4) for s in (0.5, 0.9) for k in CPU
    ]
    for r in found.rows:
        assert 0 < r.latency.p10 <= r.latency.p50 <= r.latency.p90 < math.inf
        assert 0 < r.speedup.low <= r.speedup.ratio <= r.speedup.high
        assert (r.latency.batch, r.latency.threads, r.latency.device, r.latency.rounds) == (r.batch, 1, "cpu", 7)
        assert r.kernel != "dense" or r.speedup.ratio == 1
    curves = found.curves()
    assert list(curves) == ["CSR, 1 column", "BSR, 1 column", "CSR, 4 columns", "BSR, 4 columns"]
    sparsities, ratios = curves["CSR, 4 columns"]
    assert sparsities == [0.5, 0.9]
    assert len(ratios) == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": 0}, "n=0: give a whole number"),
        ({"batch": (1.5,)}, "whole number"),
        ({"sparsities": [50]}, "below 1"),
        ({"sparsities": [1.0]}, "below 1"),
        ({"kernels": ["coo"]}, "kernels="),
        ({"kernels": ["2:4"]}, "sparse tensor cores of an NVIDIA GPU"),
        ({"n": 16, "block": (5, 4)}, "blocks of 5 x 4 do not divide a weight of 16 x 16"),
        ({"n": 24}, "blocks of 16 x 16 do not divide a weight of 24 x 24"),
    ],
)
def test_bad_input_is_refused(given, says):
    with pytest.raises((PruneError, TypeError), match=says):
        products(**{"n": 16, "batch": 2, "sparsities": [0.5], "on": QUICK, **given})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"clock": "sun"}, "clock='sun'"),
        ({"threads": 2, "clock": "processor"}, "one thread on a CPU.*not for 2 threads on cpu"),
        ({"rounds": 3}, "rounds=3"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_conditions_that_cannot_be_are_refused(given, says):
    with pytest.raises(PruneError, match=says):
        Conditions(**given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_two_of_four_is_none():
    assert two_of_four(64, 8) is None


def test_an_older_gpu_has_the_other_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert kernels._kernels(None, "cuda") == ("dense", "csr", "bsr")
    with pytest.raises(PruneError, match=r"compute capability 8\.0"):
        kernels._kernels(["2:4"], "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert kernels._kernels(["2:4"], "cuda") == ("dense", "2:4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_two_of_four_on_a_gpu():
    weights = weights_of(256, 0.5, ["dense", "2:4"], device="cuda")
    x = torch.randn(256, 64, device="cuda", dtype=torch.float16)
    dense = weights["2:4"].to_dense()
    assert torch.equal((dense.view(256, -1, 4) != 0).sum(2), torch.full((256, 64), 2, device="cuda"))
    assert torch.allclose(weights["2:4"] @ x, dense @ x, atol=0.1)
    assert list(weights_of(256, 0.9, ["dense", "2:4"], device="cuda")) == ["dense"]
