"""The misconceptions that the course can detect: each wrong answer, what the learner is told, and what shows it false.

One table, made from the exercises' known wrong answers and the predictions' wrong guesses; nothing is written twice.
What shows a misconception false is of two kinds: a *case*, computed here, in which the wrong answer and the right
one differ; and an *experiment*, in `lessons/NN.toml`, which the learner can do in the notebook.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..learn import exercise
from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer
from . import contents
from .notebook import Notebook

LONGEST = 60  # characters of a value in a case
FRAME = re.compile(r"def |from |import |return \w+$|\w+(, \w+)* = \[\]")  # lines that say nothing of an idea


@dataclass(frozen=True)
class Misconception:
    """One wrong answer: where it is detected, its message, a case and an experiment against it."""

    source: str  # the id of the exercise or the prediction
    telling: str  # the wrong guess, or the line of code that goes astray
    message: str
    case: str  # "" for a prediction, or where only the message can tell
    experiment: str  # "" if nobody has written one yet


def of_exercise(asked: Exercise) -> list[Misconception]:
    """The known wrong answers of an exercise."""
    rows = []
    for wrong in asked.wrong:
        line, message = telling(wrong.source, asked.solution), exercise.judge(asked, answer_of(asked, wrong.source))[1]
        rows.append(Misconception(asked.id, f"`{line}`", message, case(asked, wrong), _experiment(asked.id)))
    return rows


def of_questions(asked: Sequence[contents.Question]) -> list[Misconception]:
    """The wrong guesses of predictions."""
    return [
        Misconception(one.id, option or "far from the result", why, "", _experiment(one.id))
        for one in asked
        for option, why in one.wrong.items()
    ]


def of_notebook(nb: Notebook) -> list[Misconception]:
    """The wrong guesses of a notebook's predictions, then the wrong answers of its exercises."""
    answers = [row for _, asked in contents.checked(nb) for row in of_exercise(asked)]
    return of_questions(contents.questions(nb)) + answers


def _experiment(id: str) -> str:
    return exercise.texts(id[:2]).get("experiments", {}).get(id, "")


def answer_of(asked: Exercise, source: str) -> Any:
    """What a piece of source defines under the exercise's name, as a learner's cell would."""
    names: dict[str, Any] = {"torch": torch}
    exec(compile(source, f"<{asked.id}>", "exec"), names)
    return names[asked.answer]


def case(asked: Exercise, wrong: WrongAnswer) -> str:
    """The first case of the exercise's own check in which a wrong answer and the solution differ, in words.

    Empty if the two give the same: then what is wrong is not the result (say, it changes what it was given).
    """
    yours, right = (answer_of(asked, source) for source in (wrong.source, asked.solution))
    if not callable(right) or not callable(yours):
        return f"answered {_short(yours)}; right is {_short(right)}"
    for (given, one), (_, other) in zip(_watched(asked, yours), _watched(asked, right), strict=False):
        apart = difference(one, other)
        if apart:
            return f"given {', '.join(map(_short, given))}, it returns {apart}"
    return ""


Call = tuple[tuple[Any, ...], Any]  # what a function was given, and what it returned


def _watched(asked: Exercise, function: Callable[..., Any]) -> list[Call]:
    """Every call that the exercise's check makes of a function."""
    calls: list[Call] = []

    @functools.wraps(function)
    def watched(*given: Any) -> Any:
        before = tuple(copy.deepcopy(x) if isinstance(x, (Tensor, dict, list)) else x for x in given)
        try:
            result = function(*given)
        except Exception as error:
            calls.append((before, error))
            raise
        calls.append((before, copy.deepcopy(result)))
        return result

    exercise.judge(asked, watched)
    return calls


def difference(one: Any, other: Any, where: str = "") -> str:
    """The first place at which two results differ, in words; "" if they are alike."""
    at = f"{where}: " if where else ""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.dim() and other.dim():
        if one.shape != other.shape:
            return f"{at}shape {tuple(one.shape)}; right is {tuple(other.shape)}"
        return difference(one.tolist(), other.tolist(), where)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{where}[{key!r}]", one[key], other[key]) for key in one]
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return "" if _alike(plain(one), plain(other)) else f"{at}{_short(one)}; right is {_short(other)}"
    return next(filter(None, (difference(a, b, place) for place, a, b in pairs)), "")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return type(one) is type(other) and bool(one == other)


def _short(value: Any) -> str:
    """A value in a few words: small tensors as lists, large ones by their shape."""
    if isinstance(value, Tensor) and value.numel() > 1:
        entries = [round(x, 3) if isinstance(x, float) else x for x in value.detach().flatten().tolist()[:9]]
        return str(entries) if value.dim() < 2 and value.numel() < 9 else f"a tensor of shape {tuple(value.shape)}"
    value = plain(value)
    if isinstance(value, Exception):
        return f"an error ({type(value).__name__})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_short, value)) + "]"
    if callable(value):
        return "a function"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def table(rows: Sequence[Misconception]) -> str:
    """The misconceptions in Markdown: for each question its experiment, and a table of the wrong answers."""
    sources = dict.fromkeys(row.source for row in rows)
    return "\n".join(_of_source(source, [row for row in rows if row.source == source]) for source in sources)


def _of_source(source: str, rows: Sequence[Misconception]) -> str:
    columns = {"wrong answer": [r.telling for r in rows], "what the learner is told": [r.message for r in rows]}
    if any(r.case for r in rows):
        columns["a case"] = [r.case for r in rows]
    table = markdown_table([*columns], zip(*columns.values(), strict=True))
    return f"**{source}.** Show it: {rows[0].experiment or 'no experiment has been written yet'}\n\n{table}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, each of its cells on one line."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def telling(source: str, solution: str) -> str:
    """The last line of a wrong answer that the solution does not have, or the one of the solution's that it lacks."""
    mine, right = ([line.strip() for line in text.strip().splitlines()] for text in (source, solution))
    own = [line for line in mine if line not in right and not FRAME.match(line)]
    lacking = [line for line in right if line not in mine and not FRAME.match(line)]
    return own[-1] if own else f"no {lacking[-1]}" if lacking else mine[-1]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
