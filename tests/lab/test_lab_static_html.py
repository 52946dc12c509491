"""Where no widget lives, nothing is lost: an export by nbconvert keeps every picture, description and table."""

from __future__ import annotations

import itertools
import re
from html import unescape

import pytest
from nbconvert.exporters import HTMLExporter

from prunelab.lab.workshop import contents, course, notebook

NOTEBOOKS = course.notebooks()


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def exported(request) -> tuple[object, str]:
    """A notebook and its export."""
    nb = course.read(request.param)
    return nb, unescape(HTMLExporter().from_notebook_node(nb)[0])  # it writes some signs another way than we do


def html_of(cell) -> list[str]:
    return [unescape(notebook.shown(out, "text/html")) for out in cell.get("outputs", [])]


@pytest.mark.slow
def test_every_panel_shows_a_picture_and_its_description(exported):
    nb, page = exported
    panels = [cell for cell in notebook.code_cells(nb) if notebook.calls_in(cell, "explorer", "drawing")]
    assert panels
    for cell in panels:
        alts = [alt for html in html_of(cell) for alt in notebook.alts_of(html)]
        assert alts, f"{cell.id}: the panel left no picture"
        assert set(alts) <= set(notebook.alts_of(page))


def test_every_panel_has_a_table(exported):
    nb, page = exported
    explore = [html for section, cell in notebook.section_of(nb) if section == "Explore" for html in html_of(cell)]
    tables = [html[html.index("<table>") :] for html in explore if "<table>" in html]
    assert tables, "pass numbers=lambda ...: {column: value} to lab.explorer, or show a lab.table below the panel"
    assert all(table in page for table in tables), "and the table is in the export as it is here"


def test_every_picture_and_every_table_is_there(exported):
    nb, page = exported
    every = "".join(html for cell in notebook.code_cells(nb) for html in html_of(cell))
    assert notebook.alts_of(page) == notebook.alts_of(every)
    assert all(notebook.alts_of(page))
    for caption in re.findall(r"<caption.*?</caption>", every):
        assert page.count(caption) == every.count(caption)


def test_every_question_and_every_exercise_is_there_in_words(exported):
    nb, page = exported
    for question in contents.questions(nb):
        assert question.text in page
        assert all(option in page for option in question.options)
    for _, asked in contents.checked(nb):
        assert f"Exercise {asked.id}: {asked.title}" in page


def test_no_view_of_a_dead_widget_is_left(exported):
    _, page = exported
    assert "widget-view+json" not in page
    assert "A Jupyter Widget" not in page


def test_its_headings_are_in_order(exported):
    nb, _ = exported
    levels = [level for level, _ in notebook.headings(nb)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
