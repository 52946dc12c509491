import time

import numpy as np
import pytest

from prunelab import lab
from prunelab.lab.show import display, explorer
from prunelab.lab.workshop import notebook

CONTROLS = {"sparsity": [0.0, 0.5, 0.9], "bins": [5, 10]}


def paint(ax, sparsity, bins):
    ax.hist(np.linspace(0, 1, 50), bins=bins)
    ax.axvline(sparsity)


def describe(sparsity, bins):
    return f"The threshold stands at {sparsity}, over {bins} bins."


def make(**options):
    return lab.explorer(paint, CONTROLS, alt=describe, formats={"sparsity": "{:.0%}"}, figsize=(2, 1.5), **options)


def test_the_output_holds_a_live_view_a_picture_and_a_line(shown):
    make(start={"sparsity": 0.5})
    ((data, metadata),) = shown
    text = "The threshold stands at 0.5, over 5 bins."
    assert data["text/plain"] == text
    assert notebook.alts_of(data["text/html"]) == [text]
    assert metadata["image/png"]["alt"] == text
    assert {"image/png", display.WIDGET_VIEW} < set(data)


def test_a_move_shows_the_picture_of_its_state():
    panel = make()
    seen = set()
    for sparsity in CONTROLS["sparsity"]:
        for bins in CONTROLS["bins"]:
            panel["sparsity"].value, panel["bins"].value = sparsity, bins
            assert panel.state == {"sparsity": sparsity, "bins": bins}
            assert panel.alt == describe(sparsity, bins)
            assert notebook.alts_of(panel.picture.value) == [panel.alt]
            seen.add(panel.png)
    assert len(seen) == 6, "each state has a picture of its own"
    assert repr(panel) == "Explorer(sparsity, bins)"


def test_a_move_answers_within_a_tenth_of_a_second(capsys):
    panel = make()
    times = []
    for n in range(200):
        began = time.perf_counter()
        panel["sparsity"].value = CONTROLS["sparsity"][n % 3]
        panel["bins"].value = CONTROLS["bins"][n % 2]
        times.append((time.perf_counter() - began) / 2)
    p95 = float(np.percentile(times, 95))
    with capsys.disabled():
        print(f"\na slider move answers in {1000 * np.median(times):.2f} ms (p95 {1000 * p95:.2f} ms) in the kernel")
    assert p95 < 0.1


def test_sliders_are_labelled():
    panel = make(labels={"sparsity": "share removed"})
    assert [s.description for s in panel.sliders.values()] == ["share removed", "bins"]
    assert [label for label, _ in panel["sparsity"].options] == ["0%", "50%", "90%"]
    with pytest.raises(KeyError, match="sparsity, bins"):
        panel["scope"]


def test_the_bar_shows_only_when_drawing_takes_long(monkeypatch):
    bars = []
    monkeypatch.setattr(explorer, "PATIENCE", -1.0)
    monkeypatch.setattr(display, "show", lambda *a, widget, **k: bars.append(widget.children[-2]))
    displays = []
    original = explorer.Explorer.add

    def add(self, *args):
        if bars:
            displays.append(bars[0].layout.display)
        original(self, *args)

    monkeypatch.setattr(explorer.Explorer, "add", add)
    make()
    assert displays == [""] * 5
    assert bars[0].layout.display == "none", "and is gone once all is drawn"


@pytest.mark.parametrize(
    ("controls", "start", "words"),
    [
        ({}, None, "at least one control"),
        ({"a": []}, None, "at least one value"),
        ({"a": range(30), "b": range(30)}, None, "900 pictures"),
        ({"a": [1, 2]}, {"a": 3}, "not on the grid"),
        ({"a": [1, 2]}, {"b": 1}, "not on the grid"),
    ],
)
def test_bad_grids_are_refused(controls, start, words):
    with pytest.raises(ValueError, match=words):
        lab.explorer(paint, controls, alt="Nothing to be seen.", start=start)


def test_the_table_says_what_every_picture_shows(shown, monkeypatch):
    options = {"numbers": lambda sparsity, bins: {"double": 2 * bins}, "labels": {"sparsity": "share removed"}}
    make(**options)
    ((data, _),) = shown
    assert data["text/html"].count("<tr>") == 1 + 6
    assert "<details open>" in data["text/html"], "a short table stands open where no slider lives"
    for text in ("share removed", "bins", "double", ">50%<", ">20<"):
        assert text in data["text/html"]
    assert data["text/plain"] == describe(0.0, 5), "the line of text is the picture's alone"
    shown.clear()
    monkeypatch.setattr(explorer, "LONG_TABLE", 5)
    make(**options)
    assert "<details><summary>" in shown[0][0]["text/html"]


def test_in_a_live_panel_the_table_is_folded(monkeypatch):
    views = []
    monkeypatch.setattr(display, "show", lambda *a, widget, **k: views.append(widget))
    make(numbers=lambda sparsity, bins: {"double": 2 * bins})
    assert views[0].children[-1].value.startswith("<details><summary>The same as a table</summary><table>")
    make()
    assert "table" not in views[1].children[-1].value
