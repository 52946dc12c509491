"""HTML that needs no network: notebooks by nbconvert, and pages of Markdown in the same dress."""

from __future__ import annotations

import base64
import copy
import io
import re
from html import escape
from html.parser import HTMLParser
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
        f'<body>{navigation}<main id="content">{_scrolled(markdown2html(text))}</main></body></html>\n'
    )


def _scrolled(html: str) -> str:
    """HTML whose wide tables scroll in a box of their own."""
    return html.replace("<table>", '<div style="overflow-x: auto"><table>').replace("</table>", "</table></div>")


def navigation(links: dict[str, str], here: str) -> str:
    """The head of a page: the search, the switch to the dark, and all pages, from title to address."""
    items = "".join(
        f'<a href="{escape(to)}"{" aria-current=page" if to == here else ""}>{escape(text)}</a>'
        for text, to in links.items()
    )
    script = (TEMPLATES / "site.js").read_text(encoding="utf-8")
    return (
        '<a class="skip" href="#content">to the content</a><header class="course"><form onsubmit="return false">'
        '<input type="search" placeholder="Search ( / )" aria-label="Search the course">'
        '<button type="button" aria-label="Dark">◐</button></form><output aria-live="polite"></output><ol></ol>'
        f'<details open><summary>Contents</summary><nav aria-label="The course">{items}</nav></details></header>'
        f"<script>{script}</script>"
    )


class _Sections(HTMLParser):
    """The text of a page by its headings: [heading, its id, text], without scripts, styles and drawings."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.skipped: list[str] = []
        self.heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "svg", "header"):
            self.skipped.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.found.append(["", dict(attrs).get("id") or "", ""])
            self.heading = True
        if self.found and tag not in ("a", "code", "em", "span", "strong"):
            self.found[-1][2] += " "

    def handle_endtag(self, tag: str) -> None:
        if self.skipped and tag == self.skipped[-1]:
            self.skipped.pop()
        self.heading = self.heading and not re.fullmatch(r"h[1-6]", tag)

    def handle_data(self, data: str) -> None:
        if self.found and not self.skipped:
            self.found[-1][0 if self.heading else 2] += data


def sections(html: str) -> list[tuple[str, str, str]]:
    """A page in parts: each heading, its id and the text below it."""
    parser = _Sections()
    parser.feed(html)
    return [(heading.strip(" ¶"), id, " ".join(text.split())) for heading, id, text in parser.found]
