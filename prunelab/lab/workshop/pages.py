"""HTML that needs no network: notebooks by nbconvert, and pages of Markdown in the same dress."""

from __future__ import annotations

import base64
import copy
import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag
from matplotlib import mathtext
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html

from .notebook import Notebook

TEMPLATES = Path(__file__).parent / "templates"
HEADINGS, INLINE = ("h1", "h2", "h3", "h4", "h5", "h6"), ("a", "code", "em", "span", "strong")
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$", re.S)


def _exporter(template: str) -> HTMLExporter:
    where = [str(TEMPLATES)]
    return HTMLExporter(template_name=template, extra_template_basedirs=where, extra_template_paths=where)


def notebook(
    nb: Notebook, name: str, links: Mapping[str, str] | None = None, here: str = "", *, template: str = "course"
) -> str:
    """A notebook as one HTML file, as a page ("course") or as slides ("deck"); `links` from title to address."""
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas(cell.source)
    extra = {"links": links or {}, "here": here, "metadata": {"name": name}}
    body, _ = _exporter(template).from_notebook_node(nb, resources=extra)
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


def markdown(text: str, name: str, links: Mapping[str, str] | None = None, here: str = "") -> str:
    """A page of Markdown as one HTML file, its wide tables in a box of their own that scrolls."""
    content = markdown2html(text).replace("<table>", '<div style="overflow-x: auto"><table>')
    content = content.replace("</table>", "</table></div>")
    page = _exporter("course").environment.get_template("page.html.j2")
    return page.render(name=name, content=content, resources={"links": links or {}, "here": here})


def sections(html: str) -> list[tuple[str, str, str]]:
    """A page in parts: each heading, its id and the text below it, without scripts, styles and drawings."""
    page, found = BeautifulSoup(html, "html.parser"), []
    for gone in page(["script", "style", "svg", "header"]):
        gone.decompose()
    for part in page.descendants:
        if isinstance(part, Tag) and part.name in HEADINGS:
            found.append([part.get_text(), str(part.get("id", "")), ""])
        elif found and isinstance(part, Tag) and part.name not in INLINE:
            found[-1][2] += " "
        elif found and type(part) is NavigableString and not part.find_parent(HEADINGS):
            found[-1][2] += part
    return [(heading.strip(" ¶"), id, " ".join(text.split())) for heading, id, text in found]
