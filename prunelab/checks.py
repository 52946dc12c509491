"""What an argument must be, and the error that says what was given instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .core import PruneError


def check_count(what: str, value: Any, least: int = 1) -> None:
    """Raise PruneError unless value is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PruneError(f"{what}={value!r}: give a whole number of at least {least}")


def known(what: str, given: Iterable[str], choices: Iterable[str]) -> tuple[str, ...]:
    """The names given, each once; PruneError if one is not among the choices."""
    names, allowed = tuple(dict.fromkeys(given)), tuple(choices)
    if isinstance(given, str) or not set(names) <= set(allowed):
        raise PruneError(f"{what}={given if isinstance(given, str) else names!r}: give a tuple with some of {allowed}")
    return names


def some(names: list[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
