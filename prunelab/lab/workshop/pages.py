"""HTML that needs no network: notebooks by nbconvert, and pages of Markdown in the same dress."""

from __future__ import annotations

import base64
import copy
import io
import re
from html import escape
from pathlib import Path

from matplotlib import mathtext
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html

from .notebook import Notebook

TEMPLATES = Path(__file__).parent / "templates"
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$", re.S)


def style() -> str:
    """The pages' style sheet."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def notebook(nb: Notebook, name: str, navigation: str = "", template: str = "course") -> str:
    """A notebook as one HTML file, as a page ("course") or as slides ("deck")."""
    where = [str(TEMPLATES)]
    exporter = HTMLExporter(template_name=template, extra_template_basedirs=where, extra_template_paths=where)
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas(cell.source)
    extra = {"navigation": navigation, "style": style(), "metadata": {"name": name}}
    body, _ = exporter.from_notebook_node(nb, resources=extra)
    return body


def formulas(text: str) -> str:
    """Markdown with its formulas as pictures, each described by its source; MathJax would have to be fetched."""
    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.S)  # a dollar in code is a dollar
    return "".join(p if i % 2 else FORMULA.sub(_formula, p) for i, p in enumerate(parts))


def _formula(found: re.Match[str]) -> str:
    """One formula as a picture; its source where matplotlib can't set it."""
    block, source = found.group(1), " ".join((found.group(1) or found.group(2)).split())
    picture = io.BytesIO()
    try:
        mathtext.math_to_image(f"${source}$", picture, dpi=100, format="svg")
    except (ValueError, RuntimeError):
        return f"<code>{escape(source)}</code>"
    data = base64.b64encode(picture.getvalue()).decode()
    image = f'<img alt="{escape(source)}" src="data:image/svg+xml;base64,{data}" style="vertical-align: middle">'
    return f'\n\n<p style="text-align: center">{image}</p>\n\n' if block else image


def markdown(text: str, name: str, navigation: str = "") -> str:
    """A page of Markdown as one HTML file."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style()}</style></head>'
        f'<body>{navigation}<main id="content">{markdown2html(text)}</main></body></html>\n'
    )


def navigation(links: dict[str, str], here: str) -> str:
    """The line of links on top of a page, from text to address; the page's own is marked."""
    items = "".join(
        f'<a href="{escape(to)}"{" aria-current=page" if to == here else ""}>{escape(text)}</a>'
        for text, to in links.items()
    )
    return (
        f'<a class="skip" href="#content">to the content</a><nav class="course" aria-label="The course">{items}</nav>'
    )
