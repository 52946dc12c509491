"""The drawings of notebooks 07 and 08 show what they were given, and the grid's tables hold what was stored."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from prunelab.lab.lessons import lesson_07, lesson_08


@pytest.fixture
def axes():
    return Figure().subplots(ncols=2)


def test_kept_and_removed_scores_are_told_apart(axes):
    model, scores = nn.Sequential(nn.Linear(3, 2)), torch.arange(6.0)
    runs = {
        name: lesson_07.Transfer(model, 0.5, {"0.weight": scores > at}, {"0.weight": scores})
        for name, at in (("a", 3), ("b", 1))
    }
    lesson_07.learned_scores(axes, model, runs, "0.weight")
    for ax, kept in zip(axes, (2, 4), strict=True):
        assert [len(line.get_xdata()) for line in ax.lines[:2]] == [6 - kept, kept]
    assert axes[1].get_title() == "b"


def test_nothing_handed_on_says_so(axes):
    lesson_08.handed_on(axes, {"meant": torch.tensor([1.0, -2.0]), "published": torch.zeros(2)})
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [[], ["0"]]


def test_tables_of_a_grid():
    runs = [
        {"network": n, "way": "a", "lr": 0.1, "steps": steps, "left": left, "accuracy": n + left + steps}
        for n in (0, 1)
        for steps in (400, 900)
        for left in (0.03, 0.15)
    ]
    found = lesson_07.found(runs, "a", 0.1, [0.15, 0.03])
    assert found.tolist() == [pytest.approx([400.15, 400.03]), pytest.approx([401.15, 401.03])]
    assert lesson_07.found(runs, "a", 0.1, [0.03], steps=900)[:, 0].tolist() == pytest.approx([900.03, 901.03])
