"""Notebook 07's experiment: the halves of the task, the runs, the interval, and a grid that survives a kill."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

import prunelab as pl
from prunelab.lab.author.grids import resumable
from prunelab.lab.learn import stored_grid
from prunelab.lab.lessons import lesson_07


@pytest.fixture(scope="module")
def before():
    return lesson_07.zoo.mlp(classes=5, hidden=(30, 20), seed=0)


def test_the_halves_share_no_digit():
    first, last = lesson_07.half(last=False), lesson_07.half(last=True)
    whole = lesson_07.zoo.load("digits")
    for split in ("train", "valid", "test"):
        labels = getattr(whole, split).tensors[1]
        assert len(getattr(first, split)[1]) == int((labels < 5).sum())
        assert torch.equal(getattr(last, split)[1], labels[labels >= 5] - 5)
        assert set(getattr(first, split)[1].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("way", lesson_07.WAYS)
def test_each_way_leaves_what_was_asked(before, way):
    weights = {n: w.detach().clone() for n, w in pl.prunable(before).items()}
    found = lesson_07.transfer(before, way, 0.1, 1e-3, steps=6)
    assert found.density == pytest.approx(0.1, abs=0.01)
    assert 0 <= found.stayed <= 1
    assert 0 <= found.accuracy <= 1
    masks = pl.masking.current_masks(found.model)
    assert list(masks) == ["fc1.weight", "fc2.weight"]
    assert all(torch.equal(w, weights[n]) for n, w in pl.prunable(before).items())  # a copy was trained


def test_magnitude_without_a_learning_rate_keeps_what_was_large(before):
    assert lesson_07.transfer(before, "magnitude", 0.1, 1e-12, steps=6).stayed == 1
    assert lesson_07.transfer(before, "movement", 0.1, 1e-12, steps=6).stayed < 0.5


def test_the_controls(before):
    dense = lesson_07.transfer(before, "dense", 1.0, 1e-3, steps=2)
    assert (dense.density, dense.stayed, dense.keep) == (1.0, 1.0, {})
    frozen = lesson_07.transfer(before, "mask only", 0.1, 1e-3, steps=6)
    first, now = pl.prunable(before)["fc1.weight"].flatten(), pl.prunable(frozen.model)["fc1.weight"].flatten()
    stays = frozen.keep["fc1.weight"]
    assert torch.equal(first[stays], now[stays])


def test_the_same_seed_gives_the_same_run(before):
    runs = [lesson_07.transfer(before, "movement", 0.1, 1e-3, steps=4, seed=s) for s in (0, 0, 1)]
    weights = [pl.prunable(r.model)["fc2.weight"] for r in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_point_of_the_grid_is_there_once():
    points = list(lesson_07.points())
    assert len({json.dumps(p) for p in points}) == len(points)
    assert {p["network"] for p in points} == {0, 1, 2, 3, 4}


def test_the_interval_is_students():
    dice = np.random.default_rng(0)
    one, other = dice.normal(size=(5, 3)), dice.normal(size=(5, 3))
    found = stored_grid.ahead(one, other)
    for i in range(3):
        theirs = stats.ttest_rel(one[:, i], other[:, i]).confidence_interval(0.95)
        assert (found.low[i], found.high[i]) == pytest.approx((theirs.low, theirs.high))
    with pytest.raises(ValueError, match="at least two"):
        stored_grid.ahead(one[:1], other[:1])


def test_an_interrupted_grid_goes_on(tmp_path):
    path, points, runs = tmp_path / "grid.part", [{"n": n} for n in range(4)], []

    def run(point):
        if point["n"] == 2 and len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(point["n"])
        return {"square": point["n"] ** 2}

    with pytest.raises(KeyboardInterrupt):
        list(resumable(path, points, lambda p: run(p)))
    with path.open("a") as file:
        file.write('[{"n": 2}, {"squa')  # cut off by a kill
    runs.append("again")
    found = list(resumable(path, points, run))
    assert found == [{"n": n, "square": n * n} for n in range(4)]
    assert runs == [0, 1, "again", 2, 3]
    assert not path.exists()
