"""What comes back in notebook 09, the point of no return by hand, and the stored grid."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunelab import zoo
from prunelab.lab.learn import stored_grid
from prunelab.lab.lessons import lesson_09
from prunelab.lab.lessons.lesson_09 import edge, last_return, no_return
from prunelab.lab.lessons.pruned_networks import CNNS, pruned
from prunelab.layers import prunable


@pytest.mark.parametrize("after", lesson_09.AFTER)
def test_training_moves_weights_and_a_look_only_statistics(monkeypatch, after):
    monkeypatch.setattr(lesson_09, "AFTER", {**lesson_09.AFTER, "one epoch": 3, "six epochs": 4})
    train = torch.utils.data.TensorDataset(*zoo.load("digits").train[:128])
    model = pruned(zoo.checkpoint("digits-cnn"), "global", 0.9)
    weight, mean = prunable(model)["conv2.weight"].detach().clone(), model.bn2.running_mean.clone()
    lesson_09.back(model, after, SimpleNamespace(train=train), 0)
    assert torch.equal(prunable(model)["conv2.weight"], weight) == (lesson_09.AFTER[after] == 0)
    assert torch.equal(model.bn2.running_mean, mean) == (after == "nothing")
    assert int((prunable(model)["conv2.weight"] == 0).sum()) >= int((weight == 0).sum())


@pytest.mark.parametrize("sparsity", [0.95, 0.98])
def test_a_small_network_is_as_large_as_what_is_left(sparsity):
    dense = zoo.checkpoint("digits-cnn")
    weights = sum(w.numel() for w in prunable(dense).values())
    left = sum(p.numel() for p in dense.parameters()) - round(sparsity * weights)
    width = lesson_09.small_width(dense, sparsity)
    own, wider = (sum(p.numel() for p in zoo.cnn(width=w).parameters()) for w in (width, width + 1))
    assert own <= left < wider


@pytest.mark.parametrize(
    ("accuracy", "enough", "at"),
    [
        ([0.9, 0.8, 0.4], 0.8, 0.8),  # exactly on a point
        ([0.9, 0.8, 0.4], 0.85, 0.7),
        ([0.9, 0.8, 0.4], 0.5, 0.875),
        ([0.9, 0.95, 0.4], 0.9, 0.8 + 0.1 * 0.05 / 0.55),  # up before it goes down
    ],
)
def test_the_crossing_by_hand(accuracy, enough, at):
    assert last_return([0.6, 0.8, 0.9], accuracy, enough) == pytest.approx(at)


def test_the_last_crossing_counts():
    assert last_return([0.5, 0.6, 0.7, 0.8], [0.9, 0.7, 0.9, 0.7], 0.8) == pytest.approx(0.75)


@pytest.mark.parametrize("enough", [0.95, 0.3])
def test_a_crossing_outside_is_none(enough):
    assert math.isnan(last_return([0.6, 0.8, 0.9], [0.9, 0.8, 0.4], enough))


def test_each_network_is_held_against_its_own_dense_self():
    table = np.array([[0.9, 0.7], [0.8, 0.6]])
    assert no_return([0.5, 0.7], table, [0.9, 0.8], 0.1) == pytest.approx([0.6, 0.6])
    said = edge([0.5, 0.7], table, [0.9, 0.8], 0.1)
    assert said == {"comes back up to": "≈ 60.0 % [60.0 %, 60.0 %]"}
    assert edge([0.5, 0.7], table, [0.9, 0.8], 0.5) == {"comes back up to": "beyond the curve's ends"}


def test_the_stored_grid_is_whole():
    runs = stored_grid.grid("returns")
    points, _ = lesson_09.returns()
    assert [{k: run[k] for k in ("network", "sparsity", "after")} for run in runs] == list(points)
    assert {run["network"] for run in runs} == set(CNNS)
    assert all(0 <= run["accuracy"] <= 1 for run in runs)
