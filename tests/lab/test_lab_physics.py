"""Machines, rooflines and pitfalls: arithmetic and form; no test says how fast anything is."""

import math

import pytest
import torch
from torch import nn

from prunelab.core import PruneError
from prunelab.lab.lessons import physics
from prunelab.lab.lessons.physics import Machine, machine, roofline
from prunelab.masking import apply
from prunelab.measurement import Conditions, macs

MACHINE = Machine(peak=1e9, bandwidths=((1000, 4e9), (100_000, 1e9)), threads=1, device="cpu")


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


X = torch.randn(2, 1, 8, 8)


def test_each_layer_s_work_is_that_of_a_hand_count():
    found = roofline(cnn(), X, MACHINE, rounds=7).layers
    assert list(found) == ["0", "3"]  # ReLU and Flatten compute no MACs
    conv, linear = found.values()
    assert conv.macs == 2 * 4 * 9 * 36
    assert conv.moved == 4 * (36 + 2 * 64 + 2 * 4 * 36)
    assert linear.macs == 2 * 144 * 5
    assert linear.moved == 4 * (144 * 5 + 5 + 2 * 144 + 2 * 5)
    assert linear.intensity == linear.macs / linear.moved
    assert linear.rate == linear.macs / linear.measured.p50 > 0
    assert sum(x.macs for x in found.values()) == 2 * macs(cnn(), X)


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
    assert list(roofline(model, torch.randn(3, 4), MACHINE, rounds=7).layers) == ["fc", "fc (2)"]
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
        roofline(cnn(), X, Machine(1.0, ((1, 1.0),), 1, "cuda"))


def test_a_machine_is_measured_without_touching_the_random_state():
    state = torch.get_rng_state()
    found = machine(product=32, buffers=(1 << 10, 1 << 12), on=Conditions(rounds=7))
    assert found.peak > 0
    assert [b for b, _ in found.bandwidths] == [1 << 10, 1 << 12]
    assert all(rate > 0 for _, rate in found.bandwidths)
    assert torch.equal(state, torch.get_rng_state())


def test_each_pitfall_is_two_times_and_their_ratio_and_the_model_is_left_alone():
    model, batch = cnn().train(), torch.randn(16, 1, 8, 8)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    before = model[3].weight.clone()
    masks = {"3.weight": torch.zeros(5, 144, dtype=torch.bool)}
    found = physics.pitfalls(model, masks, batch, rounds=7)
    assert [len(name.split(",")) for name in found] == [2] * 6
    assert all(math.isfinite(x) and x > 0 for took in found.values() for x in took)
    assert torch.equal(before, model[3].weight)
    assert model.training
    assert torch.get_num_threads() == threads
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_that_wears_masks_is_refused():
    with pytest.raises(PruneError, match="still wears masks"):
        physics.pitfalls(apply(cnn(), {"3.weight": torch.zeros(5, 144, dtype=torch.bool)}), {}, X)
