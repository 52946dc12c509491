"""What an argument must be, and the error that says what was given instead."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .core import PruneError


def check_count(what: str, value: Any, least: int = 1) -> None:
    """Raise PruneError unless value is an integer of at least `least`.

    >>> check_count("steps", 2.5)
    Traceback (most recent call last):
    prunelab.core.PruneError: steps=2.5: give a whole number of at least 1
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PruneError(f"{what}={value!r}: give a whole number of at least {least}")


def check_number(
    what: str,
    value: Any,
    wanted: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise PruneError, which says what is wanted, unless value is a finite number within the bounds.

    >>> check_number("lr", 0, "give a positive learning rate", above=0)
    Traceback (most recent call last):
    prunelab.core.PruneError: lr=0: give a positive learning rate
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (least <= value <= most and above < value < below):
        raise PruneError(f"{what}={value!r}: {wanted}")


def known(what: str, given: Iterable[str], choices: Iterable[str]) -> tuple[str, ...]:
    """The names given, each once; PruneError that says which is not among the choices.

    >>> known("formats", ["csr", "csr"], ["dense", "csr"])
    ('csr',)
    >>> known("formats", ["csr", "bsr"], ["dense", "csr"])
    Traceback (most recent call last):
    prunelab.core.PruneError: formats=('csr', 'bsr'): give a tuple with some of ('dense', 'csr'); 'bsr' is none of them
    """
    allowed = tuple(choices)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PruneError(f"{what}={given!r}: give a tuple with some of {allowed}")
    names = tuple(given)
    for name in names:
        if name not in allowed:
            raise PruneError(f"{what}={names}: give a tuple with some of {allowed}; {name!r} is none of them")
    return tuple(dict.fromkeys(names))
