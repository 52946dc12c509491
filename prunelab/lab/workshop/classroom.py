"""What a class guessed: the predictions in its progress files, counted; no file's name and no order is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core import PruneError
from ...files import LARGEST, read_whole
from ..learn import progress
from ..show.measuring import exact
from . import contents, course

FEWEST = 3  # learners; a count over fewer would tell who guessed what
BINS = 5  # of a slider
LEFT_OUT = "Progress files without a learner's id, which could all be one person's, left out"
WIDTH = 30  # characters of the longest bar


@dataclass(frozen=True)
class Tally:
    """One question with how often each answer was given; `learners` have answered it."""

    question: contents.Question
    counts: dict[str, int]

    @property
    def learners(self) -> int:
        """How many have answered."""
        return sum(self.counts.values())


def gather(folder: Path) -> tuple[list[Tally], int]:
    """The tallies of all progress files in a folder and those in it, in the course's order; how many were left out.

    A learner of several files counts once. Files that are no progress files are passed over; those without a learner's
    id are left out: all of them could be one person's. PruneError with fewer than three learners.
    """
    if not folder.is_dir():
        raise PruneError(f"there is no folder {folder}")
    files = sorted(folder.rglob("*.json"))
    by_id: dict[str | None, dict[str, Any]] = {}
    found = [one for one in map(_predictions, files) if one]
    for id, guesses in found:
        by_id.setdefault(id, {}).update(guesses)
    by_id.pop(None, None)
    learners, nobodys = list(by_id.values()), sum(id is None for id, _ in found)
    if len(learners) < FEWEST:
        raise PruneError(
            f"{folder} holds the progress files of {len(learners)} learners (and {len(files)} JSON files in all); at "
            f"least {FEWEST} are needed (fewer could be traced to a person). A learner's is called progress.json; "
            "lab.progress() shows where." + f" {LEFT_OUT}: {nobodys}." * bool(nobodys)
        )
    asked = [q for path in course.notebooks() for q in contents.questions(course.read(path))]
    tallies = [Tally(q, _count(q, [x[q.id] for x in learners if q.id in x])) for q in asked]
    return [tally for tally in tallies if tally.learners >= FEWEST], nobodys


def text(tallies: list[Tally], nobodys: int = 0) -> str:
    """The tallies as bars of text, the result beside each question; above them, how many files are left out."""
    bars = [*map(_text, tallies)] or ["No question has been answered by three learners yet."]
    return "\n\n".join([f"{LEFT_OUT}: {nobodys}."] * bool(nobodys) + bars)


def _text(tally: Tally) -> str:
    asked, most, wide = tally.question, max(tally.counts.values()), max(map(len, tally.counts))
    lines = [f"{asked.id}  {asked.text}", f"  (the result: {asked.result}; {tally.learners} learners)"]
    for name, count in tally.counts.items():
        lines.append(f"  {name:<{wide}}  {'█' * round(WIDTH * count / most):<{WIDTH}} {count}")
    return "\n".join(lines)


def _predictions(path: Path) -> tuple[str | None, dict[str, Any]] | None:
    """Whose file it is, if it says so, and the guesses in it by question; None if it is not a progress file."""
    if path.name.endswith(progress.BACKUPS):
        return None  # of a learner who is counted already
    try:
        content = progress.parse(read_whole(path, LARGEST))
        guesses = {id: record["guess"] for id, record in content["predictions"].items() if "guess" in record}
    except (OSError, ValueError, TypeError):
        return None
    return progress.learner(content), guesses  # first editions know no learner


def _count(question: contents.Question, guesses: list[Any]) -> dict[str, int]:
    """Each option with its count; a slider's range is cut into five."""
    if question.slider is None:
        found = Counter(map(str, guesses))
        return {option: found[option] for option in question.options}
    low, high, _step, unit = question.slider
    width = (high - low) / BINS
    numbers = [float(x) for x in guesses if isinstance(x, (int, float)) and low <= x <= high]
    places = Counter(min(int((x - low) / width + 1e-9), BINS - 1) for x in numbers)
    ends = [exact(low + i * width, unit) for i in range(BINS + 1)]
    return {f"{ends[i]} to {ends[i + 1]}": places[i] for i in range(BINS)}
