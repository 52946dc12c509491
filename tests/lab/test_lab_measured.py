import re
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

from prunelab import lab
from prunelab.lab.show import display, figure, measuring

RULES = get_sanitize_patterns((Path(__file__).parents[1] / "nbval_sanitize.cfg").read_text(encoding="utf-8"))


def sanitized(text):
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (lab.measured(0.944, "%"), "≈ 94.4 %"),
        (lab.measured(0.944, "%", spread=0.006), "≈ 94.4 % ± 0.60 %"),
        (lab.measured(0.00132, "s", interval=(0.00129, 0.0014)), "≈ 1.32 ms [1.29 ms, 1.40 ms]"),
        (lab.measured(2.5e-7, "s"), "≈ 250 ns"),
        (lab.measured(72_345, "B"), "≈ 72.3 kB"),
        (lab.measured(1.234e9, "MACs"), "≈ 1.23 GMACs"),
        (lab.measured(-0.0213, "points"), "≈ -2.13 points"),
        (lab.measured(2.64, "×"), "≈ 2.64×"),
        (lab.measured(12345.6), "≈ 12,346"),
        (lab.measured(0.0), "≈ 0.00"),
        (lab.measured(0), "≈ 0"),
        (lab.measured(12345), "≈ 12,345"),
        (lab.measured(float("nan")), "≈ nan"),
        (lab.measured(None, "s"), "no CUDA here"),
        (lab.measured(1, "CUDA device", digits=1), "≈ 1 CUDA device"),
    ],
)
def test_a_measured_value_has_one_form_and_one_rule_finds_all_of_it(text, want):
    assert text == want
    assert sanitized(f"a: {text}, b") == "a: (measured), b"


def test_a_number_and_its_unit_stay_on_one_line_of_a_table():
    _, html = figure.render_table("Half", {"": None, "read": "%"}, [["50 % zero, in 5 networks", 0.944]])
    assert "50&nbsp;% zero, in 5 networks" in html
    assert "≈&nbsp;94.4&nbsp;%" in html
    assert sanitized(html) == sanitized(html.replace("&nbsp;", " "))
    assert "≈" not in sanitized(html)


def test_the_rule_in_the_file_is_the_pattern_in_the_code():
    assert dict(RULES)[measuring.PATTERN] == "(measured)"


def test_what_is_not_measured_is_compared_to_the_letter():
    for text in ("1,234 weights", "94.4 %", "about 3 ms", "± 0.4", "no CUDA"):
        assert sanitized(text) == text


def test_a_unit_the_rule_does_not_know_stays_in_the_comparison():
    assert sanitized(lab.measured(3, "bananas")) == "(measured) bananas"


@pytest.mark.parametrize("gpu", [None, 0.00031])
def test_a_table_compares_equal_with_and_without_a_gpu(gpu):
    columns = {"network": None, "accuracy": "%", "on cuda": "s"}
    forms = [
        sanitized(form)
        for form in figure.render_table("Speed", columns, [["dense", 0.9, gpu]])
        + figure.render_table("Speed", columns, [["dense", 0.8123, 12.0]])
    ]
    assert forms[0] == forms[2]
    assert forms[1] == forms[3]


def test_pixels_inside_html_are_not_compared_and_the_alt_is():
    one, two = (sanitized(display.image(data, "A curve that falls.")) for data in (b"abc", b"abcdef+/"))
    assert one == two
    assert one != sanitized(display.image(b"abc", "A curve that rises."))
