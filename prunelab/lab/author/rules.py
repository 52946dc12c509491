"""The house rules of a notebook, each a function from a notebook to the problems it finds.

Teachers can run them on notebooks of their own: `python -m prunelab.lab rules my_notebook.ipynb`.

What may be a number in Markdown without a claim behind it (`numbers`), and nothing else:
code in backticks and formulas in dollars; link targets; arXiv ids and years (1900 to 2099); section numbers after §,
sec., ch., fig., eq. or table; notebook numbers (two digits that begin with 0, and whatever follows "notebook");
exercise ids (01-2); the numbers of an ordered list; names that hold a digit behind a letter (L1, CIFAR-10,
float32) or shapes like 3×3 and patterns like 2:4; a table cell that is a question (the map of the course
quotes titles); the strip under the title.
"""

from __future__ import annotations

import ast
import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...core import PruneError
from ..learn import claim, exercise
from ..show.display import WIDGET_VIEW
from ..workshop import course, notebook
from ..workshop.notebook import Notebook, calls, code_cells, first_text, outputs, shown

Rule = Callable[[Notebook], list[str]]

ARC = ("Predict", "Run", "Explain", "Explore", "Exercise", "Scoreboard", "Recap")
MOST_CELLS, MOST_LINES, LONGEST_CELL, MOST_IGNORED = 18, 12, 16, 0.15
ALT_WORDS = 4  # so many words of a picture's alt open its *Figure: ...* line
YOURS = re.compile(r"<!--yours-->.*?<!--/yours-->", re.DOTALL)  # what depends on the learner has no caption
PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}
PICTURE_DATA = re.compile(r"data:[a-z]+/[a-z+-]+;base64,[\w+/=]+")
MARKERS = ("NBVAL_", "PYTEST_VALIDATE_IGNORE_OUTPUT")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
RULES: list[Rule] = []


def rule(finds: Callable[[Notebook], Iterable[str]]) -> Rule:
    """A rule of the house: a function that finds problems, which become a list."""

    @functools.wraps(finds)
    def found(nb: Notebook) -> list[str]:
        return list(finds(nb))

    RULES.append(found)
    return found


@rule
def executed(nb: Notebook) -> Iterator[str]:
    """Every code cell was run, once, from the top: 1 to N."""
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"the execution counts are {counts}: restart, run all, save"


@rule
def clean_outputs(nb: Notebook) -> Iterator[str]:
    """No output is an error or a line on stderr."""
    for n, out in outputs(nb):
        if out.output_type == "error" or out.get("name") == "stderr":
            yield f"code cell {n} stores {'an error' if out.output_type == 'error' else 'a line on stderr'}"


@rule
def no_widget_state(nb: Notebook) -> Iterator[str]:
    """No dead widgets: no saved state, and no view of a model that no kernel knows any more."""
    if "widgets" in nb.metadata:
        yield "metadata.widgets is stored; save without the widget state"
    for n, out in outputs(nb):
        if shown(out, WIDGET_VIEW):
            yield (
                f"code cell {n} stores a view of a widget that is gone, which JupyterLab shows as an error until it is "
                "run: `python -m prunelab.lab publish` takes it out"
            )


@rule
def stable_outputs(nb: Notebook) -> Iterator[str]:
    """No address, path or temporary name in what nbval compares; every picture or table has its line of text."""
    for n, out in outputs(nb):
        data = out.get("data", {"text/plain": out.get("text", "")})
        compared = PICTURE_DATA.sub("", data.get("text/plain", "") + "\n" + data.get("text/html", ""))
        if found := re.search(r"\b0x[0-9a-f]{6,}|/home/\w+|/tmp/\w+|/Users/\w+", compared):
            yield f"code cell {n} stores {found[0]!r}, which differs from run to run"
        if data and "text/plain" not in data:
            yield f"code cell {n} stores {', '.join(data)} without a line of text/plain"


@rule
def arc(nb: Notebook) -> Iterator[str]:
    """One title that asks, then the sections of the house in their order."""
    heads = list(notebook.headings(nb))
    titles = [text for level, text in heads if level == 1]
    if not heads or heads[0][0] != 1:
        yield "the notebook does not begin with its title"
    if len(titles) != 1:
        yield f"there are {len(titles)} titles (# ...); there must be one"
    for title in titles:
        if not title.endswith("?"):
            yield f"the title {title!r} does not ask: end it with a question mark"
    sections = tuple(text for level, text in heads if level == 2)
    if sections != ARC:
        yield f"the sections are {', '.join(sections) or 'none'}; they must be {', '.join(ARC)}"


@rule
def strip(nb: Notebook) -> Iterator[str]:
    """Under the title, one line: minutes, seconds of CPU, what it needs, what it unlocks."""
    line = notebook.strip_line(nb)
    parts = {"minutes": r"\d+ min", "seconds of CPU": r"\d+ s of CPU"}
    parts |= {"what it needs": "needs", "what it unlocks": "unlocks"}
    if lacking := _lacking(line, parts):
        yield f"the line under the title does not say {', '.join(lacking)}: {line!r}"


@rule
def sections(nb: Notebook) -> Iterator[str]:
    """Each section holds its part, and nothing is revealed before it was asked."""
    needs = {
        "Predict": ["predict"],
        "Explain": ["reveal"],
        "Explore": ["explorer", "drawing"],
        "Exercise": ["check"],
        "Scoreboard": ["scoreboard.show"],
    }
    for name, calls_of_it in needs.items():
        if not _made(nb, name, *calls_of_it):
            yield f"{name}: no lab.{calls_of_it[0]}("
    if any(_made(nb, name, "reveal") for name in ("", "Predict", "Run")):
        yield "a lab.reveal stands before Explain: no reveal first"
    checks = _made(nb, "Exercise", "check")
    if checks not in (0, 2, 3):
        yield f"Exercise: {checks} exercise{'s' if checks > 1 else ''}; two or three"


@rule
def cell_limits(nb: Notebook) -> Iterator[str]:
    """At most 18 code cells of at most 12 lines; one, the plain-torch cell, may have 16."""
    lengths = [len(cell.source.strip().splitlines()) for cell in code_cells(nb)]
    if len(lengths) > MOST_CELLS:
        yield f"{len(lengths)} code cells; at most {MOST_CELLS}"
    long = [(n, k) for n, k in enumerate(lengths, 1) if k > MOST_LINES]
    if len(long) == 1 and long[0][1] <= LONGEST_CELL:
        return
    for n, k in long:
        yield f"code cell {n} has {k} lines; at most {MOST_LINES} (one may have {LONGEST_CELL})"


@rule
def ignored_share(nb: Notebook) -> Iterator[str]:
    """Few cells escape the comparison, and by a tag: a comment with anything behind it does nothing, silently."""
    cells = code_cells(nb)
    count = sum(not {"nbval-ignore-output", "nbval-skip"}.isdisjoint(cell.metadata.get("tags", [])) for cell in cells)
    for n, cell in enumerate(cells, 1):
        comments = [line for line in cell.source.splitlines() if line.lstrip().startswith("#")]
        if any(mark in line for line in comments for mark in MARKERS):
            yield f"code cell {n} holds an nbval comment: use a tag"
    if count > MOST_IGNORED * len(cells):
        yield f"{count} of {len(cells)} code cells are not compared; at most {MOST_IGNORED:.0%}"


@rule
def first_cell(nb: Notebook) -> Iterator[str]:
    """The first code cell imports the lab and starts it."""
    first = next(iter(code_cells(nb)), None)
    source = re.sub(r"\s*[;\n]\s*", "\n", first.source.strip()) if first else ""
    if not re.fullmatch(r'((from|import) .+\n)+lab\.start\("\d\d"\)', source):
        yield 'the first code cell must be imports and then lab.start("NN"), no more'


@rule
def numbers(nb: Notebook) -> Iterator[str]:
    """Every number in the prose stands in the text of a claim that the notebook checks, or in its lesson's list."""
    texts = [*map(first_text, calls(nb, "claim")), *(number.says for number in listed(nb))]
    claimed = {x for text in texts for x in prose_numbers(text)}
    strip = plain_markdown(notebook.strip_line(nb)).strip()
    lines = [line for c in nb.cells if c.cell_type == "markdown" for line in plain_markdown(c.source).splitlines()]
    for text in lines:
        for number in prose_numbers(text):
            if number not in claimed and text.strip() != strip:
                yield f"{number!r} is backed by no lab.claim and no [[numbers]] of the lesson: {shorten(text)!r}"


@rule
def claims_can_fail(nb: Notebook) -> Iterator[str]:
    """Each claim has one literal bound, and fails on NaN and on a value on the wrong side."""
    bounds = [(number.says, number.bound) for number in listed(nb)]
    for call in calls(nb, "claim"):
        try:
            bound = claim.bound({k.arg or "**": ast.literal_eval(k.value) for k in call.keywords})
            bounds.append((first_text(call), bound))
        except ValueError as error:
            yield f"claim {shorten(first_text(call))!r}: its bound is not one literal ({error})"
    for says, bound in bounds:
        if any(map(bound.holds, wrong_values(bound))):
            yield f"claim {shorten(says)!r} holds on the wrong side of {bound}: it can't fail"
        if (bound.kind, bound.limit) in (("at_least", 0), ("at_most", 1), ("between", (0, 1)), ("between", (0, 100))):
            yield f"claim {shorten(says)!r}: {bound} is the whole range of a share: it can't fail"


@rule
def listed_numbers(nb: Notebook) -> Iterator[str]:
    """What the lesson lists is checked by one cell, and each value is computed from the notebook's names."""
    started = [first_text(call) for call in calls(nb, "start")]
    every = [number for lesson in started for number in claim.numbers_of(lesson)]
    cells = len(list(calls(nb, "check_numbers")))
    if every and cells != 1:
        yield f"the lesson lists {len(every)} numbers, and {cells} cells check them"
    for number in every:
        if not any(isinstance(node, ast.Name) for node in ast.walk(ast.parse(number.value, mode="eval"))):
            yield f"the value of {shorten(number.says)!r} names nothing of the notebook: it can't fail"
        if not stated(number):
            yield f"{shorten(number.says)!r} states nothing that its own bound, {number.bound}, would let pass"
    if any(claim.OWN_TIMES in shown(out) for _, out in outputs(nb)):
        yield "what is stored contradicts a number of the text: run it again on a quiet machine, or mend the text"


@rule
def pictures(nb: Notebook) -> Iterator[str]:
    """Each stored picture has an alt; a line `*Figure: ...*` in the Markdown next to it opens with the same words."""
    for n, cell in enumerate(code_cells(nb), 1):
        near = described(nb, nb.cells.index(cell))
        for out in cell.outputs:
            alts = notebook.alts_of(YOURS.sub("", shown(out, "text/html")))
            if not all(alts) or (not alts and PICTURES & out.get("data", {}).keys()):
                yield f"code cell {n} shows a picture without an alt: use lab.figure(alt=...)"
            for begins in map(opening, alts):
                if begins not in near:
                    yield f"code cell {n}: no `*Figure: ...*` in the Markdown before or after opens with {begins!r}"


@rule
def no_definitions(nb: Notebook) -> Iterator[str]:
    """Nothing is defined in a notebook but the answers to its exercises: import it."""
    for n, cell in enumerate(code_cells(nb), 1):
        for node in ast.walk(notebook.tree(cell)):
            if "lab.check(" not in cell.source and isinstance(node, DEFINITIONS):
                yield f"code cell {n} defines {node.name!r}: move it into the package and import it"


@rule
def self_contained(nb: Notebook) -> Iterator[str]:
    """No installs, no URLs, no magics, no shell: a notebook runs alone and offline."""
    banned = {
        r"^\s*[%!]": "a magic or a shell line",
        r"https?://|ftp://": "a URL",
        r"\bpip\b|\bconda\b": "an install",
        r"\bsubprocess\b|\bos\.system\b|\bget_ipython\b": "a way to the shell",
    }
    for n, cell in enumerate(code_cells(nb), 1):
        for pattern, what in banned.items():
            if re.search(pattern, cell.source, re.M):
                yield f"code cell {n} holds {what}"


@rule
def compared_widgets(nb: Notebook) -> Iterator[str]:
    """No interact(), Output() or clear_output: what they show is not compared, or fails the comparison."""
    for n, cell in enumerate(code_cells(nb), 1):
        for name in re.findall(r"\b(interact|interactive|interactive_output|Output|clear_output)\(", cell.source):
            yield f"code cell {n} uses {name}: set the value of an HTML widget instead (lab.explorer does)"


@rule
def known_exercises(nb: Notebook) -> Iterator[str]:
    """Each exercise is registered, and the cell holds its stub as registered, to the letter."""
    registered = exercise.registry()
    for n, cell in enumerate(code_cells(nb), 1):
        for id in map(first_text, notebook.calls_in(cell, "check")):
            if id not in registered:
                yield f"code cell {n} checks {id!r}, which no lessons/NN.toml holds"
            elif registered[id].stub not in cell.source:
                yield f"code cell {n} does not hold the stub of {id} as registered"


@rule
def recap(nb: Notebook) -> Iterator[str]:
    """The recap names terms, papers with their sections, and what comes next."""
    parts = {"a glossary": r"glossary", "a paper with its section (§)": r"§", "the next notebook": r"\bnext\b"}
    for name in _lacking(notebook.section_text(nb, "Recap"), parts):
        yield f"Recap: it lacks {name}"


def problems(nb: Notebook) -> list[str]:
    """What all rules find, each line opened by the rule's name."""
    return [f"{each.__name__}: {problem}" for each in RULES for problem in each(nb)]


# Reading a notebook


def _lacking(text: str, parts: dict[str, str]) -> list[str]:
    """The names of those patterns that a text does not have."""
    return [name for name, pattern in parts.items() if not re.search(pattern, text, re.I)]


def _made(nb: Notebook, section: str, *names: str) -> int:
    """How many calls of these a section makes."""
    cells = [cell for where, cell in notebook.section_of(nb) if where == section and cell.cell_type == "code"]
    return sum(len(notebook.calls_in(cell, *names)) for cell in cells)


def stated(number: claim.Number) -> bool:
    """Whether a number that the clause states keeps the bound: as it stands, as a share, or as a loss."""
    told = [float(found) for found in prose_numbers(number.says)]
    if not told or isinstance(number.bound.limit, (bool, list)):
        return True
    return any(number.bound.holds(scale * x) for x in told for scale in (1, 0.01, 100, -1, -0.01, -100))


def listed(nb: Notebook) -> tuple[claim.Number, ...]:
    """The numbers that the notebook's one `lab.check_numbers` holds to the run."""
    asked = [first_text(call) for call in calls(nb, "check_numbers")]
    return claim.numbers_of(asked[0]) if asked else ()


def wrong_values(bound: claim.Bound) -> list[Any]:
    """NaN, and a value close to the wrong side of each end of a bound."""
    if bound.kind == "equals":
        limit = bound.limit
        if isinstance(limit, bool):
            return [math.nan, not limit]
        return [math.nan, limit + 1 if isinstance(limit, (int, float)) else [limit]]
    low, high = bound.interval
    step = 1e-3 * max(1.0, *map(abs, filter(math.isfinite, (low, high))))
    return [math.nan, *filter(math.isfinite, (low - step, high + step))]


_EXEMPT = (
    r"`[^`]*`",
    r"\$\$.*?\$\$|\$[^$\n]+\$",
    r"(?<=\])\([^)]*\)|<https?:[^>]*>|https?://\S+",
    r"(?:arXiv:?\s*)?\b\d{4}\.\d{4,5}(?:v\d+)?\b",
    r"(?:§+|\b[Ss]ec(?:tion|\.)|\b[Cc]h(?:apter|\.)|\b[Ff]ig(?:ure|\.)|\b[Ee]q\.|\b[Tt]able)\s*\d+(?:\.\d+)*[a-z]?",
    r"\b(?:19|20)\d\d\b",
    r"\b\d\d-\d\b",
    r"\b[Nn]otebooks?\s+\d\d\b(?:(?:,|\s+and|\s+or)\s+\d\d\b)*|^\| \d\d (?=\|)|(?<![\d.,])0\d(?!\d|[.,]\d)",
    r"^\s*\d+\.\s",
    r"(?<=\|)[^|\n]*\?\]?\s*(?=\|)",
    r"\b\d+\s?[×x]\s?\d+(?:\s?[×x]\s?\d+)*\b",
    r"\b\d+:\d+\b",
    r"[A-Za-z][\w-]*\d[\w-]*",
)


def plain_markdown(markdown: str) -> str:
    """Markdown without whatever may hold a number that needs no claim."""
    text = notebook.without_fences(markdown)
    for pattern in _EXEMPT:
        text = re.sub(pattern, " ", text, flags=re.M)
    return text


def prose_numbers(text: str) -> list[str]:
    """The numbers of a text, without thousands separators: 1,234 and 1234 are one."""
    found = re.findall(r"(?<![\w.])\d+(?:[,\u00a0\u202f]\d{3})*(?:\.\d+)?", text)
    return [re.sub(r"[,\u00a0\u202f]", "", number) for number in found]


def described(nb: Notebook, place: int) -> str:
    """The `*Figure: ...*` lines in the Markdown cells before and after a code cell (other code may lie between)."""
    ways = (reversed(nb.cells[:place]), nb.cells[place + 1 :])
    beside = [next((cell.source for cell in way if cell.cell_type == "markdown"), "") for way in ways]
    lines = re.findall(r"^\*Figure: (.+?)\*$", "\n".join(beside), re.M | re.S)
    return " ".join(" ".join(lines).split()).casefold()


def opening(alt: str) -> str:
    """The first words of an alt."""
    return " ".join(alt.split()[:ALT_WORDS]).rstrip(".,:;!?").casefold()


def shorten(text: str) -> str:
    """The beginning of a line, to find it by."""
    return textwrap.shorten(text, 70, placeholder=" ...")


def main(paths: Sequence[Path | str]) -> int:
    """Print the problems of each notebook; the number of notebooks that have any."""
    bad = 0
    for path in paths:
        nb = course.read(Path(path))
        try:
            found = problems(nb)
        except PruneError as error:  # code that is no Python
            found = [str(error)]
        print(f"{path}: {len(found) or 'no'} problem{'' if len(found) == 1 else 's'}")
        print("".join(f"  {line}\n" for line in found), end="")
        bad += bool(found)
    return bad
