"""The grids on photographs run, here on a few that are noise, and those that are stored are whole."""

import json

import pytest
import torch
from torch.utils.data import TensorDataset

from prunelab import zoo
from prunelab.lab import real_pictures
from prunelab.lab.author import grids
from prunelab.lab.learn import stored_grid

KEYS = ("network", "rule", "sparsity", "layer", "scope", "criterion", "way", "share", "kind")


@pytest.fixture
def noise(monkeypatch):
    """Noise for photographs, and small networks for those that read them."""
    dice = torch.Generator().manual_seed(0)

    def some(count):
        return TensorDataset(torch.randn(count, 3, 8, 8, generator=dice), torch.arange(count) % 10)

    data = zoo.Data("noise", some(512), some(40), some(200), tuple("abcdefghij"), (3, 8, 8), {})
    monkeypatch.setattr(zoo, "load", lambda name: {"cifar10": data}[name])
    monkeypatch.setattr(zoo, "checkpoint", lambda name: zoo.resnet(channels=3, widths=(16, 16, 16)).eval())
    monkeypatch.setattr(real_pictures, "STEPS", 1)
    monkeypatch.setattr(real_pictures, "SOON", 1.0)
    monkeypatch.setattr(real_pictures, "RACE", {"steps": 9, "batch_size": 16})
    monkeypatch.setattr(real_pictures, "BATCH", 16)


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize("name", real_pictures.GRIDS)
def test_a_point_of_each_kind_runs(name):
    points, run = real_pictures.GRIDS[name]()
    some = [p for p in points if p.get("network", real_pictures.NETWORKS[0]) == real_pictures.NETWORKS[0]]
    results = [run(point) for point in some]
    json.dumps(results)
    assert all(0 <= r.get(key, 0) <= 1 for r in results for key in ("old", "fresh", "after"))


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize("name", real_pictures.GRIDS)
def test_the_stored_grids_are_whole(name):
    points, _ = grids.known()[name]()
    runs = stored_grid.grid(name)
    asked = [{key: p[key] for key in KEYS if key in p} for p in points]
    assert [{key: run[key] for key in KEYS if key in run} for run in runs] == asked


def test_what_is_read_is_counted_in_tenths():
    labels = torch.arange(200) % 10  # twenty of each class, two in each tenth
    right = labels == 3
    right[0] = True
    counts = real_pictures.in_folds(right, labels)
    assert counts[3] == [2] * 10
    assert counts[0] == [1] + [0] * 9
    assert sum(map(sum, counts)) == int(right.sum())


def reading(network, lost):
    """Two runs of a network: its twin reads ninety of a hundred everywhere, the pruned one `lost[class]` fewer."""
    every = {"trained on": [[90] * 10 for _ in range(10)], "90 %": [[90 - n] * 10 for n in lost]}
    return [{"network": network, "kind": kind, "read": read} for kind, read in every.items()]


@pytest.mark.parametrize(("second", "networks"), [(range(10), 1), (range(9, -1, -1), -1)])
def test_one_class_may_pay_in_every_picture_and_not_in_every_network(monkeypatch, second, networks):
    first = [2 * n for n in range(10)]
    monkeypatch.setattr(stored_grid, "grid", lambda name: reading("a", first) + reading("b", second))
    assert real_pictures.tolls("90 %")[0, :, 0].tolist() == first
    assert real_pictures.agreement("90 %") == pytest.approx(1)
    assert real_pictures.agreement("90 %", networks=True) == pytest.approx(networks)
