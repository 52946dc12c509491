"""The course as a web site: every notebook as a page, and an API reference; nothing in it needs the network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from ...files import write_whole
from . import contents, course, pages, reference

HOME, REFERENCE = "index.html", "reference.html"


def build(out: Path) -> list[Path]:
    """Write the site into a folder; the pages written."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    notebooks = {path.stem: course.read(path) for path in course.notebooks()}
    links = {"prunelab": HOME, **{name[:2]: f"{name}.html" for name in notebooks}, "reference": REFERENCE}
    found = {HOME: pages.markdown(_home(notebooks), "prunelab", pages.navigation(links, HOME))}
    for name, nb in notebooks.items():
        here = f"{name}.html"
        found[here] = pages.notebook(_linked(nb), contents.title(nb), pages.navigation(links, here))
    modules = {m.__name__: m for m in reference.modules()}
    found[REFERENCE] = pages.markdown(_contents(modules), "API reference", pages.navigation(links, REFERENCE))
    for name, module in modules.items():
        found[f"{name}.html"] = pages.markdown(reference.page(module), name, pages.navigation(links, REFERENCE))
    for name, text in found.items():
        write_whole(out / name, text.encode())
    return [out / name for name in found]


def _home(notebooks: dict[str, object]) -> str:
    rows = "".join(
        f"| [{name[:2]}]({name}.html) | {contents.title(nb)} | {contents.strip(nb)} |\n"
        for name, nb in notebooks.items()
    )
    return (
        "# prunelab\n\nLearn neural-network pruning by doing it. These pages are the course as its authors ran it; "
        "in Jupyter you guess first, then measure, and every panel answers.\n\n"
        f"| | question | what it takes |\n|---|---|---|\n{rows}\n"
        f"The library under the course has an [API reference]({REFERENCE}).\n"
    )


def _contents(modules: Mapping[str, object]) -> str:
    lines = [f"- [`{name}`]({name}.html): {(inspect.getdoc(m) or '').splitlines()[0]}" for name, m in modules.items()]
    return "# API reference\n\n" + "\n".join(lines) + "\n"


def _linked(nb: object) -> object:
    """Links between notebooks become links between pages (in memory)."""
    for cell in nb.cells:  # type: ignore[attr-defined]
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(".ipynb)", ".html)")
    return nb
