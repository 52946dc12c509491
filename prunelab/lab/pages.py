"""HTML that needs no network: notebooks by nbconvert, and pages of Markdown in the same dress."""

from __future__ import annotations

from html import escape
from pathlib import Path

from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html

from .rules import Notebook

TEMPLATES = Path(__file__).parent / "templates"


def style() -> str:
    """The pages' style sheet."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def notebook(nb: Notebook, name: str, navigation: str = "", template: str = "course") -> str:
    """A notebook as one HTML file, as a page ("course") or as slides ("deck")."""
    where = [str(TEMPLATES)]
    exporter = HTMLExporter(template_name=template, extra_template_basedirs=where, extra_template_paths=where)
    formulas = any("$" in cell.source for cell in nb.cells if cell.cell_type == "markdown")
    extra = {"navigation": navigation, "style": style(), "formulas": formulas, "metadata": {"name": name}}
    body, _ = exporter.from_notebook_node(nb, resources=extra)
    return body


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
