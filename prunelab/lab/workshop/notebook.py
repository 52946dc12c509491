"""Reading a notebook: its cells, sections, headings, outputs, and calls of the lab."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from bs4 import BeautifulSoup

from ...core import PruneError

Notebook = Any  # an nbformat NotebookNode


def code_cells(nb: Notebook) -> list[Any]:
    """The code cells that hold anything."""
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(nb: Notebook) -> Iterator[tuple[int, Any]]:
    """Each stored output with the number of its code cell."""
    return ((n, out) for n, cell in enumerate(code_cells(nb), 1) for out in cell.get("outputs", []))


def shown(out: Any, mime: str = "text/plain") -> str:
    """What an output shows in this form; "" if it has none."""
    return out.get("data", {}).get(mime, "")


def headings(nb: Notebook) -> Iterator[tuple[int, str]]:
    """Each Markdown heading: its level and text."""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for mark, text in re.findall(r"^(#{1,6})\s+(.+?)\s*#*$", without_fences(cell.source), re.M):
                yield len(mark), text


def section_of(nb: Notebook) -> Iterator[tuple[str, Any]]:
    """Each cell with the section it stands in ("" before the first)."""
    section = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^##\s+(.+?)\s*$", without_fences(cell.source), re.M)
            section = found[-1] if found else section
        yield section, cell


def section_text(nb: Notebook, name: str) -> str:
    """The Markdown of a section."""
    return "\n".join(cell.source for where, cell in section_of(nb) if where == name and cell.cell_type == "markdown")


def strip_line(nb: Notebook) -> str:
    """The first line of text under the title, before any code."""
    before = takewhile(lambda cell: cell.cell_type == "markdown", nb.cells)
    found = re.search(r"^# .*\n\s*(\S.*)", "\n".join(cell.source for cell in before), re.M)
    return found[1] if found else ""


def tree(cell: Any) -> ast.Module:
    """A code cell's syntax tree; magics and shell lines are left out. PruneError if the rest is no Python."""
    try:
        return ast.parse("\n".join(x for x in cell.source.splitlines() if not x.lstrip().startswith(("%", "!"))))
    except SyntaxError as error:
        line = error.text or cell.source
        raise PruneError(f"a code cell can't be read as Python ({error.msg}), mend it: {line.strip()}") from error


def calls(nb: Notebook, name: str) -> Iterator[ast.Call]:
    """Every call of `lab.<name>` in a notebook."""
    return (call for cell in code_cells(nb) for call in calls_in(cell, name))


def calls_in(cell: Any, *names: str) -> list[ast.Call]:
    """Every call of `lab.<name>` in a code cell."""
    made = [node for node in ast.walk(tree(cell)) if isinstance(node, ast.Call)]
    return [call for call in made if ast.unparse(call.func) in [f"lab.{name}" for name in names]]


def first_text(call: ast.Call) -> str:
    """What is literal in a call's first argument, a string or an f-string."""
    given = call.args[0] if call.args else None
    parts = given.values if isinstance(given, ast.JoinedStr) else [given]
    return " ".join(x.value for x in parts if isinstance(x, ast.Constant) and isinstance(x.value, str))


def without_fences(markdown: str) -> str:
    """Markdown without fenced code."""
    return re.sub(r"^(```|~~~).*?^\1.*?$", "", markdown, flags=re.M | re.S)


def alts_of(html: str) -> list[str]:
    """The alt of each picture in HTML; "" where there is none."""
    return [str(picture.get("alt", "")).strip() for picture in BeautifulSoup(html, "html.parser")("img")]
