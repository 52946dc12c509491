"""The instructor's guide, put together from notes, the misconception bank and the measured times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...files import write_whole
from . import bank, contents, course, notes, pages, stored_timings
from .notebook import Notebook

NAME = "guide"
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
    written, folder = text(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{NAME}.md", written.encode())
    write_whole(folder / f"{NAME}.html", pages.markdown(written, "Teaching prunelab").encode())
    return [folder / f"{NAME}.md", folder / f"{NAME}.html"]


def chapter(number: str, nb: Notebook) -> str:
    """One notebook: times, what to cut, what to discuss, what goes wrong, and its misconceptions."""
    head = f"## {number}: {contents.title(nb)}\n\n{advice(number, nb)}"
    return f"{head}\n\n### Misconceptions, and what answers them\n\n{bank.table(bank.of_notebook(nb))}"


def opening(number: str, nb: Notebook) -> str:
    """What stands under the title of the instructor's edition."""
    return f"**For the instructor.** {advice(number, nb)}"


def advice(number: str, nb: Notebook) -> str:
    """Times, what to cut, two questions to discuss, and what goes wrong in the room."""
    told = notes.of(number)
    lines = [f"Alone {contents.minutes(nb)} minutes; with a class {told.teach or '?'}. {_measured(number)}"]
    lines += [f"**Cut:** {told.cut}"] if told.cut else []
    lines += (
        ["**Discuss:**\n\n" + "\n".join(f"{n}. {x}" for n, x in enumerate(told.discuss, 1))] if told.discuss else []
    )
    lines += [f"**In the room:** {told.watch.strip()}"] if told.watch else []
    lines += [_because(told.because)] if told.because else []
    return "\n\n".join(lines)


def _because(conclusions: Sequence[dict[str, str]]) -> str:
    """What the notebook concludes, what else could have been the cause, and the control that decides."""
    rows = [[one[key].replace("|", "\\|") for key in ("so", "rival", "control", "found")] for one in conclusions]
    table = [["conclusion", "what else it could be", "the control", "found"], ["---"] * 4, *rows]
    return "**Why we believe it:**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table)


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
    columns = ("", "question", "alone", "with a class", "computes, one core, p50", "p90", "memory")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    rows = ""
    for number, nb in notebooks.items():
        found = known.get(number)
        times = f"{found.p50:.0f} s | {found.p90:.0f} s | {found.peak / 1e9:.1f} GB" if found else "not measured | |"
        rows += (
            f"| {number} | {contents.title(nb)} | {contents.minutes(nb)} min "
            f"| {notes.of(number).teach or '?'} min | {times} |\n"
        )
    return f"{head}{rows}\nMeasured: whole runs in fresh kernels on {stored_timings.machine()}."


def _part(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8").strip()
