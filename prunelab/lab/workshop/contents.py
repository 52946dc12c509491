"""What a notebook asks of the learner, read from its source and its stored outputs: questions, exercises, panels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..learn import exercise
from ..learn.predict import Slider
from .notebook import Notebook, calls_in, code_cells, first_text, headings, outputs, shown, strip_line

ASKS, REVEALS = "Your prediction: ", "The guess beside the result for: "


@dataclass(frozen=True)
class Question:
    """One prediction: what is asked, what may be answered, what came out, and why the wrong guesses attract."""

    id: str
    text: str
    options: tuple[str, ...]  # empty for a slider
    slider: Slider | None
    result: str
    reasons: dict[str, str]  # option -> why it attracts; a slider has one, under ""

    @property
    def wrong(self) -> dict[str, str]:
        """The reasons of the wrong answers."""
        return {option: why for option, why in self.reasons.items() if option != self.result}


def questions(nb: Notebook) -> list[Question]:
    """The predictions of an executed notebook, in order."""
    told = dict(_revealed(nb))
    return [
        Question(id, text, *choices, *told.get(text, ("", {})))
        for cell in code_cells(nb)
        for (id, choices), text in zip(_asked(cell), _texts(cell), strict=False)
    ]


def checked(nb: Notebook) -> list[tuple[Any, exercise.Exercise]]:
    """Each cell that holds an exercise's stub, with the exercise."""
    registered = exercise.registry()
    found = ((cell, first_text(call)) for cell in code_cells(nb) for call in calls_in(cell, "check"))
    return [(cell, registered[id]) for cell, id in found if id in registered]


def title(nb: Notebook) -> str:
    """The question that a notebook answers."""
    return next((text for level, text in headings(nb) if level == 1), "")


def strip(nb: Notebook) -> str:
    """The line under the title, without its stars."""
    return strip_line(nb).strip("* ")


def minutes(nb: Notebook) -> int:
    """How long a learner takes, as the strip says; 0 if it does not."""
    found = re.search(r"(\d+) minutes", strip(nb))
    return int(found.group(1)) if found else 0


def _asked(cell: Any) -> Iterator[tuple[str, tuple[tuple[str, ...], Slider | None]]]:
    """The id of each `lab.predict`, with its options and its slider."""
    for call in calls_in(cell, "predict"):
        given = {k.arg: _literal(k.value) for k in call.keywords if k.arg in ("options", "slider")}
        yield first_text(call), (tuple(given.get("options") or ()), given.get("slider"))


def _texts(cell: Any) -> Iterator[str]:
    """The question of each prediction that the cell has shown."""
    for out in cell.outputs:
        if shown(out).startswith(ASKS):
            yield shown(out).removeprefix(ASKS).rpartition(" [")[0]


def _revealed(nb: Notebook) -> Iterator[tuple[str, tuple[str, dict[str, str]]]]:
    """From each question to its result and its reasons."""
    for _, out in outputs(nb):
        if shown(out).startswith(REVEALS):
            head, *lines = shown(out).splitlines()
            asked, _, result = head.removeprefix(REVEALS).rpartition(" The result: ")
            yield asked, (result.rstrip("."), dict(map(_reason, lines)))


def _reason(line: str) -> tuple[str, str]:
    option = re.match(r"- “(.*?)”: ", line)
    return (option.group(1), line[option.end() :]) if option else ("", line.removeprefix("- "))


def _literal(node: ast.expr) -> Any:
    """A literal's value; None for anything that only a run could tell."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
