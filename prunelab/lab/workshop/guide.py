"""The instructor's guide, put together from notes, the misconception bank and the measured times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...files import write_whole
from ..learn import exercise
from . import bank, contents, course, pages, stored_timings
from .notebook import Notebook

FOLDER = Path(__file__).parent / "teaching"


def text() -> str:
    """The whole guide, in Markdown."""
    notebooks = {path.stem[:2]: course.read(path) for path in course.notebooks()}
    parts = [
        "# Teaching prunelab",
        _part("plans"),
        "## What each notebook takes",
        _times(notebooks),
        *(chapter(number, nb) for number, nb in notebooks.items()),
        _part("room"),
    ]
    return "\n\n".join(parts) + "\n"


def build(folder: Path) -> list[Path]:
    """Write the guide into a folder, as Markdown and as a page."""
    written = text()
    folder.mkdir(parents=True, exist_ok=True)
    forms = {folder / "guide.md": written, folder / "guide.html": pages.markdown(written, "Teaching prunelab")}
    for path, form in forms.items():
        write_whole(path, form.encode())
    return [*forms]


def chapter(number: str, nb: Notebook) -> str:
    """One notebook: times, what to cut, what to discuss, what goes wrong, and its misconceptions."""
    head = f"## {number}: {contents.title(nb)}\n\n{advice(number, nb)}"
    return f"{head}\n\n### Misconceptions, and what answers them\n\n{bank.table(bank.of_notebook(nb))}"


def advice(number: str, nb: Notebook) -> str:
    """Times, what to cut, two questions to discuss, and what goes wrong in the room."""
    told = exercise.texts(number)
    questions = [f"{n}. {question}" for n, question in enumerate(told.get("discuss", ()), 1)]
    parts = {
        "Cut:": told.get("cut", ""),
        "Discuss:": "\n".join(["\n", *questions]) if questions else "",
        "In the room:": told.get("watch", ""),
        "Why we believe it:": _because(told.get("because", ())),
    }
    alone = f"Alone {contents.minutes(nb)} minutes; with a class {told.get('teach', '?')}. {_measured(number)}"
    return "\n\n".join([alone, *(f"**{head}** {text.rstrip()}" for head, text in parts.items() if text)])


def _because(conclusions: Sequence[dict[str, str]]) -> str:
    """What the notebook concludes, what else could have been the cause, and the control that decides."""
    columns = {"so": "conclusion", "rival": "what else it could be", "control": "the control", "found": "found"}
    rows = [[one[key] for key in columns] for one in conclusions]
    return f"\n\n{bank.markdown_table([*columns.values()], rows)}" if rows else ""


def _measured(number: str) -> str:
    found = stored_timings.known().get(number)
    if found is None:
        return "Its running time was not measured."
    return (
        f"It computes for {found.p50:.0f} s on one core (p90 {found.p90:.0f} s, {found.runs} runs) and needs up to "
        f"{found.peak / 1e9:.1f} GB of memory."
    )


def _times(notebooks: dict[str, Notebook]) -> str:
    known = stored_timings.known()
    rows = []
    for number, nb in notebooks.items():
        teach, found = exercise.texts(number).get("teach", "?"), known.get(number)
        times = [f"{found.p50:.0f} s", f"{found.p90:.0f} s", f"{found.peak / 1e9:.1f} GB"] if found else [""] * 3
        rows.append([number, contents.title(nb), f"{contents.minutes(nb)} min", f"{teach} min", *times])
    columns = ["", "question", "alone", "with a class", "computes, one core, p50", "p90", "memory"]
    machine = stored_timings.stored().get("machine", "not measured")
    return f"{bank.markdown_table(columns, rows)}\nMeasured: whole runs in fresh kernels on {machine}."


def _part(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8").strip()
