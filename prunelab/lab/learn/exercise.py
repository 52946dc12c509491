"""The engine of the exercises: ask, check, hint, solve. Texts: lessons/NN.toml; checks: lessons/lesson_NN.py."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import linecache
import os
import random
import tomllib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..show import display
from . import progress

KINDS = ("read", "modify", "make")
LESSONS = Path(__file__).parents[1] / "lessons"
LONGEST = 600  # characters of an answer or an error that are worth reading


@dataclass(frozen=True)
class WrongAnswer:
    """A known wrong answer, as source, and a piece of the message that names its misconception."""

    source: str
    says: str


@dataclass(frozen=True)
class Exercise:
    """One exercise. `stub`, `solution` and each wrong source define the name `answer`, which `check` is given.

    `check` returns None if all is right, or a message that names the misconception. It calls the learner's function
    through `call`, which tells "not attempted" and "raised an error" from a wrong result.
    """

    id: str
    title: str
    kind: str
    difficulty: int  # 1 to 3 stars
    minutes: int
    task: str
    answer: str
    stub: str
    hints: tuple[str, ...]
    solution: str
    check: Callable[[Any], str | None]
    wrong: tuple[WrongAnswer, ...]
    right: tuple[str, ...]  # unusual answers that the task's words allow, each a source like `solution`
    praise: str  # what the learner now knows, in a sentence


class Unattempted(Exception):
    """The learner's function still is the stub."""


class Crashed(Exception):
    """The learner's function raised; the message says what, and on which line."""


def call(function: Any, *arguments: Any) -> Any:
    """The result of the learner's function; Unattempted for `...`, Crashed for None or an exception in it."""
    result = call_for_any(function, *arguments)
    if result is None:
        raise Crashed("your function gave back None. Does every way through it end in a `return` with a value?")
    return result


def call_for_any(function: Any, *arguments: Any) -> Any:
    """As `call`, where None is an answer."""
    if not callable(function):
        raise Crashed(f"This exercise checks a function, and it was given {_kind(function)}: pass the function's name.")
    try:
        result = function(*arguments)
    except NotImplementedError:
        raise Unattempted from None
    except (Exception, SystemExit) as error:
        raise Crashed(_where(function, error)) from None
    if result is Ellipsis:
        raise Unattempted
    return result


def numbers() -> list[str]:
    """The two digits of every lesson, in order; there may be gaps."""
    return sorted(path.stem for path in LESSONS.glob("[0-9][0-9].toml"))


def lesson(number: str) -> ModuleType:
    """A lesson's module, lessons/lesson_NN.py."""
    return importlib.import_module(f"..lessons.lesson_{number}", __package__)


@functools.cache
def texts(number: str) -> dict[str, Any]:
    """A lesson's data, lessons/NN.toml: its teaching notes, and the texts of its exercises; empty without the file."""
    path = LESSONS / f"{number}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def registry() -> dict[str, Exercise]:
    """Every exercise of the course by id."""
    return {one.id: one for number in numbers() for one in of_lesson(number)}


@functools.cache
def of_lesson(number: str) -> tuple[Exercise, ...]:
    """The exercises of a lesson: the texts of its data, each with the function of its module that `check` names."""
    return tuple(_exercise(entry, lesson(number)) for entry in texts(number).get("exercises", ()))


def _exercise(entry: dict[str, Any], module: ModuleType) -> Exercise:
    """TOML ends a text of several lines with a line break, which is not part of it."""
    made: dict[str, Any] = {key: value.strip("\n") if isinstance(value, str) else value for key, value in entry.items()}
    made["check"] = getattr(module, entry["check"])
    made["wrong"] = tuple(WrongAnswer(one["source"].strip("\n"), one["says"]) for one in entry["wrong"])
    made["right"] = tuple(source.strip("\n") for source in entry.get("right", ()))
    return Exercise(**{**made, "hints": tuple(entry["hints"])})


def get(id: str) -> Exercise:
    """An exercise by its id; an unknown one raises KeyError with those there are."""
    every = {one.id: one for one in of_lesson(id[:2])}
    if id not in every:
        raise KeyError(f"no exercise {id!r}; there are {', '.join(registry())}")
    return every[id]


def by_lesson() -> dict[str, set[str]]:
    """The ids of each notebook's exercises, by its two digits; loads no lesson's module."""
    return {number: {entry["id"] for entry in texts(number).get("exercises", ())} for number in numbers()}


def exercise(id: str) -> None:
    """Show an exercise: its task, how hard and how long, and its hints and a solution, folded each behind the last."""
    asked = get(id)
    stars = "★" * asked.difficulty + "☆" * (3 - asked.difficulty)
    head, task = f"Exercise {id}: {asked.title} ({asked.kind}, {stars}, {asked.minutes} min)", asked.task.strip()
    level = f'<span role="img" aria-label="difficulty {asked.difficulty} of 3">{stars}</span>'
    card = display.box(f"<strong>{escape(head).replace(stars, level)}</strong>{display.prose(task)}")
    display.show(f"{head}\n{task}", html=card + _folded(asked))


def check(id: str, answer: Any) -> None:
    """Check an answer and say, calmly, whether it is right, and if not which idea went astray."""
    asked = get(id)
    with _put_back() as changed:
        verdict, message = judge(asked, answer)
    if verdict != "unattempted":
        record(id, verdict == "right")
    if changed:
        message += f" (Your answer changed {' and '.join(changed)}; it is put back as it was.)"
    mark, edge = {"right": ("✓", display.GOOD), "wrong": ("✗", display.WARN)}.get(verdict, ("○", display.LINE))
    text = f"{mark} {id}: {message if len(message) <= 4 * LONGEST else message[: 4 * LONGEST] + ' ...'}"
    end = display.box(_ending(id[:2]), display.GOOD) if verdict == "right" else ""
    display.show(text, html=display.box(display.prose(text), edge) + display.yours(end))


def _ending(notebook: str) -> str:
    """What is left of a notebook, or that it is finished and what comes next."""
    left = sorted(by_lesson()[notebook] - progress.current().solved())
    if left:
        return f"Still open in this notebook: {', '.join(left)}."
    later = [number for number in numbers() if number > notebook]
    after = f"Next: notebook {later[0]}." if later else "You have come to the end of the course."
    return f"<strong>Notebook {notebook} is finished: every exercise of it is solved.</strong> {after}"


def judge(asked: Exercise, answer: Any) -> tuple[str, str]:
    """("right" | "wrong" | "unattempted", message) for an answer; shows and stores nothing."""
    try:
        if answer is None or answer is Ellipsis:
            raise Unattempted
        message = asked.check(answer)
    except Unattempted:
        return "unattempted", "not attempted yet. Put your answer in place of the `...`, and run the cell again."
    except Crashed as crash:
        return "wrong", str(crash)
    except Exception as error:  # the check could not make sense of the answer: its message, never our traceback
        return "wrong", (
            f"the check could not read your answer, {_kind(answer)} ({_said(error)}). "
            f"`lab.hint({asked.id!r})` shows what form it takes."
        )
    return ("right", f"right. {asked.praise}") if message is None else ("wrong", message)


_levels: dict[str, int] = {}  # hints shown in this kernel


def hint(id: str, level: int | None = None) -> None:
    """Show the next hint (or the hints up to `level`); each says a little more."""
    asked = get(id)
    wanted = _levels.get(id, 0) + 1 if level is None else level
    if wanted < 1:
        raise ValueError(f"level={level!r}: hints count from 1 to {len(asked.hints)}")
    shown = _levels[id] = min(wanted, len(asked.hints))
    lines = [f"Hint {n} of {len(asked.hints)}: {text}" for n, text in enumerate(asked.hints[:shown], 1)]
    if shown == len(asked.hints):
        lines.append(f"There are no more hints; `lab.solution({id!r})` shows a solution.")
    display.say(*lines)


def solution(id: str) -> None:
    """Show a solution's source."""
    source = get(id).solution
    html = f"A solution of {id}, one of several:{display.code_block(source)}"
    display.show(f"A solution of {id}:\n{source.strip()}", html=html)


def record(id: str, solved: bool) -> None:
    """Count one more try at an exercise; what was solved once stays solved."""

    def counted(before: Any) -> dict[str, Any]:
        done = isinstance(before, dict) and before.get("solved") is True
        return {"solved": solved or done, "tries": progress.tries(before) + 1}

    progress.current().update("exercises", id, counted)


def tries(id: str) -> int:
    """How often an exercise was tried."""
    return progress.tries(progress.current().read()["exercises"].get(id))


@contextlib.contextmanager
def _put_back() -> Iterator[list[str]]:
    """What a learner's function may change for all that comes after it is put back; the list says what it was."""
    changed: list[str] = []
    before = {what: get() for what, (get, _put) in _STATE.items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield changed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for what, (get, put) in _STATE.items():
            if get() != before[what]:
                put(before[what])
                changed.append(what)
        if printed.getvalue():
            print(printed.getvalue()[:LONGEST], end="")


_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the working folder": (os.getcwd, os.chdir),
}


def _folded(asked: Exercise) -> str:
    """The hints and the solution, each behind the one before; they open without a kernel, and by keyboard."""
    html = display.folded("A solution, one of several", display.code_block(asked.solution))
    for n in range(len(asked.hints), 0, -1):
        html = display.folded(f"Hint {n} of {len(asked.hints)}", display.prose(asked.hints[n - 1]) + html)
    return html


def _kind(value: Any) -> str:
    name = type(value).__name__[:60] or "object without a name"
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def _said(error: BaseException) -> str:
    """An error's name and words, if it has any that can be read."""
    try:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
    except Exception:  # its own __str__ raised
        text = type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _where(function: Any, error: BaseException) -> str:
    """What was raised, and the last line of the learner's own code that led there."""
    said = _said(error)
    home = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == home]
    if not own or own[-1].lineno is None:
        return f"your function stopped with {said}. Try it on a small tensor of your own first."
    line = (own[-1].line or linecache.getline(own[-1].filename, own[-1].lineno)).strip()
    code = f": `{line}`" if line else ""
    return f"your function stopped with {said} on line {own[-1].lineno}{code}."
