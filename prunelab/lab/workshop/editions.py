"""Four editions from one source, so that none can drift: the learner's, the instructor's, slides, and the hosted one.

The source is the notebooks, the exercises' registry and the notes in `lessons/`; nothing is written into an edition
that does not come from there.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from ... import __version__
from ...core import PruneError
from ...files import write_whole
from ..learn.exercise import Exercise
from . import bank, contents, course, guide, pages
from .notebook import Notebook, calls, calls_in, code_cells, first_text, shown

SOURCE = "https://github.com/prunelab/prunelab"  # where a hosted notebook gets the course from
EXAM = Path(__file__).parents[1] / "author" / "exam.py"  # not in a wheel: no learner installs the solution
CAPTION = "*Figure"  # how a figure's caption begins
TITLE, SHORT, LONG = 20, 45, 75  # words that a slide may hold above a picture, above a table, and in all
ASIDES = re.compile(r"Run this cell|Notebook \d\d is ready|[✓✗] |.*\d%\|")  # outputs that a room need not see
NOTE = "instructor"  # the tag of what only the instructor's edition holds


def learner(nb: Notebook) -> Notebook:
    """The notebook with its stubs and no outputs: a result that stands there already can't surprise anybody."""
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def instructor(nb: Notebook) -> Notebook:
    """The notebook with solutions for stubs, and notes under the title, the predictions and the exercises."""
    nb = copy.deepcopy(nb)
    number, questions = first_text(next(calls(nb, "start"))), {q.id: q for q in contents.questions(nb)}
    told = {nb.cells[0].id: f"**For the instructor.** {guide.advice(number, nb)}"}
    for cell, asked in contents.checked(nb):
        cell.source = cell.source.replace(asked.stub, asked.solution.strip())
        cell.outputs = []
        told[cell.id] = _on_exercise(asked)
    for cell in code_cells(nb):
        for id in map(first_text, calls_in(cell, "predict")):
            if id not in questions:
                raise PruneError(f"notebook {number} does not show its question {id}: run all its cells, and save it")
            told[cell.id] = told.get(cell.id, "") + _on_question(questions[id])
        if "lab.exam()" in cell.source:
            told[cell.id] = _on_exam()
    nb.cells = [x for cell in nb.cells for x in (cell, *_note(cell.id, told.get(cell.id, "")))]
    return nb


def hosted(nb: Notebook) -> Notebook:
    """The learner's edition with one cell before it that installs the course: for Colab, Kaggle and their like."""
    nb = learner(nb)
    words = (
        "**On a hosted notebook**, run the next cell once. It installs the course and takes a few minutes; if it asks "
        "you to restart the session, do so, and go on below it. Your progress lasts as long as the session. Where a "
        "panel does not move, its picture and its table say the same."
    )
    # Of one version, but without constraints.txt: it would replace the kernel that Colab itself stands on.
    install = new_code_cell(f'%pip install --quiet "prunelab @ git+{SOURCE}@v{__version__}"', id="install")
    nb.cells = [new_markdown_cell(words, id="hosted"), install, *nb.cells]
    return nb


def slides(nb: Notebook) -> Notebook:
    """The notebook marked up for slides: a thought, a picture or a table each; a short text may stand above one."""
    nb = copy.deepcopy(nb)
    stubs = {cell.id for cell, _ in contents.checked(nb)}
    nb.cells = [part for cell in nb.cells for part in (_thoughts(cell) if cell.cell_type == "markdown" else [cell])]
    words = LONG  # on the slide so far; what shows a picture or a table fills it
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not ASIDES.match(shown(out))]
        begins = words > _room(cell) or cell.source.startswith("#")
        kind = "skip" if cell.id in stubs else "slide" if begins else "-"
        if kind != "skip" and _fills(cell):
            words = (0 if begins else words) + _fills(cell)
        cell.metadata["slideshow"] = {"slide_type": kind}
    return nb


def _fills(cell: Any) -> int:
    """How much of a slide a cell takes, in words."""
    return len(cell.source.split()) if cell.cell_type == "markdown" else LONG if cell.outputs else 0


def _room(cell: Any) -> float:
    """How many words a slide may hold already to which a cell is added."""
    if cell.cell_type == "markdown":
        return math.inf if cell.source.startswith(CAPTION) else max(TITLE, LONG - len(cell.source.split()))
    picture = any("<img" in shown(out, "text/html") for out in cell.outputs)
    return TITLE if picture else SHORT if cell.outputs else math.inf


def _thoughts(cell: Any) -> Iterator[Any]:
    """A Markdown cell in cells: a new one at each heading, after a caption, and where a text would be long."""
    parts: list[str] = []
    for block in [cell.source] if "```" in cell.source else re.split(r"\n\s*\n", cell.source.strip()):
        last = parts[-1] if parts else ""
        heading = block.startswith("#") and not re.fullmatch("#+ .*", last)
        long = len((last + block).split()) > LONG and not re.fullmatch("#+ .*", last)
        if not parts or heading or long or last.startswith(CAPTION):
            parts.append(block)
        else:
            parts[-1] += f"\n\n{block}"
    for n, text in enumerate(parts):
        yield new_markdown_cell(text, id=f"{cell.id}-{n}" if n else cell.id)


EDITIONS: dict[str, Callable[[Notebook], Notebook]] = {f.__name__: f for f in (learner, instructor, slides, hosted)}


def build(out: Path) -> dict[str, list[Path]]:
    """Write all editions into `out`, the guide beside the instructor's; {edition: files}.

    PruneError if `out` lies in the folder of the notebooks.
    """
    out = out.resolve()
    if out.is_relative_to(course.folder().resolve()):
        raise PruneError(f"{out} lies among the notebooks themselves: name another folder")
    written: dict[str, list[Path]] = {name: [] for name in EDITIONS}
    for path in course.notebooks():
        for name, edition in EDITIONS.items():
            place = out / name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            nb = edition(course.read(path))
            nbformat.validate(nb)
            forms = {place: nbformat.writes(nb) + "\n"}
            if name == "slides":
                forms[place.with_suffix(".html")] = pages.notebook(nb, contents.title(nb), template="deck")
            for file, form in forms.items():
                write_whole(file, form.encode())
            written[name] += forms
    written["instructor"] += guide.build(out / "instructor")
    return written


def _on_question(asked: contents.Question) -> str:
    return f"**For the instructor**: the result is {asked.result}.\n\n{bank.table(bank.of_questions([asked]))}\n"


def _on_exercise(asked: Exercise) -> str:
    return f"**For the instructor**: known wrong answers.\n\n{bank.table(bank.of_exercise(asked))}"


def _on_exam() -> str:
    """The exam's solution, which only the repository holds; where it is missing, that."""
    if not EXAM.exists():
        return "**For the instructor**: the exam's solution lies only in the repository; this installation lacks it.\n"
    return f"**For the instructor**: `{EXAM.name}` of the repository.\n\n```python\n{EXAM.read_text('utf-8')}```\n"


def _note(id: str, text: str) -> list[Any]:
    """A cell for the instructor alone, if there is anything to say."""
    return [new_markdown_cell(text.strip(), id=f"{id}-note", metadata={"tags": [NOTE]})] if text else []
