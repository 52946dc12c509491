import base64
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from prunelab import lab
from prunelab.lab.show import display, explorer
from prunelab.lab.workshop import notebook

CONTROLS = {"sparsity": [0.0, 0.5, 0.9], "rule": ["local", "<global>"]}


def paint(ax, sparsity, rule):
    ax.hist(np.linspace(0, 1, 50), bins=5 if rule == "local" else 10)
    ax.axvline(sparsity)


def describe(sparsity, rule):
    return f"The threshold stands at {sparsity}, {rule}."


def make(shown, **options):
    """The output of one explorer, and the plan that its script reads."""
    shown.clear()
    chosen = {"alt": describe, "formats": {"sparsity": "%"}, "figsize": (2, 1.5), **options}
    lab.explorer(paint, chosen.pop("controls", CONTROLS), **chosen)
    ((data, _),) = shown
    return data, json.loads(re.search(r'<script type="application/json">(.*?)</script>', data["text/html"])[1])


def unpacked(plan):
    return json.loads(zlib.decompress(base64.b64decode(plan["pictures"])))


class Untrusted(HTMLParser):
    """What JupyterLab leaves of a page it does not trust: no script, no style, no SVG, and no control that works."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.hidden = "", [], 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style")
        if not self.hidden:
            self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self.hidden else data


def test_it_needs_no_kernel(shown):
    data, _ = make(shown)
    assert set(data) == {"text/html", "image/png", "text/plain"}, "no widget: nothing that could be gone tomorrow"
    assert data["text/plain"] == describe(0.0, "local")
    assert "http" not in data["text/html"].replace("http://www.w3.org/2000/svg", ""), "and nothing from the network"


def test_every_state_has_its_picture_and_what_they_share_travels_once(shown):
    _, plan = make(shown)
    pictures = unpacked(plan)
    states = [tuple(state) for state in pictures["states"]]
    assert len(set(states)) == 6 == len(plan["alts"])
    assert len(pictures["layers"]) < sum(map(len, states)) / 2
    assert set().union(*states) == set(range(len(pictures["layers"])))
    assert plan["alts"][1] == describe(0.0, "<global>"), "the last control changes fastest"


def test_numbers_get_a_slider_and_words_get_buttons_all_of_them_the_browsers_own(shown):
    _, plan = make(shown, start={"sparsity": 0.5}, labels={"sparsity": "share removed"})
    assert '<label>share removed <input type="range" min="0" max="2" value="1"></label>' in plan["controls"]
    assert "<legend>rule</legend>" in plan["controls"]
    assert plan["controls"].count('type="radio"') == 2
    assert "&lt;global&gt;" in plan["controls"]
    assert 'data-lm-suppress-shortcuts="true"' in plan["controls"], "or JupyterLab takes the arrow keys"
    assert plan["texts"] == [["0 %", "50 %", "90 %"], ["local", "<global>"]]


def test_what_is_shown_is_said_too(shown):
    _, plan = make(shown, numbers=lambda sparsity, rule: {"accuracy": lab.measured(1 - sparsity, "%")})
    assert 'aria-live="polite"' in plan["controls"]
    assert plan["said"][2] == f"{describe(0.5, 'local')} accuracy: ≈ 50.0 %."


def test_an_untrusted_page_keeps_a_picture_every_text_and_says_what_is_missing(shown):
    data, _ = make(shown, start={"sparsity": 0.5}, numbers=lambda sparsity, rule: {"double": f"{2 * sparsity:g} times"})
    left = Untrusted(data["text/html"])
    (picture,) = [attrs for tag, attrs in left.tags if tag == "img"]
    assert picture["alt"] == describe(0.5, "local")
    assert picture["src"].startswith("data:image/png;base64,")
    assert "Run this cell to make it move." in left.text
    for text in ("sparsity", "rule", "50\N{NO-BREAK SPACE}%", "<global>", "1.8 times"):
        assert text in left.text
    assert not [tag for tag, _ in left.tags if tag in ("input", "button", "svg")], "nothing dead to press"


def test_two_runs_are_the_same_to_the_letter(shown):
    first, _ = make(shown)
    second, _ = make(shown)
    assert first == second


def test_ids_are_unique_on_a_page(shown):
    def ids(plan):
        return set(re.findall(r' id="([^"]*)"', plan["frame"]))

    one, other = make(shown)[1], make(shown, alt="Another picture of it.", figsize=(3, 2))[1]
    assert ids(one)
    assert not ids(one) & ids(other)
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', "".join(unpacked(one)["layers"]))
    assert {a or b for a, b in used} <= ids(one)


def test_no_text_ends_the_script(shown):
    data, plan = make(shown, controls={**CONTROLS, "rule": ["local", "</script><b>"]})
    assert plan["texts"][1][1] == "</script><b>"
    assert data["text/html"].count("</script>") == 2


def test_pictures_that_are_too_large_are_refused(shown, monkeypatch):
    monkeypatch.setattr(explorer, "MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="at most 10,000"):
        make(shown)
    assert not shown


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
    options = {"numbers": lambda sparsity, rule: {"double": 2 * sparsity}, "labels": {"sparsity": "share removed"}}
    data, _ = make(shown, **options)
    assert data["text/html"].count("<tr>") == 1 + 6
    assert "<details open>" in data["text/html"], "a short table stands open where no control lives"
    for text in ("share removed", "rule", "double", ">50&nbsp;%<", ">1.8<"):
        assert text in data["text/html"]
    assert data["text/plain"] == describe(0.0, "local"), "the line of text is the picture's alone"
    monkeypatch.setattr(explorer, "LONG_TABLE", 5)
    assert "<details><summary>" in make(shown, **options)[0]["text/html"]
    assert notebook.alts_of(make(shown)[0]["text/html"]) == [describe(0.0, "local")]


def test_the_style_stands_in_every_output(shown):
    assert display.style() in make(shown)[0]["text/html"]
