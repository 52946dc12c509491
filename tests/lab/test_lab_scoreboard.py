import re

import pytest

from prunelab import lab
from prunelab.lab.learn import progress, scoreboard

ROW = {"accuracy": 0.944, "bytes": 328_000, "macs": 1_200_000, "latency": (0.001, 0.0009, 0.0012)}


def test_the_compared_forms_hold_this_notebooks_rows_only(shown):
    lab.scoreboard.add("00", "dense", **ROW)
    lab.scoreboard.add("01", "sparse", **ROW, spread=0.004, seeds=3)
    lab.scoreboard.show("01")
    data = shown[-1][0]
    assert data["text/plain"].splitlines()[1:] == [
        "network | accuracy ± spread (seeds) | stored, indices included | MACs | time on cpu, p50 [p10, p90]",
        "sparse | ≈ 94.4 % ± 0.40 % (3 seeds) | 328 kB | 1.20 MMACs | ≈ 1.00 ms [0.900 ms, 1.20 ms]",
    ]
    assert "dense" not in re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", data["text/html"])


def test_the_other_notebooks_stand_below_by_notebook_the_most_accurate_first(shown):
    lab.scoreboard.add("00", "pruned", **ROW | {"accuracy": 0.5})
    lab.scoreboard.add("00", "dense", **ROW)
    scoreboard._here.clear()  # another kernel
    lab.scoreboard.add("01", "sparse", **ROW)
    lab.scoreboard.show("01")
    html = shown[-1][0]["text/html"]
    assert html.index("sparse") < html.index("Notebook 00") < html.index("dense") < html.index("pruned")


def test_the_same_name_replaces_its_row():
    lab.scoreboard.add("01", "sparse", **ROW)
    lab.scoreboard.add("01", "sparse", **ROW | {"accuracy": 0.5})
    assert scoreboard.rows("01")["sparse"]["accuracy"] == 0.5
    assert len(progress.current().read()["scoreboard"]) == 1


def test_odd_rows_in_the_file_are_left_out(shown):
    progress.current().record("scoreboard", "00 old", {"accuracy": 1})
    progress.current().record("scoreboard", "00 odd", "text")
    lab.scoreboard.show("01")
    assert shown


@pytest.mark.parametrize(
    "change", [{"accuracy": 94.4}, {"accuracy": float("nan")}, {"latency": (1, 2, 3)}, {"latency": (0, 0, 0)}]
)
def test_bad_rows_are_refused(change):
    with pytest.raises(ValueError, match=r"accuracy|latency"):
        lab.scoreboard.add("01", "x", **ROW | change)


def test_bytes_that_depend_on_the_run_can_be_measured_and_latency_left_out(capsys):
    lab.scoreboard.add(
        "01", "gzip", accuracy=0.9, bytes=lab.measured(71_234, "B"), macs=5_000_000, latency_cuda=(0.1, 0.1, 0.1)
    )
    lab.scoreboard.show("01")
    assert (
        "gzip | ≈ 90.0 % (1 seed) | ≈ 71.2 kB | 5.00 MMACs | not timed | ≈ 100 ms [100 ms, 100 ms]"
        in capsys.readouterr().out
    )


def test_the_timed_networks_have_a_picture_that_nbval_does_not_compare(shown):
    lab.scoreboard.add("01", "dense", **ROW)
    lab.scoreboard.show("01")
    assert "pl-scores" not in shown[-1][0]["text/html"], "one network is no comparison"
    lab.scoreboard.add("01", "sparse <b>", **ROW | {"bytes": 41_000}, spread=0.004, seeds=3)
    lab.scoreboard.add("01", "not timed", **ROW | {"latency": None})
    lab.scoreboard.show("01")
    html = shown[-1][0]["text/html"]
    assert html.index("</table>") < html.index("<!--yours-->") < html.index("pl-scores")
    assert "Accuracy against time" in html
    assert "<svg" not in re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", html)


def test_the_area_is_the_size_of_the_file():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    rows = {"whole": ROW | {"spread": None}, "half": ROW | {"spread": 0.01, "bytes": 164_000}}
    scoreboard._paint(axes, rows)
    whole, half = (c.get_sizes()[0] for c in axes.collections if c.get_label() in ("whole, 328 kB", "half, 164 kB"))
    assert half == whole / 2
