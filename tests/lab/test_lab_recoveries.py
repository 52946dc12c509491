"""The ways of notebook 10 on a tiny budget, the search and race of one, and the stored race."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunelab import zoo
from prunelab.lab.learn import stored_grid
from prunelab.lab.lessons import lesson_10
from prunelab.layers import prunable
from prunelab.masking import current_masks


@pytest.fixture
def short(monkeypatch):
    """Budgets of a few steps, and data of two batches."""
    monkeypatch.setattr(lesson_10, "FIRST", 16)
    monkeypatch.setattr(lesson_10, "STEPS", 12)
    data = zoo.load("digits")
    parts = {split: torch.utils.data.TensorDataset(*getattr(data, split)[:128]) for split in ("train", "valid", "test")}
    yield SimpleNamespace(**parts)
    lesson_10._halfway.cache_clear()


@pytest.mark.parametrize("way", lesson_10.WAYS)
def test_every_way_prunes_alike(short, way):
    go, settings = lesson_10.WAYS[way]
    assert len(settings) == 5
    model = go(0, short, **lesson_10.AS_IT_CAME[way])
    total = sum(w.numel() for w in prunable(model).values())
    left = sum(int(m.sum()) for m in current_masks(model).values())
    assert left == total - round(lesson_10.SPARSITY * total)


def test_a_teacher_without_a_weight_leaves_the_cycle(short):
    """Distillation differs from the cycle by its loss alone: the same cut, rate, steps and order of the batches."""
    cycle = prunable(lesson_10.cycle(1, short, 0.05))
    alone, taught = (prunable(lesson_10.distillation(1, short, 2, alpha)) for alpha in (0, 0.7))
    assert all(torch.equal(alone[name], cycle[name]) for name in cycle)
    assert not all(torch.equal(taught[name], cycle[name]) for name in cycle)


def test_the_rewound_weights_are_those_of_the_way_there(short):
    early = lesson_10._halfway(1)
    assert early["bn1.num_batches_tracked"] == 4  # of sixteen steps, twelve before the end
    assert not torch.equal(early["conv2.weight"], zoo.checkpoint("digits-cnn-1").conv2.weight)


def test_an_entrant_is_chosen_on_validation_and_raced_on_test(short, monkeypatch):
    """The way's accuracy is its setting; validation sees all settings on one network, test only the best, on all."""
    seen = []

    def evaluate(model, data, split):
        seen.append((split, model))
        return SimpleNamespace(accuracy=model[1])

    monkeypatch.setattr(lesson_10, "evaluate", evaluate)
    monkeypatch.setitem(lesson_10.WAYS, "it", (lambda seed, data, x: (seed, x), ({"x": 1}, {"x": 3}, {"x": 2})))
    monkeypatch.setitem(lesson_10.AS_IT_CAME, "it", {"x": 0})
    found = lesson_10.entrant("it", short)
    assert found == {"settings": [{"x": 1}, {"x": 3}, {"x": 2}], "valid": [1, 3, 2], "chosen": {"x": 3},
                     "untuned": [0] * 5, "accuracy": [3] * 5}  # fmt: skip
    assert [model for split, model in seen if split == "test"] == [(seed, x) for x in (0, 3) for seed in range(5)]


def test_the_stored_race_is_whole_and_chosen_within_its_search():
    runs = {run["way"]: run for run in stored_grid.grid("race")}
    assert list(runs) == list(lesson_10.WAYS)
    for way, run in runs.items():
        assert run["settings"] == [dict(setting) for setting in lesson_10.WAYS[way][1]]
        assert run["chosen"] == run["settings"][int(np.argmax(run["valid"]))]
        assert len(run["accuracy"]) == len(run["untuned"]) == len(lesson_10.SEEDS)
        if way != "gradual":  # which says so
            assert run["chosen"] not in (run["settings"][0], run["settings"][-1]), "the best rate lies at an edge"
    assert runs["one full cycle"]["chosen"]["lr"] == lesson_10.CYCLE_RATE
    assert len(runs["distillation"]["cycle as long"]) == len(lesson_10.SEEDS)


def test_leads_are_taken_network_by_network():
    """The two differ by 0.1 in each network, though the networks differ by far more: the interval is a point."""
    found = lesson_10.leads({"a": [0.2, 0.5, 0.9], "b": [0.1, 0.4, 0.8]}, over="b")
    assert list(found) == ["a"]
    assert (found["a"].mean, found["a"].low, found["a"].high) == pytest.approx((0.1, 0.1, 0.1))
    assert lesson_10.verdict(found["a"]) == "ahead"
    assert lesson_10.verdict(lesson_10.leads({"a": [0.1, 0.2], "b": [0.2, 0.1]}, over="b")["a"]) == "cannot tell"
    assert "10.0 points" in lesson_10.written(found["a"])
