"""Figures as SVG that a page can hold: in the page's own colours, small, and with no name that another figure has."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from html import escape
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

SVG, HREF = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
ElementTree.register_namespace("", SVG)
NO_DATE = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # a figure is the same tomorrow

# What the course's figures paint with -> the page's own colour, where it has one; style.css has the dark ones.
INK, FAINT, RULE, PAPER = "#1a1a1a", "#5f5f5f", "#dedede", "#fefefe"
THEME = {
    INK: "--jp-content-font-color1",
    FAINT: "--jp-content-font-color2",
    RULE: "--jp-border-color2",
    PAPER: "--jp-layout-color0",
    "#0072b2": "--pl-blue",
    "#c45100": "--pl-orange",
    "#56b4e9": "--pl-sky",
}


def svg(fig: Figure, alt: str) -> str:
    """A figure as one piece of SVG with its description."""
    shared, painted = layers(fig)
    return frame(fig, alt, *named(f"<defs>{''.join(shared.values())}</defs>", *painted))


def layers(fig: Figure) -> tuple[dict[str, str], list[str]]:
    """A figure's SVG in parts: what others refer to, by its id, and what is painted, from the back to the front."""
    file = io.BytesIO()
    fig.savefig(file, format="svg", transparent=True, metadata=NO_DATE)
    root = ElementTree.fromstring(file.getvalue())
    shared: dict[str, str] = {}
    for parent in list(root.iter()):
        for defs in parent.findall(f"{{{SVG}}}defs"):
            shared |= {name: _markup(part, name) for part in defs if (name := part.get("id"))}
            parent.remove(defs)
    return shared, [_markup(part) for part in _painted(root)]


def frame(fig: Figure, alt: str, *parts: str) -> str:
    """The SVG of a figure's size around some parts of it."""
    width, height = fig.get_size_inches()
    wide = round(width * fig.dpi)  # on the page, in pixels of a screen of ordinary sharpness
    return (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {72 * width:g} {72 * height:g}" width="{wide}" '
        f'style="min-width: min(22rem, {wide}px); overflow: visible; stroke-linejoin: round">'
        f"{''.join(parts)}</svg>"
    )


def named(*parts: str) -> list[str]:
    """The parts with ids that no other figure of the page has, and that are the same in each run."""
    name = f"pl{hashlib.sha256(''.join(parts).encode()).hexdigest()[:8]}"
    return [re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{name}-", part) for part in parts]


def _painted(group: Element) -> Iterator[Element]:
    """What a figure paints, out of the groups that matplotlib makes for the figure and its axes."""
    for part in group:
        made = part.get("id", "").startswith(("figure_", "axes_"))
        yield from _painted(part) if made else [part]


def _markup(part: Element, name: str = "") -> str:
    """One part as text, without what no page needs; `name` is the id it keeps."""
    for element in part.iter():
        for key, value in list(element.items()):
            del element.attrib[key]
            if key == HREF and value.startswith("data:"):
                value = value.replace("\n", "")
                element.attrib |= {"class": "pl-ink"} if _is_ink(value) else {}
            if key != "id":
                element.set("href" if key == HREF else key, _shorter(key, value))
        element.text = element.tail = None
    if name:
        part.set("id", name)
    return ElementTree.tostring(part, encoding="unicode").replace(f' xmlns="{SVG}"', "")


def _shorter(key: str, value: str) -> str:
    """An attribute with coordinates of a hundredth of a point, and the page's colours for the course's."""
    if key in ("d", "x", "y"):
        return re.sub(r"\s*([A-Za-z])\s*", r"\1", _rounded(value.strip()))
    if key == "transform":
        return re.sub(r"translate\([^)]*\)", lambda found: _rounded(found.group()), value)
    return (
        re.sub("|".join(THEME), lambda found: f"var({THEME[found[0]]}, {found[0]})", value) if key == "style" else value
    )


def _rounded(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}".rstrip("0").rstrip("."), numbers)


def _is_ink(href: str) -> bool:
    """Whether a picture is black alone, more or less of it: such a one is drawn in white on a dark page."""
    picture = Image.open(io.BytesIO(base64.b64decode(href.partition(",")[2])))
    return picture.mode == "RGBA" and not np.asarray(picture)[..., :3].any()
