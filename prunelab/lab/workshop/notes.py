"""What an instructor knows of each notebook and no cell can say: it stands in `lessons/NN.toml`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from ..learn import exercise


@dataclass(frozen=True)
class Notes:
    """How to teach one notebook. `experiments`: exercise or prediction id -> what a learner does to see it."""

    teach: int = 0  # minutes in a room, discussion included; 0: nobody has said yet
    cut: str = ""  # what to leave out when time is short
    discuss: tuple[str, ...] = ()
    watch: str = ""  # what goes wrong in the room, and what to say then
    experiments: dict[str, str] = field(default_factory=dict)
    because: tuple[dict[str, str], ...] = ()  # each conclusion (so), its rival, the control, what was found


@functools.cache
def of(number: str) -> Notes:
    """The notes on a notebook by its two digits; empty ones where there is no file."""
    if number not in exercise.numbers():
        return Notes()
    told = {key: value for key, value in exercise.texts(number).items() if key not in ("exercises", "numbers")}
    lists = {key: tuple(told.get(key, ())) for key in ("discuss", "because")}
    return Notes(**{**told, **lists})
