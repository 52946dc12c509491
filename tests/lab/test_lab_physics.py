"""Machines, rooflines and pitfalls: arithmetic and form; no test says how fast anything is."""

import math

import pytest
import torch
from torch import nn

from prunelab.core import PruneError
from prunelab.lab.lessons import physics
from prunelab.lab.lessons.physics import Machine, machine, roofline
from prunelab.masking import apply
from prunelab.measurement import Conditions, latency, macs

MACHINE = Machine(
    peak=1e9,
    bandwidths=((1000, 4e9), (100_000, 1e9)),
    floors={"Linear": 2e-6, "other": 1e-6},
    threads=1,
    device="cpu",
)


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


X = torch.randn(2, 1, 8, 8)


def test_the_prediction_is_the_longer_of_computing_and_moving_plus_the_launch():
    assert MACHINE.ridge == 1.0
    assert MACHINE.predict(10**6, 100_000, "Linear") == pytest.approx(1e-3 + 2e-6)  # computing: 1 ms, moving: 0.1 ms
    assert MACHINE.predict(10, 150_000) == pytest.approx(150e-6 + 1e-6)  # moving, and an unknown kind
    assert MACHINE.predict(0, 0, "Conv9d") == 1e-6


def test_what_fits_in_a_cache_moves_faster():
    assert [MACHINE.bandwidth(b) for b in (1, 2000, 2001, 10**9)] == [4e9, 4e9, 1e9, 1e9]  # a copy of b moves 2 b


def test_each_layer_s_work_is_that_of_a_hand_count():
    found = roofline(cnn(), X, MACHINE, rounds=7)
    assert [(x.name, x.kind) for x in found.layers] == [
        ("0", "Conv2d"), ("1", "ReLU"), ("2", "Flatten"), ("3", "Linear"),
    ]  # fmt: skip
    conv, relu, _, linear = found.layers
    assert conv.macs == 2 * 4 * 9 * 36
    assert conv.moved == 4 * (36 + 2 * 64 + 2 * 4 * 36)
    assert (relu.macs, relu.moved) == (0, 4 * 2 * 2 * 144)
    assert linear.macs == 2 * 144 * 5
    assert linear.moved == 4 * (144 * 5 + 5 + 2 * 144 + 2 * 5)
    assert linear.intensity == linear.macs / linear.moved
    assert sum(x.macs for x in found.layers) == 2 * macs(cnn(), X)
    assert linear.predicted == MACHINE.predict(linear.macs, linear.moved, "Linear")


def test_the_bound_names_the_largest_part():
    slow = Machine(1e3, ((1000, 1e12),), {"other": 1e-9}, 1, "cpu")
    narrow = Machine(1e15, ((1000, 1e3),), {"other": 1e-9}, 1, "cpu")
    late = Machine(1e15, ((1000, 1e15),), {"other": 1.0}, 1, "cpu")
    bounds = [roofline(cnn(), X, m, rounds=7).layers[0].bound for m in (slow, narrow, late)]
    assert bounds == ["compute", "memory", "launch"]


def test_a_roofline_adds_up_and_prints():
    found = roofline(cnn(), X, MACHINE, batch_size=1, rounds=7)
    assert found.measured == sum(x.measured.p50 for x in found.layers) > 0
    assert found.predicted == sum(x.predicted for x in found.layers)
    assert found.share("ReLU") + found.share("Conv2d") + found.share("Flatten") + found.share(
        "Linear"
    ) == pytest.approx(1)
    assert found.whole.batch == found.layers[0].measured.batch == 1
    assert "MACs/byte" in str(found)
    assert found._repr_html_().count("<tr>") == 6


def test_a_layer_called_twice_appears_twice_and_one_with_keywords_is_timed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.scaled = nn.Linear(4, 4), Scaled()

        def forward(self, x):
            return self.scaled(self.fc(self.fc(x)), by=2.0)

    class Scaled(nn.Module):
        def forward(self, x, by):
            return x * by

    model = Twice()
    assert [x.name for x in roofline(model, torch.randn(3, 4), MACHINE, rounds=7).layers] == ["fc", "fc (2)", "scaled"]
    assert not model.fc._forward_pre_hooks


def test_the_model_is_left_as_it_was():
    model = cnn().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    roofline(model, X, MACHINE, rounds=7)
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_masks_and_another_device_are_refused():
    masked = apply(cnn(), {"3.weight": torch.rand(5, 144) > 0.5})
    with pytest.raises(PruneError, match="still wears masks"):
        roofline(masked, X, MACHINE)
    with pytest.raises(PruneError, match="lies on cpu, and the machine was measured on cuda"):
        roofline(cnn(), X, Machine(1.0, ((1, 1.0),), {"other": 1.0}, 1, "cuda"))


def test_a_machine_is_measured_without_touching_the_random_state():
    state = torch.get_rng_state()
    found = machine(product=32, buffers=(1 << 10, 1 << 12), on=Conditions(rounds=7))
    assert found.peak > 0
    assert [b for b, _ in found.bandwidths] == [1 << 10, 1 << 12]
    assert all(rate > 0 for _, rate in found.bandwidths)
    assert set(found.floors) == {"Linear", "Conv2d", "BatchNorm2d", "MaxPool2d", "other"}
    assert "GMAC/s" in str(found)
    assert "<table>" in found._repr_html_()
    assert torch.equal(state, torch.get_rng_state())


def ok(found, names):
    assert list(found.latency) == list(found.speedup) == names
    assert found.speedup[names[0]].ratio == 1
    assert all(0 < x.p10 <= x.p50 <= x.p90 < math.inf for x in found.latency.values())
    assert names[-1] in str(found)
    assert "<table>" in found._repr_html_()


def test_threads():
    before = torch.get_num_threads()
    found = physics.threads(cnn(), X, (1, 2), rounds=7)
    ok(found, ["1 thread", "2 threads"])
    assert [x.threads for x in found.latency.values()] == [1, 2]
    assert {x.clock for x in found.latency.values()} == {"wall"}  # processor time would add both threads up
    assert torch.get_num_threads() == before


def test_batch_sizes_are_compared_a_sample():
    found = physics.batch_size(cnn(), torch.randn(64, 1, 8, 8), (1, 64), rounds=7)
    ok(found, ["batch 1", "batch 64"])
    assert found.latency["batch 64"].p50 < 10 * found.latency["batch 1"].p50  # a sample's time, not a batch's


def test_odd_channels():
    state = torch.get_rng_state()
    ok(physics.odd_channels((4, 5), image=4, batch=2, rounds=7), ["4 channels", "5 channels"])
    assert torch.equal(state, torch.get_rng_state())


def test_no_warm_up():
    model = cnn().train()
    ok(physics.no_warm_up(model, X, calls=3, rounds=7), ["first forward", "later forwards"])
    assert model.training


def test_unbaked_masks_are_timed_where_measure_refuses():
    model = cnn()
    before = model[3].weight.clone()
    masks = {"3.weight": torch.zeros(5, 144, dtype=torch.bool)}
    ok(physics.unbaked(model, masks, X, rounds=7), ["dense", "masks on", "baked"])
    assert torch.equal(before, model[3].weight)
    with pytest.raises(PruneError, match="still wears masks"):
        latency(apply(cnn(), masks), X)
    with pytest.raises(PruneError, match="still wears masks"):
        physics.threads(apply(cnn(), masks), X)
