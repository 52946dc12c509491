"""The course as a web site: every notebook as a page, and an API reference; nothing in it needs the network."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ...files import write_whole
from . import bank, contents, course, pages, reference
from .notebook import Notebook, outputs, section_text, shown

HOME, REFERENCE, GLOSSARY, SEARCH = "index.html", "reference.html", "glossary.html", "search.js"


def build(out: Path) -> list[Path]:
    """Write the site into a folder; the pages written."""
    out.mkdir(parents=True, exist_ok=True)
    notebooks = {path.stem: course.read(path) for path in course.notebooks()}
    texts = {path.stem: path.read_text(encoding="utf-8") for path in course.texts()}
    modules = {m.__name__: m for m in reference.modules()}
    links = {"prunelab": HOME, **{f"{name[:2]} {contents.title(nb)}": f"{name}.html" for name, nb in notebooks.items()}}
    links |= {_title(text): f"{name}.html" for name, text in texts.items()}
    links |= {"Glossary": GLOSSARY, "API reference": REFERENCE}
    found = {}
    for name, nb in notebooks.items():
        for cell in nb.cells:  # in memory
            cell.source = _linked(cell.source) if cell.cell_type == "markdown" else cell.source
        found[f"{name}.html"] = pages.notebook(nb, contents.title(nb), links, f"{name}.html")
    written = {"index": _home(links, notebooks), "glossary": glossary(notebooks), **texts}
    written |= {"reference": _contents(modules)} | {name: reference.page(module) for name, module in modules.items()}
    for name, text in written.items():
        here = REFERENCE if name in modules else f"{name}.html"
        found[f"{name}.html"] = pages.markdown(_linked(text), _title(text), links, here)
    index = [part for name, page in found.items() for part in _searched(name, page)]
    whole = found | {SEARCH: f"window.prunelabPages = {json.dumps(index, ensure_ascii=False)};\n"}
    for name, text in whole.items():
        write_whole(out / name, text.encode())
    return [out / name for name in found]


def glossary(notebooks: Mapping[str, Notebook]) -> str:
    """The words that the notebooks' recaps explain, in the order of the alphabet, each with where it is met first."""
    told: dict[str, str] = {}
    for name, nb in notebooks.items():
        part = re.search(r"\*\*Glossary\.\*\*(.*?)(?:\n\n|$)", section_text(nb, "Recap"), re.S)
        line = " ".join(part[1].split()) if part else ""
        for word, words in re.findall(r"\*([^*]+)\*: (.*?)(?= \*[^*]+\*: |$)", line):
            told.setdefault(word, f"- **{word}**: {words} ([{name[:2]}]({name}.ipynb))")
    return "# Glossary\n\n" + "\n".join(told[word] for word in sorted(told, key=str.casefold)) + "\n"


def _searched(name: str, page: str) -> list[tuple[str, str, str, str]]:
    """What the search knows of a page: its title, and of each part the heading, the address and the text."""
    parts = pages.sections(page)
    return [(parts[0][0], heading, f"{name}#{id}" if id else name, text) for heading, id, text in parts]


def _title(text: str) -> str:
    """The first heading of a text in Markdown."""
    return text.partition("\n")[0].strip("# ")


def _home(links: Mapping[str, str], notebooks: Mapping[str, Notebook]) -> str:
    """The first page: what this is, the course's drawing to try at once, all notebooks, and the pages beside them."""
    shows = (shown(out, "text/html") for nb in notebooks.values() for _, out in outputs(nb))
    drawn = next((html for html in shows if 'class="pl-drawing"' in html), "")
    rows = []
    for name, nb in notebooks.items():
        needs = contents.strip(nb).partition("needs ")[2].partition(" · ")[0]
        rows.append([name[:2], f"[{contents.title(nb)}]({name}.html)", str(contents.minutes(nb)), needs])
    beside = [f"- [{text}]({to})" for text, to in links.items() if to not in (HOME, *(f"{n}.html" for n in notebooks))]
    parts = (
        "# prunelab",
        "**Learn neural-network pruning by doing it.** What can a network lose? Is it then smaller, and faster, and "
        "what did it forget? Each notebook asks one such question. In Jupyter you guess first, then measure; these "
        "pages are the course as its authors ran it, and what moves there moves here.",
        "Try it: move the slider, and see what this network still reads." * bool(drawn),
        re.sub(r"\n\s*\n", "\n", drawn),  # an empty line would end HTML in Markdown
        "## The course",
        bank.markdown_table(["", "question", "minutes", "needs"], rows),
        "## Beside the notebooks",
        "\n".join(beside),
    )
    return "\n\n".join(parts) + "\n"


def _contents(modules: Mapping[str, object]) -> str:
    lines = [f"- [`{name}`]({name}.html): {(inspect.getdoc(m) or '').splitlines()[0]}" for name, m in modules.items()]
    return "# API reference\n\n" + "\n".join(lines) + "\n"


def _linked(text: str) -> str:
    """Links in Markdown between notebooks and texts become links between pages."""
    return re.sub(r"\]\((?:\.\./notebooks/)?(\w+)\.(?:ipynb|md)\b", r"](\1.html", text)
