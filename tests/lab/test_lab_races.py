"""Timings as tables: what is written, and what is returned."""

from prunelab.lab import race
from prunelab.measurement import Comparison, Latency
from prunelab.measurement.timing import Speedup

TIMES = {"dense": Latency(2e-3, 1e-3, 3e-3, 64, 1, "cpu", 7), "small": Latency(1e-3, 1e-3, 3e-3, 64, 1, "cpu", 7)}
RATIOS = {"dense": Speedup(1.0, 1.0, 1.0), "small": Speedup(2.5, 2.0, 3.0)}


def test_a_race_shows_counts_as_they_are_and_shares_as_measured(capsys):
    columns = {"MACs": {"dense": 1200, "small": 300}, "accuracy": {"dense": 0.95, "small": 0.9}}
    assert race("Two", Comparison(TIMES, RATIOS), columns) == {"dense": 1.0, "small": 2.5}
    assert capsys.readouterr().out.splitlines() == [
        "Two",
        "network | MACs | accuracy | time | times faster",
        "dense | 1,200 | ≈ 95.0 % | ≈ 2.00 ms | ≈ 1.00×",
        "small | 300 | ≈ 90.0 % | ≈ 1.00 ms | ≈ 2.50×",
    ]


def test_a_race_needs_no_further_columns(capsys):
    race("Two", Comparison(TIMES, RATIOS))
    assert capsys.readouterr().out.splitlines()[1] == "network | time | times faster"
