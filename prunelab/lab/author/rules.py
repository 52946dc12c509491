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
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from ..learn import claim, exercise
from ..show.display import WIDGET_VIEW
from ..workshop.notebook import (
    Notebook,
    alts_of,
    called,
    calls,
    calls_in,
    code_cells,
    headings,
    joined,
    outputs,
    section_code,
    section_markdown,
    strip_line,
    text_of,
    tree,
    without_fences,
    without_pictures,
)

Rule = Callable[[Notebook], list[str]]

ARC = ("Predict", "Run", "Explain", "Explore", "Exercise", "Scoreboard", "Recap")
MOST_CELLS, MOST_LINES, LONGEST_CELL, MOST_IGNORED = 18, 12, 16, 0.15
ALT_WORDS = 4  # so many words of a picture's alt open its *Figure: ...* line
YOURS = re.compile(r"<!--yours-->.*?<!--/yours-->", re.DOTALL)  # what depends on the learner has no caption
PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}
MARKERS = ("NBVAL_", "PYTEST_VALIDATE_IGNORE_OUTPUT")


def executed(nb: Notebook) -> list[str]:
    """Every code cell was run, once, from the top: 1 to N."""
    counts = [cell.execution_count for cell in code_cells(nb)]
    wanted = list(range(1, len(counts) + 1))
    return [] if counts == wanted else [f"the execution counts are {counts}: restart, run all, save"]


def clean_outputs(nb: Notebook) -> list[str]:
    """No output is an error or a line on stderr."""
    return [
        f"code cell {n} stores {'an error' if out.output_type == 'error' else 'a line on stderr'}"
        for n, out in outputs(nb)
        if out.output_type == "error" or (out.output_type == "stream" and out.name == "stderr")
    ]


def no_widget_state(nb: Notebook) -> list[str]:
    """No dead widgets: no saved state, and no view of a model that no kernel knows any more."""
    problems = ["metadata.widgets is stored; save without the widget state"] if "widgets" in nb.metadata else []
    return problems + [
        f"code cell {n} stores a view of a widget that is gone, which JupyterLab shows as an error until it is run: "
        "`python -m prunelab.lab publish` takes it out"
        for n, out in outputs(nb)
        if WIDGET_VIEW in out.get("data", {})
    ]


def stable_outputs(nb: Notebook) -> list[str]:
    """No address, path or temporary name in what nbval compares; every picture or table has its line of text."""
    problems = []
    for n, out in outputs(nb):
        data = out.get("data", {"text/plain": out.get("text", "")})
        for mime in ("text/plain", "text/html"):
            found = re.search(r"\b0x[0-9a-f]{6,}|/home/\w+|/tmp/\w+|/Users/\w+", without_pictures(data.get(mime, "")))
            if found:
                problems.append(f"code cell {n} stores {found.group()!r}, which differs from run to run")
        if data and "text/plain" not in data:
            problems.append(f"code cell {n} stores {', '.join(data)} without a line of text/plain")
    return problems


def arc(nb: Notebook) -> list[str]:
    """One title that asks, then the sections of the house in their order."""
    heads = list(headings(nb))
    titles = [text for level, text in heads if level == 1]
    problems = [] if heads and heads[0][0] == 1 else ["the notebook does not begin with its title"]
    if len(titles) != 1:
        problems.append(f"there are {len(titles)} titles (# ...); there must be one")
    problems += [
        f"the title {title!r} does not ask: end it with a question mark" for title in titles if title[-1:] != "?"
    ]
    sections = tuple(text for level, text in heads if level == 2)
    if sections != ARC:
        problems.append(f"the sections are {', '.join(sections) or 'none'}; they must be {', '.join(ARC)}")
    return problems


def strip(nb: Notebook) -> list[str]:
    """Under the title, one line: minutes, seconds of CPU, what it needs, what it unlocks."""
    line = strip_line(nb)
    parts = {
        "minutes": r"\d+ min",
        "seconds of CPU": r"\d+ s of CPU",
        "what it needs": r"needs",
        "what it unlocks": r"unlocks",
    }
    lacking = [name for name, pattern in parts.items() if not re.search(pattern, line, re.I)]
    return [f"the line under the title does not say {', '.join(lacking)}: {line!r}"] if lacking else []


def sections(nb: Notebook) -> list[str]:
    """Each section holds its part, and nothing is revealed before it was asked."""
    code = section_code(nb)
    needs = {
        "Predict": "lab.predict",
        "Explain": "lab.reveal",
        "Explore": "lab.explorer",
        "Exercise": "lab.check",
        "Scoreboard": "lab.scoreboard.show",
    }
    problems = [f"{name}: no {call}(" for name, call in needs.items() if not called(call, code.get(name, ""))]
    early = "".join(code.get(name, "") for name in ("", "Predict", "Run"))
    if "lab.reveal(" in early:
        problems.append("a lab.reveal stands before Explain: no reveal first")
    checks = called("lab.check", code.get("Exercise", ""))
    if checks not in (0, 2, 3):
        problems.append(f"Exercise: {checks} exercise{'s' if checks > 1 else ''}; two or three")
    return problems


def cell_limits(nb: Notebook) -> list[str]:
    """At most 18 code cells of at most 12 lines; one, the plain-torch cell, may have 16."""
    cells = code_cells(nb)
    problems = [f"{len(cells)} code cells; at most {MOST_CELLS}"] if len(cells) > MOST_CELLS else []
    lengths = [(n, len(cell.source.strip().splitlines())) for n, cell in enumerate(cells, 1)]
    long = [(n, k) for n, k in lengths if k > MOST_LINES]
    if len(long) == 1 and long[0][1] <= LONGEST_CELL:
        return problems
    return problems + [
        f"code cell {n} has {k} lines; at most {MOST_LINES} (one may have {LONGEST_CELL})" for n, k in long
    ]


def ignored_share(nb: Notebook) -> list[str]:
    """Few cells escape the comparison, and by a tag: a comment with anything behind it does nothing, silently."""
    cells = code_cells(nb)
    tags = [set(cell.metadata.get("tags", [])) & {"nbval-ignore-output", "nbval-skip"} for cell in cells]
    count = sum(map(bool, tags))
    problems = [
        f"code cell {n} holds an nbval comment: use a tag"
        for n, cell in enumerate(cells, 1)
        if any(line.lstrip().startswith("#") and mark in line for line in cell.source.splitlines() for mark in MARKERS)
    ]
    if count > MOST_IGNORED * len(cells):
        problems.append(f"{count} of {len(cells)} code cells are not compared; at most {MOST_IGNORED:.0%}")
    return problems


def first_cell(nb: Notebook) -> list[str]:
    """The first code cell imports the lab and starts it."""
    first = next(iter(code_cells(nb)), None)
    source = re.sub(r"\s*[;\n]\s*", "\n", first.source.strip()) if first else ""
    wanted = r'(from prunelab import lab\nimport .+|from prunelab import lab)\n(\S.*import .+\n)*lab\.start\("\d\d"\)'
    if re.fullmatch(wanted, source) or re.fullmatch(r'((from|import) .+\n)*lab\.start\("\d\d"\)', source):
        return []
    return ['the first code cell must be imports and then lab.start("NN"), no more']


def numbers(nb: Notebook) -> list[str]:
    """Every number in the prose stands in the text of a claim that the notebook checks, or in its lesson's list."""
    texts = [text_of(call.args[0] if call.args else None) for call in calls(nb, "claim")]
    texts += [number.says for number in listed(nb)]
    claimed = {x for text in texts for x in prose_numbers(text)}
    line = strip_line(nb)
    return [
        f"{number!r} is backed by no lab.claim and no [[numbers]] of the lesson: {shorten(text)!r}"
        for cell in nb.cells
        if cell.cell_type == "markdown"
        for text in plain_markdown(cell.source).splitlines()
        if not line or text.strip() != plain_markdown(line).strip()
        for number in prose_numbers(text)
        if number not in claimed
    ]


def claims_can_fail(nb: Notebook) -> list[str]:
    """Each claim has one literal bound, and fails on NaN and on a value on the wrong side."""
    problems = []
    bounds = [(number.says, number.bound) for number in listed(nb)]
    for call in calls(nb, "claim"):
        says = text_of(call.args[0] if call.args else None)
        try:
            bounds.append((says, claim.bound({k.arg or "**": ast.literal_eval(k.value) for k in call.keywords})))
        except ValueError as error:
            problems.append(f"claim {shorten(says)!r}: its bound is not one literal ({error})")
    for says, bound in bounds:
        if any(bound.holds(value) for value in wrong_values(bound)):
            problems.append(f"claim {shorten(says)!r} holds on the wrong side of {bound}: it can't fail")
        if (bound.kind, bound.limit) in (("at_least", 0), ("at_most", 1), ("between", (0, 1)), ("between", (0, 100))):
            problems.append(f"claim {shorten(says)!r}: {bound} is the whole range of a share: it can't fail")
    return problems


def listed_numbers(nb: Notebook) -> list[str]:
    """What the lesson lists is checked by one cell, and each value is computed from the notebook's names."""
    started = [text_of(call.args[0]) for call in calls(nb, "start") if call.args]
    every = [number for lesson in started if lesson in exercise.numbers() for number in claim.numbers_of(lesson)]
    cells = list(calls(nb, "check_numbers"))
    problems = (
        [f"the lesson lists {len(every)} numbers, and {len(cells)} cells check them"]
        if every and len(cells) != 1
        else []
    )
    return (
        problems
        + [
            f"the value of {shorten(number.says)!r} names nothing of the notebook: it can't fail"
            for number in every
            if not any(isinstance(node, ast.Name) for node in ast.walk(ast.parse(number.value, mode="eval")))
        ]
        + [
            f"{shorten(number.says)!r} states nothing that its own bound, {number.bound}, would let pass"
            for number in every
            if not stated(number)
        ]
        + [
            "what is stored contradicts a number of the text: run it again on a quiet machine, or mend the text"
            for _, out in outputs(nb)
            if claim.OWN_TIMES in out.get("data", {}).get("text/plain", "")
        ]
    )


def stated(number: claim.Number) -> bool:
    """Whether a number that the clause states keeps the bound: as it stands, as a share, or as a loss."""
    told = [float(found) for found in prose_numbers(number.says)]
    if not told or isinstance(number.bound.limit, (bool, list)):
        return True
    return any(number.bound.holds(sign * scale * x) for x in told for scale in (1, 0.01, 100) for sign in (1, -1))


def listed(nb: Notebook) -> tuple[claim.Number, ...]:
    """The numbers that the notebook's one `lab.check_numbers` holds to the run."""
    asked = [text_of(call.args[0]) for call in calls(nb, "check_numbers")]
    return claim.numbers_of(asked[0]) if asked else ()


def pictures(nb: Notebook) -> list[str]:
    """Each stored picture has an alt; a line `*Figure: ...*` in the Markdown next to it opens with the same words."""
    problems, number = [], 0
    for place, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        number += 1
        near = " ".join(described(nb, place))
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            alts = alts_of(YOURS.sub("", joined(data.get("text/html"))))
            if not alts and not PICTURES & set(data):
                continue
            if not alts or not all(alts):
                problems.append(f"code cell {number} shows a picture without an alt: use lab.figure(alt=...)")
                continue
            problems += [
                f"code cell {number}: no `*Figure: ...*` in the Markdown before or after opens with {opening(alt)!r}"
                for alt in alts
                if opening(alt) not in near
            ]
    return problems


def no_definitions(nb: Notebook) -> list[str]:
    """Nothing is defined in a notebook but the answers to its exercises: import it."""
    return [
        f"code cell {n} defines {node.name!r}: move it into the package and import it"
        for n, cell in enumerate(code_cells(nb), 1)
        if "lab.check(" not in cell.source
        for node in ast.walk(tree(cell))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]


def self_contained(nb: Notebook) -> list[str]:
    """No installs, no URLs, no magics, no shell: a notebook runs alone and offline."""
    banned = {
        r"^\s*[%!]": "a magic or a shell line",
        r"https?://|ftp://": "a URL",
        r"\bpip\b|\bconda\b": "an install",
        r"\bsubprocess\b|\bos\.system\b|\bget_ipython\b": "a way to the shell",
    }
    return [
        f"code cell {n} holds {what}"
        for n, cell in enumerate(code_cells(nb), 1)
        for pattern, what in banned.items()
        if re.search(pattern, cell.source, re.M)
    ]


def compared_widgets(nb: Notebook) -> list[str]:
    """No interact(), Output() or clear_output: what they show is not compared, or fails the comparison."""
    return [
        f"code cell {n} uses {found.group(1)}: set the value of an HTML widget instead (lab.explorer does)"
        for n, cell in enumerate(code_cells(nb), 1)
        for found in re.finditer(r"\b(interact|interactive|interactive_output|Output|clear_output)\(", cell.source)
    ]


def known_exercises(nb: Notebook) -> list[str]:
    """Each exercise is registered, and the cell holds its stub as registered, to the letter."""
    registered = exercise.registry()
    problems = []
    for n, cell in enumerate(code_cells(nb), 1):
        for call in calls_in(tree(cell), "check"):
            id = text_of(call.args[0] if call.args else None)
            if id not in registered:
                problems.append(f"code cell {n} checks {id!r}, which no lessons/NN.toml holds")
            elif registered[id].stub not in cell.source:
                problems.append(f"code cell {n} does not hold the stub of {id} as registered")
    return problems


def recap(nb: Notebook) -> list[str]:
    """The recap names terms, papers with their sections, and what comes next."""
    text = section_markdown(nb).get("Recap", "")
    parts = {"a glossary": r"glossary", "a paper with its section (§)": r"§", "the next notebook": r"\bnext\b"}
    return [f"Recap: it lacks {name}" for name, pattern in parts.items() if not re.search(pattern, text, re.I)]


RULES: tuple[Rule, ...] = (
    executed,
    clean_outputs,
    no_widget_state,
    stable_outputs,
    arc,
    strip,
    sections,
    cell_limits,
    ignored_share,
    first_cell,
    numbers,
    claims_can_fail,
    listed_numbers,
    pictures,
    no_definitions,
    self_contained,
    compared_widgets,
    known_exercises,
    recap,
)


def problems(nb: Notebook) -> list[str]:
    """What all rules find, each line opened by the rule's name."""
    return [f"{rule.__name__}: {problem}" for rule in RULES for problem in rule(nb)]


# Reading a notebook


def wrong_values(bound: claim.Bound) -> list[Any]:
    """NaN, and a value close to the wrong side of each end of a bound."""
    wrong: list[Any] = [float("nan")]
    if bound.kind == "equals":
        limit = bound.limit
        if isinstance(limit, bool):
            return [*wrong, not limit]
        return [*wrong, limit + 1 if isinstance(limit, (int, float)) else [limit]]
    low, high = bound.interval
    step = 1e-3 * max(1.0, *(abs(x) for x in (low, high) if abs(x) != float("inf")))
    return [*wrong, *(x for x in (low - step, high + step) if abs(x) != float("inf"))]


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
    r"(?<=\|)[^|\n]*\?\s*(?=\|)",
    r"\b\d+\s?[×x]\s?\d+(?:\s?[×x]\s?\d+)*\b",
    r"\b\d+:\d+\b",
    r"[A-Za-z][\w-]*\d[\w-]*",
)


def plain_markdown(markdown: str) -> str:
    """Markdown without whatever may hold a number that needs no claim."""
    text = without_fences(markdown)
    for pattern in _EXEMPT:
        text = re.sub(pattern, " ", text, flags=re.M)
    return text


def prose_numbers(text: str) -> list[str]:
    """The numbers of a text, without thousands separators: 1,234 and 1234 are one."""
    found = re.findall(r"(?<![\w.])\d+(?:[,\u00a0\u202f]\d{3})*(?:\.\d+)?", text)
    return [re.sub(r"[,\u00a0\u202f]", "", number) for number in found]


def described(nb: Notebook, place: int) -> list[str]:
    """The `*Figure: ...*` lines in the Markdown cells before and after a code cell (other code may lie between)."""
    ways = (reversed(nb.cells[:place]), iter(nb.cells[place + 1 :]))
    beside = [next((cell.source for cell in way if cell.cell_type == "markdown"), "") for way in ways]
    text = "\n".join(beside)
    return [" ".join(line.split()).casefold() for line in re.findall(r"^\*Figure: (.+?)\*$", text, re.M | re.S)]


def opening(alt: str) -> str:
    """The first words of an alt."""
    return " ".join(alt.split()[:ALT_WORDS]).rstrip(".,:;!?").casefold()


def shorten(text: str) -> str:
    """The beginning of a line, to find it by."""
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:67] + "..."


def main(paths: list[str]) -> int:
    """Print the problems of each notebook; the number of notebooks that have any."""
    bad = 0
    for path in paths:
        found = problems(nbformat.read(Path(path), as_version=4))
        print(f"{path}: {len(found) or 'no'} problem{'' if len(found) == 1 else 's'}")
        print("".join(f"  {line}\n" for line in found), end="")
        bad += bool(found)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
