"""The grids on photographs run, here on a few that are noise, and those that are stored are whole."""

import json

import pytest
import torch
from torch.utils.data import TensorDataset

from prunelab import zoo
from prunelab.lab import real_pictures
from prunelab.lab.author import grids
from prunelab.lab.learn import stored_grid

KEYS = ("network", "rule", "sparsity", "layer", "scope", "criterion", "way", "share")


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


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize("name", real_pictures.GRIDS)
def test_a_point_of_each_kind_runs(name):
    points, run = real_pictures.GRIDS[name]()
    some = [p for p in points if p["network"] == real_pictures.NETWORKS[0]]
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
