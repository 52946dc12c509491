"""The ways of notebook 09 on a tiny budget, and the stored grids they filled."""

from types import SimpleNamespace

import pytest
import torch

from prunelab import zoo
from prunelab.lab.learn import stored_grid
from prunelab.lab.lessons import lesson_09
from prunelab.lab.lessons.pruned_networks import CNNS
from prunelab.layers import prunable
from prunelab.masking import current_masks


@pytest.fixture
def short(monkeypatch):
    """Budgets of a few steps, and data of two batches."""
    monkeypatch.setattr(lesson_09, "FIRST", 4)
    monkeypatch.setattr(lesson_09, "STEPS", 3)
    monkeypatch.setattr(lesson_09, "_END", {"steps": 3, "of": 4, "progress": False})
    data = zoo.load("digits")
    return SimpleNamespace(train=torch.utils.data.TensorDataset(*data.train[:128]))


def left(model):
    return sum(int(m.sum()) for m in current_masks(model).values())


def test_the_past_keeps_what_the_network_was(short):
    past = lesson_09.past(1, short)
    again = lesson_09.past(1, short)
    assert all(torch.equal(v, again.early[k]) for k, v in past.early.items())
    assert not torch.equal(past.early["conv2.weight"], past.dense.conv2.weight)
    assert past.early["bn1.num_batches_tracked"] == 1  # of four steps, three before the end


@pytest.mark.parametrize("way", [*lesson_09.WAYS, lesson_09.CONTROLS[0]])
def test_every_way_prunes_alike_and_keeps_its_budget(short, way):
    past = lesson_09.past(0, short)
    found = lesson_09.recovered(way, past, 0.9, short)
    total = sum(w.numel() for w in prunable(past.dense).values())
    assert left(found.model) == total - round(0.9 * total)
    assert found.steps == (0 if way in lesson_09.FREE else 3)
    assert found.seconds > 0
    moved = not torch.equal(dict(prunable(found.model))["conv2.weight"], past.dense.conv2.weight)
    assert moved == (way not in lesson_09.FREE)


def test_the_ways_differ(short):
    past = lesson_09.past(0, short)
    states = [lesson_09.recovered(way, past, 0.9, short).model.state_dict() for way in lesson_09.WAYS]
    for i, one in enumerate(states):
        assert not any(all(torch.equal(v, other[k]) for k, v in one.items()) for other in states[:i])


@pytest.mark.parametrize(("way", "steps"), [("small dense", 3), ("small dense, full bill", 7)])
@pytest.mark.parametrize("sparsity", [0.95, 0.98])
def test_small_networks_are_as_large_as_what_is_left(short, way, steps, sparsity):
    past = lesson_09.past(0, short)
    found = lesson_09.recovered(way, past, sparsity, short)
    pruned = lesson_09.recovered("nothing", past, sparsity, short).model
    rest = sum(p.numel() for p in past.dense.parameters()) - sum(w.numel() for w in prunable(past.dense).values())
    size = sum(p.numel() for p in found.model.parameters())
    wider = zoo.cnn(width=lesson_09.small_width(past.dense, sparsity) + 1)
    assert size <= left(pruned) + rest < sum(p.numel() for p in wider.parameters())
    assert found.steps == steps


def test_an_unknown_way(short):
    with pytest.raises(ValueError, match="no way back is called 'prayer'; there are nothing, BatchNorm only"):
        lesson_09.recovered("prayer", None, 0.9, short)


def test_recoveries_are_compared_in_a_table(short, capsys):
    short.test = short.train
    model = zoo.checkpoint("digits-cnn")
    read = lesson_09.compared("One", {"as it was": lesson_09.Recovered(model, 12, 0.25)}, short)
    assert 0.9 < read["as it was"] <= 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["One", "way | steps | processor | accuracy"]
    assert lines[2].startswith("as it was | 12 | ≈ 250 ms | ≈ ")


@pytest.mark.parametrize("course", lesson_09.COURSES)
def test_every_course_ends_at_the_same_sparsity(short, course):
    model = lesson_09.COURSES[course](zoo.checkpoint("digits-cnn"), 0.9, short, 0, 12)
    total = sum(w.numel() for w in prunable(model).values())
    assert left(model) == total - round(0.9 * total)


@pytest.mark.parametrize(
    ("name", "keys", "count"),
    [
        ("recoveries", ("way", "sparsity"), 1 + 2 * 9),
        ("rounds", ("course", "sparsity", "steps"), 2 * (5 + 3)),
        ("returns", ("sparsity", "steps"), 6 * 3),
    ],
)
def test_the_stored_grids_are_whole(name, keys, count):
    runs = stored_grid.grid(name)
    for seed in lesson_09.SEEDS:
        own = [run for run in runs if run["network"] == CNNS[seed]]
        assert len({tuple(run[k] for k in keys) for run in own}) == len(own) == count
    assert len(runs) == count * len(lesson_09.SEEDS)
    assert all(0 <= run["accuracy"] <= 1 for run in runs)
