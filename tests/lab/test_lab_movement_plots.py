"""The drawings of notebook 07 show what they were given."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from prunelab.lab.lessons import lesson_07


@pytest.fixture
def axes():
    return Figure().subplots(ncols=2)


def test_kept_and_removed_weights_are_told_apart(axes):
    values = torch.arange(6.0)
    found = {name: {"before": values, "after": -values, "kept": values > at} for name, at in (("a", 3), ("b", 1))}
    lesson_07.kept_of(axes, found)
    for ax, kept in zip(axes, (2, 4), strict=True):
        shown = {line.get_label(): len(line.get_xdata()) for line in ax.lines[:2]}
        assert shown == {"removed": 6 - kept, "kept": kept}
    assert axes[1].get_title() == "b"


def test_the_map_marks_what_an_interval_leaves_open(axes):
    ahead = np.array([[0.20, -0.01], [0.05, -0.30]])
    lesson_07.advantage(axes[0], (1e-2, 3e-5), (0.15, 0.03), ahead, ahead - 0.02, ahead + 0.02)
    assert [t.get_text() for t in axes[0].texts] == ["+20", "-1 ○", "+5", "-30"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["0.01", "0.00003"]


def test_the_race_has_a_line_a_method_and_a_cross_a_soft_run(axes):
    table = np.array([[0.9, 0.8], [0.7, 0.6]])
    lesson_07.race(axes, (0.15, 0.03), {"x": {"m": table}, "y": {"m": table}}, {"x": ([0.1], [0.5]), "y": ([], [])})
    assert axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.8, 0.7])
    assert [len(ax.lines[1].get_xdata()) for ax in axes] == [1, 0]


def test_one_field_takes_its_column_and_the_dense_networks_only_one(axes):
    runs = {"dense": np.array([[0.9], [0.8]]), "movement": np.array([[0.1, 0.2], [0.3, 0.4]])}
    lesson_07.field(axes[0], runs, 1)
    assert [t.get_text() for t in axes[0].texts] == ["30%", "85%"]


def test_what_stayed_against_the_rate(axes):
    lesson_07.stayed(axes[0], (1e-2, 1e-3), {"magnitude": np.array([[0.2, 0.4], [0.4, 0.6]])})
    assert axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.5])


RUNS = [
    {"network": n, "way": way, "lr": lr, "left": left, "accuracy": n + lr + left}
    for n in (0, 1) for way in ("a", "b") for lr in (0.1, 0.2) for left in (0.03, 0.15)
]  # fmt: skip


def test_tables_of_a_grid():
    dense = [{"network": n, "way": "dense", "lr": 0.1, "left": 1.0, "accuracy": 9.0 - n} for n in (0, 1)]
    found = lesson_07.tables([*RUNS, *dense], "accuracy")
    assert list(found) == [0.2, 0.1]
    assert found[0.1]["a"] == pytest.approx(np.array([[0.25, 0.13], [1.25, 1.13]]))
    assert found[0.1]["dense"].tolist() == [[9.0], [8.0]]


def test_soft_runs_by_rate():
    runs = [{"penalty": 1.0, "lr": 0.1, "density": 0.3, "accuracy": 0.5}, {"penalty": 1.0, "lr": 0.2}, *RUNS]
    assert lesson_07.softly(runs, 0.1) == ([0.3], [0.5])
