"""Goals: what a number, a count and a text mean, and what makes no sense."""

import pytest

from prunelab import PruneError
from prunelab.budget.goals import Goal, goals


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"latency": 0.5}, Goal("latency", 0.5)),
        ({"latency": 1}, Goal("latency", 1.0)),
        ({"latency": "2.5 ms"}, Goal("latency", 2.5e-3, relative=False)),
        ({"latency": "800us"}, Goal("latency", 800e-6, relative=False)),
        ({"latency": "1 s"}, Goal("latency", 1.0, relative=False)),
        ({"bytes": 0.25}, Goal("bytes", 0.25)),
        ({"bytes": 100_000}, Goal("bytes", 1e5, relative=False)),
        ({"bytes": "300 kB"}, Goal("bytes", 3e5, relative=False)),
        ({"macs": "1.5 MMACs"}, Goal("macs", 1.5e6, relative=False)),
        ({"macs": 2_000_000}, Goal("macs", 2e6, relative=False)),
    ],
    ids=str,
)
def test_what_is_meant(given, expected):
    (found,) = goals(**given).costs
    assert (found.cost, found.relative) == (expected.cost, expected.relative)
    assert found.limit == pytest.approx(expected.limit)


def test_fractions_of_the_dense_model():
    asked = goals(latency="2 ms", bytes=0.3, max_drop=0.01)
    assert asked.fractions({"latency": 8e-3, "bytes": 100.0}) == pytest.approx({"latency": 0.25, "bytes": 0.3})
    assert asked.aim == "latency"
    assert goals(max_drop=0).max_drop == 0
    assert goals(max_drop=0.02).aim == "latency"
    assert goals(macs=0.2).aim == "macs"
    assert str(asked) == (
        "latency at most 2.00 ms; bytes at most 30.0 % of the dense model's; at most 1 points of accuracy lost"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no goal"),
        ({"latency": 50}, "did you mean 0.5"),
        ({"latency": 2.5}, "did you mean 0.025"),
        ({"latency": 500}, "more than all of it"),
        ({"bytes": 2.5}, "did you mean 0.025"),
        ({"latency": 0}, "latency=0"),
        ({"latency": -0.5}, "latency=-0.5"),
        ({"latency": float("nan")}, "latency=nan"),
        ({"latency": True}, "latency=True"),
        ({"latency": [0.5]}, r"latency=\[0.5\]"),
        ({"latency": "fast"}, "give a number and its unit"),
        ({"latency": "2 MB"}, r"its unit \(s, ms"),
        ({"bytes": "2 ms"}, r"its unit \(B, kB"),
        ({"bytes": "0 kB"}, "give a number and its unit"),
        ({"macs": "1e6"}, "give a number and its unit"),
        ({"max_drop": 1}, "Did you mean 0.01"),
        ({"max_drop": -0.1}, "max_drop=-0.1"),
        ({"max_drop": "1 %"}, "max_drop='1 %'"),
        ({"max_drop": float("nan")}, "max_drop=nan"),
    ],
    ids=str,
)
def test_what_makes_no_sense(given, message):
    with pytest.raises(PruneError, match=message):
        goals(**given)
