"""What the learner has done so far: one JSON file of theirs, which they can see, move and reset."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from ...files import write_whole
from ..show import display

SCHEMA = 1
SECTIONS = ("predictions", "exercises", "scoreboard")
LOCK_SECONDS = 5.0  # another kernel holds the file for milliseconds; longer means that something is wrong


class Store:
    """The progress file of one folder. It never raises: what can't be read or written is said once, in words."""

    def __init__(self, folder: Path):
        self.path = folder / "progress.json"
        self.memory: dict[str, Any] | None = None  # holds the content once the file can't
        self.seen = _empty()  # as the file last said

    def read(self) -> dict[str, Any]:
        """Everything recorded so far; empty sections where nothing is."""
        if self.memory is not None:
            return copy.deepcopy(self.memory)
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return _empty()
        except (OSError, UnicodeDecodeError) as error:
            return self._set_aside(error) if isinstance(error, UnicodeDecodeError) else self._fall_back(error)
        try:
            return self._checked(json.loads(text))
        except ValueError as error:  # JSONDecodeError is one
            return self._set_aside(error)

    def record(self, section: str, key: str, value: Any) -> None:
        """Put one entry into a section, keeping what other notebooks have written meanwhile."""

        def put(content: dict[str, Any]) -> None:
            content[section][key] = value

        self._change(put)

    def reset(self) -> Path | None:
        """Move the file to a backup beside it; its new place, or None if there was nothing."""
        self.memory, self.seen = None, _empty()
        try:
            return self._move("backup") if self.path.exists() else None
        except OSError as error:
            display.notice(f"The progress file could not be moved ({error}); it is as it was.")
            return None

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        if self.memory is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS):
                    content = self.read()
                    change(content)
                    if self.memory is None:
                        self._write(content)
            except (OSError, Timeout) as error:
                self._fall_back(error)
        if self.memory is not None:
            change(self.memory)

    def _write(self, content: dict[str, Any]) -> None:
        write_whole(self.path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def _checked(self, content: Any) -> dict[str, Any]:
        version = content.get("schema") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            return self._fall_back(f"a newer prunelab wrote it (schema {version}); update this one to use it")
        if version != SCHEMA or not all(isinstance(content.get(s, {}), dict) for s in SECTIONS):
            raise ValueError("it is not a progress file of this course")
        self.seen = _empty() | content
        return copy.deepcopy(self.seen)

    def _fall_back(self, why: object) -> dict[str, Any]:
        if self.memory is None:
            self.memory = self.seen
            display.notice(
                f"Your progress can't be kept in {self.path}: {why}. The course works as always, but forgets your "
                "answers when the kernel stops. To keep them, set the environment variable PRUNELAB_HOME to a folder "
                "you can write to and restart."
            )
        return copy.deepcopy(self.memory)

    def _set_aside(self, error: Exception) -> dict[str, Any]:
        try:
            kept = self._move("corrupt")
        except OSError as problem:
            return self._fall_back(problem)
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


_stores: dict[Path, Store] = {}


def current() -> Store:
    """The store in PRUNELAB_HOME, or in the system's place for a program's data."""
    folder = Path(os.environ.get("PRUNELAB_HOME") or platformdirs.user_data_dir("prunelab", appauthor=False))
    return _stores.setdefault(folder, Store(folder))


def progress() -> None:
    """Show what is recorded, and where the file lies."""
    place = current()
    content = place.read()
    solved = sorted(k for k, v in content["exercises"].items() if v.get("solved"))
    tried = sorted(set(content["exercises"]) - set(solved))
    rows = [
        ("Exercises solved", ", ".join(solved) or "none yet"),
        ("Exercises tried", ", ".join(tried) or "none"),
        ("Predictions locked in", ", ".join(sorted(content["predictions"])) or "none yet"),
        ("Scoreboard rows", str(len(content["scoreboard"]))),
        ("Kept in", "memory only" if place.memory is not None else str(place.path)),
    ]
    items = "".join(f"<li><strong>{escape(a)}</strong>: {escape(b)}</li>" for a, b in rows)
    fixed = "Your progress is listed here when the cell runs in Jupyter. `lab.reset(confirm=True)` starts afresh."
    live = display.panel_html(display.box(f'<ul style="margin: 0; padding-left: 1.2em">{items}</ul>'))
    display.show(fixed, html=display.box(display.prose(fixed)), widget=live)


def reset(confirm: bool = False) -> None:
    """Start afresh: move the progress file to a backup beside it (nothing is lost)."""
    if not confirm:
        text = "Nothing was reset. `lab.reset(confirm=True)` moves your progress to a backup and starts afresh."
        display.show(text, html=display.box(display.prose(text)))
        return
    kept = current().reset()
    text = "A fresh start: no answers, no solved exercises, an empty scoreboard."
    where = f" The old progress is kept as `{kept}`." if kept else " There was nothing to keep."
    live = display.panel_html(display.box(display.prose(text + where)))
    display.show(text, html=display.box(display.prose(text)), widget=live)


def _empty() -> dict[str, Any]:
    return {"schema": SCHEMA} | {section: {} for section in SECTIONS}
