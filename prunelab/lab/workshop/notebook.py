"""Reading a notebook: its cells, sections, headings, outputs, and calls of the lab."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

Notebook = Any  # an nbformat NotebookNode


def code_cells(nb: Notebook) -> list[Any]:
    """The code cells that hold anything."""
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(nb: Notebook) -> Iterator[tuple[int, Any]]:
    """Each stored output with the number of its code cell."""
    return ((n, out) for n, cell in enumerate(code_cells(nb), 1) for out in cell.get("outputs", []))


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


def section_code(nb: Notebook) -> dict[str, str]:
    """The code of each section, joined."""
    return _by_section(nb, "code")


def called(name: str, source: str) -> int:
    """How often the source calls a name; for lab.explorer, lab.drawing and a ready-made one count too."""
    pattern = rf"\b{re.escape(name)}\("
    ready_made = r"|\blab\.(plots\.\w*explorer|drawing)\(" if name == "lab.explorer" else ""
    return len(re.findall(pattern + ready_made, source))


def section_markdown(nb: Notebook) -> dict[str, str]:
    """The Markdown of each section, joined."""
    return _by_section(nb, "markdown")


def _by_section(nb: Notebook, kind: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for section, cell in section_of(nb):
        if cell.cell_type == kind:
            found[section] = found.get(section, "") + cell.source + "\n"
    return found


def strip_line(nb: Notebook) -> str:
    """The first line of text under the title."""
    below = False
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            if below:
                return ""
            continue
        for line in cell.source.splitlines():
            if below and line.strip():
                return line
            below = below or line.startswith("# ")
    return ""


def tree(cell: Any) -> ast.Module:
    """A code cell's syntax tree; magics and shell lines are left out."""
    return ast.parse("\n".join(x for x in cell.source.splitlines() if not x.lstrip().startswith(("%", "!"))))


def calls(nb: Notebook, name: str) -> Iterator[ast.Call]:
    """Every call of `lab.<name>` in a notebook."""
    return (call for cell in code_cells(nb) for call in calls_in(tree(cell), name))


def calls_in(module: ast.Module, name: str) -> Iterator[ast.Call]:
    """Every call of `lab.<name>` in a syntax tree."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"lab.{name}":
            yield node


def text_of(node: ast.expr | None) -> str:
    """What is literal in a string or an f-string."""
    if isinstance(node, ast.JoinedStr):
        return " ".join(str(v.value) for v in node.values if isinstance(v, ast.Constant))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def without_fences(markdown: str) -> str:
    """Markdown without fenced code."""
    return re.sub(r"^(```|~~~).*?^\1.*?$", "", markdown, flags=re.M | re.S)


class _Alts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append((dict(attrs).get("alt") or "").strip())


def alts_of(html: str) -> list[str]:
    """The alt of each picture in HTML; "" where there is none."""
    parser = _Alts()
    parser.feed(html)
    return parser.found


def without_pictures(text: str | list[str]) -> str:
    """Text without embedded picture data."""
    return re.sub(r"data:[a-z]+/[a-z+-]+;base64,[\w+/=]+", "", joined(text))


def joined(text: str | list[str] | None) -> str:
    """A notebook's multi-line text as one string."""
    return "".join(text or "")
