"""Latency and comparison. Times are only ever compared where one is a hundred times the other."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from prunelab.core import PruneError
from prunelab.lab.lessons import physics
from prunelab.masking import apply, bake
from prunelab.measurement import compare, latency
from prunelab.measurement.timing import Conditions, _affordable, _rotated, median_interval

X = torch.randn(16, 32)


def in_order(latency):
    return 0 < latency.p10 <= latency.p50 <= latency.p90 < math.inf


def test_latency_is_positive_and_ordered_and_says_how_it_was_taken():
    taken = latency(nn.Linear(32, 8), X, rounds=7)
    assert in_order(taken)
    assert (taken.batch, taken.threads, taken.device, taken.rounds) == (16, 1, "cpu", 7)
    assert repr(taken).endswith("(batch 16, 1 thread, cpu)")


def test_the_batch_is_cut_or_taken_whole():
    assert latency(nn.Linear(32, 8), X, batch_size=1, rounds=7).batch == 1
    assert latency(nn.Linear(32, 8), X, batch_size=999, rounds=7).batch == 16


def test_a_hundred_times_the_work_takes_longer():
    small, large = nn.Linear(128, 128), nn.Linear(128, 12800)
    found = compare({"large": large, "small": small}, torch.randn(64, 128), rounds=7)
    assert found.latency["large"].p50 > found.latency["small"].p50
    assert found.speedup["small"].low > 1


def test_a_comparison_names_its_baseline_and_pairs_its_rounds():
    found = compare({"dense": nn.Linear(32, 64), "pruned": nn.Linear(32, 8)}, X, rounds=7)
    assert found.baseline == "dense"
    assert (found.speedup["dense"].ratio, found.speedup["dense"].low, found.speedup["dense"].high) == (1, 1, 1)
    pruned = found.speedup["pruned"]
    assert 0 < pruned.low <= pruned.ratio <= pruned.high < math.inf
    assert all(in_order(taken) and taken.rounds == 7 for taken in found.latency.values())


def test_every_model_is_run_in_every_round_in_turn():
    order = []

    class Logs(nn.Linear):
        def __init__(self, name):
            super().__init__(32, 8)
            self.name = name

        def forward(self, x):
            order.append(self.name)
            return super().forward(x)

    compare({name: Logs(name) for name in "abc"}, X, rounds=7)
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert "".join(turns) == "abcabc" + "abcbcacab" * 2 + "abc"  # a first try, a calibration, seven rounds


def test_rounds_rotate_and_are_fewer_for_slow_models():
    assert [_rotated(list("abc"), turn) for turn in range(4)] == [list(o) for o in ("abc", "bca", "cab", "abc")]
    assert [_affordable(seconds) for seconds in (0.001, 0.2, 100.0)] == [15, 10, 7]


@pytest.mark.parametrize(("n", "k"), [(6, 1), (7, 1), (9, 2), (15, 4), (20, 6), (25, 8)])
def test_the_median_s_interval_is_that_of_published_tables(n, k):
    values = [float(v) for v in range(1, n + 1)]  # the k-th smallest is k
    assert median_interval(values[::-1]) == ((n + 1) / 2, k, n + 1 - k)


def test_five_values_have_no_interval():
    with pytest.raises(PruneError, match="5 values: six are the least"):
        median_interval([1.0] * 5)


def test_data_can_stand_in_for_an_example():
    data = (torch.randn(100, 32), torch.zeros(100, dtype=torch.long))
    assert compare({"a": nn.Linear(32, 8)}, data, rounds=7).latency["a"].batch == 64
    assert compare({"a": nn.Linear(32, 8)}, data, batch_size=1, rounds=7).latency["a"].batch == 1
    assert compare({"a": nn.Linear(32, 8)}, {"input": X}, rounds=7).latency["a"].batch == 16


def test_models_modes_threads_and_random_state_are_as_before():
    models = {"a": nn.Sequential(nn.Linear(32, 8), nn.Dropout(0.5)).train(), "b": nn.Linear(32, 8).eval()}
    calls = []
    models["b"].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    hooks = list(models["b"]._forward_hooks)
    before = {k: v.clone() for k, v in models["a"].state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    compare(models, X, rounds=7)
    assert models["a"].training
    assert models["a"][1].training
    assert not models["b"].training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not any(calls)
    assert list(models["b"]._forward_hooks) == hooks
    assert all(torch.equal(before[k], v) for k, v in models["a"].state_dict().items())
    assert all(p.grad is None for p in models["a"].parameters())


class Remembering(nn.Module):
    """Caches a table in its first forward, and a state in every one."""

    def __init__(self):
        super().__init__()
        self.fc, self.table, self.state = nn.Linear(8, 8), None, torch.ones(8)

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(8).cos()
        y = self.fc(x) * self.table * self.state
        self.state = self.state * 1
        return y


@pytest.mark.parametrize(
    "timed",
    [
        latency,
        lambda m, x: compare({"a": m}, x),
        lambda m, x: physics.roofline(m, x, rounds=7),
        lambda m, x: physics.pitfalls(m, {}, x, rounds=7),
    ],
)
def test_what_a_model_caches_can_be_trained_with(timed):
    model, x = Remembering(), torch.randn(4, 8)
    timed(model, x)
    model(x).sum().backward()
    assert model.fc.weight.grad is not None


def test_a_model_with_masks_on_is_refused_by_its_name():
    masked = apply(nn.Linear(32, 8), {"weight": torch.rand(8, 32) > 0.5})
    with pytest.raises(PruneError, match=r"models\['pruned'\] still wears masks, on weight.*pl.bake\(model\)"):
        compare({"dense": nn.Linear(32, 8), "pruned": masked}, X)
    with pytest.raises(PruneError, match="the model still wears masks, on weight"):
        latency(masked, X)
    assert in_order(latency(bake(masked), X, rounds=7))


def test_the_masks_of_torch_are_refused_too():
    model = nn.Sequential(nn.Linear(32, 8))
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(PruneError, match=r"masks of torch.nn.utils.prune, on 0: .*prune.remove"):
        latency(model, X)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({}, "at least one"),
        ([nn.Linear(2, 2)], "must be a dict"),
        ({"a": "model"}, r"models\['a'\] is a str"),
        ({"a": nn.Linear(32, 8), "b": nn.Linear(32, 8, device="meta")}, "different devices"),
        ({"a": nn.Linear(31, 8)}, r"cannot run on inputs of \(16, 32\)"),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused(models, says):
    with pytest.raises(PruneError, match=says):
        compare(models, X)


@pytest.mark.parametrize(
    "bad", [{"rounds": 6}, {"rounds": 7.5}, {"threads": 0}, {"batch_size": 0}, {"batch_size": "1"}]
)
def test_numbers_that_make_no_sense_are_refused(bad):
    with pytest.raises(PruneError, match=f"{next(iter(bad))}=.*give a whole number"):
        latency(nn.Linear(32, 8), X, **bad)


@pytest.mark.slow
def test_nothing_is_printed_where_cuda_is_installed_without_a_gpu():
    code = "import torch; from prunelab.measurement import latency; latency(torch.nn.Linear(2, 2), torch.ones(1, 2))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def test_a_clock_is_said_and_steady_is_one_that_can_be_read():
    assert latency(nn.Linear(32, 8), X, rounds=7).clock == "wall"
    steady = compare({"a": nn.Linear(32, 8)}, X, rounds=7, clock="steady").latency["a"]
    assert steady.clock in ("processor", "wall")
    assert repr(steady).endswith("cpu, processor time)") or steady.clock == "wall"
    assert Conditions(threads=2).clock == Conditions(device="cuda").clock == "wall"


@pytest.mark.parametrize("given", [{"clock": "sand"}, {"clock": "processor", "threads": 2}])
def test_a_clock_that_cannot_be_read_is_refused(given):
    with pytest.raises(PruneError, match="clock="):
        latency(nn.Linear(32, 8), X, **given)


def test_the_device_that_computed_is_waited_for(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.accelerator, "synchronize", seen.append)
    for device in ("cuda:1", "mps"):
        Conditions(device=device).waited_for(lambda: seen.append("task"))()
    assert seen == ["task", torch.device("cuda:1"), "task", torch.device("mps")]
