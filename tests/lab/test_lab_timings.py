import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from prunelab.core import PruneError
from prunelab.lab.author import timings
from prunelab.lab.workshop import course, guide, stored_timings


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_timings, "path", lambda: tmp_path / "timings.json")
    return tmp_path / "timings.json"


def test_a_summary_of_runs_by_hand():
    found = stored_timings.summary([[10, 9, 5], [20, 19, 7], [30, 29, 6]])
    assert (found.runs, found.p50, found.peak) == (3, 19, 7)
    assert found.p90 == pytest.approx(27)


def test_nothing_measured_is_said(stored):
    assert stored_timings.known() == {}
    assert stored_timings.stored() == {}
    stored.write_text("damaged")
    assert stored_timings.known() == {}
    assert "was not measured" in guide._measured("00")


@pytest.mark.slow
def test_a_notebook_is_run_in_a_kernel_of_its_own(tmp_path, stored, monkeypatch):
    path = tmp_path / "00_x.ipynb"
    source = "import os, time\ntime.sleep(0.3)\nassert os.environ['PRUNELAB_HOME'] != '/mine'"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    before = path.read_bytes()
    monkeypatch.setenv("PRUNELAB_HOME", "/mine")
    monkeypatch.setattr(course, "notebooks", lambda: [path])
    monkeypatch.setattr(timings.doctor, "trial", lambda: 0.05)
    timings.measure(runs=2)
    assert path.read_bytes() == before
    (found,) = stored_timings.known().values()
    assert found.runs == 2
    assert found.p50 > 0
    assert 1e7 < found.peak < 1e10
    assert stored_timings.stored()["trial"] == 0.05
    assert "torch" in stored_timings.stored()["machine"]
    assert f"{found.peak / 1e9:.1f} GB" in guide._measured("00")


@pytest.mark.parametrize(
    ("numbers", "runs", "said"), [(["99"], 1, "no notebook 99: choose from 00, "), (["00"], 0, "at least 1 is needed")]
)
def test_what_would_measure_nothing_is_refused_and_stores_nothing(stored, numbers, runs, said):
    with pytest.raises(PruneError, match=said):
        timings.measure(numbers, runs)
    assert not stored.exists()


def test_only_the_latest_runs_are_kept(stored):
    for n in range(12):
        timings._add("00", [n, n, n])
    assert json.loads(stored.read_text())["notebooks"]["00"] == [[n, n, n] for n in range(3, 12)]
