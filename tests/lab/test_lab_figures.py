import base64
import configparser
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from prunelab import lab
from prunelab.lab.show import display, figure, vector
from prunelab.lab.workshop import notebook

ALT = "Accuracy falls slowly, then all at once."


def test_a_figure_is_an_opaque_picture_with_its_alt_in_every_form(shown):
    with lab.figure(alt=ALT, figsize=(3, 2)) as (_fig, ax):
        ax.plot([0, 1], [1, 0])
    ((data, metadata),) = shown
    assert data["text/plain"] == ALT
    assert notebook.alts_of(data["text/html"]) == [ALT]
    assert metadata == {"image/png": {"alt": ALT}}
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.size == (330, 220)
    assert picture.convert("RGBA").getextrema()[3] == (255, 255), "opaque, for dark themes"
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def drawn(shown, paint=lambda ax: ax.plot([0, 1], [1, 0], color="red", label="falls"), **shape):
    shown.clear()
    with lab.figure(alt=ALT, **{"figsize": (3, 2), **shape}) as (_fig, ax):
        paint(ax)
    return shown[0][0]["text/html"]


def test_in_a_trusted_page_it_is_drawn_in_the_pages_colours(shown):
    html = drawn(shown)
    for variable in ("--jp-content-font-color2", "--jp-border-color2"):
        assert f"var({variable}, #" in html
    assert "--pl-blue: #3a8ddc" in html, "and in brighter ones where the page is dark"
    assert f'<svg role="img" aria-label="{ALT}"' in html
    assert "#ff0000" in html, "a colour that is nobody's stays what it is"


def test_the_picture_is_hidden_only_beside_its_drawing(shown):
    html = drawn(shown)
    assert html.index("</svg><img ") > 0
    assert ".pl-picture > svg + img { display: none; }" in html, "so a page that drops the SVG shows the picture"


def test_a_drawing_is_the_same_tomorrow_and_has_ids_of_its_own(shown):
    one, again, other = drawn(shown), drawn(shown), drawn(shown, lambda ax: ax.plot([1, 2], [3, 4]))
    assert one == again

    def ids(html):
        return set(re.findall(r' id="([^"]*)"', html))

    assert ids(one)
    assert not ids(one) & ids(other)
    assert {a or b for a, b in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', one)} <= ids(one)
    assert "<style>*" not in one.replace("<style> *", "<style>*"), "matplotlib's own style would meet the whole page"


def test_ink_is_turned_on_a_dark_page_and_a_heat_map_is_not(shown):
    board = np.linspace(0, 1, 12).reshape(3, 4)
    assert 'class="pl-ink"' in drawn(shown, lambda ax: ax.imshow(board, cmap=figure.SHADES))
    assert 'class="pl-ink"' not in drawn(shown, lambda ax: ax.imshow(board))


def test_strict_comparison_skips_the_drawing_and_keeps_its_description(shown):
    rules = configparser.RawConfigParser()
    rules.read(Path(__file__).parents[1] / "nbval_sanitize.cfg")

    def compared(text):
        for name in ("picture", "drawing"):
            text = re.sub(rules[name]["regex"], rules[name]["replace"], text)
        return text

    html, other = drawn(shown), drawn(shown, lambda ax: ax.plot([1, 2], [3, 9]))
    assert html != other
    assert compared(html) == compared(other)
    assert ALT in compared(html)
    panels = []
    for slope in (1, 2):
        shown.clear()
        lab.explorer(lambda ax, s, slope=slope: ax.plot([0, s * slope]), {"s": [0, 1]}, alt=ALT, figsize=(3, 2))
        panels.append(shown[0][0]["text/html"])
    assert panels[0] != panels[1]
    assert compared(panels[0]) == compared(panels[1])
    assert "controls" in compared(panels[0])


def test_its_letters_are_shapes(shown):
    html = drawn(shown, lambda ax: ax.set(xlabel="sparsity"))
    assert "<text" not in html, "so that they leave no loose words where SVG is dropped"
    assert len(html) < 40_000


@pytest.mark.parametrize("alt", ["", "  ", "curve", None, "a b"])
def test_a_figure_without_words_is_refused(alt):
    with pytest.raises(ValueError, match="alt"), lab.figure(alt=alt):
        pass


def test_alt_is_mandatory():
    with pytest.raises(TypeError):
        lab.figure()


def test_a_figure_whose_block_fails_is_not_shown(shown):
    with pytest.raises(ZeroDivisionError), lab.figure(alt=ALT):
        1 / 0  # noqa: B018
    assert shown == []


def test_an_alt_is_escaped_and_on_one_line(shown):
    with lab.figure(alt='A "quote" <b>\n and more'):
        pass
    assert notebook.alts_of(shown[0][0]["text/html"]) == ['A "quote" <b> and more']


def test_the_cycle_tells_lines_apart_without_colour():
    entries = list(figure.STYLE["axes.prop_cycle"])
    for key in ("color", "marker", "linestyle"):
        assert len({entry[key] for entry in entries}) == len(entries)
    for entry in entries:
        red, green, blue = to_rgb(entry["color"])
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.75, f"{entry['color']} is too faint on white"


def test_subplots_pass_through():
    with lab.figure(alt=ALT, ncols=2, sharey=True, figsize=(4, 2)) as (fig, axes):
        assert len(axes) == 2
    assert fig.get_size_inches().tolist() == [4, 2]


def test_a_table_is_accessible_and_its_text_unpadded(shown):
    lab.table("What is left", {"sparsity": None, "accuracy": "%", "on cuda": "s", "bytes": None},
              [["50 %", 0.93, None, 1234], ["90 %", 0.4, 0.001, "many"]])  # fmt: skip
    data = shown[0][0]
    assert data["text/plain"].splitlines() == [
        "What is left",
        "sparsity | accuracy | on cuda | bytes",
        "50 % | ≈ 93.0 % | no CUDA here | 1,234",
        "90 % | ≈ 40.0 % | ≈ 1.00 ms | many",
    ]
    assert data["text/html"].count('scope="col"') == 4
    assert data["text/html"].count('scope="row"') == 2
    assert "<caption" in data["text/html"]


def test_a_table_takes_plain_column_names_and_refuses_ragged_rows(capsys):
    lab.table("Counts", ["layer", "weights"], [["<conv>", 0.5]])
    assert capsys.readouterr().out == "Counts\nlayer | weights\n<conv> | 0.5\n"
    with pytest.raises(ValueError, match="3 cells"):
        lab.table("Counts", ["layer", "weights"], [["conv", 1, 2]])


def test_prose_is_escaped_and_marked_up():
    assert display.prose("a < b, `x * y`, 3 * 4 * 5 and *this*") == (
        '<p style="margin: 0.3em 0">a &lt; b, <code>x * y</code>, 3 * 4 * 5 and <em>this</em></p>'
    )


# Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency",
# severity 1: what linear RGB becomes for an eye that lacks one kind of cone.
EYES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def cielab(colour, eye):
    """A colour as an eye sees it, in CIE L*a*b*, where a distance of about two is just noticed."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(eye) @ linear, 0, 1)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ seen / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def dark_colours():
    """The colours as a dark page shows them."""
    dark = dict(re.findall(r"(--pl-\w+): (#\w{6})", display.style().split('theme-light="false"')[1]))
    turned = {colour: dark.get(variable, "#ffffff") for colour, variable in vector.THEME.items()}
    return [turned.get(colour.lower(), colour) for colour in figure.COLOURS]


@pytest.mark.parametrize("eye", EYES)
def test_the_colours_are_told_apart_by_every_eye(eye):
    for colours, least in ((figure.COLOURS, 15), (dark_colours(), 12)):
        seen = [cielab(colour, EYES[eye]) for colour in colours]
        apart = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)]
        assert min(apart) > least
    red, green = (cielab(colour, EYES["deuteranopia"]) for colour in ("#A05050", "#507A50"))
    assert np.linalg.norm(red - green) < 15, "a red and a green of one lightness would fail"
