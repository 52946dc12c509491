"""Sparse products and crossovers: what is computed, not how fast; a crossing is sought on times we make up."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

from prunelab.core import PruneError
from prunelab.lab.lessons import physics as kernels
from prunelab.lab.lessons.physics import _beta_silenced, bracketed, crossover, products, two_of_four, weights_of
from prunelab.measurement.timing import Conditions, Speedup

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


def test_a_table_has_a_row_for_every_combination_and_compares_with_dense():
    found = products((16, 32), (1, 4), (0.5, 0.9), on=QUICK)
    assert [(r.n, r.batch, r.sparsity, r.kernel) for r in found.rows] == [
        (n, b, s, k) for n in (16, 32) for b in (1, 4) for s in (0.5, 0.9) for k in CPU
    ]
    for r in found.rows:
        assert 0 < r.latency.p10 <= r.latency.p50 <= r.latency.p90 < math.inf
        assert 0 < r.speedup.low <= r.speedup.ratio <= r.speedup.high
        assert (r.latency.batch, r.latency.threads, r.latency.device, r.latency.rounds) == (r.batch, 1, "cpu", 7)
        assert r.kernel != "dense" or r.speedup.ratio == 1
    sparsities, ratios = found.curve("csr", 16, 4)
    assert sparsities == [0.5, 0.9]
    assert len(ratios) == 2
    assert list(found.curves())[:2] == ["CSR, 16 x 16, 1 column", "BSR, 16 x 16, 1 column"]
    assert "16 x 16" in str(found)
    assert found._repr_html_().count("<tr>") == 25
    with pytest.raises(PruneError, match=r"2:4 was not timed at n=16, batch=4"):
        found.curve("2:4", 16, 4)


def test_curves_of_one_size_are_named_by_kernel_and_columns():
    assert list(products(16, 2, [0.5], kernels=["csr"], on=QUICK).curves()) == ["CSR, 2 columns"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": 0}, "n=0: give a whole number"),
        ({"batch": 1.5}, "not iterable|whole number"),
        ({"sparsities": [50]}, r"did you mean 0.5\?"),
        ({"sparsities": [1.0]}, "below 1"),
        ({"kernels": ["coo"]}, "kernels="),
        ({"kernels": ["2:4"]}, "sparse tensor cores of an NVIDIA GPU"),
        ({"n": 16, "block": (5, 4)}, "blocks of 5 x 4 do not divide a weight of 16 x 16"),
        ({"n": 24}, "blocks of 16 x 16 do not divide a weight of 24 x 24"),
    ],
)
def test_bad_input_is_refused(given, says):
    with pytest.raises((PruneError, TypeError), match=says):
        products(**{"n": 16, "batch": 2, "on": QUICK, **given})


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


# Crossovers, on a machine that is a formula: faster(s) = what CSR gains over dense


def made_up(crossing, noise=0.0):
    """A speed-up that is 1 at `crossing`, and proportional to 1 / density; its interval is `noise` wide each way."""
    calls = []

    def faster(sparsity):
        calls.append(sparsity)
        ratio = (1 - crossing) / (1 - sparsity)
        return Speedup(ratio, ratio * (1 - noise), ratio * (1 + noise))

    return faster, calls


@pytest.mark.parametrize("crossing", [0.2, 0.5, 0.789, 0.9, 0.97])
def test_the_crossing_is_found_and_bracketed(crossing):
    faster, calls = made_up(crossing, noise=0.01)
    found, (low, high), tried = bracketed(faster)
    assert found == pytest.approx(crossing, abs=1e-6)  # on this formula the interpolation is exact
    assert low < crossing < high
    assert (1 - low) / (1 - high) < 2  # densities
    assert len(calls) == 8
    assert len(tried) <= 8
    assert all(a[0] < b[0] for a, b in pairwise(tried))


def test_what_the_measurement_cannot_tell_widens_the_bracket():
    low, high = bracketed(made_up(0.8, noise=0.2)[0])[1]
    assert low <= 1 - 0.2 * 1.2
    assert high >= 1 - 0.2 / 1.2


def test_never_is_an_answer():
    found, (low, high), tried = bracketed(made_up(0.995)[0], 0.99)
    assert (found, high) == (None, None)
    assert low == 0.99
    assert [s for s, _ in tried] == [0.0, 0.99]


def test_faster_by_chance_at_the_highest_sparsity_counts_as_never():
    found, (low, high), _ = bracketed(made_up(0.989, noise=0.2)[0], 0.99)
    assert (found, low, high) == (None, 0.0, None)


def test_faster_without_a_zero_is_said():
    for noise in (0.0, 0.5):
        assert bracketed(made_up(-0.2, noise)[0], 0.9)[:2] == (0.0, (0.0, 0.0))


def test_a_real_crossover_says_where_it_was_measured():
    found = crossover(32, 2, "bsr", on=QUICK)
    assert (found.kernel, found.n, found.batch, found.threads, found.device) == ("bsr", 32, 2, 1, "cpu")
    assert found.sparsity is None or 0 <= found.sparsity < 0.99
    assert "bsr" in str(found)
    assert "32 x 32, 2 columns, 1 thread, cpu" in str(found)


@pytest.mark.parametrize(
    ("kernel", "most", "says"), [("dense", 0.99, '"csr" or "bsr"'), ("csr", 99, "did you mean 0.99")]
)
def test_a_crossover_of_what_cannot_cross_is_refused(kernel, most, says):
    with pytest.raises(PruneError, match=says):
        crossover(32, 2, kernel, most=most, on=QUICK)


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
