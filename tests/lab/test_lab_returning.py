"""The point of no return, by hand, and its interval against a textbook's."""

import math

import numpy as np
import pytest

from prunelab.lab.lessons.lesson_09 import Interval, interval, last_return, leads, point_of_no_return, spread, standings


def test_an_interval_by_hand():
    """Mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776: 3 ± 1.963."""
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.low, found.high) == pytest.approx((3, 1.0367, 4.9633), abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.5], [[1, 2], [3, 4]]])
def test_an_interval_of_too_little(values):
    with pytest.raises(ValueError, match="at least two values"):
        interval(values)


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


@pytest.mark.parametrize("enough", [0.95, 0.3])
def test_a_crossing_outside_is_none(enough):
    assert math.isnan(last_return([0.6, 0.8, 0.9], [0.9, 0.8, 0.4], enough))


def test_each_network_is_held_against_its_own_dense_self():
    table = np.array([[0.9, 0.7], [0.8, 0.6]])
    assert point_of_no_return([0.5, 0.7], table, [0.9, 0.8], 0.1) == pytest.approx([0.6, 0.6])


def test_leads_are_taken_network_by_network():
    """The two differ by 0.1 in each network, though the networks differ by far more: the interval is a point."""
    found = leads({"a": [0.2, 0.5, 0.9], "b": [0.1, 0.4, 0.8]}, over="b")
    assert list(found) == ["a"]
    assert (found["a"].mean, found["a"].low, found["a"].high) == pytest.approx((0.1, 0.1, 0.1))


def test_an_interval_is_written_in_the_measured_form():
    assert Interval(0.007, 0.001, 0.013).text("points") == "≈ 0.700 points [0.100 points, 1.30 points]"


def test_standings_are_a_table_of_means_and_leads():
    panels = {"easy": {"a": [0.75, 0.75], "b": [0.5, 0.5]}, "hard": {"a": [0.5, 0.5], "b": [0.75, 0.75]}}
    columns, rows = standings(panels, over="a")
    assert columns == {
        "way": None, "easy": "%", "easy: ahead of a": None, "hard": "%", "hard: ahead of a": None
    }  # fmt: skip
    assert [row[0] for row in rows] == ["a", "b"]
    assert rows[0] == ["a", 0.75, "", 0.5, ""]
    assert "-25.0 points" in rows[1][2]
    assert "≈ 25.0 points" in rows[1][4]


def test_a_spread_is_of_means_and_of_those_named():
    assert spread({"a": [0.9, 0.7], "b": [0.5, 0.7], "c": [0.0, 0.0]}, ["a", "b"]) == pytest.approx(0.2)
