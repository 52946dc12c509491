import re

import numpy as np
import pytest
import torch
from torch import nn

from prunelab import lab
from prunelab.lab.learn import progress, scoreboard
from prunelab.measurement import measure
from prunelab.measurement.timing import Speedup

ROW = {"accuracy": 0.944, "bytes": 328_000, "macs": 1_200_000, "speed": Speedup(2.5, 2.4, 2.62)}


def test_the_compared_forms_hold_this_notebooks_rows_only(shown):
    lab.scoreboard.add("00", "dense", **ROW)
    lab.scoreboard.add("01", "sparse", **ROW | {"accuracy": [0.94, 0.944, 0.948]})
    lab.scoreboard.show("01")
    data = shown[-1][0]
    assert data["text/plain"].splitlines()[1:] == [
        "network | accuracy ± spread (seeds) | stored, indices included | MACs | times faster than dense, on cpu",
        "sparse | ≈ 94.4 % ± 0.40 % (3 seeds) | 328 kB | 1.20 MMACs | ≈ 2.50× [2.40×, 2.62×]",
    ]
    assert ">dense<" not in re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", data["text/html"])


def test_the_other_notebooks_stand_below_by_notebook_the_most_accurate_first(shown):
    lab.scoreboard.add("00", "pruned", **ROW | {"accuracy": 0.5})
    lab.scoreboard.add("00", "dense", **ROW)
    scoreboard._here.clear()  # another kernel
    lab.scoreboard.add("01", "sparse", **ROW)
    lab.scoreboard.show("01")
    html = shown[-1][0]["text/html"]
    assert html.index("sparse") < html.index("Notebook 00") < html.index(">dense<") < html.index("pruned")


def test_the_same_name_replaces_its_row():
    lab.scoreboard.add("01", "sparse", **ROW)
    lab.scoreboard.add("01", "sparse", **ROW | {"accuracy": 0.5})
    assert scoreboard.rows("01")["sparse"]["accuracy"] == 0.5
    assert len(progress.current().read()["scoreboard"]) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"accuracy": "x"},
        {"accuracy": 7},
        {"bytes": None},
        {"macs": [1]},
        {"speed": [1, 2]},
        {"speed": "abc"},
        {"seeds": "two"},
        {"spread": "wide"},
    ],
)
def test_a_damaged_row_in_the_file_is_left_out(shown, odd):
    whole = {"accuracy": 0.9, "spread": None, "seeds": 1, "bytes": 1, "macs": 1, "speed": [2, 1.5, 3]}
    progress.current().record("scoreboard", "00 whole", whole)
    progress.current().record("scoreboard", "00 odd", whole | odd)
    lab.scoreboard.show("01")
    html = shown[-1][0]["text/html"]
    assert ">whole<" in html
    assert ">odd<" not in html


def test_numpys_integers_are_integers():
    lab.scoreboard.add("01", "n", accuracy=0.9, bytes=np.int64(5), macs=np.uint8(1))
    row = progress.current().read()["scoreboard"]["01 n"]
    assert (row["bytes"], row["macs"]) == (5, 1)
    assert scoreboard.rows("01")["n"] == row


@pytest.mark.parametrize(
    ("name", "odd"),
    [("\ud800", {}), ("n", {"bytes": 10**20}), ("n", {"macs": object()}), ("n", {"bytes": [1]}), ("n" * (1 << 20), {})],
)
def test_a_row_that_could_not_be_read_again_is_refused_and_poisons_nothing(home, name, odd):
    progress.current().record("exercises", "01-1", {"solved": True})
    with pytest.raises(ValueError, match="the row"):
        lab.scoreboard.add("01", name, **{"accuracy": 0.9, "bytes": 1, "macs": 1} | odd)
    assert scoreboard.rows("01") == {}
    lab.scoreboard.add("01", "next", **ROW)
    progress._stores.clear()
    content = progress.current().read()
    assert list(content["scoreboard"]) == ["01 next"]
    assert list(content["exercises"]) == ["01-1"]


def test_odd_rows_in_the_file_are_left_out(shown):
    progress.current().record("scoreboard", "00 old", {"accuracy": 1})
    progress.current().record("scoreboard", "00 odd", "text")
    lab.scoreboard.show("01")
    assert shown


@pytest.mark.parametrize("accuracy", [94.4, float("nan"), [0.9, 94.4], None])
def test_bad_rows_are_refused(accuracy):
    with pytest.raises(ValueError, match="accuracy"):
        lab.scoreboard.add("01", "x", **ROW | {"accuracy": accuracy})


def test_a_network_is_counted_and_a_measurement_knows_its_accuracy():
    network = nn.Linear(10, 4)  # 40 weights, 4 biases, 4 bytes each
    with torch.no_grad():
        network.weight[:, 1:] = 0  # 4 weights stay: as a bitmask 4 * 4 bytes and 40 bits, and 16 bytes of biases
    lab.scoreboard.add("01", "sparse", network, [0.9, 0.8], torch.zeros(2, 10))
    row = scoreboard.rows("01")["sparse"]
    assert (row["bytes"], row["macs"], row["seeds"]) == (37, 40, 2)
    assert row["accuracy"] == pytest.approx(0.85)
    assert row["spread"] == pytest.approx(0.1 / 2**0.5)
    data = (torch.zeros(8, 10), torch.zeros(8, dtype=torch.long))
    lab.scoreboard.add("01", "measured", measure(network, data))
    assert scoreboard.rows("01")["measured"]["macs"] == 40


def test_a_row_without_a_network_and_without_its_counts_is_refused():
    with pytest.raises(ValueError, match="give it, or bytes= and macs="):
        lab.scoreboard.add("01", "x", accuracy=0.9, macs=40)


def test_bytes_that_depend_on_the_run_can_be_measured_and_speed_has_a_column_only_where_there_is_one(capsys):
    lab.scoreboard.add("01", "gzip", accuracy=0.9, bytes=lab.measured(71_234, "B"), macs=5_000_000)
    lab.scoreboard.show("01")
    assert capsys.readouterr().out.endswith("MACs\ngzip | ≈ 90.0 % (1 seed) | ≈ 71.2 kB | 5.00 MMACs\n")


def test_a_row_of_before_with_seconds_of_its_own_shows_none(shown):
    old = {"accuracy": 0.9, "spread": None, "seeds": 1, "bytes": 1, "macs": 1, "latency": [0.027, 0.02, 0.03]}
    progress.current().record("scoreboard", "00 dense", old)
    lab.scoreboard.add("01", "sparse", **ROW)
    lab.scoreboard.show("01")
    assert ">dense<" in shown[-1][0]["text/html"]
    assert "27.0 ms" not in shown[-1][0]["text/html"]


def test_the_timed_networks_have_a_picture_that_nbval_does_not_compare(shown):
    lab.scoreboard.add("01", "dense", **ROW)
    lab.scoreboard.show("01")
    assert "pl-scores" not in shown[-1][0]["text/html"], "one network is no comparison"
    lab.scoreboard.add("01", "sparse <b>", **ROW | {"bytes": 41_000, "accuracy": [0.94, 0.944, 0.948]})
    lab.scoreboard.add("01", "not timed", **ROW | {"speed": None})
    lab.scoreboard.show("01")
    html = shown[-1][0]["text/html"]
    assert html.index("</table>") < html.index("<!--yours-->") < html.index("pl-scores")
    assert "Accuracy against speed" in html
    assert "<svg" not in re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", html)


def test_the_area_is_the_size_of_the_file():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    timed = ROW | {"speed": [2.5, 2.4, 2.62]}
    rows = {"whole": timed | {"spread": None}, "half": timed | {"spread": 0.01, "bytes": 164_000}}
    scoreboard._paint(axes, rows)
    whole, half = (c.get_sizes()[0] for c in axes.collections if c.get_label() in ("whole, 328 kB", "half, 164 kB"))
    assert half == whole / 2
    scoreboard._paint(axes, {name: row | {"bytes": 0} for name, row in rows.items()})
