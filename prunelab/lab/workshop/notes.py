"""What an instructor knows of each notebook and no cell can say: `lessons/NN.toml`, one file a notebook."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "lessons"


@dataclass(frozen=True)
class Notes:
    """How to teach one notebook. `experiments`: exercise or prediction id -> what a learner does to see it."""

    teach: int = 0  # minutes in a room, discussion included; 0: nobody has said yet
    cut: str = ""  # what to leave out when time is short
    discuss: tuple[str, ...] = ()
    watch: str = ""  # what goes wrong in the room, and what to say then
    experiments: dict[str, str] = field(default_factory=dict)


@functools.cache
def of(number: str) -> Notes:
    """The notes on a notebook by its two digits; empty ones where there is no file."""
    path = FOLDER / f"{number}.toml"
    if not path.is_file():
        return Notes()
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    return Notes(**{**read, "discuss": tuple(read.get("discuss", ()))})
