"""What the learner has done so far: one JSON file of theirs, which they can see, move and reset."""

from __future__ import annotations

import copy
import json
import os
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import platformdirs

from ...files import LARGEST, alone, plain, read_whole, write_whole
from ..show import display

SCHEMA = 2
BACKUPS = (".backup.json", ".corrupt.json", ".first-edition.json")
SECTIONS = ("predictions", "exercises", "scoreboard")
EXAM = "-exam"  # how the id of one ends: its attempts outlast a reset
MOST_TRIES = 10**9  # who says more did not count them
LARGEST_ENTRY = 1 << 20  # bytes; the course's own have a few hundred
LOCK_SECONDS = 5.0  # another kernel holds the file for milliseconds; longer means that something is wrong

# The file knows a lesson by its name, so that a new number moves nothing.
LESSONS = {
    "00": "start_here",
    "01": "which_weights",
    "02": "why_not_faster",
    "03": "when_zeros_pay",
    "04": "equal_shares",
    "05": "touch_last",
    "06": "miss_which_filter",
    "07": "large_or_growing",
    "08": "large_and_growing",
    "09": "what_returns",
    "10": "best_way_back",
    "11": "what_forgot",
    "12": "how_many_heads",
    "13": "lose_layers",
    "14": "llama_weights",
    "15": "thin_or_short",
    "16": "prune_yours",
}
FIRST_EDITION = {"00": "00", "01": "01", "02": "02", "03": "04", "04": "05", "05": "07", "06": "09", "07": "12",
                 "08": "13", "09": "16"}  # fmt: skip


class Store:
    """The progress file of one folder. What can't be read or written is said once, in words; only `reset` raises.

    A change that can't be written waits in `pending`, counts for whoever reads, and is written with the next one. One
    that can't be made, or makes what the file can't hold, is dropped and said.
    """

    def __init__(self, folder: Path):
        self.path = folder / "progress.json"
        self.pending: list[Callable[[dict[str, Any]], None]] = []
        self.seen = _empty()  # as the file last said
        self.said = False

    def read(self) -> dict[str, Any]:
        """Everything recorded so far, by today's ids; empty sections where nothing is."""
        try:
            content = self._load()
        except OSError as error:
            content = self._cannot(error)
        return self._applied(content)

    def solved(self) -> set[str]:
        """The ids of the exercises that are solved."""
        kept = self.read()["exercises"]
        return {id for id, one in kept.items() if isinstance(one, dict) and one.get("solved") is True}

    def record(self, section: str, key: str, value: Any) -> None:
        """Put one entry into a section, keeping what other notebooks have written meanwhile."""
        self.update(section, key, lambda _old: value)

    def update(self, section: str, key: str, change: Callable[[Any], Any]) -> None:
        """Put `change(entry)` in the place of an entry (None if there is none), read and written under one lock."""

        def put(content: dict[str, Any]) -> None:
            content[section] |= checked({key: change(content[section].get(key))})

        self.pending.append(put)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with alone(self.path, LOCK_SECONDS):
                content = self._applied(self._load())
                self._write(content)
        except OSError as error:  # filelock's Timeout is one
            self._cannot(error)
        else:
            self.pending, self.seen = [], content

    def reset(self) -> Path | None:
        """Move the file to a backup beside it; its new place, or None if there was nothing. Exams' attempts go on.

        OSError if it can't be moved; it then is as it was.
        """
        try:
            self.path.stat()  # `exists` takes what can't be looked at for absent, since Python 3.14
        except FileNotFoundError:
            self.pending, self.seen = [], _empty()
            return None
        with alone(self.path, LOCK_SECONDS):
            before = self.read()
            taken = {id: tries(one) for id, one in before["exercises"].items() if id.endswith(EXAM)}
            exams = {id: {"solved": False, "tries": count} for id, count in taken.items() if count}
            fresh = _empty() | {"learner": learner(before), "exercises": exams}
            kept = self._move("backup")
            try:
                self._write(fresh)
            except OSError:
                kept.replace(self.path)
                raise
            self.pending, self.seen = [], fresh
        return kept

    def _applied(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content with the changes that wait; one that can't be made waits no longer, and takes no other along."""
        for change in tuple(self.pending):
            try:
                change(content)
            except Exception as error:
                self.pending.remove(change)
                display.notice(f"Something could not be recorded: {error}. What was recorded before is kept.")
        return content

    def _load(self) -> dict[str, Any]:
        """What the file says; one that is damaged is set aside. OSError if it can't be read or is a newer one."""
        try:
            content = parse(read_whole(self.path, LARGEST))
        except FileNotFoundError:
            content = _empty()
        except ValueError as error:
            content = self._set_aside(error)
        self.seen = content
        return copy.deepcopy(content)

    def _write(self, content: dict[str, Any]) -> None:
        kept = self.path.with_name("progress.first-edition.json")
        if self.path.exists() and not kept.exists():
            before = read_whole(self.path, LARGEST)
            if _schema(plain(before)) == 1:
                write_whole(kept, before, private=True)  # a first edition can't read what is written now
        named = {s: {_renamed(k, LESSONS): v for k, v in content[s].items()} for s in SECTIONS}
        content["learner"] = learner(content) or uuid.uuid4().hex  # so that a class counts nobody twice
        text = json.dumps(content | named | {"schema": SCHEMA}, indent=1, ensure_ascii=False) + "\n"
        write_whole(self.path, text.encode(), private=True)

    def _cannot(self, why: object) -> dict[str, Any]:
        if not self.said:
            self.said = True
            display.notice(
                f"Your progress can't be kept in {self.path}: {why}. The course works as always, but forgets your "
                "answers when the kernel stops, unless it can be written later. To keep them, set the environment "
                "variable PRUNELAB_HOME to a folder you can write to and restart."
            )
        return copy.deepcopy(self.seen)

    def _set_aside(self, error: Exception) -> dict[str, Any]:
        kept = self._move("corrupt")
        display.notice(
            f"The progress file could not be read ({error}). It is kept as {kept}, and a new one begins; nothing else "
            "is affected. If you can mend it, put it back under its old name."
        )
        return _empty()

    def _move(self, reason: str) -> Path:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        kept = self.path.with_name(f"progress.{stamp}.{reason}.json")
        os.replace(self.path, kept)
        return kept


def parse(text: bytes) -> dict[str, Any]:
    """The content of a progress file by today's ids; a first-edition file's ids are brought over.

    ValueError if it is none, OSError if a newer prunelab wrote it.
    """
    content = plain(text)
    version = _schema(content)
    if version is not None and version > SCHEMA:
        raise OSError(f"a newer prunelab wrote it (schema {version}); update this one to use it")
    if version not in (1, SCHEMA) or not all(isinstance(content.get(s, {}), dict) for s in SECTIONS):
        raise ValueError("it is not a progress file of this course")
    today = FIRST_EDITION if version == 1 else {name: number for number, name in LESSONS.items()}
    known = {s: {_renamed(k, today): v for k, v in content.get(s, {}).items()} for s in SECTIONS}
    return content | known | {"schema": SCHEMA}


def checked(entries: dict[str, Any]) -> Any:
    """Entries of a section as they will be read again; ValueError if the file, which holds JSON, can't hold them.

    >>> checked({"00-1": (1, 2.5)})
    {'00-1': [1, 2.5]}
    """
    try:
        data = json.dumps([entries]).encode()  # as deep as its section lies in the file
        if len(data) > LARGEST_ENTRY:
            raise ValueError("it is too large")
        return plain(data)[0]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it can't be kept in the progress file ({error})") from error


def tries(entry: Any) -> int:
    """How often an exercise was tried, by its entry; what is no such count is none.

    >>> tries({"tries": 2}), tries({"tries": None}), tries("damaged")
    (2, 0, 0)
    """
    found = entry.get("tries") if isinstance(entry, dict) else None
    return found if type(found) is int and found in range(MOST_TRIES) else 0


def learner(content: dict[str, Any]) -> str | None:
    """The id that was made for the learner, or None if the file has none, or something else in its place."""
    found = content.get("learner")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found) else None


def _schema(content: Any) -> int | None:
    version = content.get("schema") if isinstance(content, dict) else None
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def _renamed(key: str, names: dict[str, str]) -> str:
    """An id with its lesson exchanged, if it is known: "03-1" -> "04-1", "00 dense" -> "start_here dense"."""
    lesson, rest = re.fullmatch(r"(\w*)(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    return names.get(lesson, lesson) + rest


_stores: dict[Path, Store] = {}


def current() -> Store:
    """The store in PRUNELAB_HOME, or in the system's place for a program's data."""
    place = os.environ.get("PRUNELAB_HOME") or platformdirs.user_data_dir("prunelab", appauthor=False)
    folder = Path(os.path.expanduser(place))  # a "~" of nobody's is a folder's name
    return _stores.setdefault(folder, Store(folder))


def progress() -> None:
    """Show what is recorded, and where the file lies."""
    place = current()
    content = place.read()
    solved = place.solved()
    waits = " (not yet: it can't be written)" * bool(place.pending)
    own = [
        f"Exercises solved: {', '.join(sorted(solved)) or 'none yet'}",
        f"Exercises tried: {', '.join(sorted(content['exercises'].keys() - solved)) or 'none'}",
        f"Predictions locked in: {', '.join(sorted(content['predictions'])) or 'none yet'}",
        f"Scoreboard rows: {len(content['scoreboard'])}",
        f"Kept in: `{place.path}`{waits}",
    ]
    display.say("Your progress. `lab.reset(confirm=True)` starts afresh.", own=own)


def reset(confirm: bool = False) -> None:
    """Start afresh: move the progress file to a backup beside it (nothing is lost)."""
    if not confirm:
        display.say("Nothing was reset. `lab.reset(confirm=True)` moves your progress to a backup and starts afresh.")
        return
    try:
        kept = current().reset()
    except OSError as error:
        display.notice(f"The progress file could not be moved ({error}); it is as it was.")
        return
    fresh = "no answers, no solved exercises, an empty scoreboard. Attempts at the exam still count."
    text = f"A fresh start, as soon as you restart the kernel: {fresh}"
    where = f"The old progress is kept as `{kept}`." if kept else "There was nothing to keep."
    display.say(text, own=[where])


def _empty() -> dict[str, Any]:
    return {"schema": SCHEMA} | {section: {} for section in SECTIONS}
